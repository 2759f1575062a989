"""The estimate itself: attention by the compiler's cost model, the rest by a rate."""

from __future__ import annotations

import dataclasses
import statistics

import torch

from sparsebert.compiler.cost.model import cost_model
from sparsebert.compiler.cost.targets import about_targets, is_target, machine_target
from sparsebert.estimate.rates import Rates, stored_rates
from sparsebert.estimate.shape import ModelShape
from sparsebert.masks import AttentionMask
from sparsebert.masks.mask_input import refused
from sparsebert.plan import compile_plan
from sparsebert.support import checks

_PASSES = 3.0
"""A training step's matrix work over that of the forward pass: the backward pass has twice it."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a mask should save in a model; `str()` of it is the readable report.

    All times are in milliseconds for the whole model, one batch: the pair (forward, training
    step). Nothing of it is measured but the machine's rates, where `source` says so.

    Attributes:
        shape: the model.
        length, batch, dtype, target, threads: of the call; threads count on a CPU only.
        density, executed_fraction: of the masks and their plans, mean over layers.
        dense_ms: attention without a mask, dense: what the model takes as it is.
        masked_ms: dense attention with the masks.
        sparse_ms: attention by the plans.
        rest_ms: everything else in the layers.
        source: where the rates come from.
        cost_source: where the attention's cost model comes from.
    """

    shape: ModelShape
    length: int
    batch: int
    dtype: str
    target: str
    threads: int
    density: float
    executed_fraction: float
    dense_ms: tuple[float, float]
    masked_ms: tuple[float, float]
    sparse_ms: tuple[float, float]
    rest_ms: tuple[float, float]
    source: str
    cost_source: str

    def attention_share(self, *, training: bool = False) -> float:
        """Share of the model's time that dense attention takes."""
        dense = self.dense_ms[training]
        return dense / (dense + self.rest_ms[training])

    def attention_speedup(self, *, training: bool = False) -> float:
        """Dense attention's time, without a mask, over the plans'; 1 is no gain."""
        return self.dense_ms[training] / self.sparse_ms[training]

    def speedup(self, *, training: bool = False) -> float:
        """The whole model's time with dense attention over that with the masks."""
        rest = self.rest_ms[training]
        return (self.dense_ms[training] + rest) / (self.sparse_ms[training] + rest)

    def best_speedup(self, *, training: bool = False) -> float:
        """What the model would gain if attention took no time at all: no mask gives more."""
        return 1.0 / (1.0 - self.attention_share(training=training))

    def __str__(self) -> str:
        shape = self.shape
        machine = (
            f"{self.target}, {self.threads} thread(s)" if self.target == "cpu" else self.target
        )
        lines = [
            f"{shape.name}: {shape.layers} layers, {shape.heads} heads of D = {shape.dim}, hidden "
            f"{shape.hidden_size}, feed-forward {shape.intermediate_size}"
            + (", gated" if shape.gated else ""),
            f"  call               N = {self.length}, batch {self.batch}, {self.dtype}, {machine}",
            f"  mask               density {self.density:.4f}, executed "
            f"{self.executed_fraction:.4f} of the scores",
            f"  {'':<18}{'inference':>12}{'training':>12}",
        ]
        for name, value, unit in (
            ("attention, dense", self.dense_ms, "ms, without a mask"),
            ("  with the mask", self.masked_ms, "ms, dense"),
            ("  by the plan", self.sparse_ms, "ms"),
            ("rest of the layers", self.rest_ms, "ms"),
        ):
            lines.append(f"  {name:<18}{value[0]:>12.4g}{value[1]:>12.4g}  {unit}")
        for name, of, meaning in (
            ("attention's share", self.attention_share, "of the dense model's time"),
            ("attention", self.attention_speedup, "times as fast"),
            ("whole model", self.speedup, "times as fast"),
            ("best possible", self.best_speedup, "times, with attention for nothing"),
        ):
            pair = of(), of(training=True)
            shown = [f"{x:.1%}" if "share" in name else f"{x:.2f}" for x in pair]
            lines.append(f"  {name:<18}{shown[0]:>12}{shown[1]:>12}  {meaning}")
        lines += [
            f"  rates              {self.source}",
            f"  cost model         {self.cost_source}",
        ]
        return "\n".join(lines)


def estimate(
    shape: ModelShape,
    mask: AttentionMask,
    *,
    batch: int = 1,
    target: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    rates: Rates | None = None,
) -> Estimate:
    """What `mask` should save in a model of this shape, at the mask's length.

    Args:
        shape: the model's sizes.
        mask: [1 or layers, 1 or heads, N, N].
        batch: sequences in a call.
        target: "cpu", "sm80", "sm90", ...; None means the machine at hand.
        dtype: what the cost model knows: "float32" on a CPU, "bfloat16" or "float16" on a GPU,
            the first of them if None.
        threads: of a CPU; None means torch.get_num_threads().
        rates: how fast the machine is; None means the stored constants. See `calibrate`.

    Raises TypeError and ValueError for what does not fit together.
    """
    name = "estimate"
    if not isinstance(mask, AttentionMask):
        wanted, write = "an AttentionMask", "AttentionMask.from_dense({})"
        raise refused(name, "mask", wanted, mask, write)
    if mask.num_layers not in (1, shape.layers) or mask.num_heads not in (1, shape.heads):
        raise ValueError(
            f"{name}: mask has {mask.num_layers} layers and {mask.num_heads} heads, but the model "
            f"{shape.layers} and {shape.heads}; give 1 (for all) or as many"
        )
    if mask.q_len != mask.kv_len:
        raise ValueError(
            f"{name}: mask is {mask.q_len} x {mask.kv_len}, but self-attention needs a square "
            "one; crop it"
        )
    if target is not None and not is_target(target):
        raise ValueError(
            f"{name}: target must be 'cpu', 'sm90', 'gfx942' or the like, got {target!r}; leave "
            f"it out for the machine at hand; {about_targets(target)}"
        )
    target = machine_target() if target is None else target
    batch = checks.integer(name, "batch", batch, 1)
    threads = checks.integer(
        name, "threads", torch.get_num_threads() if threads is None else threads, 1
    )
    dtype = _checked_dtype(dtype, target)
    rates = stored_rates(target, threads) if rates is None else rates

    length, copies = mask.q_len, batch * shape.heads
    reports = [
        compile_plan(
            mask.layer(index), target=target, head_dim=shape.dim, threads=threads, copies=copies
        ).explain()
        for index in range(mask.num_layers)
    ]
    model = cost_model(
        target,
        backend=reports[0].backend,
        isa=reports[0].isa,
        head_dim=shape.dim,
        threads=threads,
        copies=copies,
        factors=reports[0].factors,
    )
    dense = [p.dense(length, length, masked=False) for p in (model.forward, model.backward)]

    def whole(forward: float, backward: float) -> tuple[float, float]:
        """From microseconds a batch and head, mean over layers, to the whole model."""
        scale = rates.attention * copies * shape.layers * 1e-3
        return forward * scale, (forward + backward) * scale

    def mean(field: str) -> float:
        return statistics.fmean(getattr(report, field) for report in reports)

    tokens = batch * length * shape.layers
    rest = tokens * shape.linear_flops / rates.linear_flops * 1e3
    return Estimate(
        shape=shape,
        length=length,
        batch=batch,
        dtype=dtype,
        target=target,
        threads=model.threads,
        density=mask.density,
        executed_fraction=mean("executed_fraction"),
        dense_ms=whole(dense[0], dense[1]),
        masked_ms=whole(mean("dense_us"), mean("dense_backward_us")),
        sparse_ms=whole(mean("predicted_us"), mean("predicted_backward_us")),
        rest_ms=(rest, _PASSES * rest),
        source=rates.source,
        cost_source=model.source,
    )


def _checked_dtype(dtype: str | None, target: str) -> str:
    known = ("float32",) if target == "cpu" else ("bfloat16", "float16")
    if dtype is not None and dtype not in known:
        raise ValueError(
            f"estimate: dtype must be {' or '.join(known)} for target {target!r}, got {dtype!r}: "
            "the cost model knows no other"
        )
    return known[0] if dtype is None else dtype
