"""The load of the machine and threads for it: all simulated."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sparsebert import machine, patterns
from sparsebert.machine import Load, choose_threads
from tests import ROOT

Output = pytest.CaptureFixture[str]


# ------------------------------------------------------------------------------ the load


@pytest.mark.parametrize(
    ("load", "free", "busy"),
    [
        (Load(2, 2.0, 0.1, 0.0), 2, False),
        (Load(2, 2.0, 9.0, 8.0), 1, True),
        (Load(2, 2.0, 9.0, 0.0), 1, True),  # a pause in the others' work
        (Load(2, 2.0, 0.9, 0.0), 2, False),  # what ended a moment ago
        (Load(2, 2.0, 0.1, 2.0), 1, True),  # what has just begun
        (Load(64, 64.0, 60.0, 60.0), 4, True),
        (Load(64, 2.0, 60.0, 60.0), 2, False),  # ours are two of the four that are left
        (Load(64, 2.0, 63.0, 63.0), 1, True),
        (Load(64, 0.5, 0.0, 0.0), 1, False),
        (Load(64, 3.5, 0.0, 0.0), 3, False),
        (Load(4, 4.0, None, None), 4, False),  # a system that tells nothing
        (Load(4, 4.0, 3.0, None), 1, True),
    ],
)
def test_cores_that_are_left(load: Load, free: int, busy: bool) -> None:
    assert (load.free, load.busy) == (free, busy)


@pytest.mark.parametrize(
    ("usual", "load", "options", "count", "why"),
    [
        (2, Load(2, 2.0, 0.0, 0.0), {}, 2, ""),
        (2, Load(2, 2.0, 9.0, 7.0), {}, 1, "of 2, since others use the machine"),
        (2, Load(2, 2.0, 9.0, 7.0), {"given": 2}, 2, "as asked"),
        (64, Load(64, 2.0, 0.0, 0.0), {}, 2, "of 64, all that this process may use"),
        (1, Load(8, 8.0, 9.0, 9.0), {}, 1, ""),  # never more than torch would take
        (8, Load(8, 8.0, 0.0, 0.0), {"work": 4e6}, 1, "of 8, since the model is too small to"),
        (8, Load(8, 8.0, 0.0, 0.0), {"work": 4e8}, 8, ""),
        (3, Load(2, 2.0, 9.0, 9.0), {"environment": {"OMP_NUM_THREADS": "3"}}, 3, "by OMP_NUM"),
        (3, Load(2, 2.0, 9.0, 9.0), {"environment": {"MKL_NUM_THREADS": "3"}}, 3, "by MKL_NUM"),
        (2, Load(2, 2.0, 9.0, 9.0), {"environment": {"OMP_NUM_THREADS": ""}}, 1, "of 2"),
    ],
)
def test_threads_follow_the_load_the_model_and_the_user(
    usual: int, load: Load, options: dict[str, object], count: int, why: str
) -> None:
    chosen = choose_threads(usual, load, **{"environment": {}, **options})  # type: ignore[arg-type]
    assert chosen.count == count
    assert chosen.why.startswith(why) if why else chosen.why == ""


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """A machine with so many cores, of which others take some."""

    def of(cores: int, affinity: int, average: float, running: int) -> None:
        stat = tmp_path / "stat"
        stat.write_text(f"cpu 1 2\nprocs_running {running + 1}\n", encoding="utf-8")
        monkeypatch.setattr(machine, "_STAT", stat)
        monkeypatch.setattr(machine, "_PAUSE", 0.0)
        monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        monkeypatch.setattr(os, "getloadavg", lambda: (average, 0.0, 0.0))
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
        for name in machine._VARIABLES:
            monkeypatch.delenv(name, raising=False)

    return of


def test_the_sentence_says_load_cores_and_threads(simulate: Callable[..., None]) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        simulate(cores=4, affinity=2, average=7.25, running=6)
        with machine.threads_for() as sentence:
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        assert sentence == (
            "4 cores, 2 of them for this process; load 7.2, 6 other tasks running now. Using 1 "
            "thread (of 2, since others use the machine). The machine is busy: times are "
            "uncertain, and all takes longer."
        )
        with machine.threads_for(keep=True) as sentence:  # the caller's own number
            assert torch.get_num_threads() == 2
        assert "Using 2 threads. The machine is busy" in sentence
        simulate(cores=2, affinity=2, average=0.3, running=0)
        with machine.threads_for() as sentence:
            assert torch.get_num_threads() == 2
        assert sentence == "2 cores; load 0.3, 0 other tasks running now. Using 2 threads."
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/", {"cpu.max": "max 100000"}, float("inf")),
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2.0),
        ("0::/not/here", {"cpu.max": "400000 100000"}, 4.0),  # inside a container
        ("3:cpu,cpuacct:/a\n2:memory:/b",
         {"cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "100000"}, 0.5),
        ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
         float("inf")),
        ("", {}, float("inf")),
        ("0::/", {"cpu.max": "nonsense"}, float("inf")),
    ],
)  # fmt: skip
def test_quotas_of_control_groups(
    own: str, files: dict[str, str], cores: float, tmp_path: Path
) -> None:
    for name, content in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n", encoding="utf-8")
    (tmp_path / "own").write_text(own, encoding="utf-8")
    assert machine.quota(tmp_path / "cgroup", tmp_path / "own") == cores


# ------------------------------------------------------------------------------ commands


BUSY = (
    "from sparsebert import machine; machine.current_load = lambda: machine.Load(2, 2.0, 9.0, 8.0)"
)


@pytest.mark.parametrize("program", ["", "import torch; torch.set_num_threads(2)"])
def test_commands_take_fewer_threads_but_not_from_a_program_that_has_its_own(
    program: str, tmp_path: Path
) -> None:
    patterns.star(24).save(tmp_path / "star.safetensors")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); {BUSY}; {program or 'pass'}; "
        "from sparsebert.cli import main; sys.exit(main(['verify', 'star.safetensors']))"
    )
    environment = {k: v for k, v in os.environ.items() if k not in machine._VARIABLES}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    first = run.stderr.splitlines()[0]
    assert first.startswith("2 cores; load 9.0, 8 other tasks running now. Using ")
    assert ("Using 2 threads." if program else "Using 1 thread") in first
