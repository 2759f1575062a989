"""What is made of the attention benchmark's results: files, report, README, compare."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.attention import (
    attention_plots,
    attention_report,
    attention_tables,
    cases,
    compare,
    readme_section,
    result_files,
    rivals,
)
from benchmarks.attention.cases import FORWARD, Case, select
from benchmarks.harness.origin import RESULTS


def row(contender: str, ms: float, ours: float, **changed: str) -> result_files.Row:
    """A row as the benchmark writes it, 10 % between the quantiles."""
    case = Case("paper-short", "test", 2, 2, 24, 8, "star", FORWARD, "float32")
    values = dict.fromkeys(result_files.COLUMNS, "") | dict(zip(cases.KEY, case.key, strict=True))
    values |= {"contender": contender, "device": "cpu", "processor": "test", "density": "0.1"}
    values |= {"executed": "0.2", "compile_ms": "3", "first_ms": "4", "of_bound": "0.5"}
    values |= {"threads": "2", "mkl": "stock", "isa": "avx512"}
    values |= {"ms_20": f"{ms * 0.95}", "ms_50": f"{ms}", "ms_80": f"{ms * 1.05}"}
    return values | {"speedup": f"{ms / ours}"} | changed


def small_table() -> list[result_files.Row]:
    rows = []
    for length, theirs in (("128", 0.5), ("512", 2.0), ("1024", 8.0)):
        rows += [
            row(rivals.OURS, 1.0, 1.0, length=length),
            row(rivals.SDPA_MASK, theirs, 1.0, length=length),
        ]
    nothing = dict.fromkeys(("ms_20", "ms_50", "ms_80", "speedup", "of_bound"), "")
    rows.append(row(rivals.FLEX, 1.0, 1.0, length="128", **nothing, note="has no dropout"))
    return rows


def write_rows(folder: Path, rows: list[result_files.Row]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    result_files.row_file(folder / "paper-short.csv").write(rows)
    return folder


def test_geometric_mean_wins_and_losses() -> None:
    assert attention_tables.scores([0.5, 2.0, 8.0]) == "2.00 (2/0/1)"
    assert attention_tables.scores([1.04, 0.96]) == "1.00 (0/2/0)"
    table = attention_tables.group_table(small_table())
    assert "| paper-short | forward | 2.00 (2/0/1) |" in table
    assert len(table) == 3


def test_the_best_dense_route_is_the_fastest_of_them() -> None:
    rows = [row(rivals.OURS, 1.0, 1.0), row(rivals.FLASH, 3.0, 1.0), row(rivals.CUDNN, 2.0, 1.0)]
    best = [
        r for r in result_files.with_best_dense(rows) if r["contender"] == result_files.BEST_DENSE
    ]
    assert [r["speedup"] for r in best] == ["2.0"]


def test_the_report_shows_losses_refusals_and_what_is_missing(tmp_path: Path) -> None:
    write_rows(tmp_path / "attention_cpu", small_table())
    text = attention_report.write(tmp_path).read_text()
    assert "| star | 0.50 / - | 2.00 / - | 8.00 / - |" in text
    assert "| paper-short | star, N = 128, D = 8 | forward | SDPA + mask | 0.50 |" in text
    assert "| FlexAttention | has no dropout | 1 |" in text
    assert "| vit | 8 | not measured yet |" in text
    gpu = text.split("## GPU")[1]
    assert gpu.count(attention_tables.NOT_MEASURED) == 5 + len(cases.group_names(select("cuda")))
    for name in ("speedup", "bound"):
        assert (tmp_path / f"attention_cpu_{name}.png").stat().st_size > 10_000


def test_plots_show_the_spread_of_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their time over ours: at worst their fastest over our slowest, at best the reverse."""
    drawn = []
    monkeypatch.setattr(attention_plots, "save_figure", lambda figure, path: drawn.append(figure))
    attention_plots.speedups(small_table(), Path("speedup.png"))
    attention_plots.bounds(small_table(), Path("bound.png"))
    bars = []
    for figure in drawn:
        (container,) = figure.axes[0].containers
        assert container.has_yerr
        segments = container.lines[2][0].get_segments()
        bars.append({int(x): (low, high) for (x, low), (_, high) in segments})
    assert set(bars[0]) == {128, 512, 1024} == set(bars[1])
    for length, speedup in ((128, 0.5), (512, 2.0), (1024, 8.0)):
        expected = speedup * 0.95 / 1.05, speedup * 1.05 / 0.95
        assert bars[0][length] == pytest.approx(expected)
        assert bars[1][length] == pytest.approx((0.5 / 1.05, 0.5 / 0.95))


def test_the_aims_are_read_from_the_rows() -> None:
    gpu = {"dtype": "bfloat16", "dim": "64", "device": "cuda"}
    rows = []
    for length, theirs in (("256", 9.0), ("512", 2.0), ("4096", 8.0)):
        rows += [
            row(rivals.OURS, 1.0, 1.0, length=length, of_bound="0.8", **gpu),
            row(rivals.FLEX, theirs, 1.0, length=length, **gpu),
            row(rivals.FLASH, theirs / 4, 1.0, length=length, **gpu),
        ]
    found = [line.split(" | ")[-1] for line in attention_tables.aims(rows)[2:]]
    assert found == [
        "4.00 |",  # of 2 and 8, the lengths from 512 on
        "not measured yet |",
        "80% to 80% |",
        "0.50 at worst |",
        "not measured yet |",
    ]


def test_compare_finds_a_regression_and_ignores_noise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = small_table()
    old = write_rows(tmp_path / "old", before)
    noisy = [scaled(r, 1.08 if r["contender"] == rivals.OURS else 1.5) for r in before]
    assert compare.main([str(old), str(write_rows(tmp_path / "noisy", noisy))]) == 0
    assert "3 cases in both: 0 slower" in capsys.readouterr().out
    planted = [scaled(r, 1.3) if r is before[2] else r for r in before]
    planted = [{**r, "torch": "9.9"} for r in planted]
    assert compare.main([str(old), str(write_rows(tmp_path / "slow", planted))]) == 1
    out = capsys.readouterr().out
    assert "slower  x1.30" in out
    assert "N = 512" in out
    assert "1 slower, 0 faster" in out
    assert "mind: torch was , is 9.9" in out


def scaled(row: result_files.Row, factor: float) -> result_files.Row:
    times = {
        name: f"{float(row[name]) * factor}" for name in ("ms_20", "ms_50", "ms_80") if row[name]
    }
    return {**row, **times}


def test_compare_counts_a_case_that_now_fails(tmp_path: Path) -> None:
    rows = small_table()
    old = write_rows(tmp_path / "old", rows)
    broken = [dict(r) for r in rows]
    broken[0] |= {"ms_50": "", "note": "WRONG: o is off"}
    assert compare.main([str(old), str(write_rows(tmp_path / "new", broken))]) == 1


def test_compare_refuses_what_has_nothing_in_common(tmp_path: Path) -> None:
    old = write_rows(tmp_path / "old", small_table())
    new = write_rows(tmp_path / "new", [{**r, "length": "64"} for r in small_table()])
    for pair in ((old, new), (old, tmp_path / "missing.csv")):
        with pytest.raises(SystemExit) as stopped:
            compare.main([str(path) for path in pair])
        assert stopped.value.code == 2


def test_results_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("mask,N\nstar,512\n")
    with pytest.raises(ValueError, match=r"other\.csv: no column group"):
        result_files.read(path)


def test_half_a_row_is_dropped(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "cut", small_table())
    path = folder / "paper-short.csv"
    whole = path.read_text()
    path.write_text(whole[: whole.rindex("FlexAttention") + 5])
    assert len(result_files.read(folder)) == 6


def test_the_readme_is_brought_up_to_date(tmp_path: Path) -> None:
    readme_file = tmp_path / "README.md"
    readme_file.write_text(f"before\n{readme_section.BEGIN}\nold\n{readme_section.END}\nafter\n")
    folder = write_rows(tmp_path / "attention_cpu", small_table())
    readme_section.update(readme_file, folder)
    text = readme_file.read_text()
    assert text.startswith(f"before\n{readme_section.BEGIN}\n")
    assert text.endswith(f"{readme_section.END}\nafter\n")
    assert "old" not in text
    assert "| star | 0.50 / - | 2.00 / - | 8.00 / - |" in text
    assert "| 2 threads, MKL as shipped, avx512 | SDPA + mask | 2.00 (2/0/1) | - | 0.50:" in text
    readme_section.update(readme_file, folder)
    assert readme_file.read_text() == text
    with pytest.raises(ValueError, match="make bench"):
        readme_section.update(readme_file, tmp_path / "nothing")
    readme_file.write_text("no marks")
    with pytest.raises(ValueError, match=r"README\.md: must hold"):
        readme_section.update(readme_file, folder)


def test_the_committed_report_and_readme_are_made_of_the_committed_rows(tmp_path: Path) -> None:
    shutil.copytree(RESULTS / "attention_cpu", tmp_path / "attention_cpu")
    page = attention_report.write(tmp_path)
    assert page.read_bytes() == (RESULTS / "attention.md").read_bytes()
    readme_file = tmp_path / "README.md"
    shutil.copy(readme_section.README, readme_file)
    readme_section.update(readme_file, tmp_path / "attention_cpu")
    assert readme_file.read_bytes() == readme_section.README.read_bytes()


def test_the_repository_readme_has_its_marks() -> None:
    text = readme_section.README.read_text()
    assert text.index(readme_section.BEGIN) < text.index(readme_section.END)


def test_the_report_shows_graphs_where_there_are_some(tmp_path: Path) -> None:
    gpu = {"device": "cuda", "dtype": "bfloat16"}
    rows = [
        row(
            rivals.OURS,
            1.0,
            1.0,
            graph_ms="0.5",
            peak_mb="12.5",
            graph_speedup="1",
            launch_bound="yes",
            **gpu,
        ),
        row(rivals.FLASH, 3.0, 1.0, graph_speedup="2.0", launch_bound="no", **gpu),
        row(rivals.SDPA_MASK, 4.0, 1.0, **gpu, note="no graph: RuntimeError"),
    ]
    write_rows(tmp_path / "attention_cuda", rows)
    text = attention_report.write(tmp_path).read_text().split("## GPU")[1]
    assert "1 of our cases are bound by their launches" in text
    assert "| paper-short | forward | 4.00 (1/0/0) | 3.00 (1/0/0) |" in text
    assert "| paper-short | forward | 2.00 (1/0/0) |" in text
    assert "| 1.00 (0.95 to 1.05) | 0.5 | 12.5 | 4.00 | 3.00 |" in text  # graph ms, peak MB


def test_the_report_has_a_part_for_each_setting(tmp_path: Path) -> None:
    stock = [{**r, "threads": "1"} for r in small_table()]
    best = [{**r, "mkl": "avx512"} for r in small_table()]
    write_rows(tmp_path / "attention_cpu", [*stock, *best])
    text = attention_report.write(tmp_path).read_text()
    parts = [line for line in text.splitlines() if line.startswith("## CPU")]
    assert parts == [
        "## CPU",
        "## CPU: 2 threads, MKL made to use AVX-512, avx512",
        "## CPU: 1 thread, MKL as shipped, avx512",
    ]
    assert text.count("### Every case") == 1
    assert text.count("### Lost cases") == 2


def test_compare_matches_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = [*small_table(), *({**r, "threads": "1"} for r in small_table())]
    slower = [scaled(r, 2.0) if r["threads"] == "1" else r for r in both]
    old, new = write_rows(tmp_path / "old", both), write_rows(tmp_path / "new", slower)
    assert compare.main([str(old), str(new)]) == 1
    assert "6 cases in both: 3 slower, 0 faster" in capsys.readouterr().out
    alone = write_rows(tmp_path / "alone", [r for r in slower if r["threads"] == "1"])
    with pytest.raises(SystemExit):
        compare.main([str(write_rows(tmp_path / "two", small_table())), str(alone)])
