"""How fast a machine does what is not attention: stored, or measured on the spot."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from sparsebert.backends.routing import planned_for
from sparsebert.calibration import factors_for
from sparsebert.compiler.cost.constants import machine
from sparsebert.compiler.cost.model import cost_model
from sparsebert.estimate.shape import ModelShape
from sparsebert.reporting.timing import own_clock

_ROOM = 1024
"""Calibration uses layers no wider than this, so that it stays short."""


@dataclasses.dataclass(frozen=True)
class Rates:
    """How fast the machine is.

    Attributes:
        linear_flops: floating-point operations a second of a layer without its attention.
        attention: time of dense attention over what the cost model predicts.
        source: where these come from.
    """

    linear_flops: float
    attention: float
    source: str


def stored_rates(target: str, threads: int) -> Rates:
    """The rates that `constants.json` has for a target."""
    found = machine(target)
    rate = found.linear_flops * (threads if target == "cpu" else 1)
    return Rates(rate, 1.0, found.linear_source)


def calibrate(shape: ModelShape) -> Rates:
    """Time one feed-forward and projections of the model's shape, and dense attention, here.

    Takes about half a second, on the CPU, fp32, with torch's current number of threads.
    """
    threads = torch.get_num_threads()
    hidden, inner = min(shape.hidden_size, _ROOM), min(shape.intermediate_size, 4 * _ROOM)
    narrow = ModelShape(hidden, 1, 1, inner)
    up, act, down = nn.Linear(hidden, inner), nn.GELU(), nn.Linear(inner, hidden)
    norms = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
    projections = [nn.Linear(hidden, hidden) for _ in range(4)]
    tokens = min(512, max(32, int(4e9 / narrow.linear_flops)))
    x = torch.randn(tokens, hidden)

    def layer() -> None:
        y = x
        for projection in projections:
            y = projection(y)
        y = norms[0](x + y)
        norms[1](y + down(act(up(y))))

    q, k, v = torch.randn(3, 1, shape.heads, 256, shape.dim)
    with torch.no_grad():
        layer_s = _least_seconds(layer)
        attention_s = _least_seconds(lambda: scaled_dot_product_attention(q, k, v))
    backend = planned_for("cpu")
    model = cost_model(
        "cpu",
        backend=backend,
        head_dim=shape.dim,
        threads=threads,
        copies=shape.heads,
        factors=factors_for("cpu", backend, threads),
    )
    predicted = model.forward.dense(256, 256, masked=False) * shape.heads * 1e-6
    rate = tokens * narrow.linear_flops / layer_s
    return Rates(
        rate,
        attention_s / predicted,
        f"measured here, {threads} thread(s), {own_clock()[1]}: {rate / 1e9:.0f} GFLOP/s in "
        f"a layer without attention; dense attention takes {attention_s / predicted:.2f} of the "
        "fitted time",
    )


def _least_seconds(call: Callable[[], object]) -> float:
    """The least of a few times: other work on the machine only adds to it.

    With one thread it is CPU time, to which others add little even if they never pause.
    """
    clock, _ = own_clock()
    call()
    times = []
    for _ in range(7):
        start = clock()
        call()
        times.append(clock() - start)
    return min(times)
