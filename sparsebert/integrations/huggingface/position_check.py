"""Whether the positions of a mask are the positions of a model's sequences.

A mask says what token i may attend to. That holds only where every attention module gets whole
sequences: as many as the model was given, with all their tokens in order, the same in each
module. Windows, merged patches, packed or shuffled sequences are refused here, by what the
modules are given in a forward, not by the names of models.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from sparsebert.arguments import MAX_HEAD_DIM
from sparsebert.integrations.huggingface.discovery import SelfAttention
from sparsebert.integrations.huggingface.dry_run import AttentionShapes, ForwardRecord, dry_run
from sparsebert.integrations.huggingface.example_inputs import ModelInputs, own_image_size
from sparsebert.integrations.huggingface.model_rules import unsupported

_CHOOSE = (
    "; to give the mask to attention modules for which you know that it is right, name them: "
    "modules=[...]"
)


@dataclasses.dataclass(frozen=True)
class Checked:
    """What `check_positions` knows.

    Attributes:
        enough: nothing is left to be checked in the first call.
        own_tokens: how many tokens a vision model makes of images (or videos) of its own size.
    """

    enough: bool = False
    own_tokens: int | None = None

    def why_only_whole(self, owner: nn.Module, length: int) -> str | None:
        """Why masks of this length serve no shorter input; None if they do."""
        if self.own_tokens != length:
            return None
        return (
            f"that is what {type(owner).__name__} makes of its own images; the tokens of another "
            "one, or what is left of them where some are dropped (bool_masked_pos), are not the "
            "first of these: sparsify again with masks for them"
        )


def check_positions(name: str, model: nn.Module, attention: SelfAttention) -> Checked:
    """Raise ValueError unless masks mean the tokens of the model, as far as it can be known.

    Args:
        name: the function that asks, for messages.
        model: what it was asked about.
    """
    seen = dry_run(model, attention)
    if seen is None:
        return Checked()
    check_record(name, attention, seen)
    enough = seen.whole and seen.calls.keys() == attention.modules.keys()
    if not seen.given.pixels or own_image_size(attention.owner.config) is None:
        return Checked(enough)
    return Checked(enough, next(iter(seen.calls.values()))[0].queries)


def check_record(name: str, attention: SelfAttention, seen: ForwardRecord) -> None:
    """Raise ValueError unless what was seen are whole sequences, and nothing but them."""
    owner = type(attention.owner).__name__
    for key, arguments in seen.arguments.items():
        if what := unsupported(arguments):
            kind = type(attention.modules[key]).__name__
            raise ValueError(
                f"{name}: {kind} ({key}) uses {what}, which the sparse attention does not "
                f"support; {owner} can only run dense"
            )
    if seen.computes_masks:
        raise ValueError(
            f"{name}: {owner} computes with the attention mask on the way to its attention (to "
            "select keys by their content, for one), which needs the mask [B, 1, N, N] that the "
            f"sparse attention does without; {owner} can only run dense"
        )
    if seen.shuffled:
        raise ValueError(
            f"{name}: {owner} picks tokens at random before its attention (it shuffles or drops "
            "some), so position i of a mask would not be token i" + _CHOOSE
        )
    for key, calls in seen.calls.items():
        for call in calls:
            _check_call(name, owner, key, call, seen.given)
    _check_same(name, owner, seen)
    lengths = {call.queries for calls in seen.calls.values() for call in calls}
    for key, length in seen.by_hand.items():
        if length in lengths:
            raise ValueError(
                f"{name}: {owner} attends in {key} too, with code of its own, which never asks "
                "transformers' AttentionInterface, so no mask would reach it" + _CHOOSE
            )


def _check_call(
    name: str, owner: str, key: str, call: AttentionShapes, given: ModelInputs
) -> None:
    more_keys = call.keys > call.queries and given.cached and given.tokens == call.queries
    if call.queries != call.keys and not more_keys:
        raise ValueError(
            f"{name}: {owner} has {call.queries} queries and {call.keys} keys in {key} (keys or "
            "queries are pooled), but a mask of self-attention has as many rows as columns"
            + _CHOOSE
        )
    if call.value_width != call.width:
        raise ValueError(
            f"{name}: {owner} has values of {call.value_width} numbers a head beside queries of "
            f"{call.width} ({key}); the sparse attention needs one head size, so {owner} can "
            "only run dense"
        )
    if call.width > MAX_HEAD_DIM:
        raise ValueError(
            f"{name}: {owner} has heads of {call.width} numbers ({key}), and the sparse attention "
            f"takes up to {MAX_HEAD_DIM}; {owner} can only run dense"
        )
    whole = call.sequences in (given.sequences, (given.sequences or 0) * given.slices)
    if (given.sequences is not None and not whole) or given.tokens not in (None, call.queries):
        tokens = "" if given.tokens is None else f" of {given.tokens} tokens"
        raise ValueError(
            f"{name}: {owner} takes its sequences apart, or puts them together: of a batch of "
            f"{given.sequences}{tokens}, {key} got {call.sequences} sequences of {call.queries}, "
            "so position i of a mask would not be token i" + _CHOOSE
        )


def _check_same(name: str, owner: str, seen: ForwardRecord) -> None:
    """All modules see the same; each time, unless several images of any size are packed."""
    shapes_of = {key: [(c.sequences, c.queries) for c in x] for key, x in seen.calls.items()}
    first = next(iter(shapes_of.items()))
    packed = seen.given.sequences is None
    for key, shapes in shapes_of.items():
        differing = shapes if packed else list(dict.fromkeys(shapes))
        expected = first[1] if packed else first[1][:1]
        if differing != expected:
            raise ValueError(
                f"{name}: {owner} does not attend over the same sequences everywhere: {first[0]} "
                f"got {_described(first[1])}, {key} {_described(shapes)} (windows, merged tokens, "
                "or several axes), and one mask cannot mean them all" + _CHOOSE
            )


def _described(shapes: list[tuple[int, int]]) -> str:
    return " and ".join(f"{count} of {length}" for count, length in dict.fromkeys(shapes))


class FirstCall:
    """The same check on real forwards, where it could not be made without inputs.

    It ends with the first that all attention modules take part in; never where sequences of any
    length are packed into one: an image as small as one window does not show that there are more.
    """

    def __init__(self, attention: SelfAttention) -> None:
        self.attention = attention
        self.seen: ForwardRecord | None = None
        owner = attention.owner
        self.hooks: list[RemovableHandle] = [
            owner.register_forward_pre_hook(self._begin, with_kwargs=True),
            owner.register_forward_hook(self._end),
        ]

    def saw(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Called by the attention; a no-op outside of a forward of the owner."""
        if self.seen is not None and not torch.compiler.is_compiling():
            name = next(k for k, m in self.attention.modules.items() if m is module)
            self.seen.calls.setdefault(name, []).append(AttentionShapes.of(query, key, value))

    def remove(self) -> None:
        """Check no more."""
        self.seen = None
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    def _begin(self, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return
        named = dict(zip(inspect.signature(owner.forward).parameters, args, strict=False))
        self.seen = ForwardRecord(
            dataclasses.replace(ModelInputs.of({**named, **kwargs}), cached=True)
        )

    def _end(self, owner: nn.Module, *_: Any) -> None:
        seen = self.seen
        if seen is None or torch.compiler.is_compiling():
            return
        self.seen = None
        if seen.calls:
            check_record("sparsebert", self.attention, seen)
        packed = seen.given.sequences is None
        if not packed and seen.calls.keys() == self.attention.modules.keys():
            self.remove()
