"""The mask compiler: any mask is covered exactly, and known masks as cheaply as promised."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebert import patterns
from sparsebert.compiler.compile import Request, compile_schedule
from sparsebert.compiler.cost.instruction_sets import isa_for
from sparsebert.compiler.tile_map import tile_map
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan, compile_for_backend
from sparsebert.reference import reference_attention
from sparsebert.tiles.format import COLUMN_CHUNK, HEIGHTS, TileSet
from sparsebert.tiles.images import NOT_COMPUTED, SINGLE, WASTE
from tests.compiler.plans import KINDS, singles_plan, tiles_plan


def learned_looking(n: int, heads: int = 1, seed: int = 0) -> AttentionMask:
    """A band of 3, N / 16 vertical lines and 2 % random, without the diagonal."""
    rng = np.random.default_rng(seed)
    position = np.arange(n)
    masks = np.zeros((heads, n, n), dtype=bool)
    for mask in masks:
        mask |= np.abs(position[:, None] - position) <= 3
        mask[:, rng.choice(n, n // 16, replace=False)] = True
        mask |= rng.random((n, n)) < 0.02
        np.fill_diagonal(mask, False)
    return AttentionMask.from_dense(masks)


def permuted_blocks(n: int, block: int, seed: int = 0) -> AttentionMask:
    """Blocks on the diagonal under a random permutation of rows and one of columns."""
    rng = np.random.default_rng(seed)
    position = np.arange(n) // block
    mask = position[:, None] == position
    return AttentionMask.from_dense(mask[rng.permutation(n)][:, rng.permutation(n)])


def check_tiles(tiles: TileSet, masks: np.ndarray) -> None:
    """Every entry of `masks` [U, N, M] exactly once, and the promises of the format."""
    counted = np.zeros(masks.shape, dtype=np.int64)
    for tile in range(tiles.num_tiles):
        slots, columns = tiles.row_slots(tile), tiles.columns(tile)
        height, full, width = (int(x[tile]) for x in (tiles.height, tiles.full, tiles.width))
        real = int((slots >= 0).sum())
        assert height in HEIGHTS and len(slots) == height
        assert (slots[:real] >= 0).all() and (slots[real:] == -1).all()
        assert len(np.unique(slots[:real])) == real
        assert 0 <= full <= width <= len(columns) and len(columns) % COLUMN_CHUNK == 0
        assert len(columns) - width < COLUMN_CHUNK
        assert (np.diff(columns[:full]) > 0).all() and (np.diff(columns[full:width]) > 0).all()
        assert len(np.unique(columns[:width])) == width and (columns >= 0).all()
        allowed = tiles.allowed(tile)
        assert not allowed[real:].any() and not allowed[:, width:].any()
        np.add.at(
            counted,
            (tiles.head[tile], slots[:real, None], columns[None, :width]),
            allowed[:real, :width].astype(np.int64),
        )
    rows = np.repeat(np.arange(len(tiles.entry_start) - 1), np.diff(tiles.entry_start))
    np.add.at(counted.reshape(-1, tiles.num_cols), (rows, tiles.entry_cols), 1)
    assert (counted == masks).all()


def check_plan(plan: AttentionPlan, mask: AttentionMask) -> None:
    """The plan is the mask, in whichever route, forwards and transposed."""
    dense = mask.dense()[0]
    assert torch.equal(plan.dense(), dense)
    distinct = np.stack(
        [dense[np.argmax(plan.head_map == u)].numpy() for u in range(_heads(plan))]
    )
    every = np.ones(len(distinct), dtype=bool)
    for singles in (False, True):
        tiles = plan.schedule.queries(every, singles=singles)
        check_tiles(tiles, distinct)
        assert (tiles.height == 16).all() if singles else not len(tiles.entry_cols)
    check_tiles(plan.shared_tiles.transposed, distinct.transpose(0, 2, 1))
    assert not len(plan.shared_tiles.transposed.entry_cols)
    in_tiles = distinct & ~plan.dense_heads[:, None, None]
    check_tiles(plan.tiles, in_tiles)


def _heads(plan: AttentionPlan) -> int:
    return int(plan.head_map.max()) + 1


@st.composite
def masks(draw: st.DrawFn) -> AttentionMask:
    """Random and structured masks, rectangular ones and odd sizes included."""
    rows, columns = draw(st.integers(1, 150)), draw(st.integers(1, 150))
    heads = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    i, j = np.arange(rows)[:, None], np.arange(columns)[None, :]
    mask = np.zeros((heads, rows, columns), dtype=bool)
    for kind in draw(st.lists(st.sampled_from(["noise", "stride", "band", "lines"]), max_size=3)):
        if kind == "noise":
            mask |= rng.random(mask.shape) < draw(st.sampled_from([0.01, 0.1, 0.5, 0.95]))
        elif kind == "stride":
            mask |= (i - j) % draw(st.integers(2, 20)) == 0
        elif kind == "band":
            mask |= np.abs(i - j) <= draw(st.integers(0, 12))
        else:
            mask |= (rng.random((heads, rows, 1)) < 0.05) | (rng.random((heads, 1, columns)) < 0.1)
    if draw(st.booleans()):
        mask = mask[:, rng.permutation(rows)][:, :, rng.permutation(columns)]
    if draw(st.booleans()):
        mask[:, rng.random(rows) < 0.3] = False
    return AttentionMask.from_dense(mask)


@settings(max_examples=60)
@given(masks(), st.sampled_from(["area", "time"]), st.sampled_from(KINDS))
def test_any_mask_is_covered_exactly(
    mask: AttentionMask, objective: str, kind: tuple[str, str]
) -> None:
    check_plan(compile_for_backend(mask, kind[1], target=kind[0], objective=objective), mask)


@settings(max_examples=40)
@given(masks(), st.data())
def test_cropped_plans_are_exact(mask: AttentionMask, data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, mask.q_len))
    columns = data.draw(st.integers(1, mask.kv_len))
    objective = data.draw(st.sampled_from(["area", "time"]))
    make = data.draw(st.sampled_from([tiles_plan, singles_plan]))
    plan = make(mask, objective=objective)
    if data.draw(st.booleans()):
        assert plan.transposed.num_rows == mask.kv_len  # made, so that it is cropped too
    cropped, wanted = plan.crop(rows, columns), mask.crop(rows, columns)
    check_plan(cropped, wanted)
    dense = wanted.dense()[0].numpy()[[r.heads[0] for r in cropped.report.per_head]]
    check_tiles(cropped.transposed, dense.transpose(0, 2, 1))


def test_the_cost_shrinks_with_the_length() -> None:
    plan = tiles_plan(patterns.strided(512, 22), objective="area")
    executed = [plan.crop(n).explain().executed_fraction * n * n for n in (512, 384, 256, 128, 64)]
    assert executed == sorted(executed, reverse=True)
    assert plan.crop(512) is plan
    assert executed[2] < 0.4 * executed[0]
    direct = tiles_plan(patterns.strided(512, 22).crop(256), objective="area")
    assert executed[2] <= 1.3 * direct.explain().executed_fraction * 256 * 256


@pytest.mark.parametrize(
    "mask",
    [
        np.ones((1, 1), bool),
        np.zeros((1, 1), bool),
        np.ones((1, 300), bool),
        np.ones((300, 1), bool),
        np.zeros((70, 70), bool),
        np.ones((130, 65), bool),
        np.eye(200, dtype=bool),
        np.fliplr(np.eye(129, dtype=bool)),
    ],
    ids=["one", "none", "one row", "one column", "empty", "full", "diagonal", "antidiagonal"],
)
@pytest.mark.parametrize("objective", ["area", "time"])
@pytest.mark.parametrize("make", [tiles_plan, singles_plan])
def test_degenerate_masks(
    mask: np.ndarray, objective: str, make: Callable[..., AttentionPlan]
) -> None:
    mask = AttentionMask.from_dense(mask)
    check_plan(make(mask, objective=objective), mask)


@pytest.mark.parametrize("make", [tiles_plan, singles_plan])
def test_heads_that_all_differ(make: Callable[..., AttentionPlan]) -> None:
    mask = learned_looking(160, heads=5)
    plan = make(mask, objective="area")
    check_plan(plan, mask)
    assert len(plan.report.per_head) == 5


@pytest.mark.parametrize("make", [tiles_plan, singles_plan])
def test_equal_heads_are_compiled_once(make: Callable[..., AttentionPlan]) -> None:
    one = patterns.star(96)
    mask = AttentionMask.stack_heads([one, patterns.sliding_window(96), one])
    plan = make(mask, objective="area")
    assert [report.heads for report in plan.report.per_head] == [(0, 2), (1,)]
    check_plan(plan, mask)


# What each mask may execute with objective "area", as a share of N x M, at N = 512 and 2048.
PROMISED = {
    "star": (0.093, 0.024, patterns.star),
    "longformer": (0.12, 0.052, lambda n: patterns.longformer(n, 8 if n == 512 else 32, 2)),
    "log_sparse": (0.125, 0.064, patterns.log_sparse),
    "strided": (0.22, 0.080, lambda n: patterns.strided(n, 22 if n == 512 else 45)),
    "fixed": (0.095, 0.048, lambda n: patterns.fixed(n, 32, 1)),
    "bigbird": (0.155, 0.040, lambda n: patterns.bigbird(n, 1, 2, 2)),
    "dilated": (0.063, 0.016, lambda n: patterns.dilated_window(n, 8, 4)),
    "neighborhood": (
        0.18,
        0.050,
        lambda n: patterns.neighborhood_2d(
            n // (32 if n == 512 else 64), 32 if n == 512 else 64, 7
        ),
    ),
    "permuted blocks": (0.1251, 0.0313, lambda n: permuted_blocks(n, 64)),
    "learned-looking": (0.37, 0.33, learned_looking),
}


@pytest.mark.parametrize("name", PROMISED)
@pytest.mark.parametrize("n", [512, 2048])
def test_executed_fraction(name: str, n: int) -> None:
    at_512, at_2048, make = PROMISED[name]
    mask = make(n)
    report = tiles_plan(mask, objective="area").explain()
    assert report.density <= report.executed_fraction <= (at_512 if n == 512 else at_2048)
    assert report.per_head[0].route == "tiles"


@pytest.mark.parametrize("block", [32, 48, 64])
def test_permuted_blocks_are_found_again(block: int) -> None:
    n = 8 * block
    plain = tiles_plan(patterns.block_local(n, block), objective="area")
    found = tiles_plan(permuted_blocks(n, block), objective="area")
    limit = 1.05 * plain.explain().executed_fraction
    assert found.explain().executed_fraction <= limit


@pytest.mark.parametrize("target", ["cpu", "sm80", "sm90", "sm100", "gfx942"])
def test_hopeless_masks_fall_back_and_say_so(target: str) -> None:
    plan = tiles_plan(patterns.random(512, density=0.1), target=target)
    assert plan.dense_heads.all()
    assert "sparsity does not pay" in str(plan.explain())
    assert plan.explain().predicted_speedup == 1.0


def test_fallback_is_decided_for_each_head() -> None:
    windows = [patterns.sliding_window(1024, 4 + head) for head in range(4)]
    others = [patterns.dense(1024), patterns.random(1024, 0.2)]
    plan = tiles_plan(AttentionMask.stack_heads([*windows, *others]))
    assert plan.dense_heads.tolist() == [False] * 4 + [True] * 2


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_compiling_is_deterministic(backend: str) -> None:
    mask = learned_looking(256)
    calls = 64, 1, 12
    request = Request(mask, "cpu", "area", calls, backend, isa_for("cpu", backend))
    first, again = compile_schedule(request), compile_schedule(request)
    assert first.report == again.report
    for one, other in zip(first.tiles.arrays, again.tiles.arrays, strict=True):
        assert np.array_equal(one, other)


MERGED = {
    "strided": patterns.strided(256, 16),
    "log_sparse": patterns.log_sparse(256),
    "longformer": patterns.longformer(256, 8, 2),
    "learned, heads differ": learned_looking(128, heads=3),
}


@pytest.mark.parametrize("name", MERGED)
@pytest.mark.parametrize("hide_keys", [False, True])
def test_merged_rows_equal_the_reference(name: str, hide_keys: bool) -> None:
    from sparsebert.api import sparse_attention

    mask = MERGED[name]
    plan = tiles_plan(mask, objective="area")
    heads = max(2, mask.num_heads)
    q, k, v, grad = torch.randn(4, 2, heads, mask.q_len, 8, dtype=torch.float64)
    key_mask = torch.rand(2, mask.kv_len) < 0.7 if hide_keys else None
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    o = sparse_attention(*inputs, plan, key_mask=key_mask, backend="torch")
    gradients = torch.autograd.grad(o, inputs, grad)
    expected = reference_attention(*inputs, mask, key_mask=key_mask)
    torch.testing.assert_close(o, expected, rtol=1e-11, atol=1e-11)
    for found, wanted in zip(gradients, torch.autograd.grad(expected, inputs, grad), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    assert plan.explain().merge_share > 0.0 or name.startswith("learned")


def test_tile_map_shows_what_each_tile_covers() -> None:
    mask = patterns.strided(128, 11)
    plan = tiles_plan(mask, objective="area")
    shown = tile_map(plan.schedule)
    assert ((shown >= 0) == mask.dense()[0, 0].numpy()).all()
    assert set(np.unique(shown[shown >= 0])) == set(range(plan.tiles.num_tiles))
    computed = (shown != NOT_COMPUTED).mean()
    assert computed <= plan.explain().executed_fraction
    dense = tile_map(tiles_plan(patterns.random(64, 0.5)).schedule)
    assert set(np.unique(dense)) == {0, WASTE}
    with pytest.raises(IndexError, match="head 3"):
        tile_map(plan.schedule, 3)


def test_tile_map_shows_single_entries() -> None:
    mask = AttentionMask.stack_heads([patterns.star(64), patterns.sliding_window(64, 9)])
    plan = singles_plan(mask, objective="area")
    for head, dense in enumerate(mask.dense()[0].numpy()):
        shown = tile_map(plan.schedule, head)
        assert ((shown >= 0) | (shown == SINGLE)).tolist() == dense.tolist()
        assert (shown == SINGLE).sum() == plan.report.per_head[head].single_entries > 0
    assert (tile_map(plan.schedule, 1) >= 0).any()
