"""A GPU's first run: correctness of the Triton kernels on real shapes, then quick timings.

    python -m benchmarks.gpu_check            # on a CUDA or ROCm machine, under ten minutes
    python -m benchmarks.gpu_check --smoke    # anywhere: tiny shapes in Triton's interpreter

Nothing has to be installed beyond torch and Triton. Correctness comes first: head size x dtype x
features, new memory filled with NaN, against the fp64 reference within twice the error of dense
attention in the same dtype; then the same backward many times, bit for bit; then
compute-sanitizer, where it is installed. Timings follow only if all of that passed. Every result
is a row with its provenance, in `$OUT/gpu_check.json` or benchmarks/results/gpu_check.json; what
could not be run is a row too.
"""

from __future__ import annotations

import argparse
import concurrent.futures.process
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

if "--smoke" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch
import triton
from torch.nn.attention import SDPBackend, flex_attention, sdpa_kernel

import sparsebert as sb
from benchmarks.measure import RESULTS, ROOT, provenance
from sparsebert import dropout
from sparsebert.kernels import attention as kernels

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_FEATURES = ("plain", "key mask", "dropout", "gqa", "key mask, dropout, gqa")
_MASKS: dict[str, Callable[[int], sb.AttentionMask]] = {
    "star": sb.patterns.star,
    "longformer": lambda n: sb.patterns.longformer(n, window=17),
    "strided": lambda n: sb.patterns.strided(n, stride=max(2, math.isqrt(n))),
    "log-sparse": sb.patterns.log_sparse,
    "random 5 %": lambda n: sb.patterns.random(n, density=0.05, num_heads=1),
}


def check_case(
    mask: sb.AttentionMask,
    dim: int,
    dtype: torch.dtype,
    feature: str,
    device: str,
    program: kernels.KernelProgram | None = None,
) -> dict[str, Any]:
    """One combination, forward and backward: the worst error relative to its budget.

    `program` runs the mask; by default what the compiler makes of it.
    """
    torch.manual_seed(0)
    batch, heads = 2, 4
    kv_heads = 2 if "gqa" in feature else heads
    n = mask.q_len
    q, k, v = (
        torch.randn(batch, n, h, dim, device=device).to(dtype).transpose(1, 2)
        for h in (heads, kv_heads, kv_heads)
    )
    key_mask = None
    if "key mask" in feature:
        key_mask = torch.rand(batch, n, device=device) < 0.8
        hidden = ~key_mask[:, None, :, None]
        k, v = k.masked_fill(hidden, math.nan), v.masked_fill(hidden, math.inf)
    p = 0.1 if "dropout" in feature else 0.0
    seed = torch.tensor([987654321987654321], device=device) if p else None
    keep = dropout.keep_mask(batch, heads, n, n, p, seed=seed, device=device) if p else None
    scale = dim**-0.5
    if program is None:
        program = kernels.build_program(sb.compile_plan(mask, objective="area"))
    program = program.to(device)
    grad_o = torch.randn_like(q)

    o, lse = kernels.forward(q, k, v, key_mask, seed, program, scale, p)
    gradients = kernels.backward(grad_o, None, q, k, v, o, lse, key_mask, seed, program, scale, p)
    ours = {"o": o, "lse": lse, **dict(zip(("dq", "dk", "dv"), gradients, strict=True))}
    allowed = mask.dense()[0].to(device)
    exact, dense = (
        _reference(q.to(wide), k.to(wide), v.to(wide), grad_o.to(wide), allowed, key_mask, keep, p)
        for wide in (torch.float64, dtype)
    )
    clean = [torch.nan_to_num(x, 0.0, 0.0, 0.0).double() for x in (q, k)]
    score = (clean[0] @ clean[1].repeat_interleave(heads // kv_heads, 1).mT).abs().max() * scale
    delta = (grad_o * o).double().sum(-1).abs().max() * scale
    sizes = {"dq": delta * clean[1].abs().max(), "dk": delta * clean[0].abs().max()}
    worst = 0.0
    for name, result in ours.items():
        finite = exact[name].isfinite()
        if not torch.equal(result.isfinite(), finite):
            return {"passed": False, "why": f"{name} is NaN or infinite where it should not be"}
        step = torch.finfo(result.dtype).eps
        if name.startswith("d"):  # the backward pass computes fp32 scores again
            step += torch.finfo(torch.float32).eps * float(score)
        largest = max(exact[name][finite].abs().max(), sizes.get(name, 0.0))
        budget = 2 * (dense[name] - exact[name])[finite].abs().max() + step * largest
        error = (result.double() - exact[name])[finite].abs().max()
        worst = max(worst, float(error / budget.clamp_min(1e-30)))
    return {"passed": worst <= 1.0, "error_over_budget": round(worst, 3)}


def _reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grad_o: torch.Tensor,
    allowed: torch.Tensor,
    key_mask: torch.Tensor | None,
    keep: torch.Tensor | None,
    p: float,
) -> dict[str, torch.Tensor]:
    """Dense attention in the dtype of its inputs, as fp64 results."""
    inputs = [x.detach().clone() for x in (q, k, v)]
    if key_mask is not None:
        hidden = ~key_mask[:, None, :, None]
        inputs[1:] = [x.masked_fill(hidden, 0.0) for x in inputs[1:]]
        allowed = allowed & key_mask[:, None, None, :]
    q, k, v = (x.requires_grad_() for x in inputs)
    group = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(group, 1).mT * q.shape[-1] ** -0.5
    allowed = allowed.expand(scores.shape)
    dead = ~allowed.any(-1, keepdim=True)
    scores = scores.masked_fill(~allowed, -math.inf)
    weights = scores.masked_fill(dead, 0.0).softmax(-1).masked_fill(~allowed, 0.0)
    if keep is not None:
        weights = weights * keep / (1.0 - p)
    o = weights @ v.repeat_interleave(group, 1)
    o.backward(grad_o)
    results = {"o": o, "lse": scores.logsumexp(-1), "dq": q.grad, "dk": k.grad, "dv": v.grad}
    return {name: x.detach().double() for name, x in results.items() if x is not None}


def check_repeats(mask: sb.AttentionMask, repeats: int, device: str) -> dict[str, Any]:
    """The same backward again and again gives the same bits."""
    q, k, v = (torch.randn(2, 4, mask.q_len, 64, device=device).bfloat16() for _ in range(3))
    program = kernels.build_program(sb.compile_plan(mask, objective="area")).to(device)
    o, lse = kernels.forward(q, k, v, None, None, program, 0.125, 0.0)

    def run() -> tuple[torch.Tensor, ...]:
        return kernels.backward(o, None, q, k, v, o, lse, None, None, program, 0.125, 0.0)

    first = run()
    for repeat in range(1, repeats):
        if not all(torch.equal(a, b) for a, b in zip(first, run(), strict=True)):
            return {"passed": False, "why": f"repeat {repeat} differs"}
    return {"passed": True, "repeats": repeats}


def sanitize(tool: str) -> dict[str, Any]:
    """compute-sanitizer over this script's smallest case."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return {"passed": None, "why": "compute-sanitizer is not installed"}
    command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable]
    command += ["-m", "benchmarks.gpu_check", "--one-case"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return {"passed": None, "why": "took more than a minute"}
    return {"passed": done.returncode == 0, "why": done.stdout[-300:] if done.returncode else ""}


def time_call(call: Callable[[], object]) -> dict[str, float]:
    """Milliseconds at the 20, 50 and 80 % quantiles, each call timed by events of its own."""
    for _ in range(5):
        call()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(30)]
    for start, end in events:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    times = [start.elapsed_time(end) for start, end in events]
    low, middle, high = (statistics.quantiles(times, n=10)[i] for i in (1, 4, 7))
    return {"ms_20": round(low, 4), "ms_50": round(middle, 4), "ms_80": round(high, 4)}


def timings(batch: int, n: int, methods: Sequence[str], end: float) -> list[dict[str, Any]]:
    """Forward, and forward with backward, for every mask; nothing is started after `end`.

    `methods`: some of "dense" (SDPA without the mask), "sparsebert", "sdpa" (with the mask) and
    "flex".
    """
    heads, dim = 12, 64
    q, k, v = (
        torch.randn(batch, n, heads, dim, device="cuda").bfloat16().transpose(1, 2)
        for _ in range(3)
    )
    for x in (q, k, v):
        x.requires_grad_()
    grad_o = torch.randn_like(q)
    shape = {"batch": batch, "heads": heads, "n": n, "dim": dim, "dtype": "bfloat16"}
    rows = []

    def measure(mask: str, method: str, call: Callable[[], torch.Tensor]) -> None:
        row = {"check": "timing", "mask": mask, "method": method, **shape}
        for direction in ("forward", "both"):
            if time.monotonic() > end:
                rows.append({**row, "direction": direction, "why": "not timed: out of time"})
                continue
            try:
                with torch.set_grad_enabled(direction == "both"):
                    result = time_call(
                        call if direction == "forward" else lambda: call().backward(grad_o)
                    )
            except Exception as error:  # a backend that cannot run is a row as well
                result = {"why": f"{type(error).__name__}: {error}"[:200]}
            rows.append({**row, "direction": direction, **result})

    sdpa = torch.nn.functional.scaled_dot_product_attention
    for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"):

        def dense(backend: str = backend) -> torch.Tensor:
            with sdpa_kernel(getattr(SDPBackend, backend)):
                return sdpa(q, k, v)

        if "dense" in methods:
            measure("none (dense)", f"sdpa {backend.lower()}", dense)
    for name, build in _MASKS.items():
        mask = build(n)
        allowed = mask.dense().cuda()
        if "sparsebert" in methods:
            program = kernels.build_program(sb.compile_plan(mask)).to("cuda")
            measure(name, "sparsebert", lambda program=program: _Attention.apply(q, k, v, program))
        if "sdpa" in methods:
            measure(name, "sdpa, bool mask", lambda a=allowed: sdpa(q, k, v, attn_mask=a))
        if "flex" in methods:
            measure(name, "flex attention", _flex_call(q, k, v, allowed[0, 0]))
    return rows


def _flex_call(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, allowed: torch.Tensor
) -> Callable[[], torch.Tensor]:
    """FlexAttention with bool [N, N]; what it prepares once is prepared at the first call."""
    prepared: list[Any] = []

    def call() -> torch.Tensor:
        if not prepared:
            block_mask = flex_attention.create_block_mask(
                lambda b, h, i, j: allowed[i, j], None, None, *allowed.shape, device="cuda"
            )
            prepared.extend([torch.compile(flex_attention.flex_attention), block_mask])
        return prepared[0](q, k, v, block_mask=prepared[1])

    return call


class _Attention(torch.autograd.Function):
    """The kernels alone, without the checks of `sparse_attention`."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, program: Any) -> Any:
        scale = q.shape[-1] ** -0.5
        o, lse = kernels.forward(q, k, v, None, None, program, scale, 0.0)
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.program = program
        return o

    @staticmethod
    def backward(ctx: Any, grad_o: torch.Tensor) -> Any:
        q, k, v, o, lse = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        gradients = kernels.backward(
            grad_o, None, q, k, v, o, lse, None, None, ctx.program, scale, 0.0
        )
        return *gradients, None


Case = tuple[str, int, int, torch.dtype, str]
"""Mask, N, D, dtype, features."""


def cases(smoke: bool) -> list[Case]:
    """What is checked."""
    if smoke:
        return [
            ("longformer", 40, 16, torch.float32, name) for name in (_FEATURES[0], _FEATURES[-1])
        ]
    names = itertools.cycle(("longformer", "strided", "random 5 %"))
    return [
        (name, 512, dim, dtype, feature)
        for dim, name in zip((8, 32, 40, 64, 72, 80, 96, 128, 256), names, strict=False)
        for dtype in _DTYPES
        for feature in _FEATURES
    ]


def as_row(case: Case) -> dict[str, Any]:
    """What is checked, as columns."""
    name, n, dim, dtype, feature = case
    shape = {"mask": name, "n": n, "dim": dim, "dtype": str(dtype)[6:], "features": feature}
    return {"check": "correct", **shape}


def check_row(case: Case, device: str) -> dict[str, Any]:
    """One case as a row; new memory holds NaN, so that nothing is read that was not written."""
    name, n, dim, dtype, feature = case
    row = as_row(case)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return {**row, **check_case(_MASKS[name](n), dim, dtype, feature, device)}
    except Exception as error:  # report it, and go on to the next
        return {**row, "passed": False, "why": f"{type(error).__name__}: {error}"[:300]}
    finally:
        torch.use_deterministic_algorithms(False)


def correctness(end: float) -> list[dict[str, Any]]:
    """All cases on the GPU, as rows; what has not begun at `end` is a row that says so.

    In several processes, for most of the time goes to compilers: about a thousand specialisations.
    """
    todo = cases(smoke=False)
    jobs = max(1, min(12, (os.cpu_count() or 1) - 1))
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context)
    futures = [pool.submit(check_row, case, "cuda") for case in todo]
    rows = []
    for case, future in zip(todo, futures, strict=True):
        try:
            row = future.result(timeout=max(0.0, end - time.monotonic()))
        except TimeoutError:
            row = {**as_row(case), "passed": None, "why": "not checked: out of time"}
        except concurrent.futures.process.BrokenProcessPool as error:
            row = {**as_row(case), "passed": False, "why": str(error)}
        rows.append(row)
        print(row, flush=True)
    pool.shutdown(wait=False, cancel_futures=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """What was checked, as passed / all and the largest error over its budget; then the times."""
    lines = []
    checked = [row for row in rows if row["check"] == "correct"]
    for dtype in dict.fromkeys(row["dtype"] for row in checked):
        for feature in dict.fromkeys(row["features"] for row in checked):
            these = [r for r in checked if (r["dtype"], r["features"]) == (dtype, feature)]
            passed = sum(row["passed"] is True for row in these)
            worst = max((row.get("error_over_budget", 0.0) for row in these), default=0.0)
            lines.append(f"{dtype:10}{feature:26}{passed:3} / {len(these):<3} error {worst:.2f}")
    words = {True: "passed", False: "FAILED", None: "not run"}
    lines += [
        f"{row['check']:10}{words[row['passed']]:10}{row.get('why', '')}"
        for row in rows
        if row["check"] not in ("correct", "timing")
    ]
    lines += [f"FAILED: {row}" for row in checked if row["passed"] is False]
    for row in rows:
        if row["check"] == "timing":
            name = " ".join(str(row.get(key, "")) for key in ("batch", "n", "mask", "method"))
            result = f"{row['ms_50']:9.3f} ms" if "ms_50" in row else f"   {row['why']}"
            lines.append(f"{name:44}{row.get('direction', ''):8}{result}")
    return "\n".join(lines)


def main() -> int:
    """Run everything; the exit status is 0 if every check passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny, in the interpreter")
    parser.add_argument("--one-case", action="store_true", help="a single small check")
    parser.add_argument("--minutes", type=float, default=9.0, help="start nothing after these")
    options = parser.parse_args()
    if not options.smoke and not torch.cuda.is_available():
        print("gpu_check: no CUDA or ROCm device; --smoke tries the script without one")
        return 2
    device = "cpu" if options.smoke else "cuda"
    if options.one_case:
        result = check_case(_MASKS["longformer"](130), 64, torch.bfloat16, "plain", device)
        return 0 if result["passed"] else 1
    start, seconds = time.monotonic(), 60.0 * options.minutes
    if options.smoke:
        rows = [check_row(case, device) for case in cases(smoke=True)]
        rows.append({"check": "same bits", **check_repeats(_MASKS["longformer"](40), 2, device)})
    else:
        rows = correctness(start + 0.55 * seconds)
        rows.append(
            {"check": "same bits", **check_repeats(_MASKS["longformer"](512), 1000, device)}
        )
        rows += [{"check": tool, **sanitize(tool)} for tool in ("memcheck", "racecheck")]
    failed = [row for row in rows if row.get("passed") is False]
    if failed or options.smoke:
        rows.append({"check": "timing", "why": "not run: " + ("smoke" if not failed else "red")})
    else:
        for methods in (("dense", "sparsebert", "sdpa"), ("flex",)):
            for batch, n in ((32, 512), (8, 2048)):
                rows += timings(batch, n, methods, start + seconds)
    origin = {**provenance(), "triton": triton.__version__}
    out = pathlib.Path(os.environ.get("OUT") or RESULTS)
    out.mkdir(parents=True, exist_ok=True)
    path = out / ("gpu_check_smoke.json" if options.smoke else "gpu_check.json")
    path.write_text(json.dumps([{**row, **origin} for row in rows], indent=1) + "\n")
    print(table(rows))
    print(f"{len(rows)} rows in {path}; {len(failed)} checks failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
