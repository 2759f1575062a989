"""SparseSelfAttention: torch.nn.MultiheadAttention for self-attention with a static mask.

    >>> import torch, sparsebert as sb
    >>> mask = sb.patterns.longformer(512, window=8, num_global=1)
    >>> attention = sb.SparseSelfAttention(64, 4, mask)
    >>> attention(torch.randn(2, 300, 64)).shape  # 300 < 512: the mask's top-left part
    torch.Size([2, 300, 64])

Parameters have the names, shapes and initial values of `torch.nn.MultiheadAttention`, so each
loads the other's state_dict.

Which way round.  In **our masks True means "may attend"**; in torch's `attn_mask` True means
"must not".  The `key_padding_mask` of `forward` keeps torch's sense, **True means "padding, ignore
this key"**, because that is the argument's name there::

    theirs = torch.nn.MultiheadAttention(64, 4, batch_first=True)
    ours = SparseSelfAttention(64, 4, allowed)  # bool [N, N] or an AttentionMask
    ours.load_state_dict(theirs.state_dict())
    theirs(x, x, x, attn_mask=~allowed, key_padding_mask=padding)[0]  # equals
    ours(x, key_padding_mask=padding)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from sparsebert.api import sparse_attention
from sparsebert.backends import registry
from sparsebert.mask_plans import MaskPlans, plan_for
from sparsebert.masks import AttentionMask, as_mask
from sparsebert.masks.mask_input import kind, numbers_in
from sparsebert.support import checks

_NAME = "SparseSelfAttention"
_ABOUT_PADDING = " (a mask of padding, [batch, N], is forward's key_padding_mask)"


class SparseSelfAttention(nn.Module):
    """Multi-head self-attention over the positions that a static mask allows.

    Args:
        embed_dim: E, the size of inputs and outputs, a multiple of num_heads.
        num_heads: H.
        mask: what may attend to what, True = may attend: an `AttentionMask` of one layer, or a
            bool tensor or array [N, N] (all heads) or [H, N, N].  N is the longest sequence; a
            shorter one uses the top-left part.
        dropout: probability to drop an attention weight, in training only, in [0, 1).
        bias: give the projections a bias.
        batch_first: inputs are [B, N, E]; if False, [N, B, E].  (torch's default is False.)
        backend: as for `sparse_attention`.
        device, dtype: of the parameters.

    Raises:
        TypeError: mask is neither an AttentionMask nor a bool tensor.
        ValueError: sizes that do not fit together, or a mask of several layers.

    The mask is no parameter and no buffer: it is not in the state_dict, but it is copied and
    pickled with the module.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mask: AttentionMask | torch.Tensor | npt.NDArray[np.bool_],
        *,
        dropout: float = 0.0,
        bias: bool = True,
        batch_first: bool = True,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.embed_dim = checks.integer(_NAME, "embed_dim", embed_dim, 1)
        self.num_heads = checks.integer(_NAME, "num_heads", num_heads, 1)
        if embed_dim % num_heads:
            raise ValueError(
                f"{_NAME}: embed_dim={embed_dim} is not a multiple of num_heads={num_heads}; "
                "each head gets an equal share"
            )
        if not 0.0 <= dropout < 1.0:
            raise ValueError(
                f"{_NAME}: dropout must be in [0, 1), got {dropout}; it is the probability to drop"
            )
        registry.check_name(_NAME, backend)
        self.dropout = dropout
        self.batch_first = batch_first
        self.backend = backend
        self._plans = MaskPlans(_checked_mask(mask, num_heads))

        self.in_proj_weight = nn.Parameter(
            torch.empty(3 * embed_dim, embed_dim, device=device, dtype=dtype)
        )
        if bias:
            self.in_proj_bias = nn.Parameter(
                torch.empty(3 * embed_dim, device=device, dtype=dtype)
            )
        else:
            self.register_parameter("in_proj_bias", None)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        # The same draws in the same order as torch's module: equal seeds give equal weights.
        nn.init.xavier_uniform_(self.in_proj_weight)
        if bias:
            nn.init.zeros_(self.in_proj_bias)
            nn.init.zeros_(self.out_proj.bias)

    @property
    def mask(self) -> AttentionMask:
        """The mask, [1, H or 1, N, N]."""
        return self._plans.mask

    def forward(
        self,
        x: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = False,
    ) -> torch.Tensor:
        """Attend.

        Position i of the mask is token i of `x`, padding counted; see `sparsify` for models whose
        sequences begin with padding.

        Args:
            x: [B, N, E] ([N, B, E] without batch_first), or [N, E] for a single sequence; N up
                to the mask's.
            key_padding_mask: bool [B, N] ([N] for a single sequence), **True = padding**, as in
                torch.nn.MultiheadAttention.  Padding may stand anywhere.
            need_weights: must be False: the weights are never formed.

        Returns the output alone, in x's shape.  (torch returns a pair.)  A position with nothing
        to attend gets ``out_proj(0)``, where torch gives NaN.
        """
        if need_weights:
            raise ValueError(
                f"{_NAME}: need_weights=True is not supported, the attention weights are never "
                "formed; compute them with torch.nn.MultiheadAttention on the dense mask"
            )
        if x.dim() not in (2, 3) or x.shape[-1] != self.embed_dim:
            layout = "[B, N, E]" if self.batch_first else "[N, B, E]"
            raise ValueError(
                f"{_NAME}: x must be {layout} or [N, E] with E={self.embed_dim}, got shape "
                f"{list(x.shape)}"
            )
        single = x.dim() == 2
        if single:
            x = x[None]
        elif not self.batch_first:
            x = x.transpose(0, 1)
        batch, length, _ = x.shape
        if length == 0:
            raise ValueError(
                f"{_NAME}: x has N=0, an empty sequence has nothing to attend; leave it out"
            )
        if length > self._plans.length:
            raise ValueError(
                f"{_NAME}: x has N={length} but the mask covers N={self._plans.length}; "
                "build the module with a longer mask, or shorten the sequence"
            )
        key_mask = _key_mask(key_padding_mask, batch, length, single)

        projected = nn.functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        # [B, N, 3 E] -> three of [B, H, N, D]
        q, k, v = projected.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = sparse_attention(
            q,
            k,
            v,
            plan_for(self._plans, length, length, q.device, q.shape[-1], self.num_heads),
            key_mask=key_mask,
            dropout_p=self.dropout if self.training else 0.0,
            backend=self.backend,
        )
        out: torch.Tensor = self.out_proj(attended.transpose(1, 2).flatten(-2))
        if single:
            return out[0]
        return out if self.batch_first else out.transpose(0, 1)

    def extra_repr(self) -> str:
        mask = self.mask
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, "
            f"mask=[{mask.num_heads}, {mask.q_len}, {mask.kv_len}] at density {mask.density:.2%}, "
            f"dropout={self.dropout}, batch_first={self.batch_first}, backend={self.backend!r}"
        )


def _checked_mask(
    mask: AttentionMask | torch.Tensor | npt.NDArray[np.bool_], num_heads: int
) -> AttentionMask:
    """`mask` as an AttentionMask [1, 1 or H, N, N]."""
    given, mask = mask, as_mask(_NAME, "mask", mask, "[N, N] or [H, N, N]")
    layers, heads, rows, keys = mask.shape
    if layers != 1:
        raise ValueError(
            f"{_NAME}: mask has {layers} layers but a module is one layer; pass mask.layer(i)"
        )
    if heads not in (1, num_heads):
        raise ValueError(
            f"{_NAME}: mask has {heads} heads but num_heads={num_heads}; give 1 (for all heads) "
            f"or {num_heads}"
        )
    if rows != keys:
        raise ValueError(
            f"{_NAME}: mask is {rows} x {keys}, but self-attention needs a square one; "
            f"mask.crop({min(rows, keys)}, {min(rows, keys)}) is its square part"
            + _ABOUT_PADDING
            * (not isinstance(given, AttentionMask) and given.ndim == 2)
        )
    return mask


def _key_mask(
    key_padding_mask: torch.Tensor | None, batch: int, length: int, single: bool
) -> torch.Tensor | None:
    """torch's key_padding_mask (True = padding) as our key_mask [B, N] (True = a real token)."""
    if key_padding_mask is None:
        return None
    wanted = (length,) if single else (batch, length)
    if not isinstance(key_padding_mask, torch.Tensor) or key_padding_mask.dtype != torch.bool:
        tensor = isinstance(key_padding_mask, torch.Tensor)
        came = key_padding_mask.dtype if tensor else kind(key_padding_mask)
        remedy = (
            "it is additive (0 = a real token), so write key_padding_mask != 0"
            if tensor and numbers_in(key_padding_mask) == "additive"
            else "from a HuggingFace attention_mask write attention_mask == 0"
        )
        raise TypeError(
            f"{_NAME}: key_padding_mask must be bool {list(wanted)}, True = padding, got {came}; "
            f"{remedy}"
        )
    if key_padding_mask.shape != wanted:
        raise ValueError(
            f"{_NAME}: key_padding_mask must have shape {list(wanted)}, True = padding, got "
            f"{list(key_padding_mask.shape)}"
        )
    return ~key_padding_mask.reshape(batch, length)
