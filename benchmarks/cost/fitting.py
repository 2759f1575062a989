"""From measured calls to the cost model's constants: non-negative least absolute relative errors.

A call's time is a sum of constants, each times what the call has of it (`MeasuredCall.features`).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import nnls

from sparsebert.tiles.format import HEIGHTS

MARGINS = (1.05, 1.5)
"""Least and largest margin by which tiles must be predicted to win."""

Terms = tuple[tuple[str, str, int], ...]
SERIAL, PARALLEL = 0, 1
TILE_TERMS = (
    ("call", "once", SERIAL),
    ("shape", "once", SERIAL),
    ("level", "once", SERIAL),
    ("tile", "copy", PARALLEL),
    ("row", "once", PARALLEL),
    ("row", "dim", PARALLEL),
    ("column", "once", SERIAL),
    ("column", "once", PARALLEL),
    ("column", "dim", SERIAL),
    ("column", "dim", PARALLEL),
    ("entry", "once", PARALLEL),
    ("entry", "copy", PARALLEL),
    ("entry", "dim", PARALLEL),
    ("merge", "once", PARALLEL),
    ("merge", "dim", PARALLEL),
)
"""What the time of tiles is made of: the term, which part of it, and whether threads divide it."""

DENSE_TERMS = (
    ("dense_call", "once", SERIAL),
    ("dense_entry", "copy", PARALLEL),
    ("dense_entry", "dim", PARALLEL),
    ("mask_entry", "once", PARALLEL),
    ("mask_entry", "copy", PARALLEL),
)
COUNTS = tuple(dict.fromkeys(name for name, _, _ in (*TILE_TERMS, *DENSE_TERMS)))

NATIVE_TERMS = (
    ("call", "once", SERIAL),
    *((name, part, PARALLEL) for name in ("tile", "row", "column", "entry", "merge", "single",
      "single_column", "far_row", "far_column") for part in ("copy", "dim")),
)  # fmt: skip
"""The same of the CPU kernels' calls; every head is run by itself, so heads share nothing."""

NATIVE_COUNTS = tuple(dict.fromkeys(name for name, _, _ in (*NATIVE_TERMS, *DENSE_TERMS)))


@dataclasses.dataclass
class MeasuredCall:
    """A call, what it executes, and what it took.

    Attributes:
        route: "tiles", "dense", or "mixed" for heads of both kinds.
        mask: its name.
        length, head_dim, threads, copies: N, D, threads of the CPU, batch x heads.
        tile_sets: heads with tiles of their own.
        counts: how much it has of what each constant is for.
        passes: the forward and the backward pass, to be timed.
        best: float [2], least time of each, in microseconds.
    """

    route: str
    mask: str
    length: int
    head_dim: int
    threads: int
    copies: int
    tile_sets: int
    counts: dict[str, float]
    passes: tuple[Callable[[], object], ...]
    best: np.ndarray

    def features(self, terms: Terms) -> list[float]:
        """What each constant is multiplied by."""
        sharing = self.copies / self.tile_sets
        times = {"once": 1.0, "copy": sharing, "dim": sharing * self.head_dim}
        return [
            self.counts.get(name, 0.0) * times[part] / (self.threads if divided == PARALLEL else 1)
            for name, part, divided in terms
        ]

    def as_row(self, counts: Sequence[str] = COUNTS) -> dict[str, object]:
        """The call as a row of a table with these counts."""
        return {
            "route": self.route, "mask": self.mask, "N": self.length, "D": self.head_dim,
            "threads used": self.threads, "copies": self.copies, "tile_sets": self.tile_sets,
            **{name: f"{self.counts.get(name, 0):.10g}" for name in counts},
            "forward_us": f"{self.best[0]:.1f}", "backward_us": f"{self.best[1]:.1f}",
        }  # fmt: skip

    @classmethod
    def from_row(cls, row: Mapping[str, str], counts: Sequence[str] = COUNTS) -> MeasuredCall:
        """The call of a row of text, without its passes."""
        return cls(
            row["route"], row["mask"], int(row["N"]), int(row["D"]), int(row["threads used"]),
            int(row["copies"]), int(row["tile_sets"]),
            {name: float(row[name]) for name in counts}, (),
            np.array([float(row["forward_us"]), float(row["backward_us"])]),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class FittedPass:
    """What a fit found for one pass.

    Attributes:
        terms: by part of constants.json ("machines", "dense", "tiles"), as it stores them.
        errors: relative errors of the predictions, by route.
    """

    terms: dict[str, dict[str, Any]]
    errors: dict[str, np.ndarray]


def dense_counts(length: int, heads: int, *, masked: bool) -> dict[str, float]:
    """What dense attention counts up to for so many masks."""
    entries = float(length**2 * heads)
    return {"dense_call": 1, "dense_entry": entries, "mask_entry": entries if masked else 0}


def fit_constants(
    calls: Sequence[MeasuredCall],
    tile_terms: Terms = TILE_TERMS,
    heights: Sequence[int] = HEIGHTS,
) -> tuple[dict[str, FittedPass], float]:
    """The constants of both passes, by name, and the margin by which tiles must win."""
    passes = {
        which: fit_pass(calls, column, tile_terms, heights)
        for column, which in enumerate(("forward", "backward"))
    }
    errors = np.concatenate([np.abs(found.errors["tiles"]) for found in passes.values()])
    least, most = MARGINS
    return passes, _rounded(min(max(1.0 + float(np.quantile(errors, 0.8)), least), most))


def fit(matrix: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Non-negative constants with the least sum of absolute relative errors.

    Absolute, not squared, so that a call which was disturbed each time does not bend the others.
    """
    scaled = matrix / times[:, None]
    norm = np.linalg.norm(scaled, axis=0)
    norm[norm == 0.0] = 1.0
    scaled = scaled / norm
    weight = np.ones(len(times))
    for _ in range(30):  # least squares, reweighted
        constants, _ = nnls(scaled * weight[:, None], weight)
        weight = 1.0 / np.sqrt(np.maximum(np.abs(scaled @ constants - 1.0), 0.02))
    found: np.ndarray = constants / norm
    return found


def fit_pass(
    calls: Sequence[MeasuredCall],
    column: int,
    tile_terms: Terms = TILE_TERMS,
    heights: Sequence[int] = HEIGHTS,
) -> FittedPass:
    """The constants of the forward pass (column 0) or the backward pass (1).

    `tile_terms` are those of the backend that was measured, `heights` its tiles'.
    """
    stored: dict[str, dict[str, dict[str, Any]]] = {"tiles": {}, "dense": {}}
    predicted = np.zeros(len(calls))
    for route, terms in (("tiles", tile_terms), ("dense", DENSE_TERMS)):
        if len({call.threads for call in calls}) == 1:
            terms = known_split(terms, SERIAL if column else PARALLEL)
        chosen = [call for call in calls if call.route == route]
        matrix = np.array([call.features(terms) for call in chosen])
        fitted = fit(matrix, np.array([call.best[column] for call in chosen]))
        for (name, part, divided), value in zip(terms, fitted, strict=True):
            pair = stored[route].setdefault(name, {}).setdefault(part, [0.0, 0.0])
            pair[divided] = _rounded(value)
        predicted += [fitted @ call.features(terms) for call in calls]
    times = np.array([call.best[column] for call in calls])
    route_of = np.array([call.route for call in calls])
    is_mixed = route_of == "mixed"
    moved = np.array([call.length * call.copies * call.head_dim / call.threads for call in calls])
    mixed = max(0.0, float(np.median(((times - predicted) / moved)[is_mixed])))
    predicted[is_mixed] += mixed * moved[is_mixed]
    errors = {route: (predicted / times - 1.0)[route_of == route] for route in set(route_of)}
    tiles = stored["tiles"] | {"mixed": {"dim": [0.0, _rounded(mixed)]}}
    tiles["entry"] = {str(height): tiles["entry"] for height in heights}
    machine = {"floor_row": {"dim": [0.0, 0.0]}}
    return FittedPass({"machines": machine, "dense": stored["dense"], "tiles": tiles}, errors)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def known_split(terms: Terms, kept: int) -> Terms:
    """Terms that stand in the list as serial and as parallel only as `kept`.

    One number of threads cannot tell them apart. They are those of gathered columns: gathering is
    parallel, and in the backward pass adding up their gradients is not.
    """
    both = {term[:2] for term in terms if (*term[:2], 1 - term[2]) in terms}
    return tuple(term for term in terms if term[:2] not in both or term[2] == kept)


def as_json(stored: dict[str, Any]) -> str:
    """constants.json's text: each term on one line."""
    text = json.dumps(stored, indent=2)
    text = re.sub(r"\[\s+(\S+),\s+(\S+)\s+\]", r"[\1, \2]", text)
    return re.sub(
        r"\{\s+(\"(?:once|copy|dim)\": [^{}]*?)\s+\}",
        lambda term: "{" + re.sub(r"\s*\n\s*", " ", term[1]) + "}",
        text,
    )
