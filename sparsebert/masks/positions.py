"""What a mask's positions stand for, and so which part of it serves a shorter input.

A mask of N tokens in a row, `LINE`, serves any shorter sequence: with its top-left part. One over
the patches of an image is a `Grid`: the patches of a smaller image are not the first ones of a
larger. A combination of different grids, `MIXED`, serves one length alone.

A mask's record (`AttentionMask.provenance`) says it: in the entry "positions", or by naming a
pattern over a grid. A record without either is that of a line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

KEY = "positions"
"""Where a record keeps it, unless it is a line."""

LINE = "line"
MIXED = "mixed"


@dataclasses.dataclass(frozen=True)
class Grid:
    """`num_special` tokens ([CLS], registers), then height x width patches, row by row."""

    height: int
    width: int
    num_special: int = 0

    @property
    def length(self) -> int:
        """Tokens in all."""
        return self.num_special + self.height * self.width

    def __str__(self) -> str:
        special = self.num_special
        before = f" after {special} special token{'s' * (special > 1)}" if special else ""
        return f"a grid of {self.height} x {self.width} patches{before}"


Positions = Grid | str
"""A `Grid`, `LINE` or `MIXED`."""

_FIELDS = [field.name for field in dataclasses.fields(Grid)]


def combine(each: Iterable[Positions]) -> Positions:
    """The positions of a mask that is made of others: a line goes along with any grid."""
    kinds = set(each) - {LINE}
    return MIXED if len(kinds) > 1 else kinds.pop() if kinds else LINE


def to_record(positions: Positions) -> dict[str, Any]:
    """What to add to a record."""
    if positions == LINE:
        return {}
    return {KEY: positions if isinstance(positions, str) else dataclasses.asdict(positions)}


def from_record(record: dict[str, Any], q_len: int, kv_len: int) -> Positions:
    """The positions of a mask with this record; `MIXED` where its lengths belie the record."""
    found = _stated(record)
    if isinstance(found, Grid) and not found.length == q_len == kv_len:
        return MIXED
    return found


def _stated(record: Any) -> Positions:
    if not isinstance(record, dict):  # an operand named by its fingerprint
        return LINE
    stated = record.get(KEY)
    if stated == MIXED:
        return MIXED
    if record.get("pattern") == "neighborhood_2d":
        stated = record
    if isinstance(stated, dict):
        sizes = [size for name in _FIELDS if type(size := stated.get(name)) is int]
        if len(sizes) == len(_FIELDS):
            return Grid(*sizes)
    # What versions without "positions" derived from such a pattern.
    of = record.get("of")
    return combine(_stated(each) for each in of) if isinstance(of, list) else LINE


def why_not_crop(positions: Positions) -> str | None:
    """Why a mask with these positions has no part for a shorter input, and what to do instead."""
    if positions == LINE:
        return None
    if isinstance(positions, Grid):
        return (
            f"its positions are {positions}, and a length does not say which of them are meant; "
            "take a top-left part of the grid with mask.crop_grid(height, width), or build the "
            "mask for the other grid"
        )
    return (
        "its positions are those of several grids, and no part of it is a mask for a shorter "
        "input; build the mask for that input"
    )
