"""The time of one launch of a kernel over tiles, from what limits it: a simple model.

A program waits for a few trips to memory, then takes its columns step by step. Programs run on the
slots that registers and shared memory leave them, in the order of the launch. The launch takes the
longest of that, and of what all programs together need of the issue slots, exponential units,
tensor cores, the L2 and HBM. No number of it was measured; its worth is in comparing designs.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Mapping

import numpy as np

from benchmarks.predictions.gpu_machines import Machine
from sparsebert.kernels.configs import TILE_KERNELS

FLOPS = {"forward": 4, "dq": 6, "dkdv": 8}
"""Floating-point operations for each score and element of D."""

OWN_TENSORS = {"forward": 2, "dq": 3, "dkdv": 4}
"""Tensors of which a program reads or writes its own rows: q and o; q, do and dq; k, v, dk, dv."""

# Cycles, where the parts of a step do not overlap within a program.
_LOAD = 350.0  # until the first bytes of a gather are there
_BYTES = 48.0  # of a gather that then come for one program in each cycle
_WAIT = 150.0  # to wait for a whole step, where nothing is in flight beside it
_PRODUCTS = 350.0  # latency of two products, one behind the other, and of softmax between them
_STALLS = 1.15  # a warp does not issue in every cycle
_END = 400.0  # to start, to store the result and to finish


@dataclasses.dataclass(frozen=True)
class Design:
    """How the kernels of one version run.

    Attributes:
        name: of the version.
        trips: of each of `TILE_KERNELS`, dependent trips to memory before the first product, that
            of its operands included.
        chained: a row in two tiles goes from one launch to the next; else by way of scratch.
        fused_delta: dq computes delta itself.
    """

    name: str
    trips: tuple[int, int, int]
    chained: bool
    fused_delta: bool


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a compiled kernel takes, for tiles of one height.

    Attributes:
        block_m, block_n, num_warps: of its launch configuration.
        in_flight: steps whose gathers are under way while one is computed; 0 if gathering and
            arithmetic take turns.
        programs: that fit on one SM.
        full, bits: instructions of a warp for 1,000 scores, where every row attends, and with a
            test of bits.
        from_shared: products take their operands from shared memory.
    """

    block_m: int
    block_n: int
    num_warps: int
    in_flight: int
    programs: int
    full: float
    bits: float
    from_shared: bool


AllCounts = Mapping[tuple[str, int], Counts]
"""By kernel and tile height."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """The work of a launch, of one head.

    Attributes:
        height: rows of a tile.
        width, full: int64 [T], columns of each tile, and how many of them need no test; in the
            order of the launch.
        rows, columns: different rows and columns of all tiles.
        continued: rows that go on from what an earlier launch wrote out.
        scratch: partial results written in fp32.
    """

    height: int
    width: np.ndarray
    full: np.ndarray
    rows: int
    columns: int
    continued: int
    scratch: int


@dataclasses.dataclass(frozen=True)
class Call:
    """What all launches of a call share: batch x heads, D, bytes of a number, and whether its
    tensors stay in the L2 from launch to launch.
    """

    copies: int
    head_dim: int
    itemsize: int
    near: bool


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of a launch.

    Attributes:
        programs, issue, exponentials, tensor, l2, hbm: what limits it, if all slots are busy.
        tail: how much longer the programs take than if all slots were busy to the end.
    """

    tail: float
    programs: float
    issue: float
    exponentials: float
    tensor: float
    l2: float
    hbm: float

    @property
    def total(self) -> float:
        """Without what a launch costs beside its work."""
        return self.tail + getattr(self, self.limit)

    @property
    def limit(self) -> str:
        """The name of the longest, but for the tail."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "tail"]
        return max(names, key=vars(self).__getitem__)


def launch_times(
    kernel: str, launch: Launch, counts: Counts, design: Design, machine: Machine, call: Call
) -> Times:
    """What a launch of a kernel takes."""
    parts = launch.height // counts.block_m
    plain = launch.full // counts.block_n
    tested = -(-(launch.width - plain * counts.block_n) // counts.block_n)
    tested = np.maximum(tested, (plain == 0).astype(np.int64))
    scores = counts.block_m * counts.block_n
    steps = plain + tested
    instructions = scores / 1000.0 * (counts.full * plain + counts.bits * tested)
    flops = FLOPS[kernel] * call.head_dim * scores
    rate = machine.tensor_flops if counts.from_shared else machine.register_flops

    padding = steps * counts.block_n - launch.width  # the last column again: four rows are one
    gathered = launch.width + padding / 4.0
    trips = design.trips[TILE_KERNELS.index(kernel)]
    each = _program_cycles(
        steps, gathered / steps, instructions, flops / rate, trips, counts, machine, call
    )
    each /= machine.reached
    slots = machine.units * counts.programs
    busy = float(each.sum()) * parts * call.copies / slots
    until_done = _makespan(np.repeat(each, parts), call.copies, slots)
    # Of all programs, on each unit.
    times = call.copies * parts / machine.units / machine.clock / machine.reached
    row = call.head_dim * call.itemsize
    own = OWN_TENSORS[kernel] * launch.height / parts
    moved = float(gathered.sum()) * 2 * row + own * row * len(each)
    return Times(
        tail=(until_done - busy) / machine.clock,
        programs=busy / machine.clock,
        issue=times * float(instructions.sum()) / machine.issue,
        exponentials=times * float(steps.sum()) * scores / machine.exponentials,
        tensor=times * float(steps.sum()) * flops / rate,
        l2=moved * parts * call.copies / machine.l2,
        hbm=_bytes_moved(kernel, launch, design, call) / machine.hbm,
    )


def _program_cycles(
    steps: np.ndarray,
    gathered: np.ndarray,
    instructions: np.ndarray,
    products: float,
    trips: int,
    counts: Counts,
    machine: Machine,
    call: Call,
) -> np.ndarray:
    """Cycles of each program that has its share of the unit to itself, float64 [T].

    `gathered` and `products` are the columns and the cycles of tensor cores of one step.
    """
    gather = _LOAD + gathered * 2 * call.head_dim * call.itemsize / _BYTES
    warps = min(float(counts.num_warps), machine.issue)
    if not counts.from_shared:
        products *= 4.0 / min(4, counts.num_warps)
    scores = counts.block_m * counts.block_n
    exponentials = scores / machine.exponentials * 4.0 / min(4, counts.num_warps)
    issued = _STALLS * instructions / np.maximum(steps, 1) / warps
    compute = products + _PRODUCTS + np.maximum(issued, exponentials)
    first = trips * machine.trip + _END
    cycles: np.ndarray
    if not counts.in_flight:  # the last of the trips is that of the first step's gather
        cycles = first + steps * (gather + _WAIT + compute) - _LOAD
    else:
        cycles = first + steps * np.maximum(gather / counts.in_flight, compute)
    return cycles


def _makespan(each: np.ndarray, copies: int, slots: int) -> float:
    """Cycles until the last program is done; each takes the slot that is free first."""
    order = np.tile(each, copies)
    if len(order) <= slots:
        return float(order.max(initial=0.0))
    if order[0] == each.max() == each.min():
        return float(-(-len(order) // slots) * each[0])
    free = order[:slots].tolist()
    heapq.heapify(free)
    for cycles in order[slots:].tolist():
        heapq.heapreplace(free, free[0] + cycles)
    return max(free)


def _bytes_moved(kernel: str, launch: Launch, design: Design, call: Call) -> float:
    """Bytes between HBM and the L2: each row and column once, whatever the L2 keeps in between."""
    row = call.head_dim * call.itemsize
    moved = OWN_TENSORS[kernel] * launch.rows * row + 2 * launch.columns * row
    if kernel == "dq" and design.fused_delta:
        moved += launch.rows * row  # o
    outputs = 2 if kernel == "dkdv" else 1
    again = outputs * launch.continued * row  # what the earlier launch wrote
    scratch = outputs * launch.scratch * max(4 * call.head_dim - row, 0)  # fp32, not the output
    if call.near:  # only what no launch of the call has moved yet
        return 0.0 if launch.continued else call.copies * float(moved)
    return call.copies * float(moved + again + scratch)


def merge_seconds(rows: int, partial: int, outputs: int, machine: Machine, call: Call) -> float:
    """The launches that add up partial results of rows; 0 if there are none."""
    if not rows:
        return 0.0
    moved = partial * 4 * call.head_dim + rows * call.head_dim * call.itemsize
    rate = machine.l2 if call.near else machine.hbm
    return outputs * (machine.launch + call.copies * moved / rate)


def delta_seconds(rows: int, machine: Machine, call: Call) -> float:
    """The launch that computes delta of o and do, where dq does not."""
    moved = 2 * rows * call.head_dim * call.itemsize * call.copies
    return machine.launch + moved / (machine.l2 if call.near else machine.hbm)
