"""Tiny random HuggingFace models, and their own eager attention under given masks as the judge."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.models.bert import modeling_bert

from sparsebert.integrations.huggingface.discovery import find_self_attention

BATCH, LENGTH, MASK_LENGTH = 4, 20, 24
VOCAB = 99

_BERT_LIKE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "vocab_size": VOCAB,
    "pad_token_id": 0,
}
_NO_SPECIAL_TOKENS = dict.fromkeys(
    ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), None
)


def _bert(config: str, model: str, **more: Any) -> PreTrainedModel:
    kwargs = {**_BERT_LIKE, **more}
    return getattr(transformers, model)(getattr(transformers, config)(**kwargs))


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: _bert("BertConfig", "BertForMaskedLM"),
    "roberta": lambda: _bert("RobertaConfig", "RobertaForMaskedLM", pad_token_id=1),
    "distilbert": lambda: transformers.DistilBertForMaskedLM(
        transformers.DistilBertConfig(
            dim=32, n_layers=2, n_heads=4, hidden_dim=37, vocab_size=VOCAB
        )
    ),
    "electra": lambda: _bert("ElectraConfig", "ElectraForMaskedLM", embedding_size=16),
    "albert": lambda: _bert(
        "AlbertConfig", "AlbertForMaskedLM", embedding_size=16, num_hidden_layers=3
    ),
    "modernbert": lambda: _bert(
        "ModernBertConfig",
        "ModernBertForMaskedLM",
        num_hidden_layers=4,  # layers 0 and 3 are global
        local_attention=8,
        **_NO_SPECIAL_TOKENS,
    ),
    "eurobert": lambda: _bert(  # fewer key and value heads than query heads
        "EuroBertConfig",
        "EuroBertForMaskedLM",
        num_key_value_heads=2,
        max_position_embeddings=64,
        **_NO_SPECIAL_TOKENS,
    ),
    "vit": lambda: _bert(
        "ViTConfig", "ViTForImageClassification", image_size=36, patch_size=9, num_labels=3
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_embd=32, n_layer=2, n_head=4, vocab_size=VOCAB, bos_token_id=None, eos_token_id=None
        )
    ),
}


def build(name: str, seed: int = 0) -> PreTrainedModel:
    """The model in fp32, in eval mode, its weights wide enough for attention to matter."""
    torch.manual_seed(seed)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5.0)  # initialised at 0.02: scores would be all but equal
    return model.eval()


def num_modules(model: PreTrainedModel) -> int:
    return len(find_self_attention("test", model).modules)


def random_masks(model: PreTrainedModel, seed: int = 1, length: int = MASK_LENGTH) -> torch.Tensor:
    """bool [L, H, N, N], another for each module and head; the diagonal is allowed.

    So every real token has a key, itself, and the judge's softmax is defined for it.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (num_modules(model), model.config.num_attention_heads, length, length)
    return (torch.rand(shape, generator=generator) < 0.4) | torch.eye(length, dtype=torch.bool)


def padding(length: int = LENGTH) -> torch.Tensor:
    """bool [4, N], True = real: no padding, on the right, on the left, in the middle."""
    real = torch.ones(BATCH, length, dtype=torch.bool)
    real[1, length - 6 :] = False
    real[2, :5] = False
    real[3, 7:12] = False
    return real


def inputs(name: str, seed: int = 2, padded: bool = True) -> tuple[dict[str, Any], torch.Tensor]:
    """Arguments of a forward pass with a loss, and the real positions, bool [B, N]."""
    generator = torch.Generator().manual_seed(seed)
    if name == "vit":
        pixels = torch.randn(BATCH, 3, 36, 36, generator=generator)
        labels = torch.randint(0, 3, (BATCH,), generator=generator)
        return {"pixel_values": pixels, "labels": labels}, torch.ones(BATCH, 17, dtype=torch.bool)
    real = padding() if padded else torch.ones(BATCH, LENGTH, dtype=torch.bool)
    ids = torch.randint(2, VOCAB, (BATCH, LENGTH), generator=generator)
    # What padding holds must not matter to real tokens; neither may it be predicted by (or, in a
    # causal model, predict) anything.
    labels = ids.masked_fill(~real, -100)
    if name == "gpt2":
        labels[:, 1:] = labels[:, 1:].masked_fill(~real[:, :-1], -100)
    return {"input_ids": ids, "attention_mask": real.long(), "labels": labels}, real


def _eager_with_mask(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> Any:
    """The model's own eager attention, its 4-D additive mask cut down by `module.judge_mask`.

    Row and column 0 of it are each sequence's first real token: the first that any query sees.
    """
    q_len, kv_len = query.shape[2], key.shape[2]
    if attention_mask is None:
        attention_mask = query.new_zeros((len(query), 1, q_len, kv_len))
    sparse = torch.zeros(len(query), *module.judge_mask.shape, dtype=torch.bool)  # type: ignore[misc]
    for example, additive in zip(sparse, attention_mask, strict=True):
        start = int((additive == 0).any(dim=-2).int().argmax()) if q_len == kv_len else 0
        left = example.shape[-1] - start
        example[:, start:, start:] = module.judge_mask[:, :left, :left]  # type: ignore[index]
    sparse = sparse[:, :, kv_len - q_len : kv_len, :kv_len]
    attention_mask = attention_mask.masked_fill(~sparse, torch.finfo(query.dtype).min)
    own = sys.modules[type(module).__module__]
    if query.dtype == torch.float64 and "dtype=torch.float32" in inspect.getsource(
        own.eager_attention_forward
    ):
        own = modeling_bert  # the same formula, its softmax in fp64 too
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    return own.eager_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register("judge", _eager_with_mask)
AttentionMaskInterface.register("judge", eager_mask)


def judged(model: PreTrainedModel, masks: torch.Tensor) -> PreTrainedModel:
    """A copy of the dense model that runs its eager attention under masks [L, H, N, N]."""
    model = copy.deepcopy(model)
    attention = find_self_attention("test", model)
    attention.owner.set_attn_implementation("judge")
    for module, mask in zip(attention.modules.values(), masks, strict=True):
        module.judge_mask = mask  # type: ignore[assignment]
    return model


@dataclasses.dataclass
class Run:
    """One forward and backward pass; values in fp64."""

    hidden: torch.Tensor  # [layers + 1, real tokens, width]
    logits: torch.Tensor
    gradients: dict[str, torch.Tensor]

    @classmethod
    def of(cls, model: PreTrainedModel, arguments: dict[str, Any], real: torch.Tensor) -> Run:
        dtype = model.dtype
        cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in arguments.items()}
        model.zero_grad()
        out = model(**cast, output_hidden_states=True)
        out.loss.backward()
        logits = out.logits[real] if out.logits.dim() == 3 else out.logits
        return cls(
            torch.stack([h[real].detach().double() for h in out.hidden_states]),
            logits.detach().double(),
            {k: p.grad.double() for k, p in model.named_parameters() if p.grad is not None},
        )

    def parts(self) -> dict[str, torch.Tensor]:
        """Hidden states with logits, and all gradients, each in one: many numbers, whose rounding
        is no draw of luck. The loss is the model's own function of the logits."""
        gradients = [self.gradients[name].flatten() for name in sorted(self.gradients)]
        return {
            "outputs": torch.cat([self.hidden.flatten(), self.logits.flatten()]),
            "gradients": torch.cat(gradients),
        }


# A layer is a chain of products over its width, twice its positions and its inner width; a model
# has at most four. Each product may round once.
_ROUNDINGS = 4 * (3 * 32 + 37 + 2 * MASK_LENGTH)


def assert_equal_in_fp64(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to the rounding of a tiny model that runs in fp64."""
    budget = _ROUNDINGS * torch.finfo(torch.float64).eps * max(1.0, _largest(expected))
    assert got.dtype == expected.dtype == torch.float64
    assert _largest(got - expected) <= budget


def _largest(x: torch.Tensor) -> float:
    return x.abs().nan_to_num(nan=float("inf")).max().item()


def run(model: nn.Module, name: str = "bert") -> torch.Tensor:
    """The logits of the inputs that are made for models of this name."""
    with torch.no_grad():
        return model(**inputs(name)[0]).logits
