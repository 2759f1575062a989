"""Phase of a GPU's first run: every kernel that it will launch, compiled by all cores at once.

What the carried cache holds (`compile_cache`) is only looked up. No process here touches the GPU:
the kernels are called with a stub in place of the driver, so that this can run beside anything.
Triton's launchers, a small C module for each signature, are compiled as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu import compile_cache, specialisations
from benchmarks.gpu.specialisations import KernelCall
from benchmarks.harness import workers
from benchmarks.harness.errors import in_a_line, in_words

_CORES_LEFT = 2
_SHARE = 0.9
"""Of the seconds, for compiling; then processes are ended, and the row is written."""


@dataclasses.dataclass
class LookedUp:
    """What became of a call's forms.

    Attributes:
        found, compiled: forms that were in the cache, and others, by Triton's hashes.
        seconds: what compiling took.
        no_launcher: why a launcher could not be made, "" if all were.
    """

    found: set[str] = dataclasses.field(default_factory=set)
    compiled: set[str] = dataclasses.field(default_factory=set)
    seconds: float = 0.0
    no_launcher: str = ""

    def add(self, other: LookedUp) -> None:
        """Add what became of another call's."""
        self.found |= other.found
        self.compiled |= other.compiled
        self.seconds += other.seconds
        self.no_launcher = self.no_launcher or other.no_launcher


def precompile(
    seconds: float,
    record: Any,
    calls: list[KernelCall] | None = None,
    jobs: int | None = None,
) -> None:
    """Phase: look up or compile what the first run launches; one row.

    Args:
        seconds: after that, what is left is compiled when it is launched.
        record: takes the row.
        calls: None means `specialisations.first_run`.
        jobs: processes; None leaves two cores free.
    """
    start = time.monotonic()
    row: dict[str, object] = {"check": "precompile", "passed": None}
    try:
        if calls is None and record.device == "cpu":
            record.add(row | {"why": "no GPU: the kernels are interpreted"})
            return
        todo = specialisations.first_run() if calls is None else calls
        row |= _compile_all(todo, jobs, start + _SHARE * seconds)
        compile_cache.mark_known()
    except Exception as error:  # the kernels compile when they are launched, too
        row["why"] = in_words(error)
    record.add(row | {"seconds": round(time.monotonic() - start, 2)})


def look_up(call: KernelCall) -> LookedUp:
    """Run a call on the stub driver; its forms and launchers are then in the cache."""
    done = LookedUp()

    def heard(form: str, was_found: bool, seconds: float) -> None:
        if was_found:
            done.found.add(form)
        else:
            done.compiled.add(form)
            done.seconds += seconds

    def launcher(source: Any, metadata: Any) -> None:
        try:
            from triton.backends.nvidia.driver import CudaLauncher, CudaUtils

            CudaUtils()  # a module as well, made once
            CudaLauncher(source, metadata)
        except (Exception, AssertionError) as error:  # no compiler or no driver here
            done.no_launcher = in_a_line(error)

    specialisations.use_stub_driver(launcher)
    with specialisations.listening(heard):
        specialisations.run(call)
    return done


def _compile_all(calls: list[KernelCall], jobs: int | None, end: float) -> dict[str, object]:
    jobs = jobs or max(1, (os.cpu_count() or 1) - _CORES_LEFT)
    total, late, failed = LookedUp(), 0, []
    with _not_interpreted():
        results = workers.results_of(look_up, calls, jobs, end=end, limit=end - time.monotonic())
        for call, result in results:
            if isinstance(result, workers.Failure):
                late += "out of time" in result.why
                if "out of time" not in result.why:
                    failed.append(f"{call}: {result.why}")
                continue
            total.add(result)
    compiled = len(total.compiled)
    found = len(total.found - total.compiled)  # what one process compiled, others found
    why = f"{found} forms found, {compiled} compiled in {total.seconds:.0f} CPU s"
    if late:
        why += f", {late} of {len(calls)} calls out of time"
    if failed:
        why += f", {len(failed)} calls failed, the first: {failed[0]}"
    if total.no_launcher:
        why += f"; launchers are not made ahead: {total.no_launcher}"
    return {
        "passed": None if failed or late else True, "found": found, "compiled": compiled,
        "calls": len(calls), "late": late, "failed": failed[:20],
        "why": why,
    }  # fmt: skip


@contextlib.contextmanager
def _not_interpreted() -> Iterator[None]:
    """New processes compile kernels, even if this one interprets them."""
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "0"
    try:
        yield
    finally:
        os.environ.pop("TRITON_INTERPRET")
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before
