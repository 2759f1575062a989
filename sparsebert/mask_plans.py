"""The plans of one mask, for the sequence lengths that a model meets.

A model's mask covers its longest sequence; shorter ones use its top-left part. `MaskPlans` holds
the mask and the schedules that were compiled of it, and crops them to each length that comes up.
Plans are for the calls that come: head size, heads, and on a CPU threads. They stand in the one
cache of plans (`plan_cache`), where the newest of each mask stays.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable
from typing import Any

import numpy as np
import torch

from sparsebert import plan_cache
from sparsebert.compiler.cost.model import DEFAULT_HEAD_DIM
from sparsebert.compiler.schedule import Schedule
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan, plan_on, request_for
from sparsebert.plan_cache import CPU, PlanKey
from sparsebert.support.forks import ForkSafeLock
from sparsebert.support.untraced import constant_in_graphs, untraced

Use = tuple[int, int, torch.device, int, int | None, int]
"""Which plan of a mask a call needs: q_len, kv_len, device, head_dim, heads, threads.

Plain values, so that torch.compile can guard them.
"""


class MaskPlans:
    """A mask of one layer and the plans of it that are in use.

    Copies share the mask and what was compiled of it, which is immutable; pickles hold the mask
    alone.

    Attributes:
        in_use: the plan that was asked for last, and those of compiled graphs.

    >>> import sparsebert as sb
    >>> plans = MaskPlans(sb.patterns.star(512))
    >>> plans.get(100, 100, torch.device("cpu")).q_len
    100
    """

    def __init__(self, mask: AttentionMask) -> None:
        self.mask = mask
        # Plain attributes, because torch.compile cannot look into a mask.
        self.fingerprint = mask.fingerprint
        self.length = mask.q_len
        self.in_use: dict[Use, AttentionPlan] = {}
        self._newest: tuple[Use, PlanKey] | None = None
        self._of_graphs: set[Use] = set()
        # By the kind of device and of calls. Never compiled again, whatever the cache forgets.
        self._compiled: dict[tuple[Any, ...], tuple[Hashable, Schedule]] = {}
        self._packed: dict[torch.device, torch.Tensor] = {}
        self._lock = ForkSafeLock()  # torch.nn.DataParallel runs replicas in threads

    def get(
        self,
        q_len: int,
        kv_len: int,
        device: torch.device,
        head_dim: int = DEFAULT_HEAD_DIM,
        heads: int | None = None,
    ) -> AttentionPlan:
        """The plan of the mask's top-left [q_len, kv_len], on `device`.

        It is made for calls with `head_dim` and `heads` (None: as for `compile_plan`).
        """
        use = q_len, kv_len, device, head_dim, heads, _threads(device)
        plan = self.in_use.get(use)
        return self._begin(use) if plan is None else plan

    def keep(self, use: Use) -> None:
        """Hold on to a plan, once it is in use, for ever: a compiled graph looks it up there."""
        self._of_graphs.add(use)

    def _begin(self, use: Use) -> AttentionPlan:
        """Find or make a plan, and hold on to it instead of the one that was used before."""
        q_len, kv_len, head_dim = map(int, (use[0], use[1], use[3]))  # tensors in torch.jit.trace
        device, heads, threads = use[2], None if use[4] is None else int(use[4]), use[5]
        use = q_len, kv_len, device, head_dim, heads, threads
        with self._lock:
            request, schedule = self._whole(use)
            key = PlanKey(request, q_len, kv_len, device)
            plan = plan_cache.plans.get(key)
            if plan is None:
                plan = AttentionPlan(schedule).crop(q_len, kv_len).to(device)
                plan_cache.plans.put(key, plan)
            before, self._newest = self._newest, (use, key)
            if before is None or before[0] == use or before[0] in self._of_graphs:
                plan_cache.plans.hold(key, self)
            else:
                plan_cache.plans.hold(key, self, instead_of=before[1])
                del self.in_use[before[0]]
            self.in_use[use] = plan
        return plan

    def _whole(self, use: Use) -> tuple[Hashable, Schedule]:
        """What the whole mask is compiled to for such calls, and the key of that request."""
        _, _, device, head_dim, heads, threads = use
        kind = device.type, head_dim, heads, threads
        if kind not in self._compiled:
            request = request_for(self.mask, device, head_dim, heads)
            self._compiled[kind] = request.key, plan_on(request, CPU).schedule
        return self._compiled[kind]

    def rows(self, start: int, q_len: int, kv_len: int, device: torch.device) -> torch.Tensor:
        """Rows from `start`, the first `kv_len` keys: bool [H, q_len, kv_len].

        What a decoder with a key/value cache needs, where a plan for each step would not pay.
        """
        bits = self.mask.bits[0, :, start : start + q_len]
        rows = np.unpackbits(bits, axis=-1, count=kv_len, bitorder="little")
        return torch.from_numpy(rows.view(np.bool_)).to(device)

    def packed(self, device: torch.device) -> torch.Tensor:
        """The mask's bits on `device`, uint8 [H, N, ceil(M / 8)], kept there once asked for."""
        if device not in self._packed:
            with untraced():  # kept, so it must be a real tensor
                self._packed[device] = torch.from_numpy(self.mask.bits[0].copy()).to(device)
        return self._packed[device]

    def __deepcopy__(self, memo: dict[int, Any]) -> MaskPlans:
        copy = MaskPlans(self.mask)
        with self._lock:
            copy._compiled.update(self._compiled)
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        return MaskPlans, (self.mask,)


def _threads(device: torch.device) -> int:
    """The threads that a plan for `device` depends on."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def plan_for(
    plans: MaskPlans,
    q_len: int,
    kv_len: int,
    device: torch.device,
    head_dim: int = DEFAULT_HEAD_DIM,
    heads: int | None = None,
) -> AttentionPlan:
    """`plans.get`, also under torch.compile, where each length gets a graph of its own."""
    if not torch.compiler.is_compiling():
        return plans.get(q_len, kv_len, device, head_dim, heads)
    # Dynamo runs the compiler without looking into it, then finds the plan where it can guard it.
    q_len, kv_len, head_dim = (operator.index(size) for size in (q_len, kv_len, head_dim))
    threads = _make_plan(plans, q_len, kv_len, device, head_dim, heads)
    return plans.in_use[q_len, kv_len, device, head_dim, heads, threads]


@constant_in_graphs
def _make_plan(
    plans: MaskPlans,
    q_len: int,
    kv_len: int,
    device: torch.device,
    head_dim: int,
    heads: int | None,
) -> int:
    """Make the plan; returns the threads that it is for."""
    threads = _threads(device)
    plans.keep((q_len, kv_len, device, head_dim, heads, threads))
    plans.get(q_len, kv_len, device, head_dim, heads)
    return threads


def rows_for(
    plans: MaskPlans, start: int, q_len: int, kv_len: int, device: torch.device
) -> torch.Tensor:
    """`plans.rows`, also under torch.compile, where they become a constant of the graph."""
    lengths = operator.index(start), operator.index(q_len), operator.index(kv_len)
    rows: torch.Tensor = _constant_rows(plans, plans.fingerprint, *lengths, device)
    return rows


@constant_in_graphs
def _constant_rows(
    plans: MaskPlans,
    fingerprint: str,  # read by the caller so that Dynamo guards the mask's content
    start: int,
    q_len: int,
    kv_len: int,
    device: torch.device,
) -> torch.Tensor:
    return plans.rows(start, q_len, kv_len, device)


def packed_for(plans: MaskPlans, device: torch.device) -> torch.Tensor:
    """`plans.packed`, also under torch.compile, where it becomes a constant of the graph."""
    bits: torch.Tensor = _constant_bits(plans, plans.fingerprint, device)
    return bits


@constant_in_graphs
def _constant_bits(plans: MaskPlans, fingerprint: str, device: torch.device) -> torch.Tensor:
    return plans.packed(device)
