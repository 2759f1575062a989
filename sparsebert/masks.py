"""Which query may attend to which key: the immutable, bit-packed AttentionMask.

A mask says, for every layer, head, query position and key position, whether attention is
allowed (True) or not.  It is static: it never looks at the input.

    >>> import torch
    >>> from sparsebert.masks import AttentionMask
    >>> i, j = torch.arange(6)[:, None], torch.arange(6)[None, :]
    >>> band = AttentionMask.from_dense((i - j).abs() <= 1)     # [N, M] -> 1 layer, 1 head
    >>> band.shape
    (1, 1, 6, 6)
    >>> causal = AttentionMask.from_dense(j <= i)
    >>> (band & causal).without_diagonal().dense()[0, 0].int().sum().item()
    5
    >>> two_layers = AttentionMask.stack_layers([band, causal])
    >>> two_layers.layer(-1) == causal
    True

Terms.  L layers, H heads, N queries (``q_len``), M keys (``kv_len``).  One layer or one head in
a mask serves all layers or all heads where masks are combined.  ``density`` is the share of
allowed positions, ``sparsity`` the share of forbidden ones.

Storage.  One bit a position: ``bits`` is uint8 [L, H, N, ceil(M / 8)], key j of a row is bit
``j % 8`` of byte ``j // 8``, and the padding bits after key M - 1 are zero.  12 heads at
N = M = 4096 take 25 MB instead of the 201 MB of a bool tensor.

Masks are values: nothing changes one in place, equal masks hash alike, and ``fingerprint``
names the content.  Ready-made masks are in `sparsebert.patterns`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt
import torch

from sparsebert.bits import (
    Bits,
    clear_padding,
    looks_swapped,
    pack,
    padding_is_clear,
    row_bytes,
    swap_order,
    unpack,
)
from sparsebert.checks import integer
from sparsebert.flex import MaskMod, bits_of_mask_mod, block_mask
from sparsebert.mask_input import bool_array, is_bool, kind, refused, remedy
from sparsebert.maskfile import load_bits, save_bits
from sparsebert.positions import LINE, Grid, Positions, from_record, why_not_crop
from sparsebert.provenance import derived_record, record_of

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


class AttentionMask:
    """An immutable mask [L, H, N, M], one bit a position, 1 = may attend.

    Build one with `from_dense`, `from_packed`, `from_mask_mod`, `load` or a function of
    `sparsebert.patterns`, not with the constructor.
    """

    __slots__ = ("_bits", "_fingerprint", "_kv_len", "_record")

    _bits: Bits
    _kv_len: int
    _record: str
    _fingerprint: str | None

    def __init__(self, *arguments: object, **options: object) -> None:
        came = arguments[0] if arguments else next(iter(options.values()), None)
        write = "AttentionMask.from_dense({})"
        raise TypeError(
            "AttentionMask: masks are made by AttentionMask.from_dense, from_packed, "
            "from_mask_mod, load, or a function of sparsebert.patterns"
            + (f"; got {kind(came)}: {remedy(came, write)}" if arguments or options else "")
        )

    @classmethod
    def _wrap(cls, bits: Bits, kv_len: int, record: str) -> AttentionMask:
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
        return mask

    # ---------------------------------------------------------------- construction

    @classmethod
    def from_dense(
        cls,
        mask: torch.Tensor | npt.NDArray[np.bool_],
        *,
        provenance: dict[str, Any] | None = None,
    ) -> AttentionMask:
        """Pack a boolean mask, True = may attend.

        Args:
            mask: bool tensor (any device) or numpy array, [N, M] (one mask for every layer and
                head), [H, N, M] (one per head) or [L, H, N, M].  HuggingFace's 4-D masks are
                [B, 1, N, M]: nothing in the shape tells them apart, and B would be read as
                layers, so pass one example's ``mask[0]``.
            provenance: where the mask comes from, JSON-able; it is stored with the mask.

        Raises:
            TypeError: not a tensor or array, or not boolean (0/1 and additive masks are
                refused rather than guessed at); the message says how to convert what came.
            ValueError: not 2 to 4 dimensions, or an empty one.

        Example:
            >>> AttentionMask.from_dense(torch.ones(12, 5, 7, dtype=torch.bool)).shape
            (1, 12, 5, 7)
        """
        array = bool_array("from_dense", "mask", mask)
        shape = _shape4("from_dense", "mask", array.shape, "[N, M], [H, N, M], [L, H, N, M]")
        bits = pack(array.reshape(shape))
        return cls._wrap(bits, shape[-1], record_of(provenance))

    @classmethod
    def from_packed(
        cls,
        bits: Bits,
        kv_len: int,
        provenance: dict[str, Any] | None = None,
        *,
        bitorder: Literal["little", "big"] | None = None,
    ) -> AttentionMask:
        """Build a mask from packed bits (copied).

        Args:
            bits: uint8 [N, W], [H, N, W] or [L, H, N, W] with W = ceil(kv_len / 8), packed as
                ``np.packbits(mask, axis=-1, bitorder="little")``; padding bits must be zero.
            kv_len: M, the number of keys.
            provenance: as for `from_dense`.
            bitorder: "little", or "big", the default of ``np.packbits``.  None is "little" too,
                and refuses bits that are most likely the other way round.

        Raises:
            TypeError: bits are not a uint8 array.
            ValueError: the width does not fit kv_len, a padding bit is set, or without
                `bitorder` the bits look like "big".

        Example:
            >>> AttentionMask.from_packed(np.array([[0b011], [0b110]], np.uint8), 3).dense().sum()
            tensor(4)
        """
        if not isinstance(bits, np.ndarray) or bits.dtype != np.uint8:
            what = bits.dtype if isinstance(bits, np.ndarray) else type(bits).__name__
            raise TypeError(f"from_packed: bits must be a numpy array of uint8, got {what}")
        if bitorder not in (None, "little", "big"):
            raise ValueError(f"from_packed: bitorder must be 'little' or 'big', got {bitorder!r}")
        kv_len = integer("from_packed", "kv_len", kv_len, 1)
        shape = _shape4("from_packed", "bits", bits.shape, "[N, W], [H, N, W], [L, H, N, W]")
        if shape[-1] != row_bytes(kv_len):
            raise ValueError(
                f"from_packed: bits have {shape[-1]} bytes a row but kv_len={kv_len} needs "
                f"{row_bytes(kv_len)}; pack with np.packbits(mask, axis=-1, bitorder='little')"
            )
        bits = np.asarray(bits).reshape(shape)
        bits = swap_order(bits) if bitorder == "big" else bits.copy()
        if not padding_is_clear(bits, kv_len):
            other = "little" if bitorder == "big" else "big"
            raise ValueError(
                f"from_packed: padding bits after key {kv_len - 1} are set; they must be zero; "
                f"if the bits are packed the other way round, pass bitorder={other!r}"
            )
        if bitorder is None and looks_swapped(bits):
            raise ValueError(
                "from_packed: bits look as if packed with the highest bit first, the default of "
                "np.packbits, but the lowest is expected; pass bitorder='big' if so, "
                "bitorder='little' if they are right as they are"
            )
        return cls._wrap(bits, kv_len, record_of(provenance))

    @classmethod
    def from_mask_mod(
        cls,
        mod: MaskMod,
        num_heads: int,
        q_len: int,
        kv_len: int,
        *,
        device: torch.device | str = "cpu",
    ) -> AttentionMask:
        """Evaluate a FlexAttention ``mask_mod(b, h, q_idx, kv_idx)`` at every position.

        The mod is called under vmap with b = 0: a mask here is the same for every example, so
        of a mod that looks at b only the first example's mask is taken.

        Args:
            mod: returns a bool tensor, True = may attend; it may use tensors from outside.
            num_heads, q_len, kv_len: H, N, M of the mask [1, H, N, M]; with num_heads = 1 it
                serves all heads.
            device: where the mod's own tensors are.

        Raises:
            TypeError: mod takes other arguments (a score_mod has five) or returns no bool.

        Example:
            >>> AttentionMask.from_mask_mod(lambda b, h, q, kv: kv <= q, 1, 3, 3).density
            0.6666666666666666
        """
        bits = bits_of_mask_mod(mod, num_heads, q_len, kv_len, device)
        name = getattr(mod, "__qualname__", type(mod).__qualname__)
        return cls._wrap(bits[None], int(kv_len), record_of({"mask_mod": name}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AttentionMask:
        """Read a mask that `save` wrote, checking every field and the sums of the content.

        Raises:
            FileNotFoundError: no such file.
            sparsebert.maskfile.MaskFileError (a ValueError): not a mask file, truncated,
                altered, or written by a newer version.
        """
        bits, kv_len, provenance = load_bits(path)
        return cls._wrap(bits, kv_len, record_of(provenance))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the mask to one safetensors file, replacing an older one in one step.

        Example:
            >>> import tempfile
            >>> mask = AttentionMask.from_dense(torch.eye(4, dtype=torch.bool))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     mask.save(folder + "/eye.safetensors")
            ...     AttentionMask.load(folder + "/eye.safetensors") == mask
            True
        """
        save_bits(path, self._bits, self._kv_len, self.provenance)

    @classmethod
    def stack_layers(cls, masks: Iterable[AttentionMask]) -> AttentionMask:
        """Put masks one after another along the layer axis; one head spreads to the others' H.

        Raises:
            ValueError: no masks, or lengths or head counts differ.
        """
        return cls._stack("stack_layers", list(masks), axis=0)

    @classmethod
    def stack_heads(cls, masks: Iterable[AttentionMask]) -> AttentionMask:
        """Put masks one after another along the head axis; one layer spreads to the others' L.

        Raises:
            ValueError: no masks, or lengths or layer counts differ.
        """
        return cls._stack("stack_heads", list(masks), axis=1)

    @classmethod
    def _stack(cls, name: str, masks: list[AttentionMask], axis: int) -> AttentionMask:
        if not masks:
            raise ValueError(f"{name}: masks is empty; give at least one mask")
        for mask in masks:
            _require_mask(name, mask)
        other = 1 - axis
        spread = max(mask.shape[other] for mask in masks)
        what = ("layers", "heads")[other]
        parts = []
        for mask in masks:
            if mask.shape[2:] != masks[0].shape[2:]:
                raise ValueError(
                    f"{name}: masks have different lengths, {masks[0].q_len} x {masks[0].kv_len} "
                    f"and {mask.q_len} x {mask.kv_len}; crop them first"
                )
            if mask.shape[other] not in (1, spread):
                raise ValueError(
                    f"{name}: masks have {mask.shape[other]} and {spread} {what}; "
                    f"they must have the same number, or one"
                )
            shape = list(mask._bits.shape)
            shape[other] = spread
            parts.append(np.broadcast_to(mask._bits, shape))
        bits = np.concatenate(parts, axis=axis)
        return cls._wrap(bits, masks[0].kv_len, derived_record(name, masks))

    # ---------------------------------------------------------------- what it is

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
        """What its positions are, "line", a `sparsebert.positions.Grid`, or "mixed".

        It decides what `crop` may do, is kept by all operations and saved with the mask.
        Patterns know it; for a mask of your own over an image see `on_grid`.
        """
        return from_record(self.provenance, self.q_len, self.kv_len)

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

    def plot(self, layer: int | None = None, head: int | None = None, ax: Any = None) -> Any:
        """Draw the mask with matplotlib: queries downwards, keys to the right, blue = may attend.

        Args:
            layer, head: draw only this one; None means all that are different, at most 48.
            ax: a matplotlib axes to draw on, for a single head.

        Returns the axes of a single head (as ``ax.figure`` has its figure), the figure of several.

        Raises:
            ImportError: matplotlib is not installed; the message says how to.
            IndexError: no such layer or head.
            ValueError: `ax` for a mask of several different heads.
        """
        from sparsebert.drawing import plot_mask

        return plot_mask(self, layer, head, ax)

    def _repr_html_(self) -> str:
        from sparsebert.notebook import mask_html

        return mask_html(self)

    def to_block_mask(
        self,
        block_size: int | tuple[int, int] = 128,
        device: torch.device | str = "cpu",
    ) -> BlockMask:
        """The same mask for ``torch.nn.attention.flex_attention.flex_attention``.

        Whole blocks are skipped or run without a test; in the others the mask's own bits decide
        (one bit a position in memory).  It serves any batch, and with one head any head count.
        FlexAttention gives rows without any key a zero output too.  Compiled on the CPU,
        flex_attention wants ``torch.compile(flex_attention, dynamic=False)``: with dynamic
        shapes torch 2.13 generates C++ for mask_mods with tensors that does not compile.

        Args:
            block_size: edge of a block, or (query, key) edges; FlexAttention's default is 128.
            device: where q, k and v are.

        Raises:
            ValueError: the mask has several layers; take one with ``mask.layer(i)``.
        """
        if self.num_layers != 1:
            raise ValueError(
                f"to_block_mask: the mask has {self.num_layers} layers but a BlockMask covers "
                "one; take it with mask.layer(i)"
            )
        return block_mask(self._bits[0], self._kv_len, block_size, device)

    # ---------------------------------------------------------------- parts of it

    def layer(self, index: int) -> AttentionMask:
        """Layer `index` as a mask of one layer; negative indices count from the end.

        Raises:
            IndexError: no such layer.
        """
        at = _position("layer", index, self.num_layers)
        return self._wrap(
            self._bits[at : at + 1].copy(), self._kv_len, self._say("layer", index=at)
        )

    def head(self, index: int) -> AttentionMask:
        """Head `index` of every layer as a mask of one head; negative indices as in Python.

        Raises:
            IndexError: no such head.
        """
        at = _position("head", index, self.num_heads)
        bits = self._bits[:, at : at + 1].copy()
        return self._wrap(bits, self._kv_len, self._say("head", index=at))

    def crop(self, q_len: int, kv_len: int | None = None) -> AttentionMask:
        """The top-left part: the first `q_len` queries and the first `kv_len` keys.

        A mask over a grid is left whole or refused; see `crop_grid`.

        Args:
            q_len: 1 to N.
            kv_len: 1 to M; for a square mask it defaults to q_len.

        Raises:
            ValueError: a length outside the mask, no kv_len for a rectangular mask, or positions
                that are not a line.

        Example:
            >>> AttentionMask.from_dense(torch.ones(8, 8, dtype=torch.bool)).crop(3).shape
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

    def crop_grid(self, height: int, width: int) -> AttentionMask:
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

    def on_grid(self, height: int, width: int, num_special: int = 0) -> AttentionMask:
        """The same mask, which now knows that its positions are a grid, so that `crop` refuses.

        Args:
            height, width: of the grid, whose patches are in the mask row by row.
            num_special: tokens before them ([CLS], registers).

        Raises:
            ValueError: the mask has another number of tokens.

        Example:
            >>> mask = AttentionMask.from_dense(torch.eye(17, dtype=torch.bool))
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

    def without_diagonal(self) -> AttentionMask:
        """The same mask with every position i = j forbidden: no token attends to itself.

        The paper (arXiv:2102.12871, section 4) finds the diagonal the least important part of
        attention, and proves that it can go.
        """
        bits = self._bits.copy()
        at = np.arange(min(self.q_len, self.kv_len))
        bits[:, :, at, at // 8] &= ~(np.uint8(1) << (at % 8).astype(np.uint8))
        return self._wrap(bits, self._kv_len, self._say("without_diagonal"))

    # ---------------------------------------------------------------- algebra

    def __and__(self, other: AttentionMask) -> AttentionMask:
        """Positions allowed by both; one layer or head serves the other mask's many."""
        self._check_operand("&", other)
        record = derived_record("and", [self, other])
        return self._wrap(self._bits & other._bits, self._kv_len, record)

    def __or__(self, other: AttentionMask) -> AttentionMask:
        """Positions allowed by either; one layer or head serves the other mask's many."""
        self._check_operand("|", other)
        record = derived_record("or", [self, other])
        return self._wrap(self._bits | other._bits, self._kv_len, record)

    def __invert__(self) -> AttentionMask:
        """Exactly the positions that this mask forbids."""
        bits = ~self._bits
        clear_padding(bits, self._kv_len)
        return self._wrap(bits, self._kv_len, self._say("not"))

    def __eq__(self, other: object) -> bool:
        """Same shape and same bits (no broadcasting); provenance does not count."""
        if not isinstance(other, AttentionMask):
            return NotImplemented
        return self.shape == other.shape and np.array_equal(self._bits, other._bits)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def _check_operand(self, symbol: str, other: object) -> None:
        other = _require_mask(symbol, other)
        same = self.shape[2:] == other.shape[2:]
        spread = all(
            a == b or 1 in (a, b) for a, b in zip(self.shape[:2], other.shape[:2], strict=True)
        )
        if not (same and spread):
            raise ValueError(
                f"{symbol}: masks are [L, H, N, M] = {list(self.shape)} and {list(other.shape)}; "
                "N and M must be equal, L and H equal or 1 (use crop, layer or head)"
            )

    # ---------------------------------------------------------------- a frozen value

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"AttentionMask is immutable, cannot set {name!r}; build a new mask")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"AttentionMask is immutable, cannot delete {name!r}")

    def __copy__(self) -> AttentionMask:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> AttentionMask:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self._bits, self._kv_len, self.provenance)

    def __repr__(self) -> str:
        layers, heads, rows, keys = self.shape
        what = self.provenance.get("pattern")
        return (
            f"<AttentionMask{f' {what}' if what else ''}: {layers} layer{'s' * (layers > 1)}, "
            f"{heads} head{'s' * (heads > 1)}, {rows} x {keys}, density {self.density:.2%}>"
        )

    def _say(self, op: str, **arguments: int) -> str:
        return derived_record(op, [self], arguments)


def _unpickled(bits: Bits, kv_len: int, provenance: dict[str, Any]) -> AttentionMask:
    return AttentionMask.from_packed(bits, kv_len, provenance, bitorder="little")


def as_mask(where: str, argument: str, value: object, shapes: str) -> AttentionMask:
    """`value`, an AttentionMask or a boolean tensor or array, as an AttentionMask.

    `shapes` names the shapes that the caller takes, for the error message.

    Raises:
        TypeError: anything else; the message says how to convert what came.
        ValueError: a tensor or array of another number of dimensions, or an empty one.
    """
    if isinstance(value, AttentionMask):
        return value
    if is_bool(value):
        return AttentionMask.from_dense(value)  # type: ignore[arg-type]
    wanted = f"an AttentionMask or a bool tensor, {shapes}, True = may attend"
    raise refused(where, argument, wanted, value)


def _require_mask(name: str, value: object) -> AttentionMask:
    if not isinstance(value, AttentionMask):
        raise TypeError(
            f"{name}: expected an AttentionMask, got {type(value).__name__}; "
            f"{remedy(value, 'AttentionMask.from_dense({})')}"
        )
    return value


def _shape4(
    name: str, argument: str, shape: tuple[int, ...], wanted: str
) -> tuple[int, int, int, int]:
    if not 2 <= len(shape) <= 4:
        raise ValueError(f"{name}: {argument} has shape {list(shape)} but must be one of {wanted}")
    if 0 in shape:
        raise ValueError(f"{name}: {argument} has shape {list(shape)}; no dimension may be empty")
    layers, heads, rows, width = (1,) * (4 - len(shape)) + tuple(shape)
    return layers, heads, rows, width


def _position(name: str, index: int, count: int) -> int:
    number = integer(name, "index", index)
    if not -count <= number < count:
        raise IndexError(f"{name}: index {number} but the mask has {count} {name}(s)")
    return number % count
