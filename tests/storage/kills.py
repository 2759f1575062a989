"""Writers that are killed in the middle of their work."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

posix = pytest.mark.skipif(os.name != "posix", reason="modes, links, locks and fork of POSIX")


def killed_at(
    step: int,
    action: Callable[[], None],
    watched: tuple[str, ...] = ("open", "os.", "fcntl."),
) -> bool:
    """Run `action` in a child that dies before its `step`-th call of the watched kinds."""
    child = os.fork()
    if child == 0:
        left = step

        def audit(event: str, _: tuple[Any, ...]) -> None:
            nonlocal left
            if event.startswith(watched):
                left -= 1
                if left < 0:
                    os._exit(9)

        try:
            sys.addaudithook(audit)
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9
