"""The machine at hand: its processor, the cores that are left for us, and how many threads to use.

torch's threads wait for each other by spinning. Where the cores are busy with other work, or
where there are fewer than torch believes (a container's quota of CPU time), one of them is always
waiting for a core while the others spin, and calls take ten times as long and more. So the
commands begin with `threads_for`, which uses fewer threads then, and says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import platform
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_TINY = 1e7
"""Floating-point operations that one core does in about as long as threads take to meet."""
_SAMPLES, _PAUSE = 20, 0.01  # of the running tasks, and seconds between them
_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_STAT = Path("/proc/stat")


@dataclasses.dataclass(frozen=True)
class Load:
    """How busy the machine is with other work.

    Attributes:
        cores: the machine's logical processors.
        usable: how many of them this process may use at a time, by its affinity and by the quotas
            of its control groups; a quota may be half a core.
        average: the load average of the last minute; None where the system keeps none.
        running: other tasks that run or wait for a core right now; None if unknown.
    """

    cores: int
    usable: float
    average: float | None = None
    running: float | None = None

    @property
    def taken(self) -> float:
        """Cores that others take.

        What runs right now; but no less than half of the average, which lags by a minute: so a
        pause in other work does not look like an idle machine, nor what ended a moment ago (an
        installation, say) like a busy one.
        """
        if self.running is None:
            return self.average or 0.0
        return max(self.running, (self.average or 0.0) / 2)

    @property
    def free(self) -> int:
        """Threads that have a core to themselves, at least 1."""
        left = math.floor(self.cores - self.taken + 0.5)
        return max(1, min(left, math.floor(self.usable)))

    @property
    def busy(self) -> bool:
        """Whether others leave us fewer cores than we may use."""
        return self.cores - self.taken + 0.5 < max(1.0, self.usable)

    def __str__(self) -> str:
        words = f"{self.cores} core{'s' * (self.cores != 1)}"
        if self.usable < self.cores:
            words += f", {self.usable:g} of them for this process"
        if self.average is not None:
            words += f"; load {self.average:.1f}"
        if self.running is not None:
            words += f", {self.running:.0f} other tasks running now"
        return words


@dataclasses.dataclass(frozen=True)
class Threads:
    """How many threads to use, and why."""

    count: int
    why: str


def current_load() -> Load:
    """The load now; takes a fifth of a second."""
    return Load(os.cpu_count() or 1, usable_cores(), _average(), _running())


def usable_cores() -> float:
    """Cores that this process may use at a time: its affinity, or less by a quota."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    return min(allowed, quota(_CGROUPS, _OWN_CGROUPS))


def quota(cgroups: Path, own: Path) -> float:
    """Cores' worth of CPU time that control groups, of version 1 or 2, allow; inf for any.

    `cgroups` is where they are mounted, `own` the file that names those of this process. A group's
    parents count too; inside a container the path may lead nowhere, and the root is the own group.
    """
    least = math.inf
    for line in _lines(own):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            base = cgroups
        elif "cpu" in controllers.split(","):
            base = cgroups / "cpu"
        else:
            continue
        folder = base / path.lstrip("/")
        for group in (folder, *folder.parents):
            if not group.is_relative_to(base):
                break
            limit = (_lines(group / "cpu.max") or ["max"])[0].split()
            if len(limit) != 2:
                limit = [*_lines(group / "cpu.cfs_quota_us"), *_lines(group / "cpu.cfs_period_us")]
            with contextlib.suppress(ValueError, ZeroDivisionError):  # "max", and no limit at all
                share = float(limit[0]) / float(limit[1]) if len(limit) == 2 else math.inf
                least = min(least, share) if share > 0 else least  # -1 is no limit in version 1
    return least


def choose_threads(
    usual: int,
    load: Load,
    *,
    given: int | None = None,
    work: float | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Threads:
    """The number of threads for a command.

    Args:
        usual: what torch would use.
        load: of the machine.
        given: what the user asked for by an option; it is taken.
        work: floating-point operations of the largest single operation that will be run; None if
            it is large enough to share.
        environment: OMP_NUM_THREADS and MKL_NUM_THREADS in it are the user's word too.
    """
    if given is not None:
        return Threads(given, "as asked")
    for name in _VARIABLES:
        if environment.get(name):
            return Threads(usual, f"by {name}")
    if load.busy and load.free < usual:
        return Threads(load.free, f"of {usual}, since others use the machine")
    if load.free < usual:
        return Threads(load.free, f"of {usual}, all that this process may use")
    if work is not None and work < _TINY and usual > 1:
        return Threads(1, f"of {usual}, since the model is too small to share")
    return Threads(usual, "")


@contextlib.contextmanager
def threads_for(
    *, given: int | None = None, work: float | None = None, keep: bool = False
) -> Iterator[str]:
    """Use as many of torch's threads as make sense here; see `choose_threads`.

    Yields a sentence on the machine and the choice, to be shown. With `keep` (torch is in use
    already, by a program that has its own number) only `given` changes anything. The number from
    before is restored at the end.

    >>> import torch
    >>> with threads_for(given=1) as sentence:
    ...     torch.get_num_threads()
    1
    """
    import torch

    before = torch.get_num_threads()
    load = current_load()
    if keep and given is None:
        chosen = Threads(before, "")
    else:
        chosen = choose_threads(before, load, given=given, work=work)
    why = f" ({chosen.why})" if chosen.why else ""
    sentence = f"{load}. Using {chosen.count} thread{'s' * (chosen.count != 1)}{why}."
    if load.busy:
        sentence += " The machine is busy: times are uncertain, and all takes longer."
    torch.set_num_threads(chosen.count)
    try:
        yield sentence
    finally:
        torch.set_num_threads(before)


def processor() -> str:
    """The processor's name."""
    named = [
        line.partition(":")[2].strip()
        for line in _lines(Path("/proc/cpuinfo"))
        if line.startswith("model name")
    ]
    return named[0] if named else platform.processor() or platform.machine()


def _average() -> float | None:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # not on Windows
        return None


def _running() -> float | None:
    """Other tasks that run or wait for a core: the mean of a few looks."""
    counts = []
    for _ in range(_SAMPLES):
        found = [line for line in _lines(_STAT) if line.startswith("procs_running")]
        if not found:
            return None
        counts.append(int(found[0].split()[1]) - 1)  # this one runs, for it looks
        time.sleep(_PAUSE)
    return max(0.0, statistics.fmean(counts))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
