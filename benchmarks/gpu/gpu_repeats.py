"""The last phase: the same bits a thousand times, compute-sanitizer, then whole models."""

from __future__ import annotations

import dataclasses
import functools
import sys
import tempfile
import time
from pathlib import Path

import torch

import sparsebert as sb
from benchmarks.gpu import gpu_sanitizer
from benchmarks.gpu.gpu_record import Record
from benchmarks.harness import named_masks, workers
from benchmarks.harness.errors import in_words, is_fatal
from benchmarks.harness.origin import ROOT
from benchmarks.harness.rows import Row
from benchmarks.harness.sessions import run_group
from benchmarks.kernels import calls as kernels
from benchmarks.kernels.band import DTYPES
from sparsebert.plan import compile_for

TIMES = 1000
_REPEATS_END = 0.35
_SANITIZER_ENDS = (("memcheck", 0.58), ("racecheck", 0.75))
"""Shares of the phase by which each has ended; the whole models get what is left."""
_TASK_SECONDS = 30.0
_LEAST = 15.0
"""Seconds without which whole models are not begun."""


@dataclasses.dataclass(frozen=True)
class Repeat:
    """One call, forward and backward, done many times over; B = 2, H = 4, D = 64."""

    mask: str
    n: int
    dtype: str
    dropout_p: float = 0.0

    @property
    def row(self) -> Row:
        """As columns."""
        return {"check": "same bits", **dataclasses.asdict(self)}


REPEATS = (
    Repeat("longformer", 512, "bf16"),
    Repeat("strided", 2048, "bf16"),
    Repeat("log_sparse", 1024, "fp16", 0.1),
    Repeat("star", 2048, "fp32"),
    Repeat("bigbird", 2048, "bf16", 0.1),
)


def repeats(seconds: float, record: Record) -> None:
    """Rows "same bits", "memcheck", "racecheck" and "end to end"; what passed before is left out.

    Repeats find races; a cut one says how many were done.
    """
    start = time.monotonic()
    wanted = (Repeat("longformer", 33, "fp32"),) if record.device == "cpu" else REPEATS
    todo = [repeat for repeat in wanted if not record.is_right(repeat.row)]
    check = functools.partial(check_repeat, device=record.device)
    jobs = 0 if record.device == "cpu" else 1
    end = start + _REPEATS_END * seconds
    for repeat, result in workers.results_of(check, todo, jobs, end=end, limit=_TASK_SECONDS):
        if isinstance(result, workers.Failure):
            result = {"passed": False if result.wrong else None, "why": result.why}
        record.add(repeat.row | result)
    for tool, share in _SANITIZER_ENDS:
        if not record.is_right({"check": tool}):
            found = {"passed": None, "why": "no GPU"}
            if record.device == "cuda":
                found = gpu_sanitizer.sanitize(tool, start + share * seconds - time.monotonic())
            record.add({"check": tool, **found}, final="not installed" in found.get("why", ""))
    if not record.is_right({"check": "end to end"}):
        record.add({"check": "end to end", **whole_models(seconds, start + seconds, record)})


def check_repeat(repeat: Repeat, device: str) -> Row:
    """The same forward and backward again and again give the same bits.

    Raises LostDevice when nothing else can run in this process.
    """
    try:
        return _repeated(repeat, device, 2 if device == "cpu" else TIMES)
    except Exception as error:
        if is_fatal(error):
            raise workers.LostDevice(in_words(error)) from error
        return {"passed": None, "why": in_words(error)}


def _repeated(repeat: Repeat, device: str, times: int) -> Row:
    torch.manual_seed(0)
    mask = named_masks.build(repeat.mask, repeat.n, 4)
    plan = compile_for(mask, torch.device(device), 64, 4)
    if device == "cpu":
        plan = sb.compile_plan(mask, objective="area")
    program = kernels.build_program(plan).to(device)
    q, k, v, grad_o = (
        torch.randn(2, 4, repeat.n, 64, device=device).to(DTYPES[repeat.dtype]) for _ in range(4)
    )
    p = repeat.dropout_p
    seed = torch.tensor([7], device=device) if p else None
    rest = (None, seed, program, 0.125, p)

    def both() -> tuple[torch.Tensor, ...]:
        o, lse = kernels.forward(q, k, v, *rest)
        return (o, lse, *kernels.backward(grad_o, None, q, k, v, o, lse, *rest))

    first = both()
    for count in range(1, times):
        same = [torch.equal(a, b) for a, b in zip(first, both(), strict=True)]
        if not all(same):
            names = ("o", "lse", "dq", "dk", "dv")
            wrong = [name for name, is_same in zip(names, same, strict=True) if not is_same]
            return {"passed": False, "why": f"repeat {count}: {', '.join(wrong)} differ"}
    return {"passed": True, "repeats": times}


def whole_models(seconds: float, end: float, record: Record) -> Row:
    """Start the end-to-end benchmark, which writes its own rows beside these, case by case."""
    left = end - time.monotonic()
    if record.device == "cuda" and left < _LEAST:
        return {"passed": None, "why": "out of time"}
    command = [sys.executable, "-m", "benchmarks.end_to_end", "--models", "BERT-base"]
    with tempfile.TemporaryDirectory() as folder:
        if record.device == "cpu":
            command += ["--device", "cpu", "--lengths", "128", "--layers", "1", "--tokens", "128"]
            command += ["--seconds", "0.01", "--routes", "star", "--out", folder]
        else:
            command += ["--lengths", "512", "2048", "--seconds", "1"]
            command += ["--out", str(Path(record.file.path).parent)]
        status, said = run_group(command, left, cwd=ROOT, environment={})
    if status == 0:
        return {"passed": True}
    why = "cut; what it wrote is in its file" if status is None else f"exit status {status}"
    return {"passed": None, "why": f"{why}: {said[-200:]}"}
