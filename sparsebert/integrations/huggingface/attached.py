"""What a sparse model carries: a submodule in each of its attention modules, with that one's mask.

They are named after the attention (`configs.IMPLEMENTATION`), have no parameters and no buffers,
and so leave state dicts as they are.
"""

from __future__ import annotations

from torch import nn

from sparsebert.integrations.huggingface.configs import (
    IMPLEMENTATION,
    ConfigSwap,
    follow_the_first,
    other_implementation,
    restore_configs,
)
from sparsebert.integrations.huggingface.discovery import SelfAttention
from sparsebert.integrations.huggingface.images import unwatch_images
from sparsebert.integrations.huggingface.model_rules import rule_mask
from sparsebert.integrations.huggingface.position_check import FirstCall
from sparsebert.mask_plans import MaskPlans
from sparsebert.masks import AttentionMask
from sparsebert.support.untraced import constant_in_graphs


class AttachedLayer(nn.Module):
    """What is attached to every attention module of a model whose attention is ours."""

    implementation = IMPLEMENTATION

    def __init__(self, configs: tuple[ConfigSwap, ...]) -> None:
        super().__init__()
        self.configs = configs  # to be put back

    @property
    def unused_for(self) -> str | None:
        """The attention that the model is set to instead of ours, None while ours is used."""
        return other_implementation(self.configs, self.implementation)

    def follow(self) -> None:
        """Let all layers of the model use the attention that the model is set to."""
        follow_the_first(self.configs)

    def about_use(self) -> str:
        """For `extra_repr`: nothing while it is used."""
        unused = self.unused_for
        return f", NOT USED: the model is set to {unused!r} attention" if unused else ""


class DenseLayer(AttachedLayer):
    """Attached where the caller chose other modules for the masks: nothing is masked out."""


class LayerMask(AttachedLayer):
    """The sparse mask of one attention module (or of several with the same mask)."""

    def __init__(
        self,
        masks: AttentionMask,
        index: int,
        backend: str,
        positions: str,
        configs: tuple[ConfigSwap, ...],
        only_whole: str | None,
        first_call: FirstCall | None = None,
    ) -> None:
        super().__init__(configs)
        self.masks = masks  # of the whole model, to be saved
        self.index = index  # of the layer among them
        self.backend = backend
        self.positions = positions  # counted from the first of the "sequence", or of the "batch"
        self.only_whole = only_whole  # why a shorter input has no part of the mask, if so
        self.first_call = first_call  # which is still to be checked
        self.plans = MaskPlans(masks.layer(index))
        self.ruled: dict[int, MaskPlans] = {}

    @property
    def mask(self) -> AttentionMask:
        """[1, H or 1, N, N], as given, without the model's own rules."""
        return self.plans.mask

    def under(self, rule: int | None) -> MaskPlans:
        """The mask's plans where the model's own rule holds too."""
        if rule is None:
            return self.plans
        _intersect(self, rule)
        return self.ruled[rule]

    def extra_repr(self) -> str:
        mask = self.mask
        return (
            f"[{mask.num_heads}, {mask.q_len}, {mask.kv_len}] at density {mask.density:.2%}, "
            f"backend={self.backend!r}, "
            f"positions={self.positions!r}"
            f"{self.about_use()}"
        )


@constant_in_graphs
def _intersect(layer: LayerMask, rule: int) -> None:
    """See to it that `layer.ruled` has the mask under `rule`; torch.compile does not look in."""
    if rule not in layer.ruled:
        layer.ruled[rule] = MaskPlans(layer.mask & rule_mask(rule, layer.mask.q_len))


def sparse_modules(model: nn.Module) -> list[nn.Module]:
    """The attention modules of `model` that carry a mask, in order."""
    return [m for m in model.modules() if isinstance(getattr(m, IMPLEMENTATION, None), LayerMask)]


def attached_modules(model: nn.Module) -> list[nn.Module]:
    """The attention modules of `model` that carry a mask or stand beside such, in order."""
    return [
        m for m in model.modules() if isinstance(getattr(m, IMPLEMENTATION, None), AttachedLayer)
    ]


def layer_of(module: nn.Module) -> LayerMask:
    """The mask of an attention module that `sparse_modules` names."""
    layer = getattr(module, IMPLEMENTATION)
    assert isinstance(layer, LayerMask)
    return layer


def masks_of(layers: list[LayerMask]) -> AttentionMask:
    """The masks of these layers together: as they were given, or of those that are left."""
    whole = layers[0].masks
    one_given = all(layer.masks is whole or layer.masks == whole for layer in layers)
    in_order = [layer.index for layer in layers] == list(range(whole.num_layers))
    if one_given and (in_order or whole.num_layers == 1):
        return whole
    return AttentionMask.stack_layers(layer.mask for layer in layers)


def kept_configs(attention: SelfAttention) -> tuple[ConfigSwap, ...] | None:
    """What stands in for the configurations already, if the modules are attached together."""
    attached = [getattr(module, IMPLEMENTATION, None) for module in attention.modules.values()]
    first = attached[0]
    if not isinstance(first, AttachedLayer) or first.unused_for:
        return None
    together = all(isinstance(x, AttachedLayer) and x.configs is first.configs for x in attached)
    return first.configs if together else None


def detach(model: nn.Module, root: nn.Module | None = None) -> None:
    """Remove all that is attached to attention modules, and restore the configurations.

    Those of `root` too, if it is around the model.
    """
    end_checks(model)
    swaps: dict[int, ConfigSwap] = {}
    for module in attached_modules(model):
        swaps |= {id(swap): swap for swap in getattr(module, IMPLEMENTATION).configs}
        delattr(module, IMPLEMENTATION)
    restore_configs(model if root is None else root, swaps.values())


def end_checks(model: nn.Module) -> None:
    """Remove the hooks that check images, and the model's first call."""
    for module in sparse_modules(model):
        if (first_call := layer_of(module).first_call) is not None:
            first_call.remove()
    unwatch_images(model)
