"""The plans of one mask, for the sequence lengths that a model meets.

A model's mask covers its longest sequence; shorter ones use its top-left part. `MaskPlans` holds
the mask, compiles it when it is first used, and crops the plan to each length that comes up. What
was compiled it keeps; crops, which are cheap to make again, as long as `sparsebert.memory` has
room. Plans are for the calls that come: head size, heads, and on a CPU threads.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable
from typing import Any

import numpy as np
import torch

from sparsebert.compiler.cost.model import DEFAULT_HEAD_DIM
from sparsebert.masks import AttentionMask
from sparsebert.memory import Shelf
from sparsebert.plan import AttentionPlan, compile_plan
from sparsebert.support.forks import ForkSafeLock
from sparsebert.support.untraced import constant_in_graphs, untraced


class MaskPlans:
    """A mask of one layer and its recently used plans.

    Copies share the mask and what was compiled of it, which is immutable; pickles hold the mask
    alone.

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
        self._shelf: Shelf[AttentionPlan] = Shelf(AttentionPlan.buffers)
        self.by_length = self._shelf.items
        self._whole: dict[Hashable, AttentionPlan] = {}  # by the kind of device and of calls
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
        key = (q_len, kv_len, device, head_dim, heads, _threads(device))
        with self._lock:
            plan = self._shelf.get(key)
            if plan is None:
                whole = self._compiled(device, head_dim, heads)
                plan = whole.crop(q_len, kv_len).to(device)
                if plan is whole:  # which stays, and must not keep what runs
                    plan = whole.without_programs()
                self._shelf.put(key, plan)
        return plan

    def keep(self, key: Hashable) -> None:
        """Never forget the plan with this key in `by_length`: a compiled graph looks it up."""
        self._shelf.fix(key)

    def _compiled(self, device: torch.device, head_dim: int, heads: int | None) -> AttentionPlan:
        key = (device.type, head_dim, heads, _threads(device))
        if key not in self._whole:
            compiled = compile_for(self.mask, device, head_dim, heads)
            self._whole[key] = compiled.without_programs()
        return self._whole[key]

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
            copy._whole.update(self._whole)
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        return MaskPlans, (self.mask,)


def compile_for(
    mask: AttentionMask, device: torch.device, head_dim: int, heads: int | None
) -> AttentionPlan:
    """The plan of a mask for calls on `device`, not moved there yet.

    The batch is left open, so that not every new batch size compiles again.
    """
    if device.type == "cpu":
        return compile_plan(mask, target="cpu", head_dim=head_dim, copies=heads)
    return compile_plan(mask, head_dim=head_dim)  # for the GPU at hand


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
    return plans.by_length[q_len, kv_len, device, head_dim, heads, threads]


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
    plans.get(q_len, kv_len, device, head_dim, heads)
    plans.keep((q_len, kv_len, device, head_dim, heads, threads))
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
