"""``sparsebert learn``: learn a mask on text, compare it with hand-made ones, and report."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from sparsebert.cli.errors import OK, UsageError
from sparsebert.cli.options import Commands, add_command, positive, share
from sparsebert.learn.settings import (
    AGAINST,
    ATTENTION,
    FRESH,
    HAND_MADE,
    MODEL_RATE,
    PLANTED,
    QUICK,
    Settings,
)
from sparsebert.machine import threads_for

_TEXT = ("text", "csv", "dataset", "column")
_PENALTIES = ("l1", "expected_l1", "executed_area", "plan")
_LEAST = 32  # positions of the planted task
_EXAMPLES = """\
  sparsebert learn --quick
  sparsebert learn --sparsity 0.9 --seq-len 512 --batch-size 4 -o out/longer
  sparsebert learn --csv reviews.csv --column body --model my-bert --learning-rate 5e-5

Ctrl-C saves and stops; the same command goes on from there, and a finished run is only reported
again. Without a text it takes Python's own documentation; nothing is downloaded. --quick needs no
text: its task has planted positions, so that the right mask is known. Needs
  pip install 'sparsebert[train,plot]'
"""


def register(commands: Commands) -> None:
    """Add the command to the parser."""
    learn = add_command(
        commands,
        "learn",
        run_learn,
        "learn a mask on text, compare it with hand-made masks, and report",
        _EXAMPLES,
    )
    text = learn.add_mutually_exclusive_group()
    text.add_argument("--text", metavar="FILE", help="a UTF-8 text file")
    text.add_argument("--csv", metavar="FILE", help="a CSV file with a heading line")
    text.add_argument(
        "--dataset", metavar="FOLDER", help="a HuggingFace dataset that save_to_disk wrote"
    )
    learn.add_argument(
        "--column", metavar="NAME", help="the text column of the CSV file or dataset"
    )
    learn.add_argument(
        "--model", metavar="FOLDER",
        help="a transformers model and its tokenizer (default: a small fresh ModernBERT)",
    )  # fmt: skip
    for option, metavar, words in (
        ("--layers", "L", "of the fresh model (default: {})"),
        ("--hidden-size", "E", "its width (default: {})"),
        ("--heads", "H", "its heads (default: {})"),
        ("--vocab-size", "V", "its tokens (default: {})"),
        ("--seq-len", "N", "tokens in a block, and rows of the mask (default: {})"),
        ("--steps", "S", "of the dense training (default: {})"),
        ("--search-steps", "S", "of the search for the mask (default: {})"),
        ("--tune-steps", "S", "with each mask fixed (default: {})"),
        ("--batch-size", "B", "blocks in a batch (default: {})"),
        ("--block-size", "K", "edge of a block, for --structure block (default: {})"),
    ):
        learn.add_argument(
            option,
            type=positive,
            metavar=metavar,
            help=words.format(getattr(Settings, option[2:].replace("-", "_"))),
        )
    learn.add_argument(
        "--structure", choices=("full", "toeplitz", "block"),
        help="what shares a parameter: nothing, a distance, a block (default: toeplitz)",
    )  # fmt: skip
    learn.add_argument(
        "--per-layer",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="a mask for each layer (default), or one for all",
    )
    learn.add_argument(
        "--penalty", choices=_PENALTIES,
        help="draw masks at random, and make them sparse, or cheap to run, by this penalty "
        "(default: none; every mask keeps the likeliest positions)",
    )  # fmt: skip
    learn.add_argument(
        "--sparsity", type=share, metavar="SHARE",
        help=f"of the masks, above 0 and below 1 (default: {Settings.sparsity})",
    )  # fmt: skip
    learn.add_argument(
        "--learning-rate", type=float, metavar="R",
        help=f"of the model (default: {Settings.learning_rate}; with --model 1e-4)",
    )  # fmt: skip
    learn.add_argument(
        "--against", nargs="*", metavar="NAME",
        help=f"masks to compare with: {' '.join(HAND_MADE)}, or {ATTENTION}, the positions with "
        f"most of it (default: {' '.join(AGAINST)})",
    )  # fmt: skip
    learn.add_argument("--seed", type=int, help="of weights, batches and masks (default: 0)")
    learn.add_argument(
        "--quick", action="store_true", help="a planted task whose right mask is known"
    )
    learn.add_argument(
        "--threads", type=positive, metavar="N",
        help="CPU threads (default: torch's, fewer on a busy machine or for a tiny model)",
    )  # fmt: skip
    learn.add_argument(
        "-o", "--output", default="out/learn", metavar="FOLDER", help="(default: %(default)s)"
    )


def run_learn(arguments: argparse.Namespace) -> int:
    """Run what is left to run, and report."""
    settings = _settings(arguments)
    try:
        from sparsebert.learn.run_learn import run
    except ImportError as error:
        raise UsageError(
            f"learn needs more packages ({error}): pip install 'sparsebert[train,plot]'"
        ) from error
    options = {"given": arguments.threads, "keep": arguments.embedded}
    try:
        with threads_for(work=settings.work, **options) as machine:
            print(machine, file=sys.stderr, flush=True)
            outcome = run(settings, Path(arguments.output), machine)
    except (ModuleNotFoundError, TypeError, ValueError) as error:
        raise UsageError.of(error, arguments) from error
    print(f"\nReport, mask, model and pictures: {outcome.page}\n\n{outcome.conclusion}")
    return OK


def _settings(arguments: argparse.Namespace) -> Settings:
    """The settings that the options make, checked as far as that needs no text.

    Raises:
        UsageError: options that do not go together.
    """
    fields = [field.name for field in dataclasses.fields(Settings)]
    given = {name: getattr(arguments, name, None) for name in fields}
    given = {name: value for name, value in given.items() if value is not None}
    defaults = dict(QUICK) if arguments.quick else {}
    if arguments.quick:
        own = [name for name in (*_TEXT, "model", "steps", *FRESH) if name in given]
        if own:
            raise UsageError(
                f"--{own[0].replace('_', '-')} does not go with --quick, whose task needs no text "
                "and whose model no training; drop one of them"
            )
    if "model" in given:
        own = [name for name in FRESH if name in given]
        if own:
            option = own[0].replace("_", "-")
            raise UsageError(
                f"--{option} is for a fresh model, but --model brings its own; drop it"
            )
        defaults["learning_rate"] = MODEL_RATE
    given = defaults | given
    if "against" in given:
        given["against"] = tuple(dict.fromkeys(given["against"]))
    settings = Settings(**given)
    for option, path in (("text", settings.text), ("csv", settings.csv)):
        if path is not None and not Path(path).exists():
            raise UsageError(f"--{option}: there is no file {path}")
        if path is not None and Path(path).is_dir():
            raise UsageError(f"--{option}: {path} is a directory; give the name of a file in it")
    if settings.column and not (settings.csv or settings.dataset):
        raise UsageError("--column is for --csv or --dataset; give one of them")
    if "block_size" in given and settings.structure != "block":
        raise UsageError("--block-size is for --structure block")
    if not settings.sparsity:
        raise UsageError("--sparsity 0: a dense mask needs no search; ask for more")
    if settings.sparsity > 1.0 - 1.0 / settings.seq_len:
        raise UsageError(
            f"--sparsity {settings.sparsity}: with --seq-len {settings.seq_len} less than one "
            f"position a row would be left; ask for {1.0 - 1.0 / settings.seq_len:.3g} at most"
        )
    if not 0.0 < settings.learning_rate < 1.0:
        raise UsageError(f"--learning-rate {settings.learning_rate}: must be above 0 and below 1")
    if settings.hidden_size % settings.heads:
        raise UsageError(
            f"--hidden-size {settings.hidden_size} is no multiple of --heads {settings.heads}"
        )
    choices = (*HAND_MADE, ATTENTION)
    unknown = [name for name in settings.against if name not in choices]
    if unknown:
        raise UsageError(f"--against {unknown[0]}: choose from {', '.join(choices)}")
    if settings.task == PLANTED and settings.seq_len < _LEAST:
        raise UsageError(f"--seq-len {settings.seq_len}: --quick needs at least {_LEAST}")
    return settings
