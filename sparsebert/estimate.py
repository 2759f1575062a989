"""What a mask can save in a whole model, without running the model.

Attention is a part of the work; the rest (projections, feed-forward, norms) stays. So a faster
attention makes the model faster by Amdahl's law: the share of the time that attention takes says
what can be gained at all, the plan's predicted speed-up what is gained of it.

Attention is priced by the compiler's cost model (`sparsebert.compiler.cost.model`). The rest of a
layer is its floating-point operations over a rate: measured on the spot on a CPU (`calibrate`), a
fitted constant without that, and on a GPU the documented peak times a stated utilisation.
Embeddings, pooler and task heads are left out.

    >>> import sparsebert as sb
    >>> from sparsebert.estimate import ModelShape, estimate
    >>> bert = ModelShape(hidden_size=768, layers=12, heads=12, intermediate_size=3072)
    >>> found = estimate(bert, sb.patterns.longformer(1024), target="sm90", batch=8)
    >>> 1.0 <= found.speedup() <= found.best_speedup()
    True
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from sparsebert.compiler.compile import compile_plan
from sparsebert.compiler.cost.model import (
    DEFAULT_GPU,
    all_constants,
    cost_model,
    is_target,
    machine_target,
)
from sparsebert.compiler.cost.targets import about_targets
from sparsebert.masks import AttentionMask
from sparsebert.masks.mask_input import refused
from sparsebert.reporting.timing import own_clock
from sparsebert.support import checks

_KEYS = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
    "layers": ("num_hidden_layers", "encoder_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "encoder_attention_heads", "n_head", "n_heads", "num_heads"),
    "intermediate_size": (
        "intermediate_size", "encoder_ffn_dim", "n_inner", "hidden_dim", "d_ff"
    ),
    "head_dim": ("head_dim", "d_kv"),
    "kv_heads": ("num_key_value_heads",),
}  # fmt: skip
"""Names that model families give to the same thing in config.json."""

_GATED = ("modernbert", "llama", "eurobert", "nomic_bert", "mistral", "gemma", "qwen", "phi3")
"""Beginnings of model types whose feed-forward has three matrices."""

_PASSES = 3.0
"""A training step's matrix work over that of the forward pass: the backward pass has twice it."""

_ROOM = 1024
"""Calibration uses layers no wider than this, so that it stays short."""


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """The sizes of a transformer's layers.

    Attributes:
        hidden_size, layers, heads, intermediate_size: as in config.json.
        head_dim: D; None means hidden_size / heads.
        kv_heads: heads of k and v; None means heads.
        gated: the feed-forward has three matrices (GeGLU, SwiGLU) and not two.
        name: for reports.

    Raises ValueError and TypeError for sizes that cannot be.
    """

    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    head_dim: int | None = None
    kv_heads: int | None = None
    gated: bool = False
    name: str = "model"

    def __post_init__(self) -> None:
        for field in ("hidden_size", "layers", "heads", "intermediate_size"):
            checks.integer("ModelShape", field, getattr(self, field), 1)
        for field in ("head_dim", "kv_heads"):
            if getattr(self, field) is not None:
                checks.integer("ModelShape", field, getattr(self, field), 1)
        if self.head_dim is None and self.hidden_size % self.heads:
            raise ValueError(
                f"ModelShape: hidden_size={self.hidden_size} is not a multiple of "
                f"heads={self.heads}; give head_dim"
            )

    @classmethod
    def from_config(cls, source: str | os.PathLike[str] | Mapping[str, Any]) -> ModelShape:
        """Read a HuggingFace model's folder, its config.json, or what that holds.

        Raises FileNotFoundError, and ValueError if a size is not there under a known name.
        """
        config, where = _read_config(source)
        found: dict[str, Any] = {}
        for field, names in _KEYS.items():
            values = [config[name] for name in names if config.get(name) is not None]
            if values:
                found[field] = values[0]
        if "hidden_size" in found:  # GPT-2 leaves it out
            found.setdefault("intermediate_size", 4 * found["hidden_size"])
        missing = [n for n in ("hidden_size", "layers", "heads") if n not in found]
        if missing:
            raise ValueError(
                f"ModelShape.from_config: {where} has no {' and no '.join(missing)} under a known "
                "name; give the sizes, or the part of a nested config that describes the encoder"
            )
        kind = str(config.get("model_type", "model"))
        activation = str(config.get("feed_forward_proj") or config.get("hidden_act") or "")
        gated = kind.startswith(_GATED) or "gated" in activation or "glu" in activation
        return cls(**found, gated=gated, name=kind)

    @property
    def dim(self) -> int:
        """D, the size of a head."""
        return self.hidden_size // self.heads if self.head_dim is None else self.head_dim

    @property
    def linear_flops(self) -> float:
        """Floating-point operations of one layer's matrices for one token, forward."""
        inner = self.heads * self.dim
        kv_inner = (self.kv_heads or self.heads) * self.dim
        matrices = (3 if self.gated else 2) * self.intermediate_size + 2 * inner + 2 * kv_inner
        return 2.0 * self.hidden_size * matrices


def _read_config(source: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[Any, str]:
    if isinstance(source, Mapping):
        return source, "the config"
    path = Path(source)
    path = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"ModelShape.from_config: {path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"ModelShape.from_config: {path} holds no JSON object")
    return config, str(path)


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
    constants = all_constants().get(target, all_constants()[DEFAULT_GPU])
    rate = constants["linear_flops"] * (threads if target == "cpu" else 1)
    return Rates(rate, 1.0, constants["linear_source"])


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
    model = cost_model("cpu", head_dim=shape.dim, threads=threads, copies=shape.heads)
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


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a mask should save in a model; `str()` of it is the readable report.

    All times are in milliseconds for the whole model, one batch: the pair (forward, training
    step). Nothing of it is measured but the machine's rates, where `source` says so.

    Attributes:
        shape: the model.
        length, batch, dtype, target, threads: of the call; threads count on a CPU only.
        density, executed_fraction: of the masks and their plans, mean over layers.
        plain_ms: attention without a mask, dense: what the model takes as it is.
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
    plain_ms: tuple[float, float]
    masked_ms: tuple[float, float]
    sparse_ms: tuple[float, float]
    rest_ms: tuple[float, float]
    source: str
    cost_source: str

    def attention_share(self, *, training: bool = False) -> float:
        """Share of the model's time that dense attention takes."""
        dense = self.plain_ms[training]
        return dense / (dense + self.rest_ms[training])

    def attention_speedup(self, *, training: bool = False) -> float:
        """Dense attention's time, without a mask, over the plans'; 1 is no gain."""
        return self.plain_ms[training] / self.sparse_ms[training]

    def speedup(self, *, training: bool = False) -> float:
        """The whole model's time with dense attention over that with the masks."""
        rest = self.rest_ms[training]
        return (self.plain_ms[training] + rest) / (self.sparse_ms[training] + rest)

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
            ("attention, dense", self.plain_ms, "ms, without a mask"),
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
    model = cost_model(target, head_dim=shape.dim, threads=threads, copies=copies)
    plain = [p.dense(length, length, masked=False) for p in (model.forward, model.backward)]

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
        plain_ms=whole(plain[0], plain[1]),
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


def table(estimates: Iterable[Estimate]) -> str:
    """The estimates of several lengths, one a line."""
    header = ("N", "executed", "attn share", "attn", "model", "best", "train", "best")
    lines = [
        f"{'':<27}{'----- inference -----':>22}   {'- training -':>12}",
        "".join(f"{name:>{width}}" for name, width in zip(header, _WIDTHS, strict=True)),
    ]
    for found in estimates:
        cells = (
            str(found.length), f"{found.executed_fraction:.4f}", f"{found.attention_share():.1%}",
            f"{found.attention_speedup():.2f}x", f"{found.speedup():.2f}x",
            f"{found.best_speedup():.2f}x", f"{found.speedup(training=True):.2f}x",
            f"{found.best_speedup(training=True):.2f}x",
        )  # fmt: skip
        lines.append("".join(f"{cell:>{w}}" for cell, w in zip(cells, _WIDTHS, strict=True)))
    return "\n".join(lines)


_WIDTHS = (6, 10, 12, 8, 8, 8, 8, 8)
