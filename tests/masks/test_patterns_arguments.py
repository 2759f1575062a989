"""What the patterns take: the published defaults, and the least value of every argument."""

from __future__ import annotations

import inspect
import warnings

import pytest

from sparsebert import patterns
from sparsebert.masks.patterns import PATTERNS

DEFAULTS = {
    "dense": {},
    "causal": {},
    "sliding_window": {"window": 5},
    "dilated_window": {"window": 5, "dilation": 2},
    "block_local": {"block": 32},
    "strided": {"stride": 17},
    "fixed": {"block": 32, "summary": 1},
    "star": {"window": 1},
    "log_sparse": {},
    "longformer": {"window": 5, "num_global": 2},
    "bigbird": {"window": 1, "num_global": 2, "num_random": 2, "seed": 0, "num_heads": 1},
    "random": {"density": 0.1, "seed": 0, "num_heads": 1},
    "neighborhood_2d": {"kernel_size": 7, "num_special": 0},
}

LEAST = {
    "window": 0,
    "dilation": 1,
    "block": 1,
    "stride": 1,
    "summary": 1,
    "num_global": 0,
    "num_random": 0,
    "num_heads": 1,
    "num_special": 0,
    "seq_len": 1,
    "height": 1,
    "width": 1,
    "kernel_size": 1,
    "seed": 0,
}


@pytest.mark.parametrize("name", PATTERNS)
def test_defaults(name: str) -> None:
    """A mask by its name alone stays the same mask from version to version."""
    parameters = inspect.signature(PATTERNS[name]).parameters.values()
    assert DEFAULTS[name] == {p.name: p.default for p in parameters if p.default is not p.empty}
    sizes = {"height": 8, "width": 12} if name == "neighborhood_2d" else {"seq_len": 100}
    assert PATTERNS[name](**sizes) == PATTERNS[name](**sizes, **DEFAULTS[name])


@pytest.mark.filterwarnings("ignore::UserWarning")  # of masks that forbid nothing
@pytest.mark.parametrize("name", PATTERNS)
def test_the_least_value_of_each_argument_is_allowed_and_no_less(name: str) -> None:
    sizes = {"height": 9, "width": 9} if name == "neighborhood_2d" else {"seq_len": 64}
    for argument in inspect.signature(PATTERNS[name]).parameters:
        if argument == "density":
            continue
        least = LEAST[argument]
        mask = PATTERNS[name](**{**sizes, argument: least})
        assert mask.provenance[argument] == least
        with pytest.raises(ValueError, match=f"{argument}={least - 1} but must be"):
            PATTERNS[name](**{**sizes, argument: least - 1})


def test_the_ends_of_the_other_ranges() -> None:
    whole = patterns.dense(40)
    assert patterns.random(40, 1.0) == whole
    with pytest.raises(ValueError, match="must be above 0 and at most 1"):
        patterns.random(40, 0.0)
    with pytest.raises(ValueError, match="must be above 0 and at most 1"):
        patterns.random(40, 1.001)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a mask that forbids nothing
        assert patterns.fixed(40, block=8, summary=8) == whole
    with pytest.raises(ValueError, match="summary=9 but must be at most block=8"):
        patterns.fixed(40, block=8, summary=9)
    with pytest.raises(ValueError, match="kernel_size=4 but must be odd"):
        patterns.neighborhood_2d(8, 8, 4)


def test_heads_are_as_many_as_asked_for() -> None:
    for make in (patterns.random, patterns.bigbird):
        masks = make(64, num_heads=3)
        assert masks.num_heads == 3
        assert masks.head(0) == make(64, num_heads=1) and masks.head(1) != masks.head(0)
