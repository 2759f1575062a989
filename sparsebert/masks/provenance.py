"""Where a mask comes from: small JSON records that travel with it and into its file."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sparsebert.masks.positions import Positions, combine, to_record

# A derived record longer than this names its operands by fingerprint instead, so that a mask
# built in a loop does not carry its whole history.
_LONGEST = 4096


class Recorded(Protocol):
    """What has a record, failing that a fingerprint, and a meaning of its positions."""

    @property
    def provenance(self) -> dict[str, Any]: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def positions(self) -> Positions: ...


def record_of(provenance: dict[str, Any] | None) -> str:
    """Provenance as canonical JSON text: checked once, and immutable; None is an empty one.

    Raises:
        TypeError: not a dict of JSON values.
    """
    if provenance is None:
        return "{}"
    if not isinstance(provenance, dict):
        raise TypeError(f"provenance must be a dict, got {type(provenance).__name__}")
    try:
        return json.dumps(provenance, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(
            "provenance must hold only JSON values (str, finite numbers, bool, None, list, "
            f"dict with str keys): {error}"
        ) from error


def derived_record(
    op: str,
    operands: Sequence[Recorded],
    arguments: Mapping[str, int] | None = None,
    positions: Positions | None = None,
) -> str:
    """The record of a mask computed from others: the operation, and where its operands came from.

    Its positions are those of the operands, unless others are given.

    Example: ``{"op": "crop", "q_len": 64, "kv_len": 64, "of": [{"pattern": "star", ...}]}``.
    """
    if positions is None:
        positions = combine(each.positions for each in operands)
    about = {"op": op, **(arguments or {}), **to_record(positions)}
    text = record_of({**about, "of": [each.provenance for each in operands]})
    if len(text) > _LONGEST:
        text = record_of({**about, "of": [each.fingerprint for each in operands]})
    return text
