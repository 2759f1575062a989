"""The plans that are remembered, in one place for all: by everything that a plan depends on.

`compile_plan`, `sparse_attention` with a mask, and the layers of models (`mask_plans`) look here
first. What stands here is bounded in bytes, together with all else that is remembered, see
`sparsebert.memory`. A layer holds on to the plan that it used last and to those of compiled
graphs, as long as the layer is there.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, NamedTuple

import torch

from sparsebert.compiler.compile import Request
from sparsebert.memory import Shelf

if TYPE_CHECKING:
    from sparsebert.plan import AttentionPlan

CPU = torch.device("cpu")


class PlanKey(NamedTuple):
    """What a plan depends on.

    Attributes:
        request: the content and the positions of the whole mask, the target, the objective and
            the calls that it was compiled for, see `Request.key`.
        q_len, kv_len: the lengths that it is cropped to.
        device: where its tensors lie.
    """

    request: Hashable
    q_len: int
    kv_len: int
    device: torch.device

    @classmethod
    def whole(cls, request: Request, device: torch.device = CPU) -> PlanKey:
        """Of the plan of all of the request's mask."""
        return cls(request.key, request.mask.q_len, request.mask.kv_len, device)


plans: Shelf[AttentionPlan] = Shelf(lambda plan: plan.buffers())
"""The plans by their `PlanKey`."""
