"""The kernels on random cases, against the fp64 reference.

    python -m tests.kernels.random_cases
    --cases 500 --seed 7     other cases than the tests'; the same for the same seed

In Triton's interpreter where there is no GPU. Tile heights, parts of the cover, lengths, head
sizes, dtypes, grouped heads, masks, dropout, large scores: whatever the contract allows, crossed.
A red case is printed as it can be put into `test_attention.CASES`; the exit status says whether
there was one.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import os
import random
import sys
import time

from sparsebert.cli.options import positive

HEAD_DIMS = (8, 12, 16, 24, 32, 40, 64)


def draw(rng: random.Random) -> dict[str, object]:
    """The arguments of one `kernel_cases.Case`, but for the dtype, which is its name in torch."""
    kv_heads = rng.choice((1, 1, 2))
    n, m = (
        rng.choice((rng.randint(1, 20), rng.randint(21, 90), rng.randint(91, 170))) for _ in "qk"
    )
    heights = tuple(rng.sample((16, 32, 64, 128), rng.choice((1, 1, 2, 3))))
    large = rng.random() < 0.2 and m > 80
    dtype = rng.choice(("float32", "bfloat16", "float16"))
    return {
        "n": n,
        "m": m,
        "heads": kv_heads * rng.choice((1, 2, 3)),
        "kv_heads": kv_heads,
        "d": rng.choice(HEAD_DIMS),
        "dtype": dtype,
        "heights": heights,
        "parts": rng.choice((1, 2, 2, 2, 3, 5)),
        "full": 0 if large else rng.choice((0, 0, rng.randint(0, m))),
        "key_mask": rng.random() < 0.4,
        "hidden": rng.choice((1, 1, rng.randint(1, m))),
        "dropout_p": rng.choice((0.0, 0.0, 0.0, 0.1, 0.6)),
        "one_mask": rng.random() < 0.3,
        "grad_lse": rng.random() < 0.3,
        "transposed": rng.random() < 0.5,
        "scale": rng.choice((None, None, 0.3, -0.7)) if not large else None,
        "score_size": rng.choice((20.0, 200.0)) if large else 0.0,
        "value_size": rng.choice((1.0, 1.0, 4.0, 2.0**-12)),
        "seed": rng.randrange(2**31),
    }


def main() -> int:
    """Run them; 1 if any is red."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.kernels.random_cases", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--cases", type=positive, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported
        importlib.import_module("tests.interpreter").round_to_nearest()
    import pytest

    from tests.kernels.kernel_cases import Case, run

    rng = random.Random(options.seed)
    worst: dict[tuple[str, str], float] = collections.defaultdict(float)
    red, chained, start = 0, 0, time.monotonic()
    for number in range(options.cases):
        drawn = draw(rng)
        case = Case(**{**drawn, "dtype": getattr(torch, str(drawn["dtype"]))})
        with pytest.MonkeyPatch.context() as monkeypatch:
            try:
                program, outcomes = run(case, monkeypatch)
            except Exception as error:  # every kind of failure is a red case
                red += 1
                print(f"RED {number}: {case}\n    {type(error).__name__}: {error}", flush=True)
                continue
        chained += program.queries.chained or program.keys.chained
        for outcome in outcomes:
            key = str(drawn["dtype"]), outcome.name
            worst[key] = max(worst[key], outcome.ratio)
        if number % 50 == 49:
            print(f"{number + 1} cases, {red} red, {time.monotonic() - start:.0f} s", flush=True)
    for (dtype, name), ratio in sorted(worst.items()):
        print(f"{dtype:9}{name:4} at most {ratio:.2f} of its bound")
    print(f"{options.cases} cases of seed {options.seed}, {chained} chained, {red} red")
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())
