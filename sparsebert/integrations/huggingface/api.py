"""Sparse attention masks on HuggingFace models.

    >>> import torch, sparsebert as sb
    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(num_hidden_layers=2, hidden_size=64, num_attention_heads=4))
    >>> mask = sb.patterns.longformer(512, window=8, num_global=1)
    >>> model = sb.sparsify(model, mask)      # one mask for all layers; a list for one each
    >>> model(torch.arange(20)[None]).last_hidden_state.shape
    torch.Size([1, 20, 64])
    >>> model = sb.densify(model)             # as before

What holds for every model:

* A sequence shorter than the masks uses their top-left part; a longer one raises. Masks over a
  grid (`patterns.neighborhood_2d`, `AttentionMask.on_grid`, or as many tokens as a vision model
  makes of its own images) have no part for images of another size or shape, which raise.
* Position 0 of a mask is the first real token of each sequence, wherever padding stands, and of
  each of several that are packed into one (recognised, as transformers does, by position_ids that
  begin again); see `sparsify`.
* The model's own rules stay in force: padding (anywhere), a decoder's causal mask, the sliding
  windows of ModernBERT's local layers, a 4-D mask that you pass, T5's position bias. A position
  is attended to if the sparse mask **and** all of these allow it. A token that may attend to
  nothing gets a zero from the attention.
* Causal masks and ModernBERT's windows are static and are compiled into the plans. 4-D masks,
  position biases, a decoder's windows (Mistral), decoding steps with cached keys and
  ``output_attentions=True`` are computed with all scores: right, but no faster than dense.
* Attention dropout works in training, is drawn from torch's generator, and is the same again
  when activations are recomputed. ``torch.compile(fullgraph=True)`` works; each sequence length
  is a graph of its own, so pad to a few lengths.
* A decoder generates with its default, growing cache, also where that drops what has left a
  sliding window; static caches, which do not say how far they are filled, are refused.
* Masks go to the attention modules in the order of ``model.named_modules()``, which is the order
  of the layers. ALBERT uses one module for many layers: it has as many masks as it has layers
  *of its own*, ``num_hidden_groups * inner_group_num``, one in every released model.
* An encoder-decoder (BART, T5, Whisper) gets the masks in its encoder; decoder and
  cross-attention stay as they are. Of a model with several encoders (CLIP) pass one.
* Position i of a mask is token i of the model's sequence, in every attention module. Where a made
  up forward shows that it is not (windows, merged, packed or shuffled tokens), `sparsify` refuses;
  ``sparsify(model, mask, modules=[...])`` is for those who know which modules a mask is right for.
* State dicts, ``save_pretrained`` and ``from_pretrained`` know nothing of the masks; save them
  beside the model with `save_masks`. ``save_pretrained`` warns where they are missing.
* ``model.set_attn_implementation("eager")`` runs the model dense, with a warning, and
  ``set_attn_implementation("sparsebert")`` sparse again: the masks stay attached meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

from torch import nn

from sparsebert.backends import registry
from sparsebert.integrations.huggingface.attached import (
    DenseLayer,
    LayerMask,
    attached_modules,
    detach,
    end_checks,
    kept_configs,
    layer_of,
    masks_of,
    sparse_modules,
)
from sparsebert.integrations.huggingface.attention import register
from sparsebert.integrations.huggingface.configs import (
    DAM,
    IMPLEMENTATION,
    ConfigSwap,
    spread_configs,
    swap_configs,
)
from sparsebert.integrations.huggingface.discovery import SelfAttention, find_self_attention
from sparsebert.integrations.huggingface.files import POSITIONS, read_masks, write_masks
from sparsebert.integrations.huggingface.images import watch_images, why_only_whole
from sparsebert.integrations.huggingface.lost_masks import warn_of_lost_masks, warn_when_saved
from sparsebert.integrations.huggingface.mask_argument import Masks, whole_mask
from sparsebert.integrations.huggingface.position_check import Checked, FirstCall, check_positions
from sparsebert.masks import AttentionMask

Model = TypeVar("Model", bound=nn.Module)

register()
warn_of_lost_masks()


def sparsify(
    model: Model,
    masks: Masks | Sequence[Masks],
    *,
    modules: str | nn.Module | Iterable[str | nn.Module] | None = None,
    backend: str = "auto",
    positions: str = "sequence",
) -> Model:
    """Let `model` attend only where `masks` allow; changes the model in place and returns it.

    Args:
        model: a transformers model whose attention goes through `AttentionInterface` (nearly
            all do), or a module around one.
        masks: True = may attend, square, as long as the longest sequence to come:

            * an `AttentionMask` [L, H, N, N] with L = 1 (for all layers) or the number of
              attention modules, and H = 1 (for all heads) or the number of heads;
            * a bool tensor or array [N, N], [H, N, N] or [L, H, N, N];
            * a sequence of such masks of one layer, one for each attention module.
        modules: only these attention modules, or those inside these parts of the model: modules
            or their names in ``model.named_modules()``. The rest of the model stays as it is, and
            whether the masks' positions are those of the chosen modules is left to you. Further
            calls with other modules add to these.
        backend: as for `sparse_attention`.
        positions: where position 0 of the masks is in a padded batch. "sequence": at each
            sequence's first real token, so that the same tokens attend to each other whatever
            else is in the batch. "batch": at the first column of the tensors.

            The two differ only where sequences begin with padding, as in a batch for generation;
            there "sequence" moves the tokens of a layer to the front and back, O(N D). Other
            batches cost nothing but one look at the padding mask in a forward; where values
            cannot be looked at (torch.compile, torch.export), tokens are always moved. Counted
            are columns from the first real one, padding between them too. A 4-D mask does
            not say where sequences begin, whether you pass it, the model makes it by itself
            (TimesFM), or a model around the sparse one does (Gemma 3 with images, if you pass
            its ``language_model`` alone; pass the whole, and ``modules=language_model``): there
            positions are those of the batch.

    Sparsifying a sparse model replaces its masks; with `modules`, those of the chosen modules.

    One forward is made up, without values and without touching the model, to see what its
    attention is given. Where no inputs can be made up, the model's first call is checked.

    The model gets a configuration of its own while it is sparse, so models that were built from
    one configuration object do not influence each other.

    Raises:
        TypeError: not a transformers model, or masks that are not boolean.
        ValueError: masks of the wrong number, heads or shape; a model with hand-written attention
            (DeBERTa, MPNet, Longformer, ...), with cross-attention, or with attention in several
            parts of which the masks would reach only one; one in which position i of a mask is
            not token i (windows, merged or shuffled tokens: Swin, Segformer, ViT-MAE, ...); one
            whose scores or own masks they cannot follow (soft-capped, with sinks, of selected
            keys: Gemma 2, GPT-OSS, Doge).

    Example:
        >>> import sparsebert as sb
        >>> from transformers import BertConfig, BertModel
        >>> size = dict(num_hidden_layers=2, hidden_size=64, num_attention_heads=4)
        >>> model = BertModel(BertConfig(**size))
        >>> narrow, wide = (sb.patterns.sliding_window(512, window=w) for w in (4, 32))
        >>> model = sb.sparsify(model, [narrow, wide])
    """
    registry.check_name("sparsify", backend)
    if positions not in POSITIONS:
        raise ValueError(f"sparsify: positions must be one of {POSITIONS}, got {positions!r}")
    attention = find_self_attention("sparsify", model, modules)
    given = modules is not None  # then the positions are left to the caller
    checked = Checked(True) if given else check_positions("sparsify", model, attention)
    whole = whole_mask(masks, attention)
    _refuse_state(attention)
    configs = _use_our_attention(model, attention)
    _attach(attention, whole, checked, backend, positions, configs)
    watch_images(attention.owner, whole.q_len, whole.positions)
    warn_when_saved(model)
    return model


def _refuse_state(attention: SelfAttention) -> None:
    """Raise ValueError where the model is set to something that masks do not go with."""
    if attention.owner.config.output_attentions:
        raise ValueError(
            "sparsify: config.output_attentions=True needs eager attention; set it to False and "
            "pass output_attentions=True to the calls that need it"
        )
    if any(hasattr(module, DAM) for module in attention.modules.values()):
        raise ValueError(
            f"sparsify: {type(attention.owner).__name__} has a DAM; call "
            "sparsify(detach_dam(model), dam.binarize(...))"
        )


def _use_our_attention(model: nn.Module, attention: SelfAttention) -> tuple[ConfigSwap, ...]:
    """Let the configurations name our attention, and remove what was attached before."""
    configs = kept_configs(attention)
    if configs is not None:
        spread_configs(attention, configs)
        if not attention.chosen:
            end_checks(attention.owner)
        return configs
    detach(attention.owner if attention.chosen else model, attention.root)
    configs = swap_configs(model, attention, IMPLEMENTATION)
    for module in attention.others.values():
        module.add_module(IMPLEMENTATION, DenseLayer(configs))
    return configs


def _attach(
    attention: SelfAttention,
    whole: AttentionMask,
    checked: Checked,
    backend: str,
    positions: str,
    configs: tuple[ConfigSwap, ...],
) -> None:
    """Give each attention module its mask."""
    first_call = None if checked.enough else FirstCall(attention)
    only_whole = why_only_whole(
        attention.owner, whole.q_len, whole.positions
    ) or checked.why_only_whole(attention.owner, whole.q_len)
    layers = [
        LayerMask(whole, index, backend, positions, configs, only_whole, first_call)
        for index in range(whole.num_layers)
    ]
    for index, module in enumerate(attention.modules.values()):
        module.add_module(IMPLEMENTATION, layers[index % len(layers)])


def densify(model: Model) -> Model:
    """Undo `sparsify`: remove all masks and give the model its attention back, in place.

    That is the attention it had before `sparsify`, or the one that `set_attn_implementation` chose
    meanwhile.

    Raises:
        ValueError: the model is not sparse.
    """
    _require_sparse("densify", model)
    detach(model)
    return model


def save_masks(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write the masks of a sparse model to `folder`, beside what `save_pretrained` writes there.

    Two files: ``sparsebert_masks.safetensors``, the masks (see `AttentionMask.save`), and
    ``sparsebert_config.json``, which says what model they belong to. Of a model that has lost or
    reordered layers since `sparsify`, the masks of the layers that it has now.

    Raises:
        ValueError: the model is not sparse, does not use its masks (its attention was set to
            another implementation), has layers without a mask, or holds several independently
            sparse models.
    """
    modules = _require_sparse("save_masks", model)
    if len(modules) < len(attached_modules(model)):
        raise ValueError(
            f"save_masks: of {type(model).__name__} only chosen modules have masks (modules=); "
            "keep those with AttentionMask.save, and sparsify the same modules with them again"
        )
    attention = find_self_attention("save_masks", model)
    layer = layer_of(modules[0])
    if unused := layer.unused_for:
        raise ValueError(
            f"save_masks: {type(attention.owner).__name__} has masks but does not use them: its "
            f"attention is set to {unused!r}; call model.set_attn_implementation("
            f"{IMPLEMENTATION!r}) to use them again, or densify(model) to be rid of them"
        )
    for name, module in attention.modules.items():
        if not isinstance(getattr(module, IMPLEMENTATION, None), LayerMask):
            raise ValueError(
                f"save_masks: {name} has no mask, though others have; call sparsify again for the "
                "model as it is now"
            )
    masks = masks_of([layer_of(module) for module in attention.modules.values()])
    settings = {"backend": layer.backend, "positions": layer.positions}
    write_masks(folder, masks, attention, settings)


def load_masks(model: Model, folder: str | os.PathLike[str]) -> Model:
    """Sparsify `model` with the masks that `save_masks` wrote to `folder`.

    Args:
        model: the model that `save_masks` was called on, loaded or built again, dense.
        folder: on this machine. Nothing is downloaded: of a model on the Hub it is what
            ``huggingface_hub.snapshot_download("user/repo")`` returns.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing in it.
        ValueError: a file is truncated, altered or of a newer version, the two do not belong
            together, or they do not fit the model.

    Example:
        >>> import tempfile, sparsebert as sb
        >>> from transformers import BertConfig, BertModel
        >>> size = dict(num_hidden_layers=2, hidden_size=64, num_attention_heads=4)
        >>> model = sb.sparsify(BertModel(BertConfig(**size)), sb.patterns.star(128))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sb.save_masks(model, folder)
        ...     model.save_pretrained(folder)  # warns where there are no masks beside it
        ...     again = sb.load_masks(BertModel.from_pretrained(folder), folder)
    """
    attention = find_self_attention("load_masks", model)
    masks, settings = read_masks(folder, attention)
    return sparsify(model, masks, **settings)


def _require_sparse(name: str, model: nn.Module) -> list[nn.Module]:
    modules = sparse_modules(model)
    if not modules:
        raise ValueError(
            f"{name}: {type(model).__name__} has no sparse masks; call sparsify(model, masks) "
            "first"
        )
    return modules
