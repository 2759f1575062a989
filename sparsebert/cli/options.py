"""What several commands share: reading a mask, and argument types with readable errors."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sparsebert.cli.errors import UsageError

if TYPE_CHECKING:
    from sparsebert.masks import AttentionMask

# What argparse's add_subparsers returns, under a name that can be written down.
Commands = Any


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    examples: str,
) -> argparse.ArgumentParser:
    """Add a command with a description and examples under its options."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_mask(parser: argparse.ArgumentParser) -> None:
    """Add the MASK argument and --layer."""
    parser.add_argument(
        "mask", metavar="MASK", help="a mask file, see 'sparsebert patterns build'"
    )
    parser.add_argument("--layer", type=int, metavar="I", help="only this layer (default: all)")


def load_layers(arguments: argparse.Namespace) -> list[tuple[int, AttentionMask]]:
    """The numbered one-layer masks that MASK and --layer select."""
    mask = load_mask(arguments.mask)
    if arguments.layer is None:
        return [(index, mask.layer(index)) for index in range(mask.num_layers)]
    try:
        return [(arguments.layer % mask.num_layers, mask.layer(arguments.layer))]
    except IndexError as error:
        raise UsageError(f"--layer {arguments.layer}: the mask has {mask.num_layers}") from error


def load_mask(path: str) -> AttentionMask:
    """Read a mask file."""
    from sparsebert.masks import AttentionMask

    try:
        return AttentionMask.load(path)
    except FileNotFoundError as error:
        raise UsageError(
            f"no mask file {path!r}; make one with 'sparsebert patterns build NAME ... -o {path}'"
        ) from error
    except ValueError as error:
        raise UsageError(str(error).removeprefix("AttentionMask.load: ")) from error


def positive(text: str) -> int:
    """An integer of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return number


def share(text: str) -> float:
    """A number in [0, 1)."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0.0 <= number < 1.0:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, got {text!r}")
    return number
