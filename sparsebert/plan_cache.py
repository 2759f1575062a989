"""The plans of one mask, for the sequence lengths that a model meets.

A model's mask covers its longest sequence; shorter ones use its top-left part. `MaskPlans` holds
the mask, compiles it when it is first used, and crops the plan to each length that comes up,
keeping the latest few.
"""

from __future__ import annotations

import collections
import operator
import threading
from collections.abc import Hashable
from typing import Any

import numpy as np
import torch

from sparsebert.compiler import compile_plan
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan

_KEPT = 16
"""Lengths whose plans are remembered. Plans are small beside activations, but not nothing."""


class MaskPlans:
    """A mask of one layer and its recently used plans.

    Copies share nothing but the mask, which is immutable; pickles hold the mask alone.

    >>> import sparsebert as sb
    >>> plans = MaskPlans(sb.patterns.star(512))
    >>> plans.get(100, 100, torch.device("cpu"), "auto").q_len
    100
    """

    def __init__(self, mask: AttentionMask) -> None:
        self.mask = mask
        # Plain attributes, because torch.compile cannot look into a mask.
        self.fingerprint = mask.fingerprint
        self.length = mask.q_len
        self.by_length: collections.OrderedDict[Hashable, AttentionPlan] = (
            collections.OrderedDict()
        )
        self._whole: dict[str, AttentionPlan] = {}  # by the kind of device
        self._lock = threading.Lock()  # torch.nn.DataParallel runs replicas in threads

    def get(self, q_len: int, kv_len: int, device: torch.device, backend: str) -> AttentionPlan:
        """The plan of the mask's top-left [q_len, kv_len], on `device`, ready for `backend`."""
        key = (q_len, kv_len, device)
        with self._lock:
            plan = self.by_length.get(key)
            if plan is None:
                plan = self._compiled(device).crop(q_len, kv_len).to(device)
                self.by_length[key] = plan
                if len(self.by_length) > _KEPT:
                    self.by_length.popitem(last=False)
            self.by_length.move_to_end(key)
            plan.program_for(backend)  # made here, where torch.compile does not trace it
        return plan

    def _compiled(self, device: torch.device) -> AttentionPlan:
        if device.type not in self._whole:
            target = "cpu" if device.type == "cpu" else None  # None: the GPU at hand
            self._whole[device.type] = compile_plan(self.mask, target=target)
        return self._whole[device.type]

    def rows(self, start: int, q_len: int, kv_len: int, device: torch.device) -> torch.Tensor:
        """Rows from `start`, the first `kv_len` keys: bool [H, q_len, kv_len].

        What a decoder with a key/value cache needs, where a plan for each step would not pay.
        """
        bits = self.mask.bits[0, :, start : start + q_len]
        rows = np.unpackbits(bits, axis=-1, count=kv_len, bitorder="little")
        return torch.from_numpy(rows.view(np.bool_)).to(device)

    def __deepcopy__(self, memo: dict[int, Any]) -> MaskPlans:
        return MaskPlans(self.mask)

    def __reduce__(self) -> tuple[Any, ...]:
        return MaskPlans, (self.mask,)


def plan_for(
    plans: MaskPlans, q_len: int, kv_len: int, device: torch.device, backend: str
) -> AttentionPlan:
    """`plans.get`, also under torch.compile, where each length gets a graph of its own."""
    if not torch.compiler.is_compiling():
        return plans.get(q_len, kv_len, device, backend)
    # Dynamo runs the compiler without looking into it, then finds the plan where it can guard it.
    q_len, kv_len = operator.index(q_len), operator.index(kv_len)
    _make_plan(plans, q_len, kv_len, device, backend)
    return plans.by_length[q_len, kv_len, device]


@torch.compiler.assume_constant_result
def _make_plan(
    plans: MaskPlans, q_len: int, kv_len: int, device: torch.device, backend: str
) -> None:
    plans.get(q_len, kv_len, device, backend)


def rows_for(
    plans: MaskPlans, start: int, q_len: int, kv_len: int, device: torch.device
) -> torch.Tensor:
    """`plans.rows`, also under torch.compile, where they become a constant of the graph."""
    lengths = operator.index(start), operator.index(q_len), operator.index(kv_len)
    rows: torch.Tensor = _constant_rows(plans, plans.fingerprint, *lengths, device)
    return rows


@torch.compiler.assume_constant_result
def _constant_rows(
    plans: MaskPlans,
    fingerprint: str,  # read by the caller so that Dynamo guards the mask's content
    start: int,
    q_len: int,
    kv_len: int,
    device: torch.device,
) -> torch.Tensor:
    return plans.rows(start, q_len, kv_len, device)
