"""The torch and dense backends below the op, on small calls: every program, every option.

In fp64, where an error of any other kind than rounding stands far above the bound.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from sparsebert import dropout
from sparsebert.backends import execution, registry, routing
from sparsebert.backends.base import Call, Upstream
from sparsebert.backends.program import Part
from sparsebert.backends.routing import Routes
from sparsebert.compiler.schedule import Schedule
from sparsebert.masks import AttentionMask
from sparsebert.masks.bits import pack
from sparsebert.testing import expected_attention
from sparsebert.tiles.build import TileGroup, build_tile_set
from tests.compiler.plans import tiles_plan

B, H, N, M, D = 2, 4, 37, 45, 8
DEAD, UNUSED = 5, 7
"""A query that attends to nothing, and a key that nothing attends to, in some heads."""


def allowed(heads: int, *, gaps: bool) -> torch.Tensor:
    """bool [heads, N, M]: rows of many widths, some of them in several tiles."""
    generator = torch.Generator().manual_seed(heads)
    mask = torch.rand(heads, N, M, generator=generator) < 0.15
    mask[:, ::8] |= torch.rand(heads, 1, M, generator=generator) < 0.7
    mask[:, :, :2] = True
    if gaps:
        mask[:, DEAD] = mask[:, :, UNUSED] = False
    return mask


Parts = tuple[Part, ...]


def program(mask: torch.Tensor, dense: list[bool], parts: int = 1) -> Parts:
    """The parts of the program of a mask whose distinct heads run dense where `dense` says so.

    With several parts a row has its keys in so many tiles, each with an order of its own; a row
    that attends to nothing is in tiles, too, as in a cropped plan.
    """
    plan = tiles_plan(AttentionMask.from_dense(mask), objective="area")
    tiles = plan.tiles
    if parts > 1:
        rng = np.random.default_rng(0)
        owner, groups = rng.integers(parts, size=(N, M)), []
        for head in range(tiles.num_heads):
            for part in range(parts):
                dense_head = tiles.dense()[head]
                rows = np.pad(rng.permutation(N), (0, -N % 16), constant_values=-1)
                bits = pack(dense_head & (owner == part))
                groups.append(TileGroup(head, bits, rows.reshape(-1, 16)))
        tiles = build_tile_set(groups, tiles.num_heads, N, M)
    schedule = dataclasses.replace(plan.schedule, dense_heads=np.array(dense), tiles=tiles)
    return lowered(schedule)


def lowered(schedule: Schedule) -> Parts:
    """What runs with "auto" on a CPU."""
    routes = routing.canonical(schedule, Routes("torch", "dense"))
    return routing.lower(schedule, routes).parts


def two_kinds(gaps: bool) -> torch.Tensor:
    """Heads 0 and 2 are alike, and 1 and 3."""
    return allowed(2, gaps=gaps)[[0, 1, 0, 1]]


PROGRAMS = {
    "tiles, one mask": (lambda: allowed(1, gaps=True), [False]),
    "tiles, a mask a head": (lambda: allowed(4, gaps=True), [False] * 4),
    "tiles, two kinds": (lambda: two_kinds(True), [False, False]),
    "tiles in three parts": (lambda: allowed(1, gaps=True), [False], 3),
    "tiles in two parts, two kinds": (lambda: two_kinds(True), [False, False], 2),
    "dense, one mask": (lambda: allowed(1, gaps=True), [True]),
    "dense, no gaps": (lambda: allowed(1, gaps=False), [True]),
    "dense, everything": (lambda: torch.ones(1, N, M, dtype=torch.bool), [True]),
    "dense, a mask a head": (lambda: allowed(4, gaps=True), [True] * 4),
    "both": (lambda: two_kinds(True), [True, False]),
    "both, dense last": (lambda: two_kinds(True), [False, True]),
}
OPTIONS = {
    "none": (),
    "padding": ("padding",),
    "dropout": ("dropout",),
    "lse": ("lse",),
    "all": ("padding", "dropout", "lse"),
}


def poisoned(x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """x with NaN in the rows that must not be looked at, [B, H, rows]."""
    return x.masked_fill(hidden[..., None], math.nan)


@pytest.mark.parametrize("steps", ["whole", "bounded"])
@pytest.mark.parametrize("kv_heads", [H, 2])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_results_and_gradients(
    name: str, option: str, kv_heads: int, steps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if steps == "bounded":
        for module in ("torch_tiles", "dense"):
            monkeypatch.setattr(f"sparsebert.backends.{module}.SCRATCH", 3000)
    make, *how = PROGRAMS[name]
    mask, options = make(), OPTIONS[option]
    run = program(mask, *how)

    torch.manual_seed(0)
    q, grad_o = torch.randn(2, B, H, N, D, dtype=torch.float64)
    k, v = torch.randn(2, B, kv_heads, M, D, dtype=torch.float64)
    grad_lse = torch.randn(B, H, N, dtype=torch.float64) if "lse" in options else None
    key_mask, keep, seed, p = None, None, None, 0.0
    if "padding" in options:
        key_mask = torch.rand(B, M) < 0.6
        key_mask[0] = True
        key_mask[1, :2] = False  # some rows lose all their keys
    if "dropout" in options:
        p, seed = 0.3, torch.tensor([11])
        keep = dropout.keep_mask(B, H, N, M, p, seed=seed)

    seen = mask.expand(H, N, M)[None].expand(B, H, N, M)
    if key_mask is not None:
        seen = seen & key_mask[:, None, None]
    alive, used = seen.any(3), seen.any(2).view(B, kv_heads, -1, M).any(2)
    expected = expected_attention(
        q,
        k,
        v,
        AttentionMask.from_dense(mask),
        key_mask=key_mask,
        scale=0.4,
        keep_mask=keep,
        dropout_p=p,
        grad_o=grad_o,
        grad_lse=None if grad_lse is None else grad_lse.masked_fill(~alive, 0.0),
    )
    q_, k_, v_ = poisoned(q, ~alive), poisoned(k, ~used), poisoned(v, ~used)
    call = Call(q_, k_, v_, key_mask, seed, 0.4, p)
    o, lse = execution.forward(call, run)
    upstream = Upstream(o, lse, poisoned(grad_o, ~alive), grad_lse)
    dq, dk, dv = execution.backward(call, run, upstream)
    results = {"o": o, "lse": lse, "dq": dq, "dk": dk, "dv": dv}
    for outcome in expected.outcomes(results):
        assert outcome.passed, outcome
    assert (o[~alive] == 0).all() and (lse[~alive] == -math.inf).all()
    assert (dq[~alive] == 0).all() and (dk[~used] == 0).all() and (dv[~used] == 0).all()
    for x in (o, dq, dk, dv):
        assert x.transpose(1, 2).is_contiguous()  # the order of HuggingFace models
    assert lse.is_contiguous()


@pytest.mark.parametrize("name", PROGRAMS)
def test_composed_operations_give_the_same_and_are_differentiable(name: str) -> None:
    make, *how = PROGRAMS[name]
    mask = make()
    run = program(mask, *how)
    torch.manual_seed(0)
    q = torch.randn(B, H, N, D, dtype=torch.float64, requires_grad=True)
    k, v = torch.randn(2, B, 2, M, D, dtype=torch.float64).requires_grad_().unbind()
    call = Call(q, k, v, None, None, 0.4, 0.0)
    o, lse = execution.compose(call, run)
    with torch.no_grad():
        fused = execution.forward(call, run)
    torch.testing.assert_close((o, lse), fused, rtol=1e-11, atol=1e-12)
    grad_o = torch.randn_like(o)
    ours = torch.autograd.grad(o, (q, k, v), grad_o, retain_graph=True)
    with torch.no_grad():
        theirs = execution.backward(call, run, Upstream(o, lse, grad_o, None))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", PROGRAMS)
def test_precisions(name: str, dtype: torch.dtype) -> None:
    """Inputs, outputs and gradients in one dtype, LSE in fp32, arithmetic in fp32 at least."""
    make, *how = PROGRAMS[name]
    mask = make()
    run = program(mask, *how)
    torch.manual_seed(0)
    q, grad_o = torch.randn(2, B, H, N, D).to(dtype)
    k, v = torch.randn(2, B, H, M, D).to(dtype)
    call = Call(q, k, v, None, None, 0.4, 0.0)
    o, lse = execution.forward(call, run)
    dq, dk, dv = execution.backward(call, run, Upstream(o, lse, grad_o, None))
    assert {x.dtype for x in (o, dq, dk, dv)} == {dtype} and lse.dtype == torch.float32
    expected = expected_attention(
        q, k, v, AttentionMask.from_dense(mask), scale=0.4, grad_o=grad_o
    )
    for outcome in expected.outcomes({"o": o, "lse": lse, "dq": dq, "dk": dk, "dv": dv}):
        assert outcome.passed, outcome


def test_queries_that_a_crop_leaves_without_keys_reach_nothing() -> None:
    """A query of late keys alone stays in its tile when they are cropped; it may hold NaN."""
    mask = allowed(1, gaps=False)
    mask[:, DEAD] = False
    mask[:, DEAD, 30:] = True
    plan = tiles_plan(AttentionMask.from_dense(mask), objective="area")
    plan = plan.crop(N, 30)
    torch.manual_seed(0)
    q, grad_o = torch.randn(2, B, H, N, D, dtype=torch.float64)
    k, v = torch.randn(2, B, H, 30, D, dtype=torch.float64)
    results = []
    for garbage in (0.0, math.nan):
        q[:, :, DEAD] = grad_o[:, :, DEAD] = garbage
        run, call = lowered(plan.schedule), Call(q, k, v, None, None, 0.4, 0.0)
        o, lse = execution.forward(call, run)
        gradients = execution.backward(call, run, Upstream(o, lse, grad_o, None))
        results.append((o, lse, *gradients))
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)
    assert (results[0][0][:, :, DEAD] == 0).all() and (results[0][2][:, :, DEAD] == 0).all()


def test_every_kind_of_program_is_here() -> None:
    """Shared and not, on one route and on both, with rows that two tiles and more cover."""
    kinds = set()
    covered = 0
    for make, *how in PROGRAMS.values():
        mask = make()
        run = program(mask, *how)
        names = {part.backend.name for part in run}
        kinds.add((len(torch.unique(mask, dim=0)) == 1, "torch" in names, "dense" in names))
        more = [part.program.more_rows for part in run if part.backend is registry.get("torch")]
        covered = max(covered, *map(len, more), 0)
    assert kinds == {(s, *r) for s, r in itertools.product((True, False), ((1, 0), (0, 1)))} | {
        (False, True, True)
    }
    assert covered == 2
