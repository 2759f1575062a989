"""The plan file: a compiled plan in one safetensors file, proved right before it is used.

A file holds the arrays of the plan's tiles and single entries, and in the safetensors metadata,
under the key "sparsebert-plan", a JSON object: format version, the mask's fingerprint, target,
objective, the report, and the SHA-256 sum of all arrays. The SHA-256 sum of that JSON text stands
beside it, under "sparsebert-plan-sha256". The mask is not in the file: a plan is loaded for a mask
at hand, and is refused unless they cover exactly that mask, entry by entry, and its report is
about them. So a damaged plan is never run; compiling the mask again replaces it.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np

from sparsebert.compiler.cost.constants import tile_backends
from sparsebert.compiler.cost.factors import Factors
from sparsebert.compiler.report import HeadReport, PlanReport
from sparsebert.compiler.report_check import check_report
from sparsebert.compiler.schedule import Schedule
from sparsebert.masks import AttentionMask
from sparsebert.storage import CheckedFile
from sparsebert.tiles.check import check_cover, check_format
from sparsebert.tiles.entries import no_entries
from sparsebert.tiles.format import TileSet

_TILE_ARRAYS = {
    "head": np.int32, "height": np.int32, "row_start": np.int64, "rows": np.int32,
    "full": np.int32, "width": np.int32, "col_start": np.int64, "cols": np.int32,
    "word_start": np.int64, "words": np.uint8, "entry_start": np.int64, "entry_cols": np.int32,
}  # fmt: skip
_ARRAYS = {**_TILE_ARRAYS, "head_map": np.int64, "dense_heads": np.bool_}
_NAMES = {np.int32: "I32", np.int64: "I64", np.uint8: "U8", np.bool_: "BOOL"}
"""What safetensors calls the types."""


class PlanFileError(ValueError):
    """A plan file that must not be used; the message says why. Compile the mask again."""


PLAN_FILE = CheckedFile(
    name="plan file",
    key="sparsebert-plan",
    version=3,
    oldest=2,
    since={"entry_start": 3, "entry_cols": 3},
    fields=frozenset({"fingerprint", "target", "objective", "report"}),
    arrays={name: (_NAMES[dtype],) for name, dtype in _ARRAYS.items()},
    writer="AttentionPlan.save",
    reader="AttentionPlan.load",
    error=PlanFileError,
    remedy="; make it again with compile_plan(mask)",
)


def save_plan(schedule: Schedule, path: str | os.PathLike[str]) -> None:
    """Write a plan's schedule; the file appears under its name only when it is complete.

    Raises IsADirectoryError, FileNotFoundError if the folder is missing, and other OSErrors.
    """
    arrays = {name: getattr(schedule.tiles, name) for name in _TILE_ARRAYS}
    arrays |= {"head_map": schedule.head_map, "dense_heads": schedule.dense_heads}
    arrays = {name: np.ascontiguousarray(x, dtype=_ARRAYS[name]) for name, x in arrays.items()}
    fields = {
        "fingerprint": schedule.mask.fingerprint,
        "target": schedule.report.target,
        "objective": schedule.report.objective,
        "report": dataclasses.asdict(schedule.report),
    }
    PLAN_FILE.write(path, arrays, fields)


def load_plan(path: str | os.PathLike[str], mask: AttentionMask) -> Schedule:
    """Read the schedule of `mask`, one layer, that `save_plan` wrote.

    Raises FileNotFoundError, and `PlanFileError` for what is no plan file, truncated, altered, of
    a newer version, the plan of another mask, or not an exact cover of this one.
    """
    header, arrays = PLAN_FILE.read(path)
    if any(array.ndim != 1 for array in arrays.values()):
        raise PLAN_FILE.wrong(path, "is mis-shaped: its arrays are not of one dimension each")
    if header["fingerprint"] != mask.fingerprint:
        raise PLAN_FILE.wrong(path, "is the plan of another mask: their fingerprints differ")
    try:
        if header["version"] == 2:
            _bring_up_to_date(header, arrays)
        report = _report(header["report"])
        _check_heads(arrays, report, mask)
        head_map, dense_heads = arrays["head_map"], arrays["dense_heads"]
        tiles = TileSet(
            num_heads=len(dense_heads),
            num_rows=mask.q_len,
            num_cols=mask.kv_len,
            **{name: arrays[name] for name in _TILE_ARRAYS},
        )
        check_format(tiles)
        firsts = [head.heads[0] for head in report.per_head]
        check_cover(tiles, mask.bits[0, firsts], dense_heads)
        check_report(report, header["target"], header["objective"], mask, dense_heads, tiles)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise PLAN_FILE.wrong(path, f"is damaged: {error}") from error
    return Schedule.create(mask, head_map, dense_heads, tiles, report)


def _bring_up_to_date(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Give a plan of version 2 what it has not: no single entries, and its target's backend."""
    rows = header["report"]["q_len"] * len(arrays["dense_heads"])
    arrays["entry_start"], arrays["entry_cols"] = no_entries(rows)
    header["report"]["backend"] = tile_backends(header["report"]["target"])[0]


def _report(stored: dict[str, Any]) -> PlanReport:
    """The report as it was before JSON made strings and lists of it."""
    heads = []
    for head in stored["per_head"]:
        tiles = {int(height): count for height, count in head["tiles"].items()}
        tried = tuple((name, cost) for name, cost in head["tried"])
        changed = {"heads": tuple(head["heads"]), "tiles": tiles, "tried": tried}
        heads.append(HeadReport(**{**head, **changed}))
    changed = {"per_head": tuple(heads), "factors": Factors(*stored.get("factors", ()))}
    return PlanReport(**{**stored, **changed})


def _check_heads(arrays: dict[str, np.ndarray], report: PlanReport, mask: AttentionMask) -> None:
    """Heads, distinct heads and the report must be about the same mask."""
    head_map, distinct = arrays["head_map"], len(arrays["dense_heads"])
    if len(head_map) != mask.num_heads or len(report.per_head) != distinct:
        raise ValueError("its heads are not those of the mask")
    for number, head in enumerate(report.per_head):
        if head.heads != tuple(np.flatnonzero(head_map == number).tolist()) or not head.heads:
            raise ValueError("its map of heads contradicts its report")
        same = mask.bits[0, list(head.heads)]
        if not (same == same[0]).all():
            raise ValueError(f"heads {head.heads} share tiles but not a mask")
    if (report.q_len, report.kv_len, report.num_heads) != (*mask.shape[2:], mask.num_heads):
        raise ValueError("its report is about a mask of another size")
