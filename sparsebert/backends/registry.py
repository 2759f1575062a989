"""The backends by name, in the order in which "auto" prefers them.

A backend is imported when it is first needed, so Triton is not needed to run without it. To add
one, give it a line here, or from another package:

    from sparsebert.backends import registry
    registry.register("mine", "my_package.attention", runs="tiles", devices=("cuda",))

Its module holds a `base.Backend` called `BACKEND`.
"""

from __future__ import annotations

import importlib
from typing import Literal, NamedTuple, get_args

import torch

from sparsebert.backends.base import Backend

AUTO = "auto"
"""Stands for what the plan chose, by the backends preferred for the call."""

Route = Literal["tiles", "dense"]


class Entry(NamedTuple):
    """One backend.

    Attributes:
        module: where its `BACKEND` is.
        runs: what it makes of a head: the plan's tiles, or all scores.
        devices: the kinds of devices on which "auto" takes it; None means all.
    """

    module: str
    runs: Route
    devices: tuple[str, ...] | None = None


_entries: dict[str, Entry] = {
    "triton": Entry("sparsebert.backends.triton", "tiles", ("cuda",)),
    "native": Entry("sparsebert.backends.native", "tiles", ("cpu",)),
    "torch": Entry("sparsebert.backends.torch_tiles", "tiles"),
    "dense": Entry("sparsebert.backends.dense", "dense"),
}
_loaded: dict[str, Backend] = {}
_modules = {name: entry.module for name, entry in _entries.items()}
"""Where the backend of each name that was ever registered is: plans may hold its programs."""

auto_choices: dict[tuple[str, torch.dtype, int, bool], tuple[str, str]] = {}
"""What `routing` chose for calls with "auto", by `CallKind`; forgotten when backends change."""
changes = 0
"""How often backends were added or forgotten; what is remembered of them goes by it."""
planned: dict[str, str] = {}
"""What `routing` found plans to be made for, by target; likewise."""


def register(
    name: str, module: str, *, runs: Route = "tiles", devices: tuple[str, ...] | None = ()
) -> None:
    """Add a backend, preferred to those that are there.

    Args:
        name: what users write as `backend=`, an identifier; its `BACKEND` has the same name.
        module: dotted name of the module with its `BACKEND`, imported when first needed.
        runs: "tiles" or "dense".
        devices: where "auto" takes it ("cpu", "cuda"); None means anywhere, () nowhere.

    Raises ValueError for a name that is taken, no identifier, or was another module's before, and
    for other `runs`.
    """
    if not (isinstance(name, str) and name.isidentifier()):
        raise ValueError(f"register: name must be an identifier, like 'my_backend', got {name!r}")
    if runs not in get_args(Route):
        raise ValueError(f"register: runs must be one of {get_args(Route)}, got {runs!r}")
    if name == AUTO or name in _entries:
        raise ValueError(f"register: there is a backend {name!r} already; choose another name")
    if _modules.setdefault(name, module) != module:
        raise ValueError(
            f"register: {name!r} was the backend of {_modules[name]!r} before, whose programs "
            "plans may hold; choose another name"
        )
    others = dict(_entries)
    _entries.clear()
    _entries.update({name: Entry(module, runs, devices), **others})
    _forget_choices()


def unregister(name: str) -> None:
    """Forget a backend; plans keep its programs, and run them when it is registered again."""
    del _entries[name]
    _loaded.pop(name, None)
    _forget_choices()


def _forget_choices() -> None:
    global changes
    auto_choices.clear()
    planned.clear()
    changes += 1


def names() -> tuple[str, ...]:
    """The backends, those preferred first."""
    return tuple(_entries)


def entry(name: str) -> Entry:
    """What the registry says of a backend."""
    return _entries[name]


def get(name: str) -> Backend:
    """The backend, imported if that is not done yet.

    Raises ValueError if there is none of this name, or its module's has another.
    """
    backend = _loaded.get(name)
    if backend is None:
        if name not in _entries:
            raise ValueError(
                f"there is no backend {name!r}; register it, as it was when what needs it was made"
            )
        module = _entries[name].module
        backend = importlib.import_module(module).BACKEND
        if backend.name != name:
            raise ValueError(
                f"backend {name!r}: {module}.BACKEND calls itself {backend.name!r}; register it "
                "by that name"
            )
        _loaded[name] = backend
    return backend


def on_device(device: str) -> list[str]:
    """The backends that are at home on a kind of device, best first."""
    return [n for n, entry in _entries.items() if entry.devices is None or device in entry.devices]


def preferred(runs: Route, device: str) -> list[str]:
    """The backends that "auto" takes for heads of one route on a kind of device, best first."""
    return [name for name in on_device(device) if _entries[name].runs == runs]


def composing(device: str) -> list[str]:
    """The backends at home on a kind of device with composed operations, see `Backend.compose`."""
    return [name for name in on_device(device) if get(name).composes]


def is_known(name: object) -> bool:
    """Whether `name` is a `backend=` argument: "auto", or the name of a backend."""
    return isinstance(name, str) and (name == AUTO or name in _entries)


def check_name(function: str, name: object) -> None:
    """Refuse what is no `backend=` argument; `function` begins the error."""
    if not is_known(name):
        known = (AUTO, *_entries)
        raise ValueError(f"{function}: backend must be one of {known}, got {name!r}")
