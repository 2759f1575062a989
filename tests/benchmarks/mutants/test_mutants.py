"""The mutation script: the faults that it makes, and what it says of a small project's tests."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.mutants import areas
from benchmarks.mutants.areas import GROUPS, Group, sources_of
from benchmarks.mutants.faults import faults_in
from benchmarks.mutants.mutants_report import Explained, read_explained, stale, survivors, table
from benchmarks.mutants.trials import NATIVE, Campaign, Trial, all_faults, project_copy, sample
from tests import ROOT

FAULTS = {
    "a < b": ["a <= b"],
    "a is not None": ["a is None"],
    "a + b": ["a - b"],
    "a += f": ["a -= f", "pass"],
    "a and b": ["(a)", "(b)", "a or b"],
    "a & b": ["(a)", "(b)", "a | b"],
    "not a": ["(a)"],
    "x = 3": ["x = 4"],
    "x = 0.5": ["x = 1.0"],
    "x = True": ["x = False"],
    "a[1:b]": ["a[2:b]", "a[:b]", "a[1:]"],
    "x = min(a, b)": ["x = max(a, b)"],
    "x = a.any()": ["x = a", "x = a.all()"],
    "x = a.astype(b)": ["x = a"],
    "import a.c\nx = a.c.floor(b)": ["x = (b)", "x = a.c.ceil(b)"],
    "f(a)": ["(a)", "pass"],
    "x = f(a, n=b)": ["x = f(a, )"],
    "a[b] = x": ["pass"],
    "raise f(1 + 2)": ["pass"],
    "if a:\n    b": ["if not (a):\n    b"],
    "def f():\n    return a == b": ["return a != b", "return not (a == b)"],
    # left alone
    '"text 1 + 2"': [],
    "x: a | b": [],
    "@f(1)\ndef g(x: a | b = c) -> a | b: ...": [],
    "assert a < b": [],
    "x = a.reshape(-1, b)": [],
    "for x in zip(a, b, strict=True):\n    x": [],
    'x = f"{a + b}"': [],
    "if TYPE_CHECKING:\n    f(a)": [],
}


@pytest.mark.parametrize("source", FAULTS)
def test_faults(source):
    """Each kind changes its token and nothing else."""
    faults = [fault for fault in faults_in("x.py", source) if fault.is_sound(source)]
    expected = FAULTS[source]
    changed = [fault.applied(source) for fault in faults]
    assert len(faults) == len(expected)
    for text in expected:
        assert any(text in each for each in changed), text


def test_faults_of_this_project():
    """Every source has a group and tests; faults are drawn by the seed, and all of them parse."""
    sources = sources_of(ROOT)
    assert {group.area for group in sources.values()} == {group.area for group in GROUPS}
    assert all(areas.tests_of(ROOT, file, group) for file, group in sources.items())
    named = {Path(file).parent.as_posix() for file in sources}
    for folder in named - {"sparsebert"}:
        assert {p.relative_to(ROOT).as_posix() for p in (ROOT / folder).glob("*.py")} <= {*sources}

    faults = all_faults(ROOT, GROUPS)["sparsebert/tiles/build.py"]
    drawn = sample(ROOT, faults, 20, "seed")
    assert drawn == sample(ROOT, faults, 20, "seed") != sample(ROOT, faults, 20, "other")
    assert len({fault.line for fault in drawn}) == 20
    source = (ROOT / "sparsebert/tiles/build.py").read_text()
    for fault in drawn:
        assert ast.parse(fault.applied(source))
        assert source.split("\n")[fault.line - 1].strip() == fault.before


CODE = """\
def larger(a, b):
    return a if a > b else b

def count(n):
    steps = 0
    while n > 0:
        n -= 1
        steps += 1
    return steps
"""
TESTS = """\
from code_under_test.code import count, larger

def test_larger():
    assert larger(2, 1) == 2 and larger(1, 2) == 2

def test_count():
    assert count(3) == 3
"""
GROUP = (Group("small", ("code_under_test/*.py",), ("tests/test_*.py",)),)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A small project under git, whose pytest starts without plugins, much faster."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    root = tmp_path / "project"
    for name, text in (("code_under_test/code.py", CODE), ("tests/test_small.py", TESTS)):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return root


def listing(root):
    return {p: p.read_bytes() for p in root.rglob("*") if p.is_file() and ".git" not in p.parts}


def test_campaign(project, tmp_path, monkeypatch):
    """One fault is caught, one survives, one hangs; the project and the disk stay as they were."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setattr("benchmarks.mutants.trials.SLOWER", 2.0)
    monkeypatch.setattr("benchmarks.mutants.trials.GRACE_S", 0.5)
    before = listing(project)
    lines = {
        ("return a if a > b else b", "return a if a >= b else b"): "survived",
        ("n -= 1", "pass"): "timed out",
        ("steps += 1", "steps -= 1"): "caught",
    }
    faults = all_faults(project, GROUP)["code_under_test/code.py"]
    faults = [f for f in faults if (f.before, f.after) in lines]
    said = []
    trials = Campaign(project, GROUP, ("pytest",), [], said.append).run(faults, 1, 1.0)

    assert {(t.fault.before, t.fault.after): t.outcome for t in trials} == lines
    (caught,) = (trial for trial in trials if trial.outcome == "caught")
    assert caught.test == "tests/test_small.py::test_count"
    assert any("return a if a >= b else b" in line for line in said)
    assert listing(project) == before and not list(folder.iterdir())
    assert "| small | 9 | 3 | 1 | 1 | 0 | 1 | 67 % |" in table(trials, {"small": 9})
    assert survivors(trials).startswith("code_under_test/code.py:2: comparison\n    - return a if")


def test_a_copy_has_what_git_tracks_and_the_native_library(project):
    library = project / NATIVE
    library.parent.mkdir(parents=True)
    for path in (library, library.with_name("other.so")):
        path.write_bytes(b"built")
    (project / ".gitignore").write_text("*.so\n")
    with project_copy(project) as copy:
        held = {path.relative_to(copy) for path in listing(copy)}
        assert held == {p.relative_to(project) for p in listing(project)} - {
            library.with_name("other.so").relative_to(project)
        }
    library.unlink()
    with project_copy(project) as copy:
        assert not (copy / NATIVE).exists()


def test_no_time_no_trials(project):
    faults = all_faults(project, GROUP)["code_under_test/code.py"]
    assert Campaign(project, GROUP, (), [], lambda line: None).run(faults, 1, -1.0) == []


def test_red_tests_say_nothing(project):
    """Tests that fail without a fault would catch every fault."""
    (project / "tests/test_small.py").write_text(TESTS.replace("== 3", "== 4"))
    faults = all_faults(project, GROUP)["code_under_test/code.py"]
    said = []
    campaign = Campaign(project, GROUP, (), [], said.append)
    assert campaign.run(faults, 1, 1.0) == [] and len(said) == 2
    (message,) = campaign.red.values()
    trusting = Campaign(project, GROUP, (), [], said.append, trust=True)
    assert {trial.outcome for trial in trusting.run(faults[:1], 1, 1.0)} == {"caught"}
    assert message == said[1] and "fail without any fault: tests/test_small.py::test_co" in message


def test_interrupted(project, tmp_path):
    """Ctrl-C in the middle of a hanging fault leaves no process and no file behind."""
    (project / "tests/test_small.py").write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(tmp_path)!r}, 'pid').write_text(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    script = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell's job runs tests
from pathlib import Path
from benchmarks.mutants.areas import Group
from benchmarks.mutants.trials import Campaign, all_faults
root, groups = Path({str(project)!r}), {GROUP!r}
faults = all_faults(root, groups)["code_under_test/code.py"]
Campaign(root, groups, (), []).run(faults, 1, 1.0)
"""
    folder = tmp_path / "temporary"
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) != 0
    assert not list(folder.iterdir())
    deadline = time.monotonic() + 10
    while Path("/proc", pid.read_text()).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path("/proc", pid.read_text()).exists()


def test_explained(tmp_path):
    """An entry takes away the fault with its texts, wherever the line is; one of none is stale."""
    (fault,) = faults_in("a.py", "\n\nx = y < z\n")
    path = tmp_path / "explained.toml"
    path.write_text(
        '[[survivor]]\nfile = "a.py"\nline = "x = y < z"\nfault = "x = y <= z"\nwhy = "as fast"\n'
        '[[survivor]]\nfile = "a.py"\nline = "x = y > z"\nfault = "x = y >= z"\nwhy = "gone"\n'
    )
    known, gone = read_explained(path)
    assert known.covers(fault) and not gone.covers(fault)
    assert stale([known, gone], {"a.py": [fault]}) == [gone]
    assert stale([Explained("b.py", "", "", "")], {"a.py": [fault]})
    trials = [Trial("area", fault, "explained"), Trial("area", fault, "caught")]
    assert "| area | 1 | 2 | 1 | 0 | 1 | 0 | 100 % |" in table(trials, {"area": 1})


def test_explanations_of_this_project():
    """Each names a source and says why; `make mutants` says which match no line any more."""
    explained = read_explained(ROOT / "benchmarks/mutants/explained.toml")
    assert all(len(entry.why) > 20 for entry in explained)
    for entry in explained:  # of lines that are there today
        lines = (ROOT / entry.file).read_text(encoding="utf-8").splitlines()
        assert entry.line in [line.strip() for line in lines], entry
