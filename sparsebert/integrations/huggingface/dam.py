"""A HuggingFace model that attends through a DifferentiableAttentionMask.

    >>> import torch, sparsebert as sb
    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(num_hidden_layers=2, hidden_size=64, num_attention_heads=4))
    >>> dam = sb.DifferentiableAttentionMask(num_layers=1, num_heads=4, seq_len=32)
    >>> model = sb.attach_dam(model, dam)                    # learn with any training loop
    >>> hidden = model.train()(torch.arange(20)[None]).last_hidden_state
    >>> (hidden.pow(2).mean() + 1e-4 * dam.penalty()).backward()
    >>> model = sb.sparsify(sb.detach_dam(model), dam.binarize(sparsity=0.9))  # use what it found

The mask is drawn once in each forward pass of the model, and all layers see that draw; so does a
recomputation of their activations, if the backward pass comes before the next forward. The DAM
becomes a part of the model: its
parameters are among `model.parameters()` and in the state dict.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from sparsebert.dam.gates import GATES, gated_attention
from sparsebert.dam.mask import DifferentiableAttentionMask
from sparsebert.integrations.huggingface.attached import AttachedLayer, LayerMask
from sparsebert.integrations.huggingface.configs import (
    DAM,
    IMPLEMENTATION,
    ConfigSwap,
    restore_configs,
    swap_configs,
)
from sparsebert.integrations.huggingface.discovery import find_self_attention
from sparsebert.integrations.huggingface.images import unwatch_images, watch_images, why_only_whole
from sparsebert.integrations.huggingface.lost_masks import warn_of_lost_masks
from sparsebert.integrations.huggingface.model_rules import (
    check_key_mask,
    combine,
    read_mask,
    refuse_unsupported,
    rule_mask,
    sparsebert_mask,
)
from sparsebert.integrations.huggingface.padding import values_from_first
from sparsebert.integrations.huggingface.position_check import FirstCall, check_positions
from sparsebert.masks.positions import LINE

Model = TypeVar("Model", bound=nn.Module)


class SharedDraw:
    """The mask of the forward pass that runs now.

    No module, so that the DAM, which the model holds, does not appear in every layer again.
    """

    def __init__(
        self,
        dam: DifferentiableAttentionMask,
        gate: str,
        configs: tuple[ConfigSwap, ...],
        only_whole: str | None,
        first_call: FirstCall | None,
    ) -> None:
        self.dam = dam
        self.gate = gate
        self.configs = configs  # the model's own, to be put back
        self.only_whole = only_whole  # why a shorter input has no part of the mask, if so
        self.first_call = first_call  # which is still to be checked
        self.hook: RemovableHandle | None = None
        self._values: torch.Tensor | None = None  # [L, H, P]

    def start(self, *_: object) -> None:
        """Before each forward pass of the model, and outside of what is checkpointed."""
        self._values = self.dam.draw()

    def of_layer(self, layer: int, length: int) -> torch.Tensor:
        """The mask of a layer, [H, length, length]."""
        assert self._values is not None
        return self.dam.expand(self._values[layer % self.dam.num_layers], length)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_values": None}  # part of a graph, which cannot be copied


class LayerHandle(AttachedLayer):
    """What an attention module needs to find its mask."""

    implementation = DAM

    def __init__(self, shared: SharedDraw, layer: int) -> None:
        super().__init__(shared.configs)
        self.shared = shared
        self.layer = layer

    def extra_repr(self) -> str:
        return f"layer={self.layer}, gate={self.shared.gate!r}{self.about_use()}"


def attach_dam(model: Model, dam: DifferentiableAttentionMask, *, gate: str = "softmax") -> Model:
    """Let `model` attend through `dam`, so that training changes both; in place.

    Args:
        model: a transformers model that `sparsify` accepts, or a module around one.
        dam: of one layer (for all) or as many as the model has attention modules (ALBERT's
            layers share one), and one head (for all) or the model's heads. It moves to the
            model's device and becomes the submodule `sparsebert_dam` of the encoder.
        gate: "softmax", "additive" or "post", see `sparsebert.dam.gates`.

    Position 0 of the mask is each sequence's first real token, as for `sparsify`.

    The model's own rules stay in force: padding, causal masks, windows, 4-D masks, position
    biases. What padding tokens attend to, and who attends to them, gives the mask no gradient.
    All scores are computed, so this is no faster than eager attention; `detach_dam`, binarize
    and `sparsify` for speed.

    Raises:
        TypeError: not a transformers model, or not a DifferentiableAttentionMask.
        ValueError: the model is sparse or has a DAM already, layers or heads do not fit, an
            unknown gate, or a model that `sparsify` refuses.
    """
    if not isinstance(dam, DifferentiableAttentionMask):
        raise TypeError(
            f"attach_dam: dam must be a DifferentiableAttentionMask, got {type(dam).__name__}"
        )
    if gate not in GATES:
        raise ValueError(f"attach_dam: gate must be one of {GATES}, got {gate!r}")
    attention = find_self_attention("attach_dam", model)
    checked = check_positions("attach_dam", model, attention)
    name = type(attention.owner).__name__
    for module in attention.modules.values():
        if isinstance(getattr(module, IMPLEMENTATION, None), LayerMask):
            raise ValueError(
                f"attach_dam: {name} is sparse already, and a mask cannot be learned under "
                "another one; call densify(model) first"
            )
        if hasattr(module, DAM):
            raise ValueError(f"attach_dam: {name} has a DAM already; call detach_dam(model) first")
    layers, heads = len(attention.modules), attention.num_heads
    if dam.num_layers not in (1, layers):
        raise ValueError(
            f"attach_dam: dam has num_layers={dam.num_layers} but {name} has {layers} attention "
            f"modules; give 1 (for all) or {layers}"
        )
    if heads is not None and dam.num_heads not in (1, heads):
        raise ValueError(
            f"attach_dam: dam has num_heads={dam.num_heads} but {name} has {heads}; give 1 (for "
            f"all) or {heads}"
        )
    only_whole = why_only_whole(attention.owner, dam.seq_len, LINE)
    only_whole = only_whole or checked.why_only_whole(attention.owner, dam.seq_len)
    first_call = None if checked.enough else FirstCall(attention)
    shared = SharedDraw(dam, gate, swap_configs(model, attention, DAM), only_whole, first_call)
    watch_images(attention.owner, dam.seq_len, LINE)
    owner: nn.Module = attention.owner
    owner.add_module(DAM, dam.to(attention.owner.device).train(owner.training))
    shared.hook = owner.register_forward_pre_hook(shared.start)
    for index, module in enumerate(attention.modules.values()):
        module.add_module(DAM, LayerHandle(shared, index))
    return model


def detach_dam(model: Model) -> Model:
    """Undo `attach_dam`, in place: the model has its own attention again, and no DAM.

    The DAM keeps what it learned: `dam.binarize(...)` makes a mask of it.

    Raises:
        ValueError: the model has no DAM.
    """
    handles = [m for m in model.modules() if isinstance(getattr(m, DAM, None), LayerHandle)]
    if not handles:
        raise ValueError(
            f"detach_dam: {type(model).__name__} has no DAM; call attach_dam(model, dam) first"
        )
    shared = attached(model)
    for module in handles:
        delattr(module, DAM)
    for module in model.modules():
        if getattr(module, DAM, None) is shared.dam:
            delattr(module, DAM)
    assert shared.hook is not None
    shared.hook.remove()
    if shared.first_call is not None:
        shared.first_call.remove()
    unwatch_images(model)
    restore_configs(model, shared.configs)
    return model


def attached(model: nn.Module) -> SharedDraw:
    """The DAM that a model attends through, and how.

    Raises:
        ValueError: it has none.
    """
    for module in model.modules():
        if isinstance(module, LayerHandle):
            return module.shared
    raise ValueError(f"{type(model).__name__} has no DAM; call attach_dam(model, dam) first")


def dam_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention through the DAM, in the form that transformers' layers call.

    Arguments as for `sparsebert_attention`. Returns the output [B, N, H, D] and the attention
    probabilities [B, H, N, N].
    """
    handle = getattr(module, DAM, None)
    if not isinstance(handle, LayerHandle):
        raise ValueError(
            f"sparsebert: {type(module).__name__} has no DAM, though its model is set to the "
            f"'{DAM}' attention; call sparsebert.attach_dam(model, dam)"
        )
    refuse_unsupported(module, kwargs)
    if handle.shared.first_call is not None:
        handle.shared.first_call.saw(module, query, key, value)
    batch, _, length, _ = query.shape
    if key.shape[2] != length:
        raise ValueError(
            f"sparsebert: {type(module).__name__} got {length} queries and {key.shape[2]} keys; "
            "a mask is learned on whole sequences, without cached keys (use_cache=False)"
        )
    if query.dtype != value.dtype:  # under autocast, rotary embeddings can leave q and k in fp32
        query, key = query.to(value.dtype), key.to(value.dtype)
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    rules = read_mask(attention_mask, is_causal, length, length)
    rule, key_mask, full_mask = rules.rule, rules.key_mask, rules.full_mask
    check_key_mask(key_mask, batch, length)
    if length < handle.shared.dam.seq_len and handle.shared.only_whole:
        raise ValueError(
            f"sparsebert: a sequence of {length} tokens, but the DAM is for "
            f"{handle.shared.dam.seq_len}, and {handle.shared.only_whole}"
        )
    mask = handle.shared.of_layer(handle.layer, length)  # [H, N, N]
    if rules.first is not None:
        mask = values_from_first(mask, rules.first)  # [B, H, N, N]
    allowed, bias = None, position_bias
    if not (rule is None and key_mask is None and full_mask is None):
        allowed = torch.ones(1, 1, length, length, dtype=torch.bool, device=query.device)
        if rule is not None:
            allowed = rule_mask(rule, length).dense().to(query.device)
        allowed, bias = combine(allowed, key_mask, full_mask, position_bias)
    if key_mask is not None:
        # Padding queries take part in the forward pass only: their losses teach nothing.
        mask = torch.where(key_mask.bool()[:, None, :, None], mask, mask.detach())
    out, probabilities = gated_attention(
        query,
        key,
        value,
        mask,
        gate=handle.shared.gate,
        scale=scaling,
        bias=bias,
        allowed=allowed,
        dropout_p=dropout,
    )
    return out.transpose(1, 2).contiguous(), probabilities


AttentionInterface.register(DAM, dam_attention)
AttentionMaskInterface.register(DAM, sparsebert_mask)
warn_of_lost_masks()
