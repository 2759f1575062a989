"""The command line: ``sparsebert`` or ``python -m sparsebert``.

Exit codes: 0 done, 1 a check failed, 2 wrong usage or unusable input, 130 interrupted. Results go
to standard output, progress and errors to standard error.

Commands import torch and the rest only when they run, so that ``--help`` answers at once.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, TextIO

from sparsebert import __version__
from sparsebert.cli import (
    demo_command,
    doctor_command,
    estimate_command,
    learn_command,
    mask_commands,
    pattern_commands,
    verify_command,
)
from sparsebert.cli.errors import INTERRUPTED, USAGE, UsageError

_EXAMPLES = """\
examples:
  sparsebert demo
  sparsebert patterns build longformer --seq-len 512 --param window=16 -o lf.safetensors
  sparsebert show lf.safetensors
  sparsebert explain lf.safetensors --target sm90
  sparsebert verify lf.safetensors --dtype bfloat16 --key-padding 0.25
  sparsebert learn --quick
  sparsebert estimate --config path/to/model --mask lf.safetensors
  sparsebert doctor

exit codes: 0 done, 1 a check failed, 2 wrong usage or unusable input, 130 interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets ``run``, a function from arguments to an exit code."""
    parser = argparse.ArgumentParser(
        prog="sparsebert",
        description="Learn and compile static attention masks, check them, run encoders on them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sparsebert {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (
        demo_command,
        pattern_commands,
        mask_commands,
        verify_command,
        learn_command,
        estimate_command,
        doctor_command,
    ):
        module.register(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` defaults to the process's arguments."""
    try:
        arguments = build_parser().parse_args(argv)
    except SystemExit as end:  # argparse has printed the help or the error
        return end.code if isinstance(end.code, int) else USAGE
    # Called from a program that has torch loaded, the number of threads is that program's choice.
    arguments.embedded = "torch" in sys.modules
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nsparsebert: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader (head, less) has gone: nothing more to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UsageError, OSError, MemoryError, ModuleNotFoundError) as error:
        print(f"sparsebert: error: {error}", file=sys.stderr)
        return USAGE
    return code


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> Any:
    """A warning as one line, as errors are; the code that gave it is no business of the user's."""
    if issubclass(category, (UserWarning, RuntimeWarning)):
        print(f"sparsebert: warning: {message}", file=file or sys.stderr)
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
        print(text, end="", file=file or sys.stderr)
