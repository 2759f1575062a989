"""A case small enough for tests, and roofs of no machine."""

from __future__ import annotations

import torch

from benchmarks.attention import cases, inputs, roofs
from benchmarks.attention.cases import BOTH, Case
from benchmarks.attention.contender import CaseSetup
from benchmarks.attention.correctness import ResultCheck

TINY = Case("tiny", "test", 2, 2, 24, 8, "longformer", BOTH, "float32")
ROOFS = roofs.Roofs(10.0, {"float32": 0.1, "bfloat16": 0.2, "float16": 0.2})


def ready(case: Case) -> tuple[CaseSetup, ResultCheck]:
    torch.manual_seed(0)
    mask = cases.build_mask(case)
    plan, _ = inputs.compiled_plan(mask, "cpu")
    *qkv, grad_o = inputs.tensors_of(case, "cpu")
    key_mask = inputs.key_mask_of(case, "cpu")
    setup = CaseSetup(case, mask, plan, tuple(qkv), key_mask)
    return setup, ResultCheck(case, mask, tuple(qkv), grad_o, key_mask)
