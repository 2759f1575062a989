"""The part of README.md that comes from the attention benchmark's rows: a plot and a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.attention import attention_tables, setting_tables
from benchmarks.attention.cases import PAPER
from benchmarks.attention.result_files import Row, read
from benchmarks.harness.named_masks import LEARNED_LOOKING, NO_DIAGONAL, RANDOM
from benchmarks.harness.origin import RESULTS, ROOT

README = ROOT / "README.md"
BEGIN = "<!-- attention: begin (python -m benchmarks report --readme) -->"
END = "<!-- attention: end -->"
_SHOWN = (*PAPER, LEARNED_LOOKING, RANDOM, NO_DIAGONAL)


def block(rows: Sequence[Row]) -> list[str]:
    """The lines between the marks, from the CPU's rows.

    Raises ValueError if there are none.
    """
    if not rows:
        raise ValueError("no rows in benchmarks/results/attention_cpu; run `make bench` first")
    settings = setting_tables.settings_of(rows)
    chosen = setting_tables.of_setting(rows, settings[0])
    first = chosen[0]
    shown = sorted(
        (row for row in chosen if row["mask"] in _SHOWN), key=lambda row: _SHOWN.index(row["mask"])
    )
    return [
        "On the CPU, the time of torch's SDPA with the same boolean mask over ours, forward /",
        "forward + backward: above 1 we win, below 1 we lose (B = 1, H = 12, D = 64, fp32;",
        f"{first['processor']}, {setting_tables.name_of(settings[0])}, torch {first['torch']}, "
        f"commit {first['commit']}, {first['date']}):",
        "",
        *attention_tables.summary(shown),
        "",
        "![Speed-up over SDPA with the same mask](benchmarks/results/attention_cpu_speedup.png)",
        "",
        "torch's MKL takes AVX2 code on AMD, whatever the processor can do; so rivals are timed",
        "as they come, and with MKL made to use AVX-512, as it does on Intel. Over all cases of",
        "the benchmark, other shapes, dtypes, dropout and padding among them: the geometric mean",
        f"of the ratios, how many cases are won, even (within {attention_tables.EVEN:.0%}) and "
        "lost, and the worst:",
        "",
        *setting_tables.by_setting(rows),
        "",
        "[The report](benchmarks/results/attention.md) has every case, and how close each comes",
        "to what the machine allows.",
    ]


def update(path: Path = README, results: Path = RESULTS / "attention_cpu") -> None:
    """Replace what stands between the marks.

    Raises ValueError if there are no rows, or the file has not both marks.
    """
    rows = read(results) if results.is_dir() else []
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{path.name}: must hold each of these lines once: {BEGIN} and {END}")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    lines = [BEGIN, "", *block(rows), "", END]
    path.write_text(before + "\n".join(lines) + after, encoding="utf-8")
