"""How fast a machine is against the one that a backend's constants come from."""

from __future__ import annotations

from typing import NamedTuple

_CALL = ("call", "dense_call")
_DENSE = ("dense_entry", "mask_entry")
_SINGLES = ("single", "single_column")


class Factors(NamedTuple):
    """What the constants of a backend, and of dense attention beside it, are multiplied by.

    Attributes:
        dense: each score of dense attention.
        tiles: all that tiles are made of, and each row.
        singles: entries that stand alone.
        call: what comes once a call, on either route.
        source: where these come from, in words that go before those of the constants.

    >>> Factors(dense=2.0).of("dense_entry")
    2.0
    """

    dense: float = 1.0
    tiles: float = 1.0
    singles: float = 1.0
    call: float = 1.0
    source: str = ""

    def of(self, term: str) -> float:
        """The factor of a term, by its name."""
        if term in _DENSE:
            return self.dense
        if term in _CALL:
            return self.call
        return self.singles if term in _SINGLES else self.tiles


AS_FITTED = Factors()
"""The constants as they are."""
