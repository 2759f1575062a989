"""Do learned masks beat hand-made ones at equal sparsity? Masked-language modelling, small model.

    python -m benchmarks.learned_masks --seed 0      # one seed, resumable; repeat with others
    python -m benchmarks.learned_masks --report      # tables and plots of all seeds so far

For each seed a small ModernBERT is trained on real text, Python's own English, with dense
attention. (Rotary positions, no windows of its own. A BERT of this size, with learned positions,
does not leave the plateau of token frequencies in so few steps: no mask would matter to it.) From
there every contender trains the same number of further steps, on the same batches:

* hand-made masks of (nearly) the same sparsity, dense, dense without the diagonal, random masks:
  the mask fixed;
* DAM: three quarters of the steps search for the mask, the rest trains with what was found ("one
  budget"). Then, as in the paper, the found mask is trained with anew from the dense model, like a
  hand-made one: that is its loss in the first table, of the mask and not of its search.

One mask for each head, shared by all layers, as in the paper. The loss is that of a fixed
validation set, attention dropout off, with the hard mask through `sparse_attention`. Beside it:
the executed fraction of the mask's plan (objective "area"), and after the search the soft and the
hard loss before any training with the fixed mask. Importance of the four groups of positions is
followed in a run of its own with the paper's soft mask after the softmax (gate "post", no noise).

The loop, its learning rates and the validation are those of `sparsebert learn`. Rows of 2026-11-23
and before are of a loop whose rate fell more slowly; their losses are lower, with and without
masks: compare rows of one date.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.harness.origin import RESULTS, ROOT
from benchmarks.learned_masks.learned_masks_report import write_report
from benchmarks.learned_masks.protocol import QUICK, Setup, row_file
from sparsebert.machine import threads_for

WORK = ROOT / "out" / "learned_masks"


def gather(work: Path, results: Path) -> None:
    """Put the rows of all seeds into the results; without any, these stay as they are."""
    files = sorted(work.glob("seed*.csv"))
    if files:
        rows = [row for file in files for row in row_file(file).read()]
        row_file(results / "learned_masks.csv").write(rows)


def main() -> int:
    """Run a seed, or report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learned_masks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--threads", type=int, help="of torch (default: all, fewer on a busy machine)"
    )
    parser.add_argument("--quick", action="store_true", help="a few steps: does it run at all?")
    parser.add_argument("--report", action="store_true", help="only make the report")
    arguments = parser.parse_args()
    if arguments.report:
        gather(WORK, RESULTS)
        print(write_report(RESULTS).read_text(encoding="utf-8"), end="")
        return 0
    from benchmarks.learned_masks.experiment import run_seed  # needs transformers

    with threads_for(given=arguments.threads) as sentence:
        print(sentence, flush=True)
        if arguments.quick:
            run_seed(QUICK, arguments.seed, WORK / "quick")
        else:
            run_seed(Setup(), arguments.seed, WORK, RESULTS / "learned_masks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
