"""Do learned masks beat hand-made ones at equal sparsity? A real encoder, and the paper's shape.

    python -m benchmarks.learned_masks --hours 2                 # all tasks, five seeds, resumable
    python -m benchmarks.learned_masks --task r8 --seeds 0 1     # one of them, some seeds
    python -m benchmarks.learned_masks --report                  # tables and plots of all rows

Tasks:

* r8: MiniLM fine-tuned on Reuters R8 (N = 128);
* mlm: masked-language modelling at the paper's shape (N = 128, 12 heads): a small ModernBERT that
  is trained on Python's own English with dense attention, and trained on with each mask;
* embeddings-N: MiniLM distilled into its sparse self, without labels, on passages of presidents'
  messages and Python's documentation (N = 128, 256 or 512); how far its embeddings of other texts
  of these two drift from the dense ones, and which neighbours stay.

Of a seed, every contender starts from the same dense model, sees the same batches and trains for
the same number of steps. A learned mask is found by a search of its own from that model; then it
is trained with anew, like a hand-made one (column `loss`). Column `budget_loss` has search and
training in one budget: the rest of the steps goes on from the search. The batches by which a warm
start scores the positions (forward and backward) come on top of either.

Beside the learned masks and the hand-made patterns stand those of the positions with the highest
scores (average attention, attention times gradient, squared effect of dropping), the masks that
the searches start from, and the dense model less some of every row. `protocol.py` lists them all;
jobs run in its order, seed by seed, each written as soon as it is done.

Needs the real text: make text.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks.harness.options import duration
from benchmarks.harness.origin import RESULTS, ROOT
from benchmarks.learned_masks.protocol import SETUPS, SPARSITIES, row_file
from sparsebert.machine import threads_for

WORK = ROOT / "out" / "learned_masks"
_SEEDS = (0, 1, 2, 3, 4)


def gather(work: Path, results: Path) -> None:
    """Put the rows of all tasks and seeds into the results, beside those of elsewhere.

    Rows of this folder take the place of committed ones of the same task and seed.
    """
    target = row_file(results / "learned_masks.csv")
    rows = {_key(row): row for row in (target.read() if target.path.exists() else [])}
    for path in sorted(work.glob("*-seed*.csv")):
        rows |= {_key(row): row for row in row_file(path).read()}
    target.write(rows[key] for key in sorted(rows))


def _key(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in ("task", "asked", "contender", "seed", "step"))


def main() -> int:
    """Run what is left of the tasks, or report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learned_masks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", choices=tuple(SETUPS), help="default: all, one after the other")
    parser.add_argument("--seeds", type=int, nargs="+", default=_SEEDS)
    parser.add_argument("--sparsities", type=float, nargs="+", default=SPARSITIES)
    parser.add_argument("--hours", type=duration, help="begin no job after so many hours")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--threads", type=int, help="of torch (default: all, fewer on a busy machine)"
    )
    parser.add_argument("--work", type=Path, default=WORK, help="folder of what is not finished")
    parser.add_argument("--report", action="store_true", help="only make the report")
    arguments = parser.parse_args()
    if arguments.report:
        from benchmarks.learned_masks.learned_masks_report import write_report

        gather(arguments.work, RESULTS)
        print(write_report(RESULTS).read_text(encoding="utf-8"), end="")
        return 0
    names = [arguments.task] if arguments.task else list(SETUPS)
    until = time.monotonic() + 3600.0 * (arguments.hours or float("inf"))
    goes_on = f"what is finished is in {arguments.work}; the same command goes on from there"
    try:
        with threads_for(given=arguments.threads) as sentence:
            print(sentence, flush=True)
            for name in names:
                _run(name, arguments, until)
    except ModuleNotFoundError as error:  # says what to install
        parser.exit(1, f"learned_masks: {error}\n")
    except OSError as error:  # a disk that is full, a folder that cannot be written
        parser.exit(1, f"learned_masks: {error}; {goes_on}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"\nlearned_masks: stopped; {goes_on}\n")
    return 0


def _run(name: str, arguments: argparse.Namespace, until: float) -> None:
    """The jobs of a task, job by job over the seeds: what is there at any time can be compared."""
    from benchmarks.learned_masks.experiment import run_seed  # needs transformers
    from sparsebert.learn.training import quieten_transformers

    quieten_transformers()
    left = dict.fromkeys(arguments.seeds, 1)
    while any(left.values()) and time.monotonic() < until:
        for seed in arguments.seeds:
            left[seed] = run_seed(
                SETUPS[name], seed, arguments.work, device=arguments.device,
                masks=RESULTS / "learned_masks" if seed == 0 else None,
                sparsities=tuple(arguments.sparsities), until=until, most=1,
            )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
