"""Plans for CPUs, bit for bit: what is done for GPUs must not change them.

The digests are of commit a22767d. Whoever changes constants or the search for CPUs on purpose
replaces them: each has all that such a plan is made of, its predictions included.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from sparsebert import patterns
from sparsebert.compiler.compile import Request, compile_schedule
from sparsebert.masks import AttentionMask

CALLS = 64, 2, 12
PLANS = (("torch", "", "time"), ("native", "avx512", "time"), ("torch", "", "area"))

MASKS = {
    "star": patterns.star,
    "longformer": lambda n: patterns.longformer(n, max(5, n // 64), 2),
    "log_sparse": patterns.log_sparse,
    "strided": lambda n: patterns.strided(n, int(n**0.5)),
    "fixed": lambda n: patterns.fixed(n, 32, 1),
    "bigbird": lambda n: patterns.bigbird(n, max(1, n // 256), 2, max(2, n // 256)),
    "random 10 %": lambda n: patterns.random(n, 0.1),
}

BEFORE = {
    ("star", 256): ("d50755c5c816fef0", "ef6893211e4f5bd2", "3126fd1b1ffe1fcf"),
    ("longformer", 256): ("fb93f6f1f305d4b1", "cbc3e50883a6ab0b", "eda25e1220069501"),
    ("log_sparse", 256): ("d9b2d55e02d86763", "98b5bb99f4f3add4", "37f3ad2b9b9ac8e0"),
    ("strided", 256): ("b64d184cd46e3e88", "5640dfa706a5a33b", "51356883367c0377"),
    ("fixed", 256): ("3a0da6fe08e51473", "08f0b9387aad3da9", "f6cb2247ab820cf5"),
    ("bigbird", 256): ("df989f5d33e14f63", "3046d6a8f4cb3cee", "ea002f2f3f4d9aa1"),
    ("random 10 %", 256): ("b64d184cd46e3e88", "ed1c126be2889cfa", "7389673b1660894a"),
    ("star", 1024): ("3a5adb8de9275a3f", "bdb92a6dbea2fed1", "f618a7c1319af1b7"),
    ("longformer", 1024): ("7486cd41af40dac3", "99fcc1c39295a1d0", "483553159015fb5e"),
    ("log_sparse", 1024): ("7a60e9b6050a9e94", "9658490e0b0f5a18", "d6dbb3abb68395fc"),
    ("strided", 1024): ("fd84e1f0e7799867", "a7b19b174d4c34a2", "a1c5fc4a934708eb"),
    ("fixed", 1024): ("43a55de806805feb", "47c9a6bd9cbdcc13", "a7d0922dcca618b3"),
    ("bigbird", 1024): ("6cdf04b3f78f0f29", "416484ef50c7519e", "09b8d5c5670efb06"),
    ("random 10 %", 1024): ("7613cc3a31022633", "becda246b8360547", "8b7433603aa7efd2"),
}  # fmt: skip
"""By mask and length: tiles in torch, in the CPU kernels, and in torch by area."""


def digest(mask: AttentionMask, backend: str, isa: str, objective: str) -> str:
    schedule = compile_schedule(Request(mask, "cpu", objective, CALLS, backend, isa))
    found = hashlib.sha256()
    for array in (schedule.head_map, schedule.dense_heads, *schedule.tiles.arrays):
        found.update(str(array.dtype).encode() + str(array.shape).encode())
        found.update(np.ascontiguousarray(array).tobytes())
    heads = [
        (
            head.route,
            head.cover,
            head.gathered_columns,
            head.reason,
            # Without the last digits, which depend on the order in which a processor adds up.
            *(
                f"{us:.9g}"
                for us in (head.predicted_us, head.predicted_backward_us, head.dense_us)
            ),
        )
        for head in schedule.report.per_head
    ]
    found.update(repr(heads).encode())
    return found.hexdigest()[:16]


@pytest.mark.parametrize(("name", "n"), BEFORE)
def test_plans_for_cpus_are_what_they_were(name: str, n: int) -> None:
    mask = MASKS[name](n)
    assert tuple(digest(mask, *plan) for plan in PLANS) == BEFORE[name, n]
