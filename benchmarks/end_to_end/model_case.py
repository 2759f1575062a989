"""One model at one length: correctness first, then times, memory and predictions, as rows."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

import sparsebert as sb
from benchmarks.end_to_end import model_families as models
from benchmarks.end_to_end.end_to_end_report import LEFT_OUT
from benchmarks.harness.memory import peak_bytes
from sparsebert.estimate import ModelShape, Rates, calibrate, estimate
from sparsebert.reporting.timing import own_clock, quantiles, side_by_side

SDPA = "sdpa"
MODES = ("inference", "training")
Call = Callable[[], object]


class ModelCase:
    """One model at one length."""

    def __init__(
        self,
        family: models.Family,
        layers: int,
        length: int,
        batch: int,
        device: torch.device,
        seconds: float,
        routes: tuple[str, ...] | None = None,
    ) -> None:
        """`seconds` go to the rounds at least; `routes` are those beside SDPA, None means all."""
        self.family, self.layers, self.length = family, layers, length
        self.batch, self.device, self.seconds, self.routes = batch, device, seconds, routes
        self.dtype = torch.float32 if device.type == "cpu" else torch.bfloat16

    def measure(self) -> Iterator[dict[str, object]]:
        """The rows of the case, correctness first."""
        runs, masks, skipped = self._models()
        shape = ModelShape.from_config(runs[SDPA].config.to_dict())
        rates = calibrate(shape) if self.device.type == "cpu" else None
        for mode in MODES:
            training = mode == "training"
            calls, alone = {}, {}
            for route, model in runs.items():
                model.train(training)
                batch = models.inputs(model, self.batch, self.length, self.device)
                calls[route] = self._timed(_step(model, batch, training))
                if route not in models.RIVALS:
                    only = models.attention_calls(model, batch, training=training)
                    alone[route] = self._timed(only)
            whole = self._side_by_side(calls)
            attention = self._side_by_side(alone)
            for route in runs:
                times = whole[route]
                low, middle, high = quantiles(times)
                ratios = [a / b for a, b in zip(whole[SDPA], times, strict=True)]
                row = {
                    **self._about(route, mode),
                    "ms_20": f"{low:.2f}",
                    "ms_50": f"{middle:.2f}",
                    "ms_80": f"{high:.2f}",
                    "tokens_per_s": f"{self.batch * self.length / middle * 1e3:.0f}",
                    "speedup": f"{statistics.median(ratios):.3f}",
                    "peak_mb": f"{peak_bytes(calls[route], self.device.type) / 2**20:.1f}",
                }
                if route in attention:
                    spent = statistics.median(attention[route])
                    row["attention_ms"] = f"{spent:.2f}"
                    row["attention_share"] = f"{spent / middle:.4f}"
                    faster = statistics.median(attention[SDPA]) / spent
                    row["attention_speedup"] = f"{faster:.3f}"
                if route in masks:
                    row |= self._predicted(shape, masks[route], rates, training)
                yield row
            for route, why in skipped.items():
                yield {**self._about(route, mode), "note": why}

    def _models(
        self,
    ) -> tuple[dict[str, nn.Module], dict[str, sb.AttentionMask], dict[str, str]]:
        """Models by route, the sparse ones checked; their masks; what cannot run, and why."""
        torch.manual_seed(0)
        dense = self._ready(self.family.build(self.layers, self.length))
        dense.set_attn_implementation("sdpa")
        runs, masks, skipped = {SDPA: dense}, {}, {}
        for name, mask in models.masks(self.length, dense.config.num_attention_heads).items():
            if not self._is_asked_for(name):
                skipped[f"sparsebert, {name}"] = LEFT_OUT
                continue
            sparse = self._ready(self.family.build(self.layers, self.length))
            sparse.load_state_dict(dense.state_dict())
            route = f"sparsebert, {name}"
            runs[route], masks[route] = sb.sparsify(sparse, mask), mask
            batch = models.inputs(dense, 1, self.length, self.device)
            models.check(dense, sparse, mask, batch)
        if self.family.name == "BERT-base":
            for name, build in models.RIVALS.items():
                if not self._is_asked_for(name):
                    skipped[name] = LEFT_OUT
                    continue
                try:
                    model = self._ready(build(self.layers, self.length))
                    with torch.no_grad():
                        model(**models.inputs(model, self.batch, self.length, self.device))
                    runs[name] = model
                except (ValueError, TypeError, RuntimeError) as error:
                    skipped[name] = str(error).splitlines()[0]
        return runs, masks, skipped

    def _is_asked_for(self, name: str) -> bool:
        return self.routes is None or name in self.routes

    def _ready(self, model: nn.Module) -> nn.Module:
        return model.to(self.device, self.dtype).eval()

    def _about(self, route: str, mode: str) -> dict[str, object]:
        return {
            "device": self.device.type, "model": self.family.name, "layers": self.layers,
            "N": self.length, "batch": self.batch, "dtype": str(self.dtype).split(".")[1],
            "route": route, "mode": mode, "note": "",
        }  # fmt: skip

    def _timed(self, call: Call) -> Call:
        """The call, finished when it returns."""
        if self.device.type == "cpu":
            return call

        def finished() -> None:
            call()
            torch.cuda.synchronize()

        return finished

    def _side_by_side(self, calls: dict[str, Call]) -> dict[str, list[float]]:
        return side_by_side(calls, seconds=self.seconds, least=3, clock=own_clock()[0])

    def _predicted(
        self, shape: ModelShape, mask: sb.AttentionMask, rates: Rates | None, training: bool
    ) -> dict[str, object]:
        target = "cpu" if self.device.type == "cpu" else None
        found = estimate(shape, mask, batch=self.batch, target=target, rates=rates)
        return {
            "executed": f"{found.executed_fraction:.4f}",
            "predicted_share": f"{found.attention_share(training=training):.4f}",
            "predicted_attention_speedup": f"{found.attention_speedup(training=training):.3f}",
            "predicted_speedup": f"{found.speedup(training=training):.3f}",
        }


def _step(model: nn.Module, batch: dict[str, Any], training: bool) -> Call:
    """One forward pass, or one forward and backward pass."""

    def infer() -> None:
        with torch.no_grad():
            model(**batch)

    def train() -> None:
        model(**batch).last_hidden_state.float().pow(2).mean().backward()
        model.zero_grad(set_to_none=True)  # so that each step begins without gradients

    return train if training else infer
