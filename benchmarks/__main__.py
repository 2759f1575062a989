"""`python -m benchmarks run | report | compare`: the attention benchmark of this machine."""

from __future__ import annotations

import sys


def main(arguments: list[str]) -> int:
    """Hand the arguments to the command; exit status 2 for an unknown one."""
    from benchmarks.attention import attention_report, compare, run

    commands = {"run": run.main, "report": attention_report.main, "compare": compare.main}
    if not arguments or arguments[0] not in commands:
        print(
            "python -m benchmarks COMMAND [--help]\n\n"
            "  run      time attention on this machine\n"
            "  report   tables and plots from the results\n"
            "  compare  what became slower between two results\n"
        )
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    return commands[arguments[0]](arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
