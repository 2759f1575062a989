"""Which query may attend to which key: the immutable, bit-packed AttentionMask.

A mask says, for every layer, head, query position and key position, whether attention is
allowed (True) or not.  It is static: it never looks at the input.

    >>> import torch
    >>> from sparsebert.masks.mask import AttentionMask
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
names the content.  What can be read off a mask, and its parts (``layer``, ``crop``, ...), are in
`sparsebert.masks.packed_mask`; ready-made masks are in `sparsebert.masks.patterns`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from sparsebert.masks.bits import (
    Bits,
    clear_padding,
    looks_swapped,
    pack,
    padding_is_clear,
    row_bytes,
    swap_order,
)
from sparsebert.masks.file import load_bits, save_bits
from sparsebert.masks.flex import MaskMod, bits_of_mask_mod, block_mask
from sparsebert.masks.mask_input import bool_array, is_bool, kind, refused, remedy
from sparsebert.masks.packed_mask import PackedMask
from sparsebert.masks.provenance import derived_record, record_of
from sparsebert.support.checks import integer

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


class AttentionMask(PackedMask):
    """An immutable mask [L, H, N, M], one bit a position, 1 = may attend.

    Build one with `from_dense`, `from_packed`, `from_mask_mod`, `load` or a function of
    `sparsebert.patterns`, not with the constructor.
    """

    __slots__ = ()

    def __init__(self, *arguments: object, **options: object) -> None:
        came = arguments[0] if arguments else next(iter(options.values()), None)
        write = "AttentionMask.from_dense({})"
        raise TypeError(
            "AttentionMask: masks are made by AttentionMask.from_dense, from_packed, "
            "from_mask_mod, load, or a function of sparsebert.patterns"
            + (f"; got {kind(came)}: {remedy(came, write)}" if arguments or options else "")
        )

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
            sparsebert.masks.file.MaskFileError (a ValueError): not a mask file, truncated,
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

    # ---------------------------------------------------------------- for other libraries

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
        from sparsebert.masks.drawing import plot_mask

        return plot_mask(self, layer, head, ax)

    def _repr_html_(self) -> str:
        from sparsebert.masks.html import mask_html

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

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self._bits, self._kv_len, self.provenance)


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
