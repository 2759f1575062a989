"""Who runs which heads of a call: decided here, once, above the backends.

The plan says for each head whether it runs in tiles or dense. With "auto" the heads of each route
go to the first backend that is preferred on the device and does not refuse; a backend that is
named runs all heads, whatever the plan chose.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from sparsebert.backends import registry
from sparsebert.backends.base import CallKind
from sparsebert.backends.program import Part, Program, make_program
from sparsebert.compiler.cost.constants import tile_backends
from sparsebert.compiler.cost.model import DEFAULT_HEAD_DIM
from sparsebert.compiler.schedule import Schedule
from sparsebert.support.untraced import constant_in_graphs


class Routes(NamedTuple):
    """The backends that run a plan's heads.

    Attributes:
        tiles: those that the plan runs in tiles.
        dense: those that it runs dense.
    """

    tiles: str
    dense: str


def choose(
    backend: str, device: str, dtype: torch.dtype, head_dim: int, composed: bool
) -> tuple[str, str]:
    """The `Routes` of calls of one kind, see `CallKind`; `backend` is the caller's choice.

    Raises ValueError, with every reason, if the backend that was named cannot run such a call, or
    none can; NotImplementedError if only its lack of composed operations is in the way.
    """
    if torch.compiler.is_compiling():
        chosen, unable, told = _choose_in_graph(backend, device, dtype, head_dim, composed)
        if told:  # raised here, where Dynamo sees it: else callers would get an error of Dynamo's
            raise NotImplementedError(told) if unable else ValueError(told)
        return chosen
    return _choose(backend, device, dtype, head_dim, composed)


def _choose(
    backend: str, device: str, dtype: torch.dtype, head_dim: int, composed: bool
) -> tuple[str, str]:
    if backend == registry.AUTO:
        chosen = registry.auto_choices.get((device, dtype, head_dim, composed))
        if chosen is None:
            kind = CallKind(device, dtype, head_dim, composed)
            chosen = registry.auto_choices[kind] = _first("tiles", kind), _first("dense", kind)
        return chosen
    kind = CallKind(device, dtype, head_dim, composed)
    reasons = reasons_against(backend, kind)
    if reasons:
        raise _refusal(backend, kind, reasons)
    return backend, backend


@constant_in_graphs
def _choose_in_graph(
    backend: str, device: str, dtype: torch.dtype, head_dim: int, composed: bool
) -> tuple[tuple[str, str], bool, str]:
    """What `choose` finds outside of graphs; or why it refuses, True for NotImplementedError."""
    try:
        return _choose(backend, device, dtype, head_dim, composed), False, ""
    except (ValueError, NotImplementedError) as error:
        return ("", ""), isinstance(error, NotImplementedError), str(error)


def planned_for(target: str) -> str:
    """The backend that plans for a target have in mind.

    Of those with constants for the target (`tile_backends`), the one that "auto" prefers there and
    that can be used here; the first of them if none can.
    """
    planned = registry.planned.get(target)
    if planned is None:
        known, device = tile_backends(target), "cpu" if target == "cpu" else "cuda"
        kind = CallKind(device, torch.float32, DEFAULT_HEAD_DIM)
        preferred = (name for name in registry.preferred("tiles", device) if name in known)
        usable = (name for name in preferred if not _passed_over(name, kind))
        planned = registry.planned[target] = next(usable, known[0])
    return planned


def _passed_over(name: str, kind: CallKind) -> list[str]:
    """`reasons_against` a backend that "auto" prefers; it may tell the user."""
    reasons = reasons_against(name, kind)
    if reasons:
        registry.get(name).passed_over(kind)
    return reasons


def reasons_against(name: str, kind: CallKind) -> list[str]:
    """Every reason why a backend cannot run such a call; [] if it can."""
    backend = registry.get(name)
    if kind.composed and not backend.composes:
        return [*backend.refuses(kind), _NO_RULES]
    return backend.refuses(kind)


_NO_RULES = "has no rules for torch.func transforms and forward-mode differentiation"


def _first(route: registry.Route, kind: CallKind) -> str:
    against = {}
    names = registry.preferred(route, kind.device)
    if kind.composed:
        names.sort(key=lambda name: registry.get(name).composes_densely)
    for name in names:
        against[name] = _passed_over(name, kind)
        if not against[name]:
            return name
    told = "".join(f"; {name!r} {' and '.join(why)}" for name, why in against.items())
    raise ValueError(f"sparse_attention: no backend can run this call{told}")


def _refusal(name: str, kind: CallKind, reasons: list[str]) -> Exception:
    others = [other for other in registry.names() if not reasons_against(other, kind)]
    text = (
        f"sparse_attention: backend {name!r} {'; and it '.join(reasons)}; "
        f"use backend={' or '.join(map(repr, others))}, or {registry.AUTO!r}"
    )
    return NotImplementedError(text) if reasons == [_NO_RULES] else ValueError(text)


def canonical(schedule: Schedule, routes: Routes) -> Routes:
    """The routes, named alike where they are alike for this schedule."""
    if not schedule.dense_heads.any():
        return Routes(routes.tiles, routes.tiles)
    if schedule.dense_heads.all():
        return Routes(routes.dense, routes.dense)
    return routes


def lower(schedule: Schedule, routes: Routes) -> Program:
    """The program of a schedule by these backends, on the CPU; those of dense heads come first."""
    every = np.ones_like(schedule.dense_heads)
    if routes.tiles == routes.dense:
        return make_program((_part(schedule, routes.tiles, every),))
    dense = _part(schedule, routes.dense, schedule.dense_heads)
    return make_program((dense, _part(schedule, routes.tiles, ~schedule.dense_heads)))


def _part(schedule: Schedule, name: str, distinct: np.ndarray) -> Part:
    backend = registry.get(name)
    heads = None if distinct.all() else torch.from_numpy(schedule.heads_of(distinct))
    return Part(backend, heads, backend.lower(schedule, distinct))
