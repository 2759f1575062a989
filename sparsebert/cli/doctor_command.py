"""``sparsebert doctor``: what this machine can run, what it cannot and why."""

from __future__ import annotations

import argparse

from sparsebert.cli.errors import CHECK_FAILED, OK
from sparsebert.cli.options import Commands, add_command

_EXAMPLES = """\
  sparsebert doctor
  SPARSEBERT_CPU_ISA=avx2 sparsebert doctor

It says which backends run here, which instruction set the native CPU kernels use and who compiled
them, versions, cores and threads, each with the reason and the remedy where something is missing.
The exit code is 1 if something is broken: the native library damaged, or not made of the sources
beside it, or an instruction set asked for that this processor lacks. What is merely not there is
no fault.
"""


def register(commands: Commands) -> None:
    """Add the command to the parser."""
    add_command(
        commands,
        "doctor",
        doctor,
        "say what this machine can run, and what is in the way",
        _EXAMPLES,
    )


def doctor(arguments: argparse.Namespace) -> int:
    """Print the diagnosis."""
    from sparsebert.doctor import examine

    found = examine()
    print(found)
    return CHECK_FAILED if found.broken else OK
