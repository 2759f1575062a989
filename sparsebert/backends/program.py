"""Programs: what a plan runs, in the form that torch's graphs can carry.

A backend's own program is a NamedTuple whose fields are tensors, numbers, tuples of these, and
other such NamedTuples. `flatten` takes it apart into the tensors and numbers that a custom op
accepts, `unflatten` puts it together again; nothing else looks into the lists.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import torch

from sparsebert.backends import registry
from sparsebert.backends.base import Backend

_SEPARATOR = "+"


class Part(NamedTuple):
    """The heads that one backend runs.

    Attributes:
        backend: who runs them.
        heads: int64, which heads of a call; None means all.
        program: of the type `backend.Program`.
    """

    backend: Backend
    heads: torch.Tensor | None
    program: Any


class Program(NamedTuple):
    """What a plan runs for one choice of backends.

    Attributes:
        parts: who runs which heads.
        tensors, numbers: the parts, flattened.
        names: the parts' backends, in one text; see `unflatten_parts`.
        singles: a program of each part alone, if there are several.
    """

    parts: tuple[Part, ...]
    tensors: list[torch.Tensor]
    numbers: list[int]
    names: str
    singles: tuple[Program, ...] = ()

    @property
    def flat(self) -> tuple[list[torch.Tensor], list[int], str]:
        """The arguments of the ops in `sparsebert.autograd` that stand for the program."""
        return self.tensors, self.numbers, self.names

    @property
    def passes_on(self) -> bool:
        """Whether o is rounded between two passes over a row, see `Backend.passes_on`."""
        return any(part.backend.passes_on(part.program) for part in self.parts)

    def to(self, device: torch.device | str) -> Program:
        """The same program with its tensors on `device`."""
        tensors = [_storable(x).to(device) for x in self.tensors]
        return _from_flat(tensors, self.numbers, self.names)

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_flat, self.flat  # backends are the registry's, wherever this is read


def _from_flat(tensors: list[torch.Tensor], numbers: list[int], names: str) -> Program:
    return make_program(unflatten_parts(tensors, numbers, names))


def make_program(parts: tuple[Part, ...]) -> Program:
    """The program of these parts."""
    tensors: list[torch.Tensor] = []
    numbers: list[int] = []
    for part in parts:
        _write_optional(part.heads, tensors, numbers)
        _layout(type(part.program)).write(part.program, tensors, numbers)
    names = _SEPARATOR.join(part.backend.name for part in parts)
    singles = tuple(make_program((part,)) for part in parts) if len(parts) > 1 else ()
    return Program(parts, tensors, numbers, names, singles)


def unflatten_parts(
    tensors: list[torch.Tensor], numbers: list[int], names: str
) -> tuple[Part, ...]:
    """The parts that `make_program` made these of."""
    remaining, counts = iter(tensors), iter(numbers)
    parts = []
    for name in names.split(_SEPARATOR):
        backend = registry.get(name)
        heads = _read_optional(remaining, counts)
        parts.append(Part(backend, heads, _layout(backend.Program).read(remaining, counts)))
    return tuple(parts)


def flatten(program: Any) -> tuple[list[torch.Tensor], list[int]]:
    """The tensors and numbers of a backend's own program."""
    tensors: list[torch.Tensor] = []
    numbers: list[int] = []
    _layout(type(program)).write(program, tensors, numbers)
    return tensors, numbers


def unflatten(kind: type[Any], tensors: list[torch.Tensor], numbers: list[int]) -> Any:
    """The program of type `kind` that `flatten` made these of."""
    return _layout(kind).read(iter(tensors), iter(numbers))


def _storable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor; an empty one of numpy's memory anew, which torch.export could not save."""
    if tensor.numel():
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


Tensors: TypeAlias = Iterator[torch.Tensor]
Numbers: TypeAlias = Iterator[int]
Read: TypeAlias = Callable[[Tensors, Numbers], Any]
Write: TypeAlias = Callable[[Any, list[torch.Tensor], list[int]], None]


class _Layout(NamedTuple):
    """How values of one type are taken apart and put together."""

    read: Read
    write: Write


_layouts: dict[Any, _Layout] = {}


def _layout(kind: Any) -> _Layout:
    """The layout of a field's type, or of a NamedTuple by those of its fields."""
    found = _layouts.get(kind)
    if found is None:
        found = _layouts[kind] = _make_layout(kind)
    return found


def _make_layout(kind: Any) -> _Layout:
    if kind is torch.Tensor:
        return _Layout(
            lambda tensors, numbers: next(tensors), lambda x, tensors, numbers: tensors.append(x)
        )
    if kind in (int, bool):
        return _Layout(
            lambda tensors, numbers: kind(next(numbers)),
            lambda x, tensors, numbers: numbers.append(int(x)),
        )
    if isinstance(kind, types.UnionType) and set(kind.__args__) == {torch.Tensor, type(None)}:
        return _Layout(_read_optional, _write_optional)
    if typing.get_origin(kind) is tuple and typing.get_args(kind)[1:] == (...,):
        return _many(_layout(typing.get_args(kind)[0]))
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        hints = typing.get_type_hints(kind)
        return _record(kind, [_layout(hints[name]) for name in kind._fields])
    raise TypeError(
        f"a backend's program holds a field of type {kind}; use tensors, tensors or None, int, "
        "bool, NamedTuples of these, and tuple[..., ...] of these"
    )


def _read_optional(tensors: Tensors, numbers: Numbers) -> torch.Tensor | None:
    return next(tensors) if next(numbers) else None


def _write_optional(
    x: torch.Tensor | None, tensors: list[torch.Tensor], numbers: list[int]
) -> None:
    numbers.append(int(x is not None))
    if x is not None:
        tensors.append(x)


def _many(each: _Layout) -> _Layout:
    read_one, write_one = each

    def read(tensors: Tensors, numbers: Numbers) -> tuple[Any, ...]:
        return tuple([read_one(tensors, numbers) for _ in range(next(numbers))])

    def write(values: tuple[Any, ...], tensors: list[torch.Tensor], numbers: list[int]) -> None:
        numbers.append(len(values))
        for value in values:
            write_one(value, tensors, numbers)

    return _Layout(read, write)


def _record(kind: Any, fields: list[_Layout]) -> _Layout:
    readers, writers = [field.read for field in fields], [field.write for field in fields]

    def read(tensors: Tensors, numbers: Numbers) -> Any:
        return kind._make([read_one(tensors, numbers) for read_one in readers])

    def write(values: Any, tensors: list[torch.Tensor], numbers: list[int]) -> None:
        for write_one, value in zip(writers, values, strict=True):
            write_one(value, tensors, numbers)

    return _Layout(read, write)
