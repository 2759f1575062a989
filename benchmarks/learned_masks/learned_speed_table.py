"""README's table of MiniLM with learned masks: quality, time and memory, from the rows alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.harness import mkl
from benchmarks.harness.markdown import table
from benchmarks.harness.origin import COLUMNS as ORIGIN
from benchmarks.harness.origin import RESULTS, ROOT
from benchmarks.harness.rows import Row, RowFile
from benchmarks.learned_masks import protocol
from sparsebert.reporting.timing import Spread

LENGTHS = (128, 256, 512)
SPARSITIES = (0.8, 0.9, 0.95)
LEARNED = "DAM"
"""The contender whose masks are timed."""
PARTS = ("attention", "encoder")

README = ROOT / "README.md"
BEGIN = "<!-- learned masks: begin (python -m benchmarks.learned_masks.learned_speed --readme) -->"
END = "<!-- learned masks: end -->"
BEFORE = "## What the demo finds\n"
"""The heading that the section stands before where it is new."""

_QUANTILES = ("20", "50", "80")
_ABSENT = "not measured yet"
COLUMNS = (
    "N", "asked", "batch", "fingerprint", "sparsity",
    *(
        f"{part}_{name}"
        for part in PARTS
        for name in (
            *(f"ms_{q}" for q in _QUANTILES), *(f"ratio_{q}" for q in _QUANTILES), "rounds", "mb",
        )
    ),
    *ORIGIN, "mkl",
)  # fmt: skip


def row_file(folder: Path, where: Mapping[str, str] | None = None) -> RowFile:
    """The rows of times; `where` is the origin of the run that writes them."""
    made_by = "python -m benchmarks.learned_masks.learned_speed"
    return RowFile(folder / "learned_speed.csv", COLUMNS, origin=where, made_by=made_by)


def mask_path(folder: Path, seq_len: int, asked: float) -> Path:
    """Where the learned mask of a length and sparsity is kept."""
    name = f"embeddings-{seq_len}-{protocol.slug(LEARNED, asked)}-seed0"
    return folder / f"{name}.safetensors"


def block(times: Sequence[Row], quality: Sequence[Row]) -> list[str]:
    """The lines between the marks.

    Args:
        times: rows of learned_speed.csv, at least one.
        quality: rows of learned_masks.csv; others than those of the learned and the dense model's
            embeddings are left out.
    """
    times = _fairest(times)
    threads = sorted({row["threads"] for row in times}, key=int)
    header = ["N", "mask", "drift", "recall@10"]
    for part in PARTS:
        header += [f"{part}, {mkl.in_words(count, '')}" for count in threads]
    header += ["memory, MB", "GPU"]
    body, missing = [], []
    for seq_len in LENGTHS:
        for asked in (None, *SPARSITIES):
            key = "" if asked is None else f"{asked:g}"
            mine = [row for row in times if (row["N"], row["asked"]) == (str(seq_len), key)]
            kept = _quality(quality, seq_len, asked)
            if not mine and not kept:
                missing.append(f"{_name(asked)} at N = {seq_len}")
                continue
            cells = [str(seq_len), _name(asked), _mean(kept, "loss", 4)]
            cells.append(_mean(kept, "recall_10", 2))
            for part in PARTS:
                cells += [_time(mine, count, part) for count in threads]
            body.append([*cells, _memory(mine), _ABSENT])
    return [
        "### Learned masks on a real encoder",
        "",
        *_caption(times, quality),
        "",
        *table(header, body),
        "",
        *([f"Not measured yet: {'; '.join(missing)}.", ""] if missing else []),
        "The masks are committed. `python -m benchmarks.learned_masks.learned_speed` times them",
        "anew; `python -m benchmarks.learned_masks --task embeddings-128` (or 256, or 512) learns",
        "them and trains the models, by the recipe in `benchmarks/learned_masks/protocol.py`.",
    ]


def update(path: Path = README, results: Path = RESULTS) -> None:
    """Make the section of the rows in `results`; without rows of times there is none.

    Raises ValueError if the file has only one of the marks, or one more than once, or neither
    them nor the heading that the section goes before.
    """
    text = path.read_text(encoding="utf-8")
    marks = text.count(BEGIN), text.count(END)
    if marks not in ((0, 0), (1, 1)) or (not marks[0] and text.count(BEFORE) != 1):
        raise ValueError(
            f"{path.name}: must hold each of these lines once: {BEGIN} and {END}; or neither, and "
            f"the heading {BEFORE.strip()!r}"
        )
    if marks[0]:
        before, rest = text.split(BEGIN)
        after = rest.split(END)[1].lstrip("\n")
    else:
        before, after = text.split(BEFORE)
        after = BEFORE + after
    file = row_file(results)
    times = file.read() if file.path.exists() else []
    lines = [BEGIN, "", *block(times, _qualities(results)), "", END, "", ""] if times else []
    path.write_text(before + "\n".join(lines) + after, encoding="utf-8")


def _qualities(results: Path) -> list[Row]:
    file = protocol.row_file(results / "learned_masks.csv")
    return file.read() if file.path.exists() else []


def _fairest(times: Iterable[Row]) -> list[Row]:
    """Those of the mode of MKL that is faster for the dense model, if there are any."""
    times = list(times)
    best = [row for row in times if row["mkl"] == mkl.AVX512]
    return best or times


def _name(asked: float | None) -> str:
    return "dense" if asked is None else f"{asked:.0%} zeros"


def _quality(rows: Iterable[Row], seq_len: int, asked: float | None) -> list[Row]:
    name = protocol.DENSE if asked is None else LEARNED
    return [
        row
        for row in rows
        if (row["task"], row["contender"]) == (f"embeddings-{seq_len}", name)
        and (float(row["asked"]) if row["asked"] else None) == asked
    ]


def _mean(rows: Sequence[Row], column: str, digits: int) -> str:
    values = [float(row[column]) for row in rows]
    return f"{statistics.fmean(values):.{digits}f}" if values else _ABSENT


def _time(rows: Iterable[Row], threads: str, part: str) -> str:
    """A time, and of a sparse model how many times as fast it is."""
    for row in rows:
        if row["threads"] == threads:
            shown = f"{_spread(row, part, 'ms').brief('{:.1f}')} ms"
            if row["asked"]:
                shown += f", {_spread(row, part, 'ratio').brief('{:.2f}x')}"
            return shown
    return _ABSENT


def _spread(row: Row, part: str, what: str) -> Spread:
    low, middle, high = (float(row[f"{part}_{what}_{quantile}"]) for quantile in _QUANTILES)
    return Spread(low, middle, high, int(row[f"{part}_rounds"]))


def _memory(rows: Sequence[Row]) -> str:
    if not rows:
        return _ABSENT
    return " / ".join(f"{float(rows[0][f'{part}_mb']):.1f}" for part in PARTS)


def _caption(times: Sequence[Row], quality: Sequence[Row]) -> list[str]:
    def values(column: str) -> str:
        return ", ".join(sorted({row[column] for row in times}))

    counts = [len(_quality(quality, n, asked)) for n in LENGTHS for asked in SPARSITIES]
    seeds = sorted({count for count in counts if count} or {0})
    of_seeds = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
    mode = mkl.WORDS[times[0]["mkl"]]
    tokens = int(times[0]["batch"]) * int(times[0]["N"])
    return [
        "MiniLM (6 layers, 12 heads of 32) with masks of its own for every layer and head,",
        "learned without labels. Drift is 1 - cosine of its embeddings from the dense model's,",
        "recall@10 the share of the ten nearest passages that stay, after training (means; seeds:",
        f"{of_seeds}). Times are medians; dense is torch's SDPA without a mask, and beside each",
        "sparse time stands how many times as fast that is, with a question mark where it varies",
        "by more than a quarter. Attention is that of all layers alone; fp32, no padding,",
        f"{tokens:,} tokens a call. Memory is the most that attention / the encoder allocates.",
        f"{values('processor')}, {mode}, torch {values('torch')}, commit {values('commit')}, "
        f"{values('date')}:",
    ]
