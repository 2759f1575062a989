"""What is compiled once for a mask, and shared by every plan that is made of it.

A plan moved to another device, a copy of it and its crops need the same tiles, and others than
those of the plan's own route only now and then: of the transposed mask, for dK and dV, of all
heads, for a backend that runs no head dense, and with single entries or without, for one that
the plan is not made for. `SharedTiles` finds each of them once, when it is first asked for. Those
of a crop are cropped, not searched for again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sparsebert.compiler import bitmatrix
from sparsebert.compiler.aim import Aim
from sparsebert.compiler.cover_search import Cover
from sparsebert.masks import AttentionMask
from sparsebert.support.forks import ForkSafeLock
from sparsebert.tiles.assemble import join_heads
from sparsebert.tiles.build import TileGroup, build_tile_set
from sparsebert.tiles.crop import crop_tiles
from sparsebert.tiles.format import TileSet

_WITH_SINGLES, _WITHOUT_SINGLES, _TRANSPOSED = "with singles", "without singles", "transposed"


class SharedTiles:
    """The tiles of one mask; see the module's text.

    Args:
        mask: one layer.
        firsts: for each distinct head, a head of the mask that has it.
        tiles: of the heads that run in tiles.
        in_tiles: bool [U], which these are.
        aim: what the search for the others goes by.
        whole: the tiles of the mask that this one is cropped from, which are cropped too.
    """

    def __init__(
        self,
        mask: AttentionMask,
        firsts: Sequence[int],
        tiles: TileSet,
        in_tiles: np.ndarray,
        aim: Aim,
        whole: SharedTiles | None = None,
    ) -> None:
        self._mask = mask
        self._firsts = list(firsts)
        self._tiles = tiles
        self._in_tiles = in_tiles
        self._aim = aim
        self._whole: SharedTiles | None = whole.whole if whole else None
        self._found: dict[str, TileSet] = {}
        self._lock = ForkSafeLock()

    @property
    def aim(self) -> Aim:
        """What searches go by."""
        return self._aim

    @property
    def whole(self) -> SharedTiles:
        """Those of the mask that was compiled, of which this may be a crop."""
        return self if self._whole is None else self._whole

    @property
    def every(self) -> TileSet:
        """Tiles of all heads, those that the plan runs dense included."""
        return self.every_head(singles=self._aim.singles)

    def every_head(self, *, singles: bool) -> TileSet:
        """The same, with single entries beside the tiles or without any."""
        if self.has_own(singles=singles) and self._in_tiles.all():
            return self._tiles
        return self._once(_WITH_SINGLES if singles else _WITHOUT_SINGLES)

    def has_own(self, *, singles: bool) -> bool:
        """Whether the plan's own tiles are such as have single entries beside them, or not."""
        return singles == self._aim.singles

    @property
    def transposed(self) -> TileSet:
        """Tiles of the transposed mask, all heads: key rows, gathered queries.

        They have no single entries beside them.
        """
        return self._once(_TRANSPOSED)

    def arrays(self) -> Iterator[np.ndarray]:
        """The arrays of what was found so far."""
        for shared in {self, self.whole}:
            yield shared._mask.bits
            for tiles in (shared._tiles, *list(shared._found.values())):
                yield from tiles.arrays

    def _once(self, which: str) -> TileSet:
        with self._lock:  # threads that need the same wait for it
            if which not in self._found:
                self._found[which] = self._crop(which) if self._whole else self._search(which)
            return self._found[which]

    def _crop(self, which: str) -> TileSet:
        lengths = self._mask.q_len, self._mask.kv_len
        if which == _TRANSPOSED:
            return crop_tiles(self.whole.transposed, *reversed(lengths))
        return crop_tiles(self.whole.every_head(singles=which == _WITH_SINGLES), *lengths)

    def _search(self, which: str) -> TileSet:
        lengths = self._mask.q_len, self._mask.kv_len
        aim = self._aim.towards(singles=which == _WITH_SINGLES)
        if which == _TRANSPOSED:
            heads = [bitmatrix.transpose(self._mask.bits[0, h], lengths[1]) for h in self._firsts]
            covers = aim.search(heads, *reversed(lengths))
            return tiles_of(dict(enumerate(covers)), len(heads), lengths[1], lengths[0])
        own = aim == self._aim
        missing = np.flatnonzero(~(self._in_tiles & own)).tolist()
        heads = [self._mask.bits[0, self._firsts[u]] for u in missing]
        covers = aim.search(heads, *lengths)
        found = dict(zip(missing, covers, strict=True))
        tiles = tiles_of(found, len(self._firsts), *lengths)
        return join_heads([self._tiles, tiles]) if own else tiles


def tiles_of(covers: dict[int, Cover], num_heads: int, q_len: int, kv_len: int) -> TileSet:
    """The tiles, and single entries, of the covers of some distinct heads."""
    groups = [
        TileGroup(head, bitmatrix.to_bytes(piece.words, kv_len), tiles.rows)
        for head, cover in covers.items()
        for piece in cover.pieces
        for tiles in piece.tiles
    ]
    singles = {
        head: bitmatrix.to_bytes(cover.singles, kv_len)
        for head, cover in covers.items()
        if cover.singles is not None
    }
    return build_tile_set(groups, num_heads, q_len, kv_len, singles)
