"""``sparsebert patterns``: list the hand-made patterns, and build one into a mask file."""

from __future__ import annotations

import argparse
import sys

from sparsebert.cli.errors import OK, UsageError
from sparsebert.cli.options import Commands, add_command, positive

_EXAMPLES = """\
  sparsebert patterns
  sparsebert patterns build star --seq-len 512 -o star.safetensors
  sparsebert patterns build bigbird --seq-len 512 --param window=2 num_heads=12 \\
      --without-diagonal -o bigbird.safetensors
  sparsebert patterns build neighborhood_2d --param height=14 width=14 -o grid.safetensors
"""


def register(commands: Commands) -> None:
    """Add the command to the parser."""
    patterns = add_command(
        commands, "patterns", list_patterns, "list the hand-made patterns, or build one", _EXAMPLES
    )
    actions = patterns.add_subparsers(title="actions", metavar="ACTION")
    add_command(
        actions,
        "list",
        list_patterns,
        "list the patterns and their parameters",
        "  sparsebert patterns list\n",
    )
    build = add_command(
        actions, "build", build_pattern, "build a pattern into a mask file", _EXAMPLES
    )
    build.add_argument("name", metavar="NAME", help="a pattern, see 'sparsebert patterns list'")
    build.add_argument("--seq-len", type=positive, metavar="N", help="number of tokens")
    build.add_argument(
        "--param",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="parameters of the pattern; the others keep their defaults",
    )
    build.add_argument(
        "--without-diagonal", action="store_true", help="forbid each token to attend to itself"
    )
    build.add_argument("-o", "--output", required=True, metavar="FILE", help="mask file to write")


def list_patterns(arguments: argparse.Namespace) -> int:
    """Print every pattern with its parameters and what it does."""
    from sparsebert.masks.pattern_list import pattern_list

    print(pattern_list())
    return OK


def build_pattern(arguments: argparse.Namespace) -> int:
    """Build one pattern and write its mask file."""
    from sparsebert.masks.pattern_list import takes_length
    from sparsebert.masks.patterns import PATTERNS, build

    name = arguments.name
    if name in PATTERNS and takes_length(name) and arguments.seq_len is None:
        raise UsageError(f"the pattern {name} needs --seq-len N")
    try:
        size = (arguments.seq_len or 0) ** 2 / 8e9
        if size > 0.2:  # refused with this figure, if it is too large
            print(f"{name}: {size:.1f} GB of bits, one a position", file=sys.stderr)
        mask = build(name, arguments.seq_len, **parse_parameters(arguments.param))
    except (TypeError, ValueError) as error:
        raise UsageError.of(error, arguments) from error
    if arguments.without_diagonal:
        mask = mask.without_diagonal()
    try:
        mask.save(arguments.output)
    except OSError as error:
        if error.strerror is None:  # ours, and complete
            raise UsageError.of(error, arguments) from error
        raise UsageError(f"cannot write {arguments.output}: {error.strerror}") from error
    print(f"{arguments.output}: {mask!r}")
    return OK


def parse_parameters(pairs: list[str]) -> dict[str, int | float]:
    """The KEY=VALUE pairs of --param, as numbers."""
    parameters: dict[str, int | float] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not (key and equals):
            raise UsageError(f"--param {pair!r}: expected KEY=VALUE, for example window=16")
        if key == "seq_len":
            raise UsageError("--param seq_len=...: give the length as --seq-len N")
        if key in parameters:
            raise UsageError(f"--param {key} is given twice")
        try:
            parameters[key] = int(text)
        except ValueError:
            try:
                parameters[key] = float(text)
            except ValueError:
                raise UsageError(f"--param {pair!r}: {text!r} is not a number") from None
    return parameters
