"""Trying faults: copies of the project, one warm worker in each, and a sample drawn by a seed."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from benchmarks.mutants.areas import Group, sources_of, tests_of
from benchmarks.mutants.faults import Fault, faults_in

# A fault may make tests slow; past this multiple of the time without it, it counts as noticed.
SLOWER, GRACE_S = 4.0, 20.0
NATIVE = "kernels/cpu/libsparsebert_cpu.so"  # git ignores it; without it its tests are left out
LONGEST_BASELINE_S, TRUSTED_BASELINE_S = 1800.0, 450.0


@dataclass(frozen=True)
class Trial:
    """What became of one fault: caught, timed out, survived or explained."""

    area: str
    fault: Fault
    outcome: str
    seconds: float = 0.0
    test: str = ""  # the first test that failed


def all_faults(root: Path, groups: tuple[Group, ...]) -> dict[str, list[Fault]]:
    """Every fault of every source that a group names."""
    return {
        file: faults_in(file, (root / file).read_text(encoding="utf-8"))
        for file in sources_of(root, groups)
    }


def sample(root: Path, faults: list[Fault], count: int, seed: str) -> list[Fault]:
    """Up to count faults, each on another line: lines are drawn first, so that no line counts
    more for having many constants."""
    lines: dict[tuple[str, int], list[Fault]] = defaultdict(list)
    for fault in faults:
        lines[fault.file, fault.line].append(fault)
    draw = random.Random(seed)
    chosen: list[Fault] = []
    for line in draw.sample(sorted(lines), len(lines)):
        if len(chosen) == count:
            break
        source = (root / line[0]).read_text(encoding="utf-8")
        on_line = draw.sample(lines[line], len(lines[line]))
        chosen += next(([fault] for fault in on_line if fault.is_sound(source)), [])
    return chosen


@contextmanager
def project_copy(root: Path) -> Iterator[Path]:
    """A temporary copy of what git tracks or would track, with the native library if it is built.

    The root itself is never written.
    """
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder)
        for name in filter(None, [*listed.split("\0"), NATIVE]):
            if (root / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, copy / name)
        yield copy


class Worker:
    """A warm process in a copy; see worker.py."""

    def __init__(self, copy: Path, warm: tuple[str, ...], pytest_arguments: list[str]) -> None:
        self.copy, self.arguments = copy, pytest_arguments
        script = Path(__file__).with_name("worker.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), *warm],
            cwd=copy,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ
            | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"},
            start_new_session=True,  # Ctrl-C comes to us, and we end it
        )

    def run(
        self, tests: list[str], seconds: float, fault: Fault | None = None, source: str = ""
    ) -> dict:
        """The worker's answer for these tests, with the fault in its file of the given source."""
        request = {
            "file": fault.file if fault else "",
            "source": fault.applied(source) if fault else "",
            "tests": tests,
            "arguments": self.arguments,
            "seconds": seconds,
        }
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended with exit status {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End the process and the tests that it runs."""
        self.process.terminate()
        self.process.communicate()


class Campaign:
    """Faults tried side by side, at most `jobs` at a time, until they or the minutes run out."""

    def __init__(
        self,
        root: Path,
        groups: tuple[Group, ...],
        warm: tuple[str, ...],
        pytest_arguments: list[str],
        say: Callable[[str], None] = print,
        *,
        trust: bool = False,
    ) -> None:
        self.trust = trust
        self.root, self.warm, self.arguments, self.say = root, warm, pytest_arguments, say
        self.owner = sources_of(root, groups)
        self.baselines: dict[tuple[str, ...], float] = {}
        self.locks: dict[tuple[str, ...], threading.Lock] = defaultdict(threading.Lock)
        self.red: dict[tuple[str, ...], str] = {}  # tests that fail without a fault, and how
        self.catches: dict[str, Counter[str]] = defaultdict(Counter)
        self.trials: list[Trial] = []

    def run(self, faults: list[Fault], jobs: int, minutes: float) -> list[Trial]:
        """Trials of the faults; fewer where the minutes ran out or tests are red without them."""
        until = time.monotonic() + 60 * minutes
        with ExitStack() as stack:
            idle: SimpleQueue[Worker] = SimpleQueue()
            for _ in range(jobs):
                copy = stack.enter_context(project_copy(self.root))
                worker = Worker(copy, self.warm, self.arguments)
                stack.callback(worker.close)
                idle.put(worker)

            def task(fault: Fault) -> None:
                if time.monotonic() > until:
                    return
                worker = idle.get()
                try:
                    self.try_one(worker, fault)
                finally:
                    idle.put(worker)

            pool = ThreadPoolExecutor(jobs)
            try:
                list(pool.map(task, faults))  # raises what a task raised
            finally:
                # Also on Ctrl-C: what waits is dropped, and a closed worker ends its thread.
                pool.shutdown(wait=False, cancel_futures=True)
        return self.trials

    def try_one(self, worker: Worker, fault: Fault) -> None:
        """Run the tests of the fault's group, if they pass without it; keeps the trial."""
        group = self.owner[fault.file]
        tests = tests_of(worker.copy, fault.file, group)
        baseline = self.baseline(worker, tests, group)
        if baseline is None:
            return
        caught_by = self.catches[fault.file]
        tests.sort(key=lambda test: -caught_by[test])  # stable: else those of its name first
        # The copy's: the project may be worked on meanwhile.
        source = (worker.copy / fault.file).read_text(encoding="utf-8")
        answer = worker.run(tests, SLOWER * baseline + GRACE_S, fault, source)
        outcome = "survived" if answer["code"] == 0 else "caught"
        if answer["timeout"]:
            outcome = "timed out"
        elif outcome == "caught":
            caught_by[answer["node"].split("::")[0]] += 1
        self.trials.append(Trial(group.area, fault, outcome, answer["seconds"], answer["node"]))
        place = f"{fault.file}:{fault.line} {fault.kind}"
        self.say(f"{outcome:9s} {answer['seconds']:6.1f} s  {place}  {answer['node']}")
        if outcome == "survived":
            self.say(f"    - {fault.before}\n    + {fault.after}")

    def baseline(self, worker: Worker, tests: list[str], group: Group) -> float | None:
        """Seconds that these tests take without a fault, measured once; None if they fail."""
        if self.trust:
            return TRUSTED_BASELINE_S
        key = tuple(sorted(tests))
        with self.locks[key]:
            if key not in self.baselines and key not in self.red:
                answer = worker.run(tests, LONGEST_BASELINE_S)
                self.say(f"no fault  {answer['seconds']:6.1f} s  {group.area}: {len(tests)} files")
                if answer["code"] == 0:
                    self.baselines[key] = answer["seconds"]
                else:
                    how = answer["node"] or f"pytest exit status {answer['code']}"
                    self.red[key] = f"{group.area}: tests fail without any fault: {how}"
                    self.say(self.red[key])
        return self.baselines.get(key)
