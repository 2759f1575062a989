"""The models of the end-to-end benchmark: random weights, real sizes; and what is done to them.

No dropout anywhere: it is off in modern training recipes, and without it a result can be checked.
Vocabularies are small, because embeddings are no part of the question.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import (
    AttentionInterface,
    BertConfig,
    BertModel,
    BigBirdConfig,
    BigBirdModel,
    LongformerConfig,
    LongformerModel,
    ModernBertConfig,
    ModernBertModel,
    ViTConfig,
    ViTModel,
)
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import sparsebert as sb
from benchmarks.harness import named_masks
from benchmarks.harness.named_masks import LEARNED_LOOKING
from sparsebert.masks import AttentionMask
from sparsebert.testing import root_mean_square, route_bound

VOCABULARY = 1024
_EAGER = "benchmark_eager"


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of model at the size of its base version.

    Attributes:
        layers: of the real model.
        cpu_layers: how many are run on a CPU.
        lengths, cpu_lengths: N.
        build: from layers and length to a model.
    """

    name: str
    layers: int
    cpu_layers: int
    lengths: tuple[int, ...]
    cpu_lengths: tuple[int, ...]
    build: Callable[[int, int], nn.Module]


def _bert(layers: int, length: int) -> nn.Module:
    config = BertConfig(
        vocab_size=VOCABULARY, num_hidden_layers=layers, max_position_embeddings=length,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False)


def _modernbert(layers: int, length: int) -> nn.Module:
    config = ModernBertConfig(
        vocab_size=VOCABULARY, num_hidden_layers=layers, max_position_embeddings=length,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    return ModernBertModel(config)


def _vit(layers: int, length: int) -> nn.Module:
    side = 16 * math.isqrt(length - 1)  # one class token, and patches of 16 x 16
    config = ViTConfig(num_hidden_layers=layers, image_size=side)
    return ViTModel(config, add_pooling_layer=False)


FAMILIES = (
    Family("BERT-base", 12, 2, (128, 512, 1024, 2048, 4096), (128, 512, 1024, 2048), _bert),
    Family(
        "ModernBERT-base", 22, 2, (512, 1024, 2048, 4096, 8192), (512, 1024, 2048), _modernbert
    ),
    Family("ViT-B/16", 12, 2, (197, 577, 1025, 2305), (197, 577, 1025), _vit),
)


def inputs(model: nn.Module, batch: int, length: int, device: torch.device) -> dict[str, Any]:
    """Random tokens without padding, or images."""
    if isinstance(model, ViTModel):
        side = model.config.image_size
        pixels = torch.randn(batch, 3, side, side, device=device)
        return {"pixel_values": pixels.to(model.dtype)}
    tokens = torch.randint(3, VOCABULARY, (batch, length), device=device)
    return {"input_ids": tokens}


def masks(length: int, heads: int) -> dict[str, AttentionMask]:
    """The sparse masks, for all layers; the last has a mask of its own for each head."""
    return {
        "longformer": sb.patterns.longformer(length, max(8, length // 64), 2),
        "star": sb.patterns.star(length),
        LEARNED_LOOKING: named_masks.build(LEARNED_LOOKING, length, heads),
    }


def big_bird(layers: int, length: int) -> nn.Module:
    """HuggingFace's block-sparse BigBird at the size of BERT-base.

    Raises ValueError where it would run dense.
    """
    config = BigBirdConfig(
        vocab_size=VOCABULARY, num_hidden_layers=layers, max_position_embeddings=length,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attention_type="block_sparse",
    )  # fmt: skip
    least = (5 + 2 * config.num_random_blocks) * config.block_size
    if length <= least:
        raise ValueError(f"BigBird's block-sparse attention needs N > {least}")
    if length % config.block_size:
        raise ValueError(f"BigBird needs N to be a multiple of {config.block_size}")
    return BigBirdModel(config, add_pooling_layer=False)


def longformer(layers: int, length: int) -> nn.Module:
    """HuggingFace's Longformer at the size of BERT-base, with the window of our mask.

    Raises ValueError where it would have to pad.
    """
    window = 2 * max(8, length // 64)  # to both sides together
    if length % window:
        raise ValueError(f"Longformer needs N to be a multiple of its window, {window}")
    config = LongformerConfig(
        vocab_size=VOCABULARY, num_hidden_layers=layers, max_position_embeddings=length + 2,
        attention_window=[window] * layers, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, pad_token_id=1,
    )  # fmt: skip
    return LongformerModel(config, add_pooling_layer=False)


RIVALS = {"HF BigBird": big_bird, "HF Longformer": longformer}


Recorded = list[tuple[tuple[Any, ...], dict[str, Any]]]


@contextlib.contextmanager
def recording(name: str) -> Iterator[Recorded]:
    """What transformers passes to the attention function `name` meanwhile."""
    function, calls = ALL_ATTENTION_FUNCTIONS[name], []

    def record(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return function(*args, **kwargs)

    AttentionInterface.register(name, record)
    try:
        yield calls
    finally:
        AttentionInterface.register(name, function)


def attention_calls(
    model: nn.Module, batch: dict[str, Any], *, training: bool
) -> Callable[[], object]:
    """The model's attention calls alone, one after the other, as a call to be timed."""
    name = "sparsebert" if any(hasattr(m, "sparsebert") for m in model.modules()) else "sdpa"
    with recording(name) as calls, torch.no_grad():
        model(**batch)
    function = ALL_ATTENTION_FUNCTIONS[name]
    replay = []
    for (module, *tensors), kwargs in calls:
        # The memory order that the layer had, as leaves of their own.
        q, k, v = (x.detach().requires_grad_(training) for x in tensors[:3])
        rest = tensors[3:]
        replay.append((module, q, k, v, rest, kwargs))

    def run() -> None:
        for module, q, k, v, rest, kwargs in replay:
            if training:
                out = function(module, q, k, v, *rest, **kwargs)[0]
                torch.autograd.grad(out, (q, k, v), out.detach())
            else:
                with torch.no_grad():
                    function(module, q, k, v, *rest, **kwargs)

    return run


def check(model: nn.Module, sparse: nn.Module, mask: AttentionMask, batch: dict[str, Any]) -> None:
    """Refuse to time a sparse model whose hidden states differ from eager attention's.

    Eager attention with the same mask, in fp64, is exact; what it errs in the model's own dtype is
    the measure (`sparsebert.testing.route_bound`).
    """
    allowed = mask.dense().to(next(model.parameters()).device)
    with torch.no_grad():
        found = sparse(**batch).last_hidden_state.double()
        theirs = _eager(model, allowed, batch).double()
        wide = {key: x.double() if x.is_floating_point() else x for key, x in batch.items()}
        exact = _eager(copy.deepcopy(model).double(), allowed, wide)
    bound = route_bound(exact, [theirs], model.dtype)
    error = root_mean_square(found - exact)
    if not error <= bound:
        raise SystemExit(
            f"hidden states are off by {error:.2e} (root mean square), more than {bound:.2e}: not "
            "timed"
        )


def _eager(model: nn.Module, allowed: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
    """Hidden states with all scores written out, under the model's own mask and `allowed`, bool
    [L or 1, H or 1, N, N].
    """

    def attention(
        module: nn.Module,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        own: torch.Tensor | None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        scale = q.shape[-1] ** -0.5 if scaling is None else scaling
        scores = q @ k.transpose(-1, -2) * scale
        here = allowed[0 if len(allowed) == 1 else module.layer_idx]
        seen = here if own is None else here & own
        weights = scores.masked_fill(~seen, -math.inf).softmax(-1).nan_to_num()
        return (weights @ v).transpose(1, 2).contiguous(), None

    AttentionInterface.register(_EAGER, attention)
    AttentionMaskInterface.register(_EAGER, sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(_EAGER)
    try:
        hidden: torch.Tensor = model(**batch).last_hidden_state
    finally:
        model.set_attn_implementation(before)
    return hidden
