"""What an AttentionMask is, a frozen value of packed bits and a record, and the parts of it.

`sparsebert.masks.mask` builds such masks and combines them.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NoReturn, Self

import numpy as np
import numpy.typing as npt
import torch

from sparsebert.masks.bits import Bits, clear_padding, pack, row_bytes, unpack
from sparsebert.masks.positions import LINE, Grid, Positions, from_record, why_not_crop
from sparsebert.masks.provenance import derived_record
from sparsebert.support.checks import integer


class PackedMask:
    """The bits of a mask [L, H, N, M], what can be read off them, and its parts."""

    __slots__ = ("_bits", "_fingerprint", "_kv_len", "_positions", "_record")

    _bits: Bits
    _kv_len: int
    _record: str
    _fingerprint: str | None
    _positions: Positions | None

    @classmethod
    def _wrap(cls, bits: Bits, kv_len: int, record: str) -> Self:
        """Take ownership of `bits` ([L, H, N, W] with clean padding); no checks."""
        mask = object.__new__(cls)
        bits = np.ascontiguousarray(bits)
        # A view cannot be made writeable again once the array that owns the memory is not.
        owner = bits.base if isinstance(bits.base, np.ndarray) else bits
        owner.flags.writeable = False
        bits.flags.writeable = False
        object.__setattr__(mask, "_bits", bits.view())
        object.__setattr__(mask, "_kv_len", kv_len)
        object.__setattr__(mask, "_record", record)
        object.__setattr__(mask, "_fingerprint", None)
        object.__setattr__(mask, "_positions", None)
        return mask

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(L, H, N, M): layers, heads, queries, keys."""
        layers, heads, rows, _ = self._bits.shape
        return layers, heads, rows, self._kv_len

    @property
    def num_layers(self) -> int:
        """L; 1 also stands for "the same mask in every layer"."""
        return int(self._bits.shape[0])

    @property
    def num_heads(self) -> int:
        """H; 1 also stands for "the same mask for every head"."""
        return int(self._bits.shape[1])

    @property
    def q_len(self) -> int:
        """N, the number of query positions."""
        return int(self._bits.shape[2])

    @property
    def kv_len(self) -> int:
        """M, the number of key positions."""
        return self._kv_len

    @property
    def bits(self) -> Bits:
        """The packed bits, read-only uint8 [L, H, N, ceil(M / 8)], lowest bit first."""
        return self._bits

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the mask comes from: a fresh JSON-able dict, empty if nobody said."""
        record: dict[str, Any] = json.loads(self._record)
        return record

    @property
    def positions(self) -> Positions:
        """What its positions are, "line", a `sparsebert.masks.positions.Grid`, or "mixed".

        It decides what `crop` may do, is kept by all operations and saved with the mask.
        Patterns know it; for a mask of your own over an image see `on_grid`.
        """
        if self._positions is None:  # each call of attention asks for it
            positions = from_record(self.provenance, self.q_len, self.kv_len)
            object.__setattr__(self, "_positions", positions)
        assert self._positions is not None
        return self._positions

    @property
    def density(self) -> float:
        """Share of allowed positions over all layers and heads, 0 to 1."""
        ones = int(np.bitwise_count(self._bits).sum(dtype=np.int64))
        return ones / (self.num_layers * self.num_heads * self.q_len * self.kv_len)

    @property
    def sparsity(self) -> float:
        """Share of forbidden positions, ``1 - density``."""
        return 1.0 - self.density

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over shape and bits; provenance does not enter."""
        if self._fingerprint is None:
            digest = hashlib.sha256(f"AttentionMask{list(self.shape)}".encode())
            digest.update(self._bits.data)
            object.__setattr__(self, "_fingerprint", digest.hexdigest())
        assert self._fingerprint is not None
        return self._fingerprint

    def dense(self) -> torch.Tensor:
        """The mask as a fresh bool tensor [L, H, N, M] on the CPU, True = may attend."""
        return torch.from_numpy(unpack(self._bits, self._kv_len))

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        """What `numpy.asarray` makes of a mask: the same as `dense`, as an array."""
        if copy is False:
            raise ValueError(
                "AttentionMask: its bits are packed, so an array of it is a copy; leave out "
                "copy=False"
            )
        return unpack(self._bits, self._kv_len).astype(dtype or np.bool_, copy=False)

    # ---------------------------------------------------------------- parts of it

    def layer(self, index: int) -> Self:
        """Layer `index` as a mask of one layer; negative indices count from the end.

        Raises:
            IndexError: no such layer.
        """
        at = _position("layer", index, self.num_layers)
        return self._wrap(
            self._bits[at : at + 1].copy(), self._kv_len, self._say("layer", index=at)
        )

    def head(self, index: int) -> Self:
        """Head `index` of every layer as a mask of one head; negative indices as in Python.

        Raises:
            IndexError: no such head.
        """
        at = _position("head", index, self.num_heads)
        bits = self._bits[:, at : at + 1].copy()
        return self._wrap(bits, self._kv_len, self._say("head", index=at))

    def crop(self, q_len: int, kv_len: int | None = None) -> Self:
        """The top-left part: the first `q_len` queries and the first `kv_len` keys.

        A mask over a grid is left whole or refused; see `crop_grid`.

        Args:
            q_len: 1 to N.
            kv_len: 1 to M; for a square mask it defaults to q_len.

        Raises:
            ValueError: a length outside the mask, no kv_len for a rectangular mask, or positions
                that are not a line.

        Example:
            >>> import sparsebert as sb
            >>> sb.AttentionMask.from_dense(torch.ones(8, 8, dtype=torch.bool)).crop(3).shape
            (1, 1, 3, 3)
        """
        if kv_len is None:
            if self.q_len != self.kv_len:
                raise ValueError(
                    f"crop: kv_len is needed, because the mask is not square "
                    f"({self.q_len} x {self.kv_len})"
                )
            kv_len = q_len
        rows = integer("crop", "q_len", q_len, 1, self.q_len)
        keys = integer("crop", "kv_len", kv_len, 1, self.kv_len)
        if (rows, keys) == self.shape[2:]:
            return self
        if why := why_not_crop(self.positions):
            raise ValueError(
                f"crop: the mask is {self.q_len} x {self.kv_len}, asked for were {rows} x {keys}; "
                + why
            )
        bits = self._bits[:, :, :rows, : row_bytes(keys)].copy()
        clear_padding(bits, keys)
        return self._wrap(bits, keys, self._say("crop", q_len=rows, kv_len=keys))

    def crop_grid(self, height: int, width: int) -> Self:
        """The special tokens and the top-left `height` x `width` patches of a mask over a grid.

        What patches attend to at the new border is what they attended to there before: a
        neighbourhood that reached across it gets smaller. (`patterns.neighborhood_2d` of the
        smaller grid would move it inwards.)

        Raises:
            ValueError: the positions are no grid, or a side is longer than the grid's.

        Example:
            >>> from sparsebert import patterns
            >>> patterns.neighborhood_2d(8, 8, 3, num_special=1).crop_grid(4, 6).shape
            (1, 1, 25, 25)
        """
        grid = self.positions
        if not isinstance(grid, Grid):
            raise ValueError(
                f"crop_grid: the positions of the mask are {grid!r}, not a grid; "
                + ("take mask.crop(length)" if grid == LINE else "build it for the smaller grid")
            )
        height = integer("crop_grid", "height", height, 1, grid.height)
        width = integer("crop_grid", "width", width, 1, grid.width)
        patches = np.arange(grid.height * grid.width).reshape(grid.height, grid.width)
        kept = grid.num_special + patches[:height, :width].reshape(-1)
        kept = np.concatenate([np.arange(grid.num_special), kept])
        rows = unpack(self._bits[:, :, kept], self._kv_len)
        smaller = Grid(height, width, grid.num_special)
        record = derived_record("crop_grid", [self], {"height": height, "width": width}, smaller)
        return self._wrap(pack(rows[..., kept]), len(kept), record)

    def on_grid(self, height: int, width: int, num_special: int = 0) -> Self:
        """The same mask, which now knows that its positions are a grid, so that `crop` refuses.

        Args:
            height, width: of the grid, whose patches are in the mask row by row.
            num_special: tokens before them ([CLS], registers).

        Raises:
            ValueError: the mask has another number of tokens.

        Example:
            >>> import sparsebert as sb
            >>> mask = sb.AttentionMask.from_dense(torch.eye(17, dtype=torch.bool))
            >>> mask.on_grid(4, 4, 1).positions
            Grid(height=4, width=4, num_special=1)
        """
        grid = Grid(
            integer("on_grid", "height", height, 1),
            integer("on_grid", "width", width, 1),
            integer("on_grid", "num_special", num_special, 0),
        )
        if not grid.length == self.q_len == self.kv_len:
            raise ValueError(
                f"on_grid: num_special + height * width = {grid.length} but the mask is "
                f"{self.q_len} x {self.kv_len}"
            )
        return self._wrap(
            self._bits, self._kv_len, derived_record("on_grid", [self], positions=grid)
        )

    def without_diagonal(self) -> Self:
        """The same mask with every position i = j forbidden: no token attends to itself.

        The paper (arXiv:2102.12871, section 4) finds the diagonal the least important part of
        attention, and proves that it can go.
        """
        bits = self._bits.copy()
        at = np.arange(min(self.q_len, self.kv_len))
        bits[:, :, at, at // 8] &= ~(np.uint8(1) << (at % 8).astype(np.uint8))
        return self._wrap(bits, self._kv_len, self._say("without_diagonal"))

    # ---------------------------------------------------------------- a frozen value

    def __eq__(self, other: object) -> bool:
        """Same shape and same bits (no broadcasting); provenance does not count."""
        if not isinstance(other, PackedMask):
            return NotImplemented
        return self.shape == other.shape and np.array_equal(self._bits, other._bits)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"AttentionMask is immutable, cannot set {name!r}; build a new mask")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"AttentionMask is immutable, cannot delete {name!r}")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __repr__(self) -> str:
        layers, heads, rows, keys = self.shape
        what = self.provenance.get("pattern")
        return (
            f"<AttentionMask{f' {what}' if what else ''}: {layers} layer{'s' * (layers > 1)}, "
            f"{heads} head{'s' * (heads > 1)}, {rows} x {keys}, density {self.density:.2%}>"
        )

    def _say(self, op: str, **arguments: int) -> str:
        return derived_record(op, [self], arguments)


def _position(name: str, index: int, count: int) -> int:
    number = integer(name, "index", index)
    if not -count <= number < count:
        raise IndexError(f"{name}: index {number} but the mask has {count} {name}(s)")
    return number % count
