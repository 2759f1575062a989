"""The dense reference: masked attention written out as the specification.

Plain torch on the full [B, H, N, M] score matrix, differentiable to any order, in the precision
of its inputs (fp64 in, fp64 throughout; fp16 and bf16 are computed in fp32). It shares no code
with the backends and kernels that it judges, so a bug in one cannot hide in the other.
"""

from __future__ import annotations

import math
from typing import Literal, overload

import numpy as np
import torch

from sparsebert.masks import AttentionMask
from sparsebert.masks.mask_input import is_bool, refused


@overload
def reference_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: AttentionMask | torch.Tensor,
    *,
    scale: float | None = None,
    key_mask: torch.Tensor | None = None,
    return_lse: Literal[False] = False,
    keep_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
) -> torch.Tensor: ...


@overload
def reference_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: AttentionMask | torch.Tensor,
    *,
    scale: float | None = None,
    key_mask: torch.Tensor | None = None,
    return_lse: Literal[True],
    keep_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]: ...


@overload
def reference_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: AttentionMask | torch.Tensor,
    *,
    scale: float | None = None,
    key_mask: torch.Tensor | None = None,
    return_lse: bool,
    keep_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]: ...


def reference_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: AttentionMask | torch.Tensor,
    *,
    scale: float | None = None,
    key_mask: torch.Tensor | None = None,
    return_lse: bool = False,
    keep_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Masked scaled-dot-product attention over exactly the allowed positions.

    Shapes and dtypes:
        q: [B, H, N, D]; k, v: [B, H_kv, M, D] with H a multiple of H_kv; floating point.
        mask: an `AttentionMask` of one layer, or bool [N, M] or [H, N, M]; True = may attend.
            One head's mask serves all heads.
        key_mask: bool [B, M], True = a real token.
        keep_mask: bool [B, H, N, M], the dropout draw (True = kept), needed if dropout_p > 0;
            see `sparsebert.dropout.keep_mask`.

    Returns o [B, H, N, D] in q's dtype, with `return_lse` also the natural-log sum of the
    exponentiated scores, [B, H, N], in the dtype of the computation. A row with nothing to attend
    gives zero output, zero gradients and an LSE of -inf; a k or v row that no query may attend to
    never reaches an output or a gradient, NaN and Inf included.

    Raises ValueError or TypeError where shapes or dtypes do not fit.

    >>> import torch, sparsebert as sb
    >>> q = k = v = torch.eye(4)[None, None]
    >>> sb.reference_attention(q, k, v, torch.eye(4, dtype=torch.bool)).equal(v)
    True
    """
    batch, heads, q_len, head_dim = q.shape
    kv_heads, kv_len = k.shape[1], k.shape[2]
    if heads == 0 or kv_heads == 0:
        raise ValueError(
            f"reference_attention: q has H={heads} heads and k H_kv={kv_heads}; both need one"
        )
    if heads % kv_heads:
        raise ValueError(
            f"reference_attention: q has H={heads} heads, not a multiple of k's H_kv={kv_heads}"
        )
    allowed = _allowed_positions(mask, batch, heads, q_len, kv_len, key_mask, q.device)
    if (dropout_p > 0.0) != (keep_mask is not None):
        raise ValueError(
            "reference_attention: dropout_p and keep_mask go together; draw the mask with "
            "sparsebert.dropout.keep_mask(...) and pass both"
        )

    compute = torch.promote_types(q.dtype, torch.float32)
    group = heads // kv_heads
    q_all = q.to(compute)
    k_all = k.to(compute).repeat_interleave(group, dim=1)
    v_all = v.to(compute).repeat_interleave(group, dim=1)

    # What nothing attends to, or what attends to nothing, takes no part: not even as 0 * NaN.
    # Heads that share a k/v head share its rows, so a row is unused only if all of them skip it.
    attended = allowed.any(dim=2).view(batch, kv_heads, group, kv_len).any(dim=2)
    unused = ~attended.repeat_interleave(group, dim=1)[..., None]
    alive = allowed.any(dim=3, keepdim=True)  # [B, H, N, 1]
    q_all = q_all.masked_fill(~alive, 0.0)
    k_all = k_all.masked_fill(unused, 0.0)
    v_all = v_all.masked_fill(unused, 0.0)

    scores = q_all @ k_all.transpose(-1, -2) * (head_dim**-0.5 if scale is None else scale)
    scores = scores.masked_fill(~allowed, -math.inf)
    row_max = scores.detach().amax(dim=-1, keepdim=True).masked_fill(~alive, 0.0)
    weights = torch.exp(scores - row_max)
    row_sum = weights.sum(dim=-1, keepdim=True)
    probabilities = weights / row_sum.masked_fill(~alive, 1.0)
    if keep_mask is not None:
        probabilities = probabilities * keep_mask / (1.0 - dropout_p)
    o = (probabilities @ v_all).to(q.dtype)
    if not return_lse:
        return o
    lse = row_max + torch.log(row_sum.masked_fill(~alive, 1.0))
    return o, lse.masked_fill(~alive, -math.inf).squeeze(-1)


def _allowed_positions(
    mask: AttentionMask | torch.Tensor,
    batch: int,
    heads: int,
    q_len: int,
    kv_len: int,
    key_mask: torch.Tensor | None,
    device: torch.device,
) -> torch.Tensor:
    """The mask and the key mask as one bool tensor [B, H, N, M]."""
    if isinstance(mask, AttentionMask):
        if mask.num_layers != 1:
            raise ValueError(
                f"reference_attention: mask has {mask.num_layers} layers; pick one, mask.layer(i)"
            )
        allowed = mask.dense()[0]
    elif is_bool(mask):
        allowed = mask if isinstance(mask, torch.Tensor) else torch.from_numpy(np.array(mask))
        allowed = allowed if allowed.dim() == 3 else allowed[None]
    else:
        wanted = "bool, a tensor [N, M] or [H, N, M], or an AttentionMask"
        raise refused("reference_attention", "mask", wanted, mask)
    if allowed.dim() != 3 or allowed.shape[1:] != (q_len, kv_len):
        raise ValueError(
            f"reference_attention: mask has shape {list(allowed.shape)}, expected "
            f"[{heads} or 1, {q_len}, {kv_len}]"
        )
    if allowed.shape[0] not in (1, heads):
        raise ValueError(
            f"reference_attention: mask has {allowed.shape[0]} heads, q has {heads}; "
            "one head's mask serves all, else the counts must agree"
        )
    if key_mask is not None and (key_mask.dtype, *key_mask.shape) != (torch.bool, batch, kv_len):
        raise ValueError(
            f"reference_attention: key_mask must be bool [{batch}, {kv_len}], got "
            f"{key_mask.dtype} {list(key_mask.shape)}"
        )
    allowed = allowed.to(device).expand(heads, q_len, kv_len)[None]
    if key_mask is not None:
        allowed = allowed & key_mask[:, None, None, :]
    return allowed.expand(batch, heads, q_len, kv_len)
