"""Phase of a GPU's first run: a dozen launch configurations of each kernel, on real plans.

    python -m benchmarks.gpu.sweep --seconds 100

The candidates stand here, the most promising first by what the compiler made of them (registers,
so programs on a multiprocessor; instructions a score), and are compiled ahead with the rest
(`specialisations`). All are checked before the first is timed, by as many processes as there are
cores. Then they are timed, lengths of 4096 first, each as the whole forward or backward pass that
its kernel belongs to. `tune_kernels` is the long way, one step after the other from the best.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import triton

from benchmarks.attention.cases import BERT_BASE, PAPER, TOKENS
from benchmarks.attention.inputs import compiled_plan
from benchmarks.gpu.gpu_record import Record
from benchmarks.gpu.tune_kernels import (
    WRONG,
    LaunchEntry,
    config_of,
    launched_with,
    why_not,
)
from benchmarks.harness import gpu_timing, named_masks, workers
from benchmarks.harness.errors import in_words, is_fatal
from benchmarks.harness.options import duration
from benchmarks.harness.origin import origin, out_folder
from benchmarks.harness.rows import Row
from benchmarks.kernels import calls
from sparsebert.kernels.architecture import architecture
from sparsebert.kernels.configs import TILE_KERNELS, LaunchConfig

LENGTHS = (4096, 2048, 512)
_CHECKS_SHARE = 0.3
_CHECK_SECONDS = 30.0
_TIMED_MS = 30.0
_TIME_SECONDS = 25.0
"""Of one plan; the first in a process imports torch and compiles its plan, too."""
_UNDECIDED = ("out of time", "no result")  # how `workers.Failure` begins for want of time

# Of bf16 and D = 64 without key mask and dropout: by kernel, tile height, then the fields of
# `LaunchConfig`. The shipped configuration of each height is tried in any case, before these.
# None of them spills in its loops by Triton 3.6, and wgmma's registers are left alone.
_CANDIDATES: dict[str, dict[int, tuple[tuple[int, int, int, int, int | None], ...]]] = {
    "forward": {
        64: (
            (64, 64, 4, 3, 128), (64, 128, 4, 2, None), (64, 64, 4, 2, 128), (64, 32, 4, 3, 96),
            (64, 128, 4, 3, None), (64, 64, 4, 3, None), (64, 32, 4, 3, 128), (64, 32, 4, 2, 96),
            (32, 64, 1, 3, None),
        ),
        32: ((32, 64, 1, 3, None), (32, 64, 1, 2, None)),
        16: ((16, 64, 1, 3, None),),
    },
    "dq": {
        64: (
            (64, 64, 4, 3, None), (64, 128, 4, 3, None), (64, 32, 4, 3, None),
            (64, 64, 4, 2, None), (64, 32, 4, 2, 96), (64, 128, 4, 2, None), (64, 32, 4, 4, None),
            (64, 64, 4, 4, None), (32, 64, 2, 3, None), (32, 32, 1, 3, None),
        ),
        32: ((32, 32, 1, 3, None), (32, 64, 2, 3, None)),
        16: ((16, 32, 1, 3, None),),
    },
    "dkdv": {
        64: (
            (64, 64, 4, 3, None), (64, 32, 4, 3, 168), (64, 64, 4, 2, None), (64, 64, 4, 4, None),
            (64, 32, 4, 2, 168), (64, 32, 4, 3, None), (32, 64, 2, 3, None), (32, 32, 2, 3, None),
        ),
        32: ((32, 64, 2, 3, None), (32, 32, 2, 3, None)),
        16: ((16, 64, 2, 3, None),),
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A configuration of one entry of the launch table."""

    entry: LaunchEntry
    config: LaunchConfig

    @property
    def row(self) -> Row:
        """Both as columns."""
        shared = {"check": "sweep", **self.entry.row, **dataclasses.asdict(self.config)}
        return shared | {"shipped": self.config == self.entry.shipped}

    @classmethod
    def of(cls, row: Row) -> Candidate:
        """That of a row."""
        fields = {field.name: row[field.name] for field in dataclasses.fields(LaunchEntry)}
        entry = LaunchEntry(**fields | {"dtype": getattr(torch, row["dtype"])})
        return cls(entry, config_of(row))


def candidates(arch: str) -> list[Candidate]:
    """What is tried: the shipped configurations, then the most promising ones, and so on."""
    of_entries = []
    for kernel in TILE_KERNELS:
        for height, others in _CANDIDATES[kernel].items():
            entry = LaunchEntry(kernel, arch, height, BERT_BASE.dim, torch.bfloat16, False, False)
            configs = [entry.shipped, *(LaunchConfig(*fields) for fields in others)]
            of_entries.append([Candidate(entry, config) for config in dict.fromkeys(configs)])
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*of_entries))
    return [candidate for candidate in in_turn if candidate is not None]


def sweep(seconds: float, record: Record) -> None:
    """Phase: check every candidate, time those that are right, a row for each plan.

    A shipped configuration that is wrong is red; any other is only left out. What the record has
    rows of already is not done again.
    """
    end = time.monotonic() + seconds
    try:
        if not torch.cuda.is_available():
            record.add({"check": "sweep", "passed": None, "why": "no CUDA or ROCm device"})
            return
        todo = candidates(architecture(torch.device("cuda", torch.cuda.current_device())))
        known = [row for row in record.rows if row["check"] == "sweep" and "kernel" in row]
        for row in rows(todo, end, seconds, jobs=record.jobs, known=known):
            record.add(row)
    except Exception as error:
        record.add({"check": "sweep", "passed": None, "why": in_words(error)})


def rows(
    todo: Sequence[Candidate],
    end: float,
    seconds: float,
    *,
    jobs: int,
    known: Sequence[Row] = (),
    check: Callable[[Candidate], str] | None = None,
    timed: Callable[[Candidate, str, int], Row] | None = None,
) -> Iterator[Row]:
    """The rows of a sweep.

    Args:
        todo: what is tried.
        end: `time.monotonic()` when nothing is begun any more.
        seconds: for everything; checks may take a part of it.
        jobs: processes for the checks, one of which times afterwards; 0 means this one.
        known: rows of an earlier sweep.
        check: a candidate -> why it must not be timed, or ""; None means `check_right`.
        timed: a candidate, a mask's name and a length -> its times; None means `time_pass`.
    """
    was_timed = {(Candidate.of(row), row["mask"], row["n"]) for row in known if "mask" in row}
    right = {candidate for candidate, _, _ in was_timed}
    rejected = {
        Candidate.of(row)
        for row in known
        if "mask" not in row and not row["why"].startswith(_UNDECIDED)
    }
    unknown = [candidate for candidate in todo if candidate not in right | rejected]
    checks_end = end - (1.0 - _CHECKS_SHARE) * seconds
    results = workers.results_of(
        check or check_right, unknown, jobs, end=checks_end, limit=_CHECK_SECONDS
    )
    for candidate, result in results:
        failed = isinstance(result, workers.Failure)
        why = result.why if failed else result
        if why:
            is_wrong = result.wrong if failed else why.startswith(WRONG)
            is_red = is_wrong and candidate.row["shipped"]
            yield candidate.row | {"passed": False if is_red else None, "why": why}
        else:
            right.add(candidate)
    lost: set[Candidate] = set()
    plans = [
        (candidate, mask, n)
        for n, candidate, mask in itertools.product(LENGTHS, todo, PAPER)
        if candidate in right and (candidate, mask, n) not in was_timed
    ]
    results = workers.results_of(
        functools.partial(_timed, timed or time_pass), plans, min(1, jobs), end=end,
        limit=_TIME_SECONDS, is_pointless=lambda plan: plan[0] in lost,
    )  # fmt: skip
    for (candidate, mask, n), result in results:
        row = candidate.row | {"mask": mask, "n": n, "passed": None}
        if isinstance(result, workers.Failure) and result.why == workers.OUT_OF_TIME:
            why = f"out of time at N = {n}"
            yield {"check": "sweep", "passed": None, "why": why}
            return
        if isinstance(result, workers.Failure):  # it hangs, or the GPU is lost: so it would again
            lost.add(candidate)
            yield row | {"why": result.why}
        elif "ms_50" in result:
            yield row | {"passed": True, "why": f"{result['ms_50']} ms"} | result
        elif result:
            yield row | result
        # Else a plan without tiles of this height, which says nothing.


def _timed(timed: Callable[[Candidate, str, int], Row], plan: tuple[Candidate, str, int]) -> Row:
    """Its times, or why there are none.

    Raises LostDevice when nothing else can run in this process.
    """
    try:
        return timed(*plan)
    except Exception as error:  # does not fit this GPU, say
        if is_fatal(error):
            raise workers.LostDevice(in_words(error)) from error
        return {"why": in_words(error)}


def check_right(candidate: Candidate) -> str:
    """Why it must not be timed, or "".

    Raises LostDevice when nothing else can run in this process.
    """
    why = why_not(candidate.entry, candidate.config)
    if is_fatal(Exception(why)):
        raise workers.LostDevice(why)
    return why


def time_pass(candidate: Candidate, mask: str, n: int) -> Row:
    """Milliseconds of the pass on this plan; nothing if it has no tiles of this height."""
    entry = candidate.entry
    work = _work(mask, n)
    side = work.program.queries if entry.kernel != "dkdv" else work.program.keys
    if entry.height not in [group.height for group in side.groups]:
        return {}
    call = work.forward if entry.kernel == "forward" else work.backward
    with launched_with(entry, candidate.config):
        return gpu_timing.alone(call, milliseconds=_TIMED_MS)


@dataclasses.dataclass(frozen=True)
class _Work:
    """A plan on the GPU, and the calls over it."""

    program: calls.KernelProgram
    forward: Callable[[], object]
    backward: Callable[[], object]


@functools.lru_cache(maxsize=len(PAPER))
def _work(mask: str, n: int) -> _Work:
    heads, dim = BERT_BASE.heads, BERT_BASE.dim
    made = named_masks.build(mask, n, heads)
    plan, _ = compiled_plan(made, "cuda", dim, heads)
    program = calls.build_program(plan).to("cuda")
    q, k, v = (
        torch.randn(TOKENS // n, n, heads, dim, device="cuda", dtype=torch.bfloat16).transpose(
            1, 2
        )
        for _ in range(3)
    )
    rest = (None, None, program, dim**-0.5, 0.0)
    o, lse = calls.forward(q, k, v, *rest)
    return _Work(
        program,
        lambda: calls.forward(q, k, v, *rest),
        lambda: calls.backward(o, None, q, k, v, o, lse, *rest),
    )


def best(swept: Sequence[Row]) -> dict[tuple[Any, ...], tuple[LaunchConfig, float]]:
    """Of each launch entry the configuration that is fastest over the plans, and by how much.

    That is the geometric mean of the shipped one's time over its own, at the lengths at which it
    was timed on every plan that the shipped one was; the shipped one itself has 1.0. Entries whose
    shipped one was not timed are left out.

    Args:
        swept: rows of one GPU.
    """
    times: dict[tuple[Any, ...], dict[LaunchConfig, dict[tuple[str, int], float]]] = {}
    shipped: dict[tuple[Any, ...], LaunchConfig] = {}
    for row in swept:
        if "ms_50" in row:
            candidate = Candidate.of(row)
            of_entry = times.setdefault(candidate.entry.key, {})
            of_entry.setdefault(candidate.config, {})[row["mask"], row["n"]] = row["ms_50"]
            if row["shipped"]:
                shipped[candidate.entry.key] = candidate.config
    found = {}
    for key, config in shipped.items():
        gains = {c: _gain(times[key][config], these) for c, these in times[key].items()}
        fastest = max(gains, key=lambda config: gains[config])
        found[key] = (fastest, gains[fastest])
    return found


def _gain(base: dict[tuple[str, int], float], these: dict[tuple[str, int], float]) -> float:
    whole = [n for n in LENGTHS if all(plan in these for plan in base if plan[1] == n)]
    ratios = [base[plan] / these[plan] for plan in base if plan[1] in whole]
    return statistics.geometric_mean(ratios) if ratios else 0.0


def main() -> int:
    """Sweep; the exit status is 2 where there is no GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.sweep", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--seconds", type=duration, default=100.0)
    seconds = parser.parse_args().seconds
    if not torch.cuda.is_available():
        print("sweep: no CUDA or ROCm device")
        return 2
    where = {**origin(), "triton": triton.__version__}
    sweep(seconds, Record(out_folder() / "sweep.jsonl", where, phase="sweep"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
