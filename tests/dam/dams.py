"""Masks to be learned, of every structure."""

from __future__ import annotations

from typing import Any

import torch

import sparsebert as sb

STRUCTURES: dict[str, dict[str, Any]] = {
    "full": {"structure": "full", "symmetric": False},
    "full, symmetric": {"structure": "full"},
    "toeplitz": {"structure": "toeplitz", "symmetric": False},
    "toeplitz, symmetric": {"structure": "toeplitz"},
    "toeplitz and tokens": {"structure": "toeplitz", "symmetric": False, "own_tokens": (0, -1)},
    "toeplitz and tokens, symmetric": {"structure": "toeplitz", "own_tokens": (0, -1)},
    "block": {"structure": "block", "symmetric": False, "block_size": 2},
    "block, symmetric": {"structure": "block", "block_size": 2},
}


def make(name: str, layers: int = 1, heads: int = 2, n: int = 7, **more: Any) -> Any:
    torch.manual_seed(0)
    more = {"init_std": 1.0, "dtype": torch.float64, **STRUCTURES[name], **more}
    return sb.DifferentiableAttentionMask(layers, heads, n, **more)
