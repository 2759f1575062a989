"""A quick look at how fast this machine is, so that plans do not go by another machine's times.

The constants of the cost model come from one machine. What takes twice as long here, dense
attention most of all, whose speed depends on the processor's maker, would mislead plans. So before
the first plan for a backend that can be calibrated, a few short calls are timed, for less than a
second, and what they take over what the constants predict are `Factors` for all plans: of dense
attention, tiles, single entries, and of what comes once a call.

They are kept in memory, and in a file in the user's cache folder ($XDG_CACHE_HOME or ~/.cache,
sparsebert/) for later processes, one for all that they depend on: processor, instruction set,
library, torch, constants and number of threads. `plan.explain()` says what its constants are.
SPARSEBERT_CALIBRATE=0 turns all of this off. It never runs while torch traces, nor in a forked
process, where threads may hang.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from sparsebert.backends import execution, registry, routing
from sparsebert.backends.base import Call
from sparsebert.backends.routing import Routes
from sparsebert.compiler.compile import compile_schedule, complete
from sparsebert.compiler.cost import constants
from sparsebert.compiler.cost.factors import AS_FITTED, Factors
from sparsebert.compiler.cost.instruction_sets import isa_for
from sparsebert.compiler.cost.model import CostModel, cost_model
from sparsebert.machine import processor
from sparsebert.masks import AttentionMask, patterns
from sparsebert.storage import write_atomically
from sparsebert.support.forks import ForkSafeLock
from sparsebert.support.tensors import is_transformed
from sparsebert.support.untraced import untraced
from sparsebert.tiles.outlines import outlines_of_head, singles_of_head

VARIABLE = "SPARSEBERT_CALIBRATE"

TARGET = "cpu"
HEADS, DIM = 12, 64

SECONDS = 0.8
"""When measuring ends, whatever was found."""
LEAST_SECONDS, LEAST_ROUNDS = 0.15, 6
TURN = 0.002
"""Seconds for which a short call is repeated in its turn, as in a model, where it is warm."""
STEADY, UNSTEADY = 1.08, 1.3
"""The least times of every other round over those of the rest: good enough, and too uncertain."""
LIMITS = (0.05, 20.0)
APART = 4.0
"""Factors beyond which something else must be wrong; tiles and single entries, which are the same
arithmetic, may not differ by more than the second."""

_DENSE, _TILES, _SINGLES, _CALL = "dense", "tiles", "singles", "call"
_IN_KERNELS = (_TILES, _SINGLES, _CALL)
_SWITCHES = (
    "ATEN_CPU_CAPABILITY", "LD_PRELOAD", "MKL_CBWR", "MKL_DEBUG_CPU_TYPE",
    "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA",
)  # fmt: skip
"""Variables by which torch, MKL and oneDNN choose their code."""


class NotCalibrated(Exception):
    """Why there are no factors, in words."""


class Timed(NamedTuple):
    """A call that is timed, and what the constants say of it.

    Attributes:
        run: the call.
        parts: predicted time in microseconds by the factor that it is multiplied by.
    """

    run: Callable[[], object]
    parts: dict[str, float]


_known: dict[tuple[str, int], Factors] = {}
_lock = ForkSafeLock()
_forked: list[bool] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _forked.append(True))


def factors_for(target: str, backend: str, threads: int | None) -> Factors:
    """The factors of this machine, measured if they are not known; `AS_FITTED` for other targets.

    Never raises: where nothing can be measured the constants serve, and `Factors.source` says why.
    """
    if target != TARGET:
        return AS_FITTED
    threads = torch.get_num_threads() if threads is None else threads
    found = _known.get((backend, threads))
    return _find(backend, threads) if found is None else found


def forget() -> None:
    """Look again: at the variable, the file and the machine."""
    _known.clear()


def _find(backend: str, threads: int) -> Factors:
    if os.environ.get(VARIABLE) == "0" or not registry.get(backend).speed_depends_on():
        return _known.setdefault((backend, threads), AS_FITTED)
    with _lock:  # threads that need the same wait for it
        found = _known.get((backend, threads))
        if found is None:
            try:
                about = _about(backend, threads)
                found = _read(about)
                if found is None:
                    _check_that_we_may(threads)
                    found = _measured(backend, threads)
                    _write(about, found)
            except _NotNow as reason:
                return Factors(source=f"not calibrated: {reason}")
            except Exception as error:  # whatever it is: plans work without this
                found = Factors(source=f"not calibrated: {error}")
            _known[backend, threads] = found
    return found


# ------------------------------------------------------------------------------ measuring


class _NotNow(NotCalibrated):
    """Why there are no factors yet; there may be some later in this process."""


def _check_that_we_may(threads: int) -> None:
    """Raises `_NotNow`, or `NotCalibrated` where this process never may."""
    if _forked:
        raise NotCalibrated("this process was forked, where torch's threads may hang")
    if _is_watched():
        raise _NotNow("this plan was made while torch traced a graph")
    if threads != torch.get_num_threads():
        raise _NotNow(f"it is for {threads} threads, and torch takes {torch.get_num_threads()}")


def _is_watched() -> bool:
    """Whether something looks at what torch does, or changes it."""
    return bool(
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack()
        or torch._guards.TracingContext.try_get() is not None
        or is_transformed()
    )


def _measured(backend: str, threads: int) -> Factors:
    clock = time.thread_time if threads == 1 else time.perf_counter
    with untraced():
        calls = timed_calls(backend, threads)
    plain = torch._C.DisableTorchFunction()  # a default device is a mode, which slows every call
    with torch.no_grad(), torch.autocast(TARGET, enabled=False), plain:
        times = least_times({name: call.run for name, call in calls.items()}, clock)
    usual = constants.reference(TARGET, backend, isa_for(TARGET, backend))
    return solve(calls, {name: us / usual.get(name, 1.0) for name, us in times.items()})


def timed_calls(backend: str, threads: int, isa: str | None = None) -> dict[str, Timed]:
    """The calls by what they are there for: each factor weighs most in one of them.

    `isa` is the instruction set that is predicted for, None for that of the machine at hand.
    """
    isa = isa_for(TARGET, backend) if isa is None else isa
    model = functools.partial(_model, backend, threads, isa)
    masks = {
        _TILES: patterns.dense(256),
        _SINGLES: patterns.random(512, 0.04),
        _CALL: patterns.sliding_window(16, 1),
    }
    calls = {name: _in_kernels(backend, threads, mask, model) for name, mask in masks.items()}
    q, k, v = _tensors(256)
    parts = {
        name: HEADS * model(name).forward.dense(256, 256, masked=False) for name in (_DENSE, _CALL)
    }
    calls[_DENSE] = Timed(lambda: scaled_dot_product_attention(q, k, v), parts)
    return calls


def _in_kernels(
    backend: str, threads: int, mask: AttentionMask, model: Callable[[str], CostModel]
) -> Timed:
    schedule = compile_schedule(complete(mask, TARGET, "area", DIM, threads, HEADS, backend))
    program = routing.lower(schedule, Routes(backend, backend))
    q, k, v = _tensors(mask.q_len)
    call = Call(q, k, v, None, None, DIM**-0.5, 0.0)
    tiles, singles = outlines_of_head(schedule.tiles, 0), singles_of_head(schedule.tiles, 0)
    parts = {
        name: HEADS * model(name).cover_us(tiles, mask.q_len, mask.kv_len, singles=singles)
        for name in _IN_KERNELS
    }
    return Timed(lambda: execution.forward(call, program.parts), parts)


def _model(backend: str, threads: int, isa: str, part: str) -> CostModel:
    """The cost model with the constants of one factor alone."""
    return cost_model(
        TARGET,
        backend=backend,
        isa=isa,
        head_dim=DIM,
        threads=threads,
        copies=HEADS,
        factors=_factors({part: 1.0}),
    )


def _tensors(length: int) -> tuple[torch.Tensor, ...]:
    """q, k and v in the memory order of models; torch's own generator stays as it is."""
    generator = torch.Generator().manual_seed(0)
    shape = 3, 1, length, HEADS, DIM
    drawn = torch.randn(shape, generator=generator, dtype=torch.float32, device=TARGET)
    return drawn.transpose(2, 3).unbind(0)


def least_times(
    calls: Mapping[str, Callable[[], object]],
    clock: Callable[[], float] = time.perf_counter,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """The least time of each call in microseconds, of rounds over all of them.

    In its turn a call is run once, then timed, more than once if it is short. Rounds go on until
    those with even and with odd numbers agree. Raises `NotCalibrated` if they never do: others use
    the machine.
    """
    least = {name: [math.inf, math.inf] for name in calls}
    start, rounds = now(), 0
    while True:
        for name, call in calls.items():
            call()
            spent = 0.0
            while spent < TURN:
                before = clock()
                call()
                took = clock() - before
                least[name][rounds % 2] = min(took, least[name][rounds % 2])
                spent += max(took, 1e-6)
        rounds += 1
        if rounds < 2:
            continue
        spent = now() - start
        apart = max(max(times) / max(min(times), 1e-9) for times in least.values())
        done = rounds >= LEAST_ROUNDS and spent >= LEAST_SECONDS and apart <= STEADY
        if done or spent >= SECONDS:
            break
    if apart > UNSTEADY:
        raise NotCalibrated("the machine is too busy to tell how fast it is")
    return {name: min(times) * 1e6 for name, times in least.items()}


def solve(calls: Mapping[str, Timed], times: Mapping[str, float]) -> Factors:
    """The factors with which the constants predict these times, microseconds, of these calls.

    Raises `NotCalibrated` if they are no sensible ones.
    """
    matrix = [[calls[row].parts[part] for part in _IN_KERNELS] for row in _IN_KERNELS]
    solved = np.linalg.solve(np.array(matrix), np.array([times[name] for name in _IN_KERNELS]))
    found = dict(zip(_IN_KERNELS, solved.tolist(), strict=True))
    dense = calls[_DENSE].parts
    found[_DENSE] = (times[_DENSE] - found[_CALL] * dense[_CALL]) / dense[_DENSE]
    unlike = max(found[_TILES], found[_SINGLES]) > APART * min(found[_TILES], found[_SINGLES])
    if unlike or not all(LIMITS[0] <= factor <= LIMITS[1] for factor in found.values()):
        told = ", ".join(f"{name} x{factor:.3g}" for name, factor in found.items())
        raise NotCalibrated(f"the times that were measured make no sense ({told})")
    return _described({name: float(f"{factor:.3g}") for name, factor in found.items()})


def _factors(found: Mapping[str, float], source: str = "") -> Factors:
    names = (_DENSE, *_IN_KERNELS)
    dense, tiles, singles, call = (found.get(name, 0.0) for name in names)
    return Factors(dense, tiles, singles, call, source)


def _described(found: Mapping[str, float], date: str = "") -> Factors:
    date = date or datetime.date.today().isoformat()
    source = (
        f"calibrated on this machine, {date}: dense attention x{found[_DENSE]:g}, tiles "
        f"x{found[_TILES]:g}, single entries x{found[_SINGLES]:g}, calls x{found[_CALL]:g}"
    )
    return _factors(found, source)


# ------------------------------------------------------------------------------ the file


def folder() -> Path:
    """Where the files are."""
    stated = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(stated) if os.path.isabs(stated) else Path.home() / ".cache"
    return cache / "sparsebert"


def _about(backend: str, threads: int) -> dict[str, Any]:
    """All that the factors depend on."""
    isa = isa_for(TARGET, backend)
    terms = [constants.pass_terms(TARGET, name, backend, isa) for name in ("forward", "backward")]
    usual = constants.reference(TARGET, backend, isa)
    preloaded = [Path(name).name for name in os.environ.get("LD_PRELOAD", "").split(":")]
    switches = {name: os.environ.get(name, "") for name in _SWITCHES}
    return {
        "processor": processor(),
        "backend": [backend, *registry.get(backend).speed_depends_on()],
        "torch version": torch.__version__,
        "threads": threads,
        "constants": hashlib.sha256(repr((terms, usual)).encode()).hexdigest()[:16],
        "switches": {**switches, "LD_PRELOAD": ":".join(preloaded)},
    }


def _path(about: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    return folder() / f"calibration-{digest}.json"


def _read(about: Mapping[str, Any]) -> Factors | None:
    """What an earlier process found; None if there is no file, or it is damaged."""
    try:
        stored = json.loads(_path(about).read_bytes())
        found = {name: stored["factors"][name] for name in (_DENSE, *_IN_KERNELS)}
        date = datetime.date.fromisoformat(stored["date"]).isoformat()
        sound = all(
            type(factor) is float and LIMITS[0] <= factor <= LIMITS[1] for factor in found.values()
        )
        return _described(found, date) if sound and stored["about"] == about else None
    except (OSError, RuntimeError, ValueError, TypeError, KeyError):
        return None


def _write(about: Mapping[str, Any], found: Factors) -> None:
    """Keep it for later processes, if that can be done."""
    numbers = {name: getattr(found, name) for name in (_DENSE, *_IN_KERNELS)}
    stored = {"about": about, "factors": numbers, "date": datetime.date.today().isoformat()}
    try:
        path = _path(about)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically("compile_plan", path, (json.dumps(stored, indent=2) + "\n").encode())
    except (OSError, RuntimeError):  # no home, or a folder that is not ours to write to
        return
