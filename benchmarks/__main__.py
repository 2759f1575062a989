"""`python -m benchmarks run | report | compare`: the attention benchmark of this machine."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {"run": "run", "report": "attention_report", "compare": "compare"}
"""The module in benchmarks/attention of each: only what is asked for is imported."""


def main(arguments: list[str]) -> int:
    """Hand the arguments to the command; exit status 2 for an unknown one."""
    if not arguments or arguments[0] not in COMMANDS:
        print(
            "python -m benchmarks COMMAND [--help]\n\n"
            "  run      time attention on this machine\n"
            "  report   tables and plots from the results\n"
            "  compare  what became slower between two results\n"
        )
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    command = importlib.import_module(f"benchmarks.attention.{COMMANDS[arguments[0]]}")
    status: int = command.main(arguments[1:])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
