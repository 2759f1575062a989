"""The demo: a real encoder and real text; correct first, then the paper's claim, then times."""

from __future__ import annotations

import dataclasses
import functools
import platform
import time
from pathlib import Path
from typing import Any

import torch

from sparsebert.cli.demo import agreement, importance, text, timing
from sparsebert.cli.demo.encoder import MAX_LENGTH, Encoder, nearest
from sparsebert.cli.demo.figures import draw_importance, draw_times
from sparsebert.cli.demo.report import Report
from sparsebert.cli.demo.tables import Column
from sparsebert.cli.errors import CHECK_FAILED, OK, UsageError
from sparsebert.cli.plots import draw_panels
from sparsebert.masks import AttentionMask

_TIMED = ("star", "longformer", "fixed", "random")
_CORNER = 48  # tokens in the corner of a mask that is drawn large
_PASSAGE_WORDS = 600  # more than MAX_LENGTH tokens in any case


@dataclasses.dataclass(frozen=True)
class Settings:
    """The options of ``sparsebert demo``."""

    output: str
    sentences: int
    seeds: int
    lengths: tuple[int, ...]
    repeats: int


def run(settings: Settings) -> int:
    """Run the demo, print its report, and write it with its pictures to `settings.output`.

    Raises:
        UsageError: the encoder is not installed, or an option is out of range.
    """
    if min(settings.lengths) < 3 or max(settings.lengths) > MAX_LENGTH:
        given = " ".join(map(str, settings.lengths))
        raise UsageError(f"--lengths {given}: the encoder takes 3 to {MAX_LENGTH} tokens")
    if settings.sentences < 2:
        raise UsageError("--sentences 1: a nearest neighbour needs at least 2")
    started = time.perf_counter()
    encoder = Encoder()
    report = Report(Path(settings.output))
    masks = agreement.text_masks(MAX_LENGTH)

    sentences, dense = _dense(report, encoder, settings.sentences)
    passed = _agreement(report, encoder, masks)
    if passed:
        _importance(report, encoder, sentences, dense, settings.seeds)
        _times(report, encoder, {name: masks[name] for name in _TIMED}, settings)
    else:
        report.say("A sparse model differs from its reference, so nothing is measured on it.")

    seconds = time.perf_counter() - started
    about = "; ".join(f"{key} {value}" for key, value in timing.provenance().items() if value)
    page = report.write(f"# SparseBERT demo\n\n{about}; {seconds:.0f} seconds in all")
    print(f"\n{seconds:.0f} seconds. Report, tables and pictures: {page}")
    return OK if passed else CHECK_FAILED


def _dense(report: Report, encoder: Encoder, count: int) -> tuple[list[list[int]], torch.Tensor]:
    """Tokenized sentences and their embeddings by the untouched model."""
    report.title("1. Dense embeddings")
    every = text.sentences()
    token_ids = [encoder.token_ids(sentence) for sentence in every]
    chosen = importance.choose(token_ids, count)
    sentences = [token_ids[index] for index in chosen]
    dense = importance.embed(encoder, sentences, None)
    config = encoder.model.config
    report.say(
        f"all-MiniLM-L6-v2 ({config.num_hidden_layers} layers of {config.num_attention_heads} "
        f"heads) on {len(chosen)} of {len(every)} sentences from the documentation inside Python "
        f"{platform.python_version()}. The closest pairs:"
    )
    neighbours = nearest(dense)
    closeness = (dense * dense[neighbours]).sum(-1)
    lines = []
    for index in closeness.argsort(descending=True).tolist():
        other = int(neighbours[index])
        if index < other or int(neighbours[other]) != index:  # each pair once
            first, second = every[chosen[index]], every[chosen[other]]
            lines.append(f"- {closeness[index]:.2f}  {first}\n        {second}")
    report.say("\n".join(lines[:3]))
    return sentences, dense


def _agreement(report: Report, encoder: Encoder, masks: dict[str, AttentionMask]) -> bool:
    """Check every pattern; True if all are within their budgets."""
    report.title("2. Sparse models against their dense references")
    passages = text.passages(_PASSAGE_WORDS)
    one_long = encoder.pad([encoder.exactly(passages[0], MAX_LENGTH)])
    two_shorter = encoder.pad(
        [encoder.exactly(passages[1], 128), encoder.exactly(passages[2], 96)]
    )
    rows = agreement.check_patterns(encoder, masks, [one_long, two_shorter])
    report.say(
        f"Each pattern of {MAX_LENGTH} tokens is swapped in by sparsify, without any training, "
        f"and reads a text of {MAX_LENGTH} tokens, and one of 128 beside a padded one of 96. The "
        "reference is the same model with eager attention and a 4-D mask, in fp64. Budget: twice "
        "the larger error of eager attention and SDPA in fp32, plus one rounding step. Errors are "
        "root mean squares over all real tokens. The cosine "
        "is to the embeddings of the dense model."
    )
    columns = [
        Column("pattern", "pattern"),
        Column("diagonal", "diagonal"),
        Column("density", "allowed", _percent),
        Column("executed", "computed", _percent),
        Column("error", "rms error", _scientific),
        Column("budget", "budget", _scientific),
        Column("verdict", "verdict"),
        Column("similarity", "cosine", "{:.3f}".format),
    ]
    report.table(rows, columns)
    report.data(rows, "agreement.csv")
    report.picture(
        "masks.png",
        functools.partial(draw_panels, masks, f"The masks, {MAX_LENGTH} x {MAX_LENGTH} tokens"),
    )
    corners = {}
    for name, mask in masks.items():
        corners[name] = mask.crop(_CORNER)
        corners[f"{name}, no diagonal"] = mask.crop(_CORNER).without_diagonal()
    title = f"Their first {_CORNER} tokens, with and without the diagonal"
    report.picture("masks_corner.png", functools.partial(draw_panels, corners, title, columns=6))
    return all(row["verdict"] == "ok" for row in rows)


def _importance(
    report: Report,
    encoder: Encoder,
    sentences: list[list[int]],
    dense: torch.Tensor,
    seeds: int,
) -> None:
    report.title("3. Does the diagonal matter?")
    rows = importance.measure(encoder, sentences, dense, seeds)
    report.say(
        "Each row drops about as many positions as the sentence has tokens, in all layers and "
        "heads of the dense model, without any training. Moved: mean of 1 - cosine to the dense "
        "embedding. Changed: share of the sentences with another nearest neighbour than before."
    )
    averaged = importance.average_random(rows)
    columns = [
        Column("dropped", "dropped"),
        Column("moved", "moved", "{:.4f}".format),
        Column("moved_range", "lowest - highest", _range("{:.4f}")),
        Column("changed", "changed", _percent),
        Column("changed_range", "lowest - highest", _range("{:.1%}")),
    ]
    report.table(averaged, columns)
    report.say(importance.conclusion(averaged))
    report.data(rows, "importance.csv")
    report.picture("importance.png", functools.partial(draw_importance, rows))


def _times(
    report: Report, encoder: Encoder, masks: dict[str, AttentionMask], settings: Settings
) -> None:
    report.title("4. Times")
    passages = text.passages(_PASSAGE_WORDS)
    lengths = tuple(sorted(set(settings.lengths)))
    rows = timing.time_lengths(encoder, masks, passages, lengths, settings.repeats)
    report.say(
        f"Forward passes over {timing.TOKENS} tokens in all, in ms, medians of {settings.repeats} "
        f"interleaved runs on {rows[0]['threads']} thread(s) of {rows[0]['processor']}. Dense is "
        "PyTorch's SDPA without a mask. Below 1x the sparse one is slower; where all scores are "
        "computed, the plan has fallen back to dense attention."
    )
    columns = [
        Column("tokens", "tokens"),
        Column("texts", "texts"),
        Column("pattern", "pattern"),
        Column("executed", "computed", _percent),
        *(
            Column(f"{part}_{what}", f"{part if place == 0 else ''} {heading}".strip(), show)
            for part in ("encoder", "attention")
            for place, (what, heading, show) in enumerate(
                (
                    ("dense_ms", "dense", "{:.2f}".format),
                    ("sparse_ms", "sparse", "{:.2f}".format),
                    ("speedup", "ratio", "{:.2f}x".format),
                )
            )
        ),
    ]
    report.table(rows, columns)
    report.data(rows, "times.csv")
    report.picture("times.png", functools.partial(draw_times, rows))


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _scientific(value: float) -> str:
    return f"{value:.1e}"


def _range(form: str) -> Any:
    def show(ends: tuple[float, float]) -> str:
        low, high = (form.format(end) for end in ends)
        return "" if low == high else f"{low} - {high}"

    return show
