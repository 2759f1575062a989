"""Turn the files that a GPU's run brought back into committed rows, a report and README's numbers.

    python -m benchmarks.gpu.take_results FOLDER               # that holds gpu_check.jsonl
    python -m benchmarks.gpu.take_results FOLDER --into DIR    # try it: writes to DIR alone

Refuses rows without their whole provenance, of a dirty tree, of a red gate, or of several runs
(`returned_rows`). Writes benchmarks/results/gpu_*.csv, gpu.md with its plots, and the section of
README.md; takes the rows of whole models, where there are some; prints what the sweep found for
`MEASURED` in kernels/configs.py. Rows of other GPUs stay. The report can be made again from the
CSV files: `--report`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.end_to_end import end_to_end_report
from benchmarks.gpu import gpu_plots, gpu_readme, gpu_results, gpu_tables, returned_rows, sweep
from benchmarks.gpu.returned_rows import MADE_UP
from benchmarks.gpu.tune_kernels import WORTH
from benchmarks.harness.origin import RESULTS, ROOT
from benchmarks.harness.rows import Row, RowFile

PREDICTIONS = RESULTS / "gpu_predictions.csv"
REPORT = "gpu.md"
_INTRODUCTION = """# GPUs

Made by `python -m benchmarks.gpu.take_results` from the rows in gpu_times.csv, gpu_checks.csv,
gpu_sweep.csv and gpu_profile.csv. Every plan was first checked against the fp64 reference, forward
and backward, and its rivals were timed in turn with it in one process. A ratio is the time of
others over ours, the median of rounds: above 1 we win. Where two numbers stand together they are
forward / forward + backward. *Predicted* is `gpu_predictions.csv`, a model's numbers from before
anything was measured; *floor* is moving q, k, v, o and their gradients once at the rate of the
memory's data sheet. Times in a CUDA graph are without the host's part.
"""


def take(folder: Path, results: Path, readme: Path) -> list[str]:
    """Read, check and write everything; what is to be said afterwards.

    Args:
        folder: what came back from the GPU.
        results: where CSV files, report and plots go.
        readme: the file with the marks of `gpu_readme`.

    Raises Refused, FileNotFoundError, NotADirectoryError, or ValueError for a file without marks,
    and has then written nothing.
    """
    gpu_readme.around(readme)
    in_repository = any(ROOT in path.resolve().parents for path in (results / REPORT, readme))
    rows = returned_rows.publishable(returned_rows.read(folder), for_repository=in_repository)
    models = returned_rows.whole_models(folder, rows)
    paths = gpu_results.write(rows, results)
    paths += write_report(results)
    if models:
        paths += _take_models(models, results)
    gpu_readme.update(readme, results)
    said = [f"{len(rows)} rows; written: {', '.join(path.name for path in paths)}, {readme.name}"]
    return said + measured_entries([row for row in rows if row["check"] == "sweep"])


def _take_models(models: Sequence[Row], results: Path) -> list[Path]:
    """Put the rows of whole models in the place of those of this processor, and report them."""
    file = end_to_end_report.row_file(results, "cuda")
    processor = models[0]["processor"]
    others = file.read() if file.path.exists() else []
    file.write([*(row for row in others if row["processor"] != processor), *models])
    return [file.path, end_to_end_report.write_report(results)]


def write_report(results: Path, predictions: Path = PREDICTIONS) -> list[Path]:
    """The report and its plots, from the CSV files in `results`; their paths."""
    times, checks, profile = (
        gpu_results.read(table, results)
        for table in (gpu_results.TIMES, gpu_results.CHECKS, gpu_results.PROFILE)
    )
    expected = _predictions(predictions)
    lines, paths = [_INTRODUCTION], []
    for number, processor in enumerate(dict.fromkeys(row["processor"] for row in checks)):
        mine, of_checks, of_profile = (
            [row for row in rows if row["processor"] == processor]
            for rows in (times, checks, profile)
        )
        plots = (results / f"gpu_{number}_speedup.png", results / f"gpu_{number}_predicted.png")
        lines += _section(processor, mine, of_checks, of_profile, expected, plots)
        paths += [plot for plot in plots if plot.exists()]
    report = results / REPORT
    report.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return [report, *paths]


def _section(
    processor: str,
    times: Sequence[Row],
    checks: Sequence[Row],
    profile: Sequence[Row],
    expected: Sequence[Row],
    plots: tuple[Path, Path],
) -> list[str]:
    """One GPU's part of the report."""
    about = checks[0]
    lines = [
        f"## {processor}",
        "",
        f"torch {about['torch']}, Triton {about['triton']}; commit {about['commit']} "
        f"({about['tree']}), {about['date']}.",
        "",
        *(["**Made up: nothing here was measured.**", ""] if about[MADE_UP] else []),
        *gpu_tables.checked(checks),
        "",
    ]
    timed = [row for row in times if row["ms_50"]]
    if timed:
        lines += ["### Time of others over ours", "", *gpu_tables.speedups(times), ""]
        lines += _plot(lambda path: gpu_plots.speedups(times, path), plots[0])
        lines += ["### Milliseconds", "", *gpu_tables.milliseconds(times), ""]
        lines += ["### Predicted and measured", "", *gpu_tables.predicted(times, expected), ""]
        if expected:
            lines += _plot(lambda path: gpu_plots.predicted(times, expected, path), plots[1])
    if profiled := gpu_tables.profiles(profile):
        lines += ["### What limits the kernels", "", *profiled, ""]
    return [*lines, "### What was not timed", "", *gpu_tables.not_timed(times), ""]


def _predictions(path: Path) -> list[Row]:
    """The rows of the predictions; none where there is no such file."""
    columns = ("contender", "mask", "batch", "n", "heads", "dim", "dtype", "direction", "kernel")
    try:
        return RowFile(
            path, columns, made_by="python -m benchmarks.predictions.timing_model"
        ).read()
    except FileNotFoundError:
        return []


def _plot(draw: Callable[[Path], None], path: Path) -> list[str]:
    try:
        draw(path)
    except ModuleNotFoundError as error:
        return [f"(No plot: {error}.)", ""]
    return [f"![{path.stem}]({path.name})", ""]


def measured_entries(swept: Sequence[Row]) -> list[str]:
    """What the sweep found, and the lines for `MEASURED`, of what is worth it."""
    if not swept:
        return ["no sweep"]
    found = sweep.best(swept)
    lines = [f"of {len(found)} swept entries, for MEASURED in kernels/configs.py:"]
    for key, (config, gain) in found.items():
        if gain >= WORTH:
            lines.append(f"    {key}: {config},  # {gain:.2f} times as fast")
    return lines if len(lines) > 1 else ["the sweep found nothing better than what is shipped"]


def main(arguments: list[str] | None = None) -> int:
    """Take a folder's rows; the exit status is 1 if they are refused."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.take_results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, nargs="?", metavar="FOLDER")
    parser.add_argument("--into", type=Path, metavar="DIR", help="a scratch folder for all files")
    parser.add_argument("--report", action="store_true", help="from the CSV files that are there")
    options = parser.parse_args(arguments)
    results, readme = RESULTS, gpu_readme.README
    if options.into is not None:
        results = options.into
        results.mkdir(parents=True, exist_ok=True)
        readme = results / "README.md"
        readme.write_text(f"{gpu_readme.BEGIN}\n{gpu_readme.END}\n", encoding="utf-8")
    if options.report:
        print(*write_report(results))
        gpu_readme.update(readme, results)
        return 0
    if options.folder is None:
        parser.error("give the FOLDER that came back, or --report")
    try:
        print("\n".join(take(options.folder, results, readme)))
    except (returned_rows.Refused, FileNotFoundError, NotADirectoryError) as error:
        print(f"take_results: refused\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
