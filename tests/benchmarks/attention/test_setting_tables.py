"""Tables over threads, MKL and instruction sets, and what they say of single cases."""

from __future__ import annotations

from benchmarks.attention import rivals, setting_tables
from benchmarks.attention.result_files import Row
from tests.benchmarks.attention.test_attention_report import row

WORK = {
    "routes": "2 native", "tile_scores": "3200", "entry_scores": "0", "gflop_s": "6.0",
    "of_peak": "0.6", "exp_share": "0.1", "moved_mb": "1.5", "floor_ms": "0.5",
    "read_gb_s": "20.5", "of_l2": "0.3",
}  # fmt: skip


def rows_of(threads: str, mkl: str, ratios: tuple[float, ...], **more: str) -> list[Row]:
    found = []
    for at, ratio in enumerate(ratios):
        common = {"threads": threads, "mkl": mkl, "length": str(64 << at), **more}
        found += [
            row(rivals.OURS, 1.0, 1.0, **common),
            row(rivals.SDPA_MASK, ratio, 1.0, **common),
            row(rivals.SDPA_DENSE, ratio / 2.0, 1.0, **common),
        ]
    return found


def test_the_fullest_setting_with_mkl_at_its_best_comes_first() -> None:
    rows = [
        *rows_of("1", "avx512", (2.0, 2.0, 2.0)),
        *rows_of("4", "avx512", (2.0,)),
        *rows_of("2", "stock", (2.0, 2.0, 2.0)),
        *rows_of("2", "avx512", (2.0, 2.0)),
    ]
    assert setting_tables.settings_of(rows) == [
        ("2", "avx512", "avx512"),
        ("1", "avx512", "avx512"),
        ("2", "stock", "avx512"),
        ("4", "avx512", "avx512"),
    ]
    mine = setting_tables.of_setting(rows, ("4", "avx512", "avx512"))
    assert len(mine) == 3 and {r["threads"] for r in mine} == {"4"}


def test_every_setting_has_means_and_its_worst_case() -> None:
    rows = [*rows_of("2", "avx512", (0.5, 2.0, 8.0)), *rows_of("2", "stock", (3.0, 3.0, 3.0))]
    lines = setting_tables.by_setting(rows)[2:]
    setting = "2 threads, MKL made to use AVX-512, avx512"
    assert lines == [
        f"| {setting} | SDPA + mask | 2.00 (2/0/1) | - | 0.50: star, N = 64, D = 8, forward |",
        f"| {setting} | SDPA dense | 1.00 (1/1/1) | - | 0.25: star, N = 64, D = 8, forward |",
        "| 2 threads, MKL as shipped, avx512 | SDPA + mask | 3.00 (3/0/0) | - | 3.00: star, "
        "N = 64, D = 8, forward |",
        "| 2 threads, MKL as shipped, avx512 | SDPA dense | 1.50 (3/0/0) | - | 1.50: star, "
        "N = 64, D = 8, forward |",
    ]


def test_a_setting_with_fewer_cases_says_so() -> None:
    rows = [*rows_of("2", "stock", (3.0, 3.0, 3.0)), *rows_of("1", "stock", (2.0, 2.0))]
    lines = setting_tables.by_setting(rows)[2:]
    assert lines[0].startswith("| 2 threads, MKL as shipped, avx512 | SDPA + mask | 3.00")
    assert lines[2].startswith("| 1 thread, MKL as shipped, avx512 (2 of 3 cases) | SDPA + mask |")


def test_16_bits_against_our_own_fp32() -> None:
    rows = rows_of("2", "stock", (2.0, 2.0))
    assert setting_tables.half_precision(rows) == []
    half = {"dtype": "bfloat16", "group": "dtypes", "length": "64"}
    rows.append(row(rivals.OURS, 0.5, 0.5, **half))
    (line,) = setting_tables.half_precision(rows)
    assert "In bfloat16 we take 1 / 2.00 of our own time" in line and "of 1 cases" in line


def test_what_limits_the_kernels() -> None:
    assert "No peak was measured" in setting_tables.limits(rows_of("2", "stock", (2.0,)))[0]
    ours = [r for r in rows_of("1", "stock", (2.0, 2.0), **WORK) if r["contender"] == rivals.OURS]
    ours[1] |= {"of_peak": "0.2", "tile_scores": "0", "entry_scores": "500"}
    lines = setting_tables.limits(ours)
    assert lines[0].startswith("- forward: 40% of the peak in the median, 1 of 2 cases at 60%")
    assert lines[1].endswith("forward: 60% to 60%.")
    assert lines[2].startswith("- single entries alone: 20% to 20%")
    table = setting_tables.roofline(ours)[2:]
    assert table[0] == (
        "| star, N = 64, D = 8 | forward | 2 native | 3 | 0 | 1.000 | 6.0 | 60% | 10% | 20.5 "
        "| 30% | 1.50 | 2.0 |"
    )
    assert len(table) == 2
