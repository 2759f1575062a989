"""The cost model's constants, which are data: `constants.json`, with the source of each.

They stand by what they belong to:

- `machines`, by target: the machine itself, whatever runs on it;
- `dense`, by target: dense attention;
- `tiles`, by backend and target: a backend that runs tiles. A new one adds its entry here. One
  whose speed depends on the processor's instruction set has an entry for each, under "isa".

A GPU without constants of its own is taken for an "sm90".
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
from typing import Any

DEFAULT_GPU = "sm90"


@dataclasses.dataclass(frozen=True)
class Term:
    """The time of one thing that a call does, in microseconds: a sum of three parts.

    Each part is (serial, parallel): the parallel one is divided by the threads.

    Attributes:
        once: for all batches and heads that share it.
        copy: for each batch and head.
        dim: for each batch, head and element of the head size.
    """

    once: tuple[float, float] = (0.0, 0.0)
    copy: tuple[float, float] = (0.0, 0.0)
    dim: tuple[float, float] = (0.0, 0.0)

    def share(self, head_dim: int, threads: int, sharing: float) -> float:
        """The time for one of `sharing` batches and heads."""
        once, copy, dim = (
            serial + parallel / threads for serial, parallel in (self.once, self.copy, self.dim)
        )
        return once / sharing + copy + dim * head_dim


Terms = dict[str, Term | dict[int, Term]]
"""Terms by name; those of "entry" by the tile's height."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """What belongs to a machine, whatever runs on it.

    Attributes:
        batch: the usual batch of the calls to come.
        linear_flops: floating-point operations a second, of one thread on a CPU, in a model's
            layers without their attention.
        linear_source: where that comes from.
    """

    batch: int
    linear_flops: float
    linear_source: str


@dataclasses.dataclass(frozen=True)
class TileBackend:
    """How one backend runs tiles on one target, beside what each of its passes takes.

    Attributes:
        source: where the constants come from.
        margin: tiles must be predicted this much faster than dense attention to be chosen: 1 plus
            the relative error that four fifths of the fitted predictions stay below.
        empty_rows_cost: a tile computes its empty row slots too.
        batched: tiles of similar shape run as one batch, padded to its widest, as
            `sparsebert.tiles.batching` has it.
        padded: a tile's columns are padded to whole chunks; else each is paid for alone.
        singles: entries may stand alone, beside tiles of 16 rows.
        step: columns that a tile computes at once, as on a GPU, where the last step takes as long
            as any; 0 where they are not taken in steps.
        launches: a program runs each tile, and a launch all tiles of one height, as on a GPU; a
            row in two tiles goes from one launch to the next.
    """

    source: str
    margin: float
    empty_rows_cost: bool
    batched: bool
    padded: bool
    singles: bool
    step: int
    launches: bool


@functools.cache
def stored() -> dict[str, Any]:
    """What `constants.json` holds; read once."""
    text = importlib.resources.files(__package__).joinpath("constants.json").read_text()
    constants: dict[str, Any] = json.loads(text)
    return constants


def targets() -> tuple[str, ...]:
    """Targets with constants of their own."""
    return tuple(stored()["machines"])


def tile_backends(target: str) -> tuple[str, ...]:
    """Backends with constants for tiles on a target; the first is taken where none is named."""
    entries = stored()["tiles"].items()
    return tuple(name for name, by_target in entries if _nearest(target, by_target))


def isas(target: str, backend: str) -> tuple[str, ...]:
    """Instruction sets for which a backend has constants of their own; () if it has one set."""
    return tuple(_of_target(target, backend).get("isa", ()))


def machine(target: str) -> Machine:
    """The machine that a target names, or the one that stands for it."""
    entry = _entry(stored()["machines"], target)
    return Machine(**{field.name: entry[field.name] for field in dataclasses.fields(Machine)})


def tile_backend(target: str, backend: str | None = None, isa: str = "") -> TileBackend:
    """One backend on a target; None means the first that there is. `isa`: one of `isas`."""
    entry = _tiles(target, backend, isa)
    fields = {field.name: entry[field.name] for field in dataclasses.fields(TileBackend)}
    if target not in targets():
        fields["source"] = f"that of {DEFAULT_GPU}, none for {target}: {fields['source']}"
    return TileBackend(**fields)


def reference(target: str, backend: str, isa: str = "") -> dict[str, float]:
    """What the calls of a calibration took where the constants come from, over what these say.

    By the names of `sparsebert.calibration.timed_calls`; {} for constants that are not measured.
    """
    found: dict[str, float] = _tiles(target, backend, isa).get("reference", {})
    return found


def pass_terms(target: str, which: str, backend: str | None = None, isa: str = "") -> Terms:
    """All terms of the "forward" or the "backward" pass: machine, dense attention and tiles."""
    machine_entry, dense = (_entry(stored()[name], target) for name in ("machines", "dense"))
    parts = machine_entry, dense, _tiles(target, backend, isa)
    return {name: term for part in parts for name, term in read_terms(part[which]).items()}


def read_terms(entry: dict[str, Any]) -> Terms:
    """The terms of one pass from how they are stored."""
    terms: Terms = {}
    for name, value in entry.items():
        if name == "entry":
            terms[name] = {int(height): _term(each) for height, each in value.items()}
        else:
            terms[name] = _term(value)
    return terms


def _term(entry: dict[str, list[float]]) -> Term:
    return Term(**{part: (pair[0], pair[1]) for part, pair in entry.items()})


def _nearest(target: str, by_target: dict[str, Any]) -> str | None:
    """The target whose constants stand for `target` in this part of the file."""
    if target in by_target:
        return target
    return DEFAULT_GPU if target != "cpu" and DEFAULT_GPU in by_target else None


def _entry(by_target: dict[str, Any], target: str) -> dict[str, Any]:
    found: dict[str, Any] = by_target[_nearest(target, by_target) or DEFAULT_GPU]
    return found


def _tiles(target: str, backend: str | None, isa: str) -> dict[str, Any]:
    entry = _of_target(target, backend)
    found: dict[str, Any] = entry["isa"][isa] if "isa" in entry else entry
    return found


def _of_target(target: str, backend: str | None) -> dict[str, Any]:
    known = tile_backends(target)
    backend = known[0] if backend is None else backend
    if backend not in known:
        raise ValueError(
            f"cost_model: backend must be one with constants for target {target!r}, "
            f"{' or '.join(map(repr, known))}, got {backend!r}; leave it out for the first of them"
        )
    return _entry(stored()["tiles"][backend], target)
