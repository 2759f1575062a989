"""Single entries: listed, cropped, picked and joined, row by row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebert.masks.bits import pack
from sparsebert.tiles import entries as entries_module
from sparsebert.tiles.entries import (
    Entries,
    crop_entries,
    join_entries,
    list_entries,
    no_entries,
    pick_rows,
    rows_of,
)


def dense_of(entries: Entries, columns: int) -> np.ndarray:
    """bool [rows, columns]; columns must ascend within each row."""
    found = np.zeros((len(entries.start) - 1, columns), dtype=bool)
    for row, (start, stop) in enumerate(zip(entries.start, entries.start[1:], strict=False)):
        cols = entries.cols[start:stop]
        assert (np.diff(cols) > 0).all()
        found[row, cols] = True
    assert entries.start.dtype == np.int64 and entries.cols.dtype == np.int32
    assert entries.start[0] == 0 and entries.start[-1] == len(entries.cols)
    return found


@st.composite
def heads(draw: st.DrawFn) -> np.ndarray:
    """bool [U, N, M], some heads and rows empty."""
    shape = [draw(st.integers(1, most)) for most in (4, 40, 70)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = rng.random(shape) < draw(st.sampled_from([0.0, 0.1, 0.9]))
    mask[rng.random(shape[0]) < 0.3] = False
    mask[:, rng.random(shape[1]) < 0.2] = False
    return mask


def listed(mask: np.ndarray) -> Entries:
    some = {u: pack(head) for u, head in enumerate(mask) if head.any()}
    return list_entries(some, *mask.shape[:2])


@given(heads(), st.data())
def test_entries_are_the_masks(mask: np.ndarray, data: st.DataObject) -> None:
    count, rows, columns = mask.shape
    entries, flat = listed(mask), mask.reshape(-1, columns)
    assert (dense_of(entries, columns) == flat).all()
    assert rows_of(entries).tolist() == np.nonzero(flat)[0].tolist()
    fewer, narrower = data.draw(st.integers(1, rows)), data.draw(st.integers(1, columns))
    cropped = crop_entries(entries, count, rows, fewer, narrower)
    wanted = mask[:, :fewer, :narrower].reshape(-1, narrower)
    assert (dense_of(cropped, narrower) == wanted).all()
    kept = np.random.default_rng(0).random(len(flat)) < 0.5
    assert (dense_of(pick_rows(entries, kept), columns) == flat & kept[:, None]).all()
    parts = [pick_rows(entries, kept), pick_rows(entries, ~kept), no_entries(len(flat))]
    for some in (parts, parts[::-1], parts[:1]):
        joined = join_entries(some)
        union = flat if len(some) > 1 else flat & kept[:, None]
        assert (dense_of(joined, columns) == union).all()


def test_bits_are_looked_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.random.default_rng(0).random((3, 33, 50)) < 0.2
    whole = listed(mask)
    monkeypatch.setattr(entries_module, "_BYTES_AT_ONCE", 60)
    parts = listed(mask)
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))
