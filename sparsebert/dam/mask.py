"""DifferentiableAttentionMask: which positions to keep, as parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sparsebert.dam.binarize import SCOPES, binary_mask
from sparsebert.dam.drawing import DrawnMask
from sparsebert.dam.penalties import mask_penalty
from sparsebert.dam.priced_tiles import PricedTiles
from sparsebert.dam.structure import Layout, checked_layout, parameter_index
from sparsebert.dam.warm_start import logits_of_scores
from sparsebert.masks import AttentionMask
from sparsebert.support import checks

_NAME = "DifferentiableAttentionMask"


class DifferentiableAttentionMask(DrawnMask):
    """One chance of being kept for every attention position (SparseBERT, ICML 2021).

    A position is kept with probability sigmoid(alpha). In training a mask is drawn from the
    Gumbel-sigmoid (binary concrete) distribution, sigmoid((alpha + G1 - G2) / temperature) with
    G1, G2 ~ Gumbel(0, 1), which lets gradients reach alpha; or it is made of the likeliest
    positions (sampling="top"). `binarize` makes the final mask.

    Args:
        num_layers: L, 1 for one mask that all layers share (as the paper's authors do) or the
            number of attention modules of the model.
        num_heads: H, the model's heads, or 1 for one mask that all heads share.
        seq_len: N, the longest sequence; a shorter one uses the mask's top-left part.
        structure: "full" (the paper's DAM_u, a parameter for each position), "toeplitz" (DAM_s,
            one for each distance) or "block" (one for each block of block_size x block_size).
        symmetric: position (i, j) shares its parameter with (j, i), as in the paper.
        block_size: for structure "block" only.
        own_tokens: for structure "toeplitz" only: positions of special tokens (negative ones
            count from the end) whose columns and rows are kept or dropped as a whole, apart from
            the distances: what every token attends to, and what attends to all, as Longformer's
            global tokens.
        temperature: of the Gumbel-sigmoid, above 0; a buffer, see `set_temperature`.
        hard: samples are rounded to 0 or 1, with the gradient of the unrounded ones
            (straight-through), as in the paper; else they lie between.
        noise: samples are drawn; without, every "sample" is the probabilities themselves (or,
            with hard, their rounding), as in the paper's importance analysis (hard=False).
        sampling: "gumbel", as in the paper, or "top": every mask keeps the likeliest positions,
            as many as `set_density` says, and its gradient goes straight through to alpha. No
            noise, no temperature, and no penalty is needed to make it sparse: the model trains
            under the masks that `binarize(allow_empty_rows=True)` would make. For a search that
            starts warm (`start_from`).
        density: share of the positions that "top" keeps, to begin with; see `set_density`.
        scope: what a share of the positions is of: each "head" alike, or "global", all layers and
            heads together. Of sampling="top", `start_from` and `binarize`.
        init_probability: of being kept, at the beginning, in (0, 1).
        init_std: standard deviation of the noise that is added to the initial alpha.
        seed: of the noise stream that `forward` draws from; None takes one from torch's
            generator.
        device, dtype: of alpha.

    Attributes:
        alpha: the parameter, [L, H, P], P = N * N for the structure "full" without symmetry.
        temperature: buffer, fp32 scalar.

    Raises:
        TypeError, ValueError: sizes that are not positive integers, values out of range.

    Example:
        >>> import torch, sparsebert as sb
        >>> dam = sb.DifferentiableAttentionMask(num_layers=1, num_heads=12, seq_len=128)
        >>> dam.probabilities().shape
        torch.Size([1, 12, 128, 128])
        >>> mask = dam.binarize(sparsity=0.9)
        >>> round(mask.sparsity, 2)
        0.9
    """

    index: torch.Tensor

    def __init__(
        self,
        num_layers: int,
        num_heads: int,
        seq_len: int,
        structure: str = "full",
        *,
        symmetric: bool = True,
        block_size: int | None = None,
        own_tokens: Sequence[int] = (),
        temperature: float = 1.0,
        hard: bool = True,
        noise: bool = True,
        sampling: str = "gumbel",
        density: float = 1.0,
        scope: str = "head",
        init_probability: float = 0.5,
        init_std: float = 1e-3,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            sampling, temperature, density=density, hard=hard, noise=noise, device=device
        )
        self.num_layers = checks.integer(_NAME, "num_layers", num_layers, 1)
        self.num_heads = checks.integer(_NAME, "num_heads", num_heads, 1)
        self.seq_len = checks.integer(_NAME, "seq_len", seq_len, 1)
        layout = checked_layout(structure, self.seq_len, symmetric, block_size, own_tokens)
        self.structure, self.symmetric = layout.structure, layout.symmetric
        self.block_size, self.own_tokens = layout.block_size, layout.own_tokens
        if scope not in SCOPES:
            raise ValueError(f"{_NAME}: scope must be one of {SCOPES}, got {scope!r}")
        self.scope = scope
        if not 0.0 < init_probability < 1.0:
            raise ValueError(
                f"{_NAME}: init_probability must be in (0, 1), got {init_probability}; at 0 or 1 "
                "no gradient could change it"
            )
        if not 0.0 <= init_std < math.inf:
            raise ValueError(f"{_NAME}: init_std must be finite and not negative, got {init_std}")
        index = torch.from_numpy(parameter_index(layout))
        count = int(index.max()) + 1
        shape = (self.num_layers, self.num_heads, count)
        start = math.log(init_probability / (1.0 - init_probability))
        values = start + init_std * torch.randn(shape, device=device, dtype=dtype)
        self.alpha = nn.Parameter(values)
        # How many positions of the mask each parameter decides, and which: not saved.
        self.register_buffer("index", index.to(values.device), persistent=False)
        counts = torch.bincount(index.flatten(), minlength=count)
        self.register_buffer("counts", counts.to(values.device), persistent=False)
        self._start_stream(seed)
        self.register_load_state_dict_post_hook(_read_stream)

    @property
    def layout(self) -> Layout:
        """How the positions of a head share parameters."""
        return Layout(
            self.structure, self.seq_len, self.symmetric, self.block_size, self.own_tokens
        )

    def start_from(
        self, scores: torch.Tensor, sparsity: float, *, spread: float = 1.0
    ) -> DifferentiableAttentionMask:
        """Start warm: set alpha by what is known of the positions; in place.

        Before any training `binarize(sparsity=sparsity)` then keeps the positions with the
        highest scores (and each row's likeliest one, unless allow_empty_rows): what the search
        finds has to beat that. Their probabilities are above one half, the others' below. Among
        equal scores the first positions are kept.

        Args:
            scores: [L or 1, H or 1, N, N], not negative, the higher the more a position matters:
                average attention, or better `position_scores`, pooled (`pooled_scores`) where
                every position has a parameter. Positions that share a parameter count by their
                mean; layers and heads that share a mask, too.
            sparsity: share of zeros, in (0, 1), as for `binarize`; in the module's `scope`.
            spread: standard deviation of alpha: how sure the start is.

        Raises:
            TypeError: scores that are no tensor.
            ValueError: scores of another shape, negative, infinite or NaN; values out of range.
        """
        alpha = logits_of_scores(
            scores,
            self.index,
            shape=(self.num_layers, self.num_heads),
            sparsity=sparsity,
            spread=spread,
            scope=self.scope,
            # The sigmoid of less than this may round to one half.
            least=4.0 * torch.finfo(self.alpha.dtype).eps,
        )
        with torch.no_grad():
            self.alpha.copy_(alpha)
        return self

    # ------------------------------------------------------------------- the mask as a tensor

    def probabilities(self, length: int | None = None) -> torch.Tensor:
        """sigmoid(alpha), the chance of each position to be kept: [L, H, n, n].

        Args:
            length: n, only the first positions; None means N.
        """
        return self.expand(torch.sigmoid(self.alpha), length)

    def sample(
        self, length: int | None = None, *, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """One mask, [L, H, n, n], through which gradients reach alpha.

        Args:
            length: n, only the first positions; None means N.
            generator: of the noise; None means torch's own, so that torch.manual_seed repeats it.

        With hard, values are exactly 0 or 1; else they lie between. Positions that share a
        parameter share its value.
        """
        return self.expand(self._sampled(generator), length)

    def forward(self, length: int | None = None) -> torch.Tensor:
        """The mask as a model uses it, [L, H, n, n]: `draw`, at the positions."""
        return self.expand(self.draw(), length)

    def expand(self, values: torch.Tensor, length: int | None = None) -> torch.Tensor:
        """Values of the parameters, [..., P], at the positions they decide, [..., n, n]."""
        n = self._checked_length(length)
        if self.structure == "full" and not self.symmetric and n == self.seq_len:
            return values.reshape(*values.shape[:-1], n, n)
        index = self.index[:n, :n]
        return values.index_select(-1, index.reshape(-1)).reshape(*values.shape[:-1], n, n)

    def _checked_length(self, length: int | None) -> int:
        if length is None:
            return self.seq_len
        if length > self.seq_len:
            raise ValueError(
                f"{_NAME}: a sequence of {length} tokens, but the mask covers seq_len="
                f"{self.seq_len}; truncate the input or build a longer mask"
            )
        return checks.integer(_NAME, "length", length, 1)

    # ------------------------------------------------------------------- what the mask costs

    def penalty(
        self,
        kind: str = "expected_l1",
        *,
        sample: torch.Tensor | None = None,
        tile_rows: int = 16,
        tiles: PricedTiles | None = None,
        reduction: str = "sum",
    ) -> torch.Tensor:
        """What to add to the loss, times a weight, to make the mask sparse.

        Args:
            kind: "l1", the paper's norm of the sampled mask; "expected_l1", its expectation, the
                sum of the probabilities; "executed_area", the expected number of scores that
                tiles of `tile_rows` rows compute, in which a column costs a tile
                1 - prod over its rows of (1 - probability), times its rows; "plan", what the mask
                is expected to cost in the `tiles` of a plan, see `PricedTiles`.
            sample: for "l1": the mask [L, H, n, n] to count; None takes the one that `forward`
                used last.
            tile_rows: for "executed_area": rows of a tile, consecutive.
            tiles: for "plan": of this mask's shape, see `MaskSearch`, which makes them.
            reduction: "sum" over layers, heads and positions, as in the paper, or "mean", a
                share of the L * H * N * N scores.

        Raises:
            ValueError: an unknown kind or reduction; "l1" before any forward pass; "plan" without
                tiles.
        """
        return mask_penalty(
            self.alpha,
            self.layout,
            self.counts,
            self.expand,
            drawn=self._last,
            kind=kind,
            sample=sample,
            tile_rows=tile_rows,
            tiles=tiles,
            reduction=reduction,
        )

    @property
    def expected_density(self) -> float:
        """Mean probability over all positions."""
        with torch.no_grad():
            return float(self.penalty("expected_l1", reduction="mean"))

    # ------------------------------------------------------------------- the result

    def binarize(
        self,
        threshold: float | None = None,
        sparsity: float | None = None,
        *,
        executed: float | None = None,
        tiles: PricedTiles | Sequence[PricedTiles] | None = None,
        scope: str | None = None,
        without_diagonal: bool = False,
        keep_tokens: Sequence[int] = (),
        allow_empty_rows: bool = False,
    ) -> AttentionMask:
        """The final mask [L, H, N, N]: the positions with the highest probabilities.

        Args:
            threshold: keep the positions whose probability is above it, in [0, 1).
            sparsity: keep as many positions as leave at least this share of zeros, in [0, 1).
                Positions that share a parameter stay together, so a little more may be dropped.
                With none of the three, threshold is 0.5.
            executed: cost at most this share of what all positions would in full `tiles`, in
                [0, 1): columns of tiles are chosen instead of positions, those that are needed
                the most for their price: by the sum of log(1 + exp(alpha)), which says how
                unlikely it is that no row needs the column. Every position of a column that a
                tile gathers is kept, for it costs nothing more; so the mask is not very sparse,
                but as good as that cost allows. Positions that share a parameter may part.
            tiles: for executed: those of a search (`MaskSearch.tiles`), whose machine and groups
                of rows give the prices. Of several each head takes the best.
            scope: sparsity, or cost, in each "head" alike, or "global", over all layers and heads;
                None means the module's own.
            without_diagonal: drop the positions (i, i).
            keep_tokens: positions (negative ones count from the end) whose whole row and column
                are kept, for special tokens.
            allow_empty_rows: else every row keeps its likeliest position at least, or, where that
                would cost more than executed allows, one in a column that other rows need.

        With sparsity or executed, what keep_tokens and the last rule keep counts, too.

        Raises:
            ValueError: several limits or values out of range; more must be kept than sparsity or
                executed allows; executed without tiles.
        """
        return binary_mask(
            self.alpha,
            self.index,
            threshold=threshold,
            sparsity=sparsity,
            executed=executed,
            tiles=tiles,
            scope=self.scope if scope is None else scope,
            without_diagonal=without_diagonal,
            keep_tokens=keep_tokens,
            allow_empty_rows=allow_empty_rows,
            settings=self.settings(),
        )

    def settings(self) -> dict[str, Any]:
        """What the module was built with, JSON-able; goes into the masks it makes."""
        return {
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "seq_len": self.seq_len,
            "structure": self.structure,
            "symmetric": self.symmetric,
            "block_size": self.block_size if self.structure == "block" else None,
            "own_tokens": list(self.own_tokens),
            "hard": self.hard,
            "noise": self.noise,
            "sampling": self.sampling,
            "density": self.density,
            "scope": self.scope,
        }

    def extra_repr(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings().items())
        return f"{settings}, parameters={self.alpha.numel()}"


def _read_stream(module: nn.Module, _: object) -> None:
    """After load_state_dict: continue the noise stream where it was saved.

    Pickles know it by its place here.
    """
    assert isinstance(module, DifferentiableAttentionMask)
    module.resume_stream()
