"""A model's forward without memory and without arithmetic, to see what its attention is given.

The model itself is not touched: a stand-in is made of the same modules with parameters that have
shapes but no values (torch's FakeTensorMode), no hooks and configurations of its own, and dropped
again. A base-sized encoder takes some tens of milliseconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from sparsebert.integrations.huggingface.discovery import SelfAttention
from sparsebert.integrations.huggingface.example_inputs import (
    ModelInputs,
    example_inputs,
    takes_outside_inputs,
)
from sparsebert.integrations.huggingface.model_rules import sparsebert_mask

DRY_RUN = "sparsebert_dry_run"
"""The attention that records its arguments' shapes instead of attending."""

_WITH_USUAL_MASKS = "sparsebert_dry_run_with_usual_masks"
"""The same, for models to which masks in our form are of no use: it tells which these are."""

_HOOKS = [name for name in vars(nn.Module()) if "hook" in name]
_DRAWS = {"rand", "rand_like", "randn", "randn_like", "randint", "randperm", "bernoulli"}
_PICKS = {"gather", "take_along_dim", "index_select", "__getitem__"}


@dataclasses.dataclass(frozen=True)
class AttentionShapes:
    """What one attention module was given once."""

    sequences: int
    queries: int
    keys: int
    width: int
    value_width: int

    @classmethod
    def of(cls, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> AttentionShapes:
        """From q [B, H, N, D], k [B, H_kv, M, D], v [B, H_kv, M, D_v]."""
        return cls(query.shape[0], query.shape[2], key.shape[2], query.shape[3], value.shape[3])


@dataclasses.dataclass
class ForwardRecord:
    """What was seen of one forward.

    Attributes:
        given: what the model was given.
        calls: what each attention module was given, in the order of the calls.
        arguments: the further arguments of those calls that are not None.
        by_hand: modules that attended over whole sequences in code of their own.
        shuffled: tokens were picked at random before any attention, though not in training.
        computes_masks: the attention is reached with the usual masks [B, 1, N, N] only.
        whole: the forward ran to its end.
    """

    given: ModelInputs
    calls: dict[str, list[AttentionShapes]] = dataclasses.field(default_factory=dict)
    arguments: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    by_hand: dict[str, int] = dataclasses.field(default_factory=dict)
    shuffled: bool = False
    computes_masks: bool = False
    whole: bool = False


def dry_run(model: nn.Module, attention: SelfAttention) -> ForwardRecord | None:
    """One forward of the model whose attention it is, or None if it cannot be run like this."""
    for implementation in (DRY_RUN, _WITH_USUAL_MASKS):
        for candidate in _candidates(model, attention.owner):
            seen = _first_that_attends(candidate, attention, implementation)
            if seen is not None:
                seen.computes_masks = implementation == _WITH_USUAL_MASKS
                return seen
    return None


def _candidates(model: nn.Module, owner: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The owner and the models around it, those first that make embeddings themselves."""
    around = [
        m
        for m in model.modules()
        if isinstance(m, PreTrainedModel) and any(part is owner for part in m.modules())
    ][::-1]
    yield from (m for m in around if takes_outside_inputs(m))
    yield from (m for m in around if not takes_outside_inputs(m))


def _first_that_attends(
    model: PreTrainedModel, attention: SelfAttention, implementation: str
) -> ForwardRecord | None:
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with (
            _no_log(),
            fake,
            torch.no_grad(),
            torch.device("cpu"),  # whatever the caller's default is
            torch.random.fork_rng(devices=[]),
        ):
            stand_in = _StandIn(model, implementation)
            for arguments in example_inputs(model):
                seen = ForwardRecord(ModelInputs.of(arguments))
                stand_in.record(attention, seen)
                try:
                    with _Watch(stand_in, seen, arguments):
                        stand_in.model(**arguments)
                    seen.whole = True
                except Exception:  # the wrong inputs for this model, or no shapes without values
                    pass
                if seen.calls:
                    return seen
    except Exception:  # modules or parameters of kinds that have no stand-in
        return None
    return None


@contextlib.contextmanager
def _no_log() -> Iterator[None]:
    """torch logs as errors the inputs that a model does not take."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


class _StandIn:
    """A model's modules over again, with fake parameters, no hooks and dropout off."""

    def __init__(self, model: PreTrainedModel, implementation: str) -> None:
        self._implementation = implementation
        self.originals = dict(model.named_modules())
        self._copies = {id(m): object.__new__(type(m)) for m in self.originals.values()}
        self._others: dict[int, tuple[Any, Any]] = {}  # (copy, original kept alive)
        for module in self.originals.values():
            object.__setattr__(self._copies[id(module)], "__dict__", self._attributes(module))
        self.model = self._copies[id(model)]
        self.name_of = {id(self._copies[id(m)]): key for key, m in self.originals.items()}
        self.stack: list[nn.Module] = []
        for copy in self._copies.values():
            copy.register_forward_pre_hook(self._enter)
            copy.register_forward_hook(self._leave)

    def record(self, attention: SelfAttention, seen: ForwardRecord) -> None:
        """Let the attention modules write to `seen`."""
        for key, module in attention.modules.items():
            copy = self._copies.get(id(module))
            if copy is not None:
                copy.__dict__[DRY_RUN] = _recorder(key, seen)
        self.stack.clear()

    def attends(self, module: nn.Module) -> bool:
        return DRY_RUN in vars(module)

    def inside(self, owner: nn.Module) -> set[int]:
        return {id(self._copies[id(m)]) for m in owner.modules() if id(m) in self._copies}

    def _enter(self, module: nn.Module, _: Any) -> None:
        self.stack.append(module)

    def _leave(self, module: nn.Module, _: Any, __: Any) -> None:
        self.stack.pop()

    def _attributes(self, module: nn.Module) -> dict[str, Any]:
        attributes: dict[str, Any] = {}
        for name, value in vars(module).items():
            if name in _HOOKS:
                attributes[name] = type(value)() if isinstance(value, dict) else value
            elif name in ("_modules", "_parameters", "_buffers"):
                attributes[name] = type(value)((k, self._copy(v)) for k, v in value.items())
            elif name not in ("forward", "_compiled_call_impl"):  # what wraps the class's own
                attributes[name] = self._copy(value)
        attributes["training"] = False
        return attributes

    def _copy(self, value: Any) -> Any:
        """The counterpart of an attribute, what it contains included."""
        if isinstance(value, nn.Module):
            return self._copies.get(id(value), value)
        if isinstance(value, (torch.Tensor, PreTrainedConfig)):
            if id(value) not in self._others:
                self._others[id(value)] = (
                    _counterpart(value, self._implementation),
                    value,
                )
            return self._others[id(value)][0]
        if type(value) in (list, tuple):
            return type(value)(map(self._copy, value))
        if type(value) is dict:
            return {key: self._copy(inner) for key, inner in value.items()}
        if isinstance(value, types.MethodType) and id(value.__self__) in self._copies:
            return types.MethodType(value.__func__, self._copies[id(value.__self__)])
        return value


def _counterpart(value: torch.Tensor | PreTrainedConfig, implementation: str) -> Any:
    if isinstance(value, PreTrainedConfig):
        config = object.__new__(type(value))
        config.__dict__.update(vars(value))
        config.__dict__["_attn_implementation_internal"] = implementation
        return config
    fake = torch.empty(value.shape, dtype=value.dtype, device="cpu")
    return nn.Parameter(fake, requires_grad=False) if isinstance(value, nn.Parameter) else fake


def _recorder(key: str, seen: ForwardRecord) -> Callable[..., None]:
    def record(
        query: torch.Tensor, k: torch.Tensor, value: torch.Tensor, arguments: dict[str, Any]
    ) -> None:
        seen.calls.setdefault(key, []).append(AttentionShapes.of(query, k, value))
        seen.arguments.setdefault(key, {}).update(
            {name: given for name, given in arguments.items() if given is not None}
        )

    return record


class _Watch(TorchFunctionMode):
    """Sees attention that is written out by hand, and tokens that are picked at random."""

    def __init__(
        self, stand_in: _StandIn, seen: ForwardRecord, inputs: dict[str, torch.Tensor]
    ) -> None:
        super().__init__()
        self.stand_in = stand_in
        self.seen = seen
        # What depends on the model's inputs and on random numbers, by id, and kept alive by it.
        self.data: dict[int, torch.Tensor] = {id(x): x for x in inputs.values()}
        self.random: dict[int, torch.Tensor] = {}

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name.endswith("grouped_mm"):  # of experts; on a CPU it knows the shapes of bf16 only
            return args[0].new_empty(args[0].shape[0], args[1].shape[-1])
        out = function(*args, **(kwargs or {}))
        if not self.seen.calls:
            self._follow(name, [*_tensors(args), *_tensors((kwargs or {}).values())], out)
        if name == "softmax" and out.dim() >= 3:
            self._attended(out.shape[-2], out.shape[-1])
        elif name == "scaled_dot_product_attention":
            self._attended(args[0].shape[-2], args[1].shape[-2])
        elif name == "multi_head_attention_forward":
            self._attended(args[0].shape[0], args[1].shape[0])
        return out

    def _follow(self, name: str, given: list[torch.Tensor], out: Any) -> None:
        random = [id(x) in self.random for x in given]
        if name in _PICKS and given and id(given[0]) in self.data and not random[0]:
            self.seen.shuffled |= any(random[1:])
        for result in _tensors([out]):
            if name in _DRAWS or any(random):
                self.random[id(result)] = result
            if any(id(x) in self.data for x in given):
                self.data[id(result)] = result

    def _attended(self, queries: int, keys: int) -> None:
        if queries == keys and not any(map(self.stand_in.attends, self.stand_in.stack)):
            module = self.stand_in.stack[-1]
            self.seen.by_hand[self.stand_in.name_of[id(module)]] = queries


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Those among some arguments or results, in tuples and lists too."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _recording_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    record = vars(module).get(DRY_RUN)
    if record is not None:
        record(query, key, value, kwargs)
    batch, heads, length, _ = query.shape
    return value.new_empty(batch, length, heads, value.shape[-1]), None


for _name, _mask in ((DRY_RUN, sparsebert_mask), (_WITH_USUAL_MASKS, sdpa_mask)):
    AttentionInterface.register(_name, _recording_attention)
    AttentionMaskInterface.register(_name, _mask)
