"""The demo and its report: correct first, then the paper's claim, then times."""

from __future__ import annotations

import dataclasses
import functools
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sparsebert.backends.routing import planned_for
from sparsebert.compiler.cost.model import cost_model
from sparsebert.demo import agreement, dropped_positions, encoder_times, text
from sparsebert.demo.demo_figures import draw_importance, draw_times
from sparsebert.demo.encoder import MAX_LENGTH, Encoder, nearest
from sparsebert.masks import AttentionMask
from sparsebert.reporting.figures import draw_panels
from sparsebert.reporting.pages import Page
from sparsebert.reporting.provenance import in_words, provenance
from sparsebert.reporting.tables import Column
from sparsebert.reporting.timing import FEWEST, own_clock, uncertain_words

_TIMED = ("star", "longformer", "fixed", "random")
_UNTIL = {"agreement": 0.5, "importance": 0.75, "times": 1.0}  # shares of the limit, in turn
_LONGEST = 4096
_CORNER = 48  # tokens in the corner of a mask that is drawn large
_PASSAGE_WORDS = 600  # more than MAX_LENGTH tokens in any case


@dataclasses.dataclass(frozen=True)
class Settings:
    """The options of ``sparsebert demo``.

    Raises:
        ValueError: a length that cannot be timed, or fewer than two sentences.
    """

    output: str
    sentences: int
    seeds: int
    lengths: tuple[int, ...]
    repeats: int
    limit: float

    def __post_init__(self) -> None:
        if min(self.lengths) < 3 or max(self.lengths) > _LONGEST:
            given = " ".join(map(str, self.lengths))
            raise ValueError(f"demo: lengths={given} but from 3 to {_LONGEST} tokens can be timed")
        if self.sentences < 2:
            raise ValueError(
                f"demo: sentences={self.sentences} but a nearest neighbour needs at least 2"
            )


def run(settings: Settings, machine: str = "") -> bool:
    """Run the demo, print its report, and write it with its pictures to `settings.output`.

    `machine` are words on the load of the machine. Returns whether all agreed with the reference.

    Raises:
        ModuleNotFoundError: the encoder or matplotlib is not installed.
        OSError: the output cannot be written.
    """
    started = time.perf_counter()

    def left(part: str) -> float:
        """Seconds for a part, if those before it took what they were allowed or less."""
        return max(0.0, started + _UNTIL[part] * settings.limit - time.perf_counter())

    encoder = Encoder()
    page = Page(Path(settings.output))
    if machine:
        page.say(machine)
    masks = agreement.text_masks(MAX_LENGTH)

    sentences, dense = _dense(page, encoder, settings.sentences)
    checked = _agreement(page, encoder, masks, left("agreement"), settings)
    passed = agreement.FAILED not in checked.values()
    if passed:
        _importance(page, encoder, sentences, dense, settings, left("importance"))
        longer = agreement.text_masks(max(settings.lengths))
        timed = {name: longer[name] for name in _TIMED if checked[name, "kept"] == agreement.OK}
        _times(page, encoder, timed, settings, left("times"))
    else:
        page.say("A sparse model differs from its reference, so nothing is measured on it.")

    seconds = time.perf_counter() - started
    about = in_words({"python": platform.python_version(), **provenance("cpu")})
    path = page.write(f"# SparseBERT demo\n\n{about}; {seconds:.0f} seconds in all")
    print(f"\n{seconds:.0f} seconds. Report, tables and pictures: {path}")
    return passed


def _dense(page: Page, encoder: Encoder, count: int) -> tuple[list[list[int]], torch.Tensor]:
    """Tokenized sentences and their embeddings by the untouched model."""
    page.title("1. Dense embeddings")
    every = text.sentences()
    token_ids = [encoder.token_ids(sentence) for sentence in every]
    chosen = dropped_positions.choose(token_ids, count)
    sentences = [token_ids[index] for index in chosen]
    dense = dropped_positions.embed(encoder, sentences, None)
    config = encoder.model.config
    page.say(
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
    page.say("\n".join(lines[:3]))
    return sentences, dense


def _agreement(
    page: Page,
    encoder: Encoder,
    masks: dict[str, AttentionMask],
    seconds: float,
    settings: Settings,
) -> dict[tuple[str, str], str]:
    """Check the patterns, as many as there is time for; the verdict on each, by its diagonal."""
    page.title("2. Sparse models against their dense references")
    passages = text.passages(_PASSAGE_WORDS)
    one_long = encoder.pad([encoder.exactly(passages[0], MAX_LENGTH)])
    two_shorter = encoder.pad(
        [encoder.exactly(passages[1], 128), encoder.exactly(passages[2], 96)]
    )
    rows = agreement.check_patterns(encoder, masks, [one_long, two_shorter], seconds, _TIMED)
    page.say(
        f"Each pattern of {MAX_LENGTH} tokens is swapped in by sparsify, without any training, "
        f"and reads a text of {MAX_LENGTH} tokens, and one of 128 beside a padded one of 96, with "
        f"backend={agreement.BACKEND!r}: all in tiles. The "
        "reference is the same model with eager attention and a 4-D mask, in fp64. Budget: twice "
        "the larger error of eager attention and SDPA in fp32, plus one rounding step. Errors are "
        "root mean squares over all real tokens. The cosine "
        "is to the embeddings of the dense model."
    )
    columns = [
        Column("pattern", "pattern"),
        Column("diagonal", "diagonal"),
        Column("density", "allowed", _percent),
        Column("executed", "in tiles", _known(_percent)),
        Column("error", "rms error", _known(_scientific)),
        Column("budget", "budget", _known(_scientific)),
        Column("verdict", "verdict"),
        Column("similarity", "cosine", _known("{:.3f}".format)),
        Column("predicted", "predicted", _known("{:.2f}x".format)),
        Column("route", "plan", _known(str)),
    ]
    page.table(rows, columns)
    page.say(_routes(rows))
    missing = sum(row["verdict"] == agreement.NOT_CHECKED for row in rows)
    if missing:
        page.say(
            f"**{missing} of {len(rows)} masks were not checked: there was no time for them "
            f"within --limit {settings.limit:g}. What is timed below was.**"
        )
    page.data(rows, "agreement.csv")
    page.picture(
        "masks.png",
        functools.partial(draw_panels, masks, f"The masks, {MAX_LENGTH} x {MAX_LENGTH} tokens"),
    )
    corners = {}
    for name, mask in masks.items():
        corners[name] = mask.crop(_CORNER)
        corners[f"{name}, no diagonal"] = mask.crop(_CORNER).without_diagonal()
    title = f"Their first {_CORNER} tokens, with and without the diagonal"
    page.picture("masks_corner.png", functools.partial(draw_panels, corners, title, columns=6))
    return {(row["pattern"], row["diagonal"]): row["verdict"] for row in rows}


def _routes(rows: list[dict[str, Any]]) -> str:
    """Why some patterns would run dense although their tiles are right."""
    routes = [row["route"] for row in rows if row["route"]]
    margin = cost_model("cpu", backend=planned_for("cpu")).margin
    threads = torch.get_num_threads()
    words = (
        "In tiles: the share of all scores that the tiles compute. Predicted: the cost model's "
        f"speed-up of the tiles over dense attention at {MAX_LENGTH} tokens on {threads} "
        f"thread(s); below {margin:g}x the plan is dense."
    )
    if "dense" in routes:
        words += (
            f" So {routes.count('dense')} of these {len(routes)} masks would run dense here. "
            "Longer texts gain more (part 4)."
        )
    return words


def _importance(
    page: Page,
    encoder: Encoder,
    sentences: list[list[int]],
    dense: torch.Tensor,
    settings: Settings,
    seconds: float,
) -> None:
    page.title("3. Does the diagonal matter?")
    rows = dropped_positions.measure(encoder, sentences, dense, settings.seeds, seconds)
    if rows[0]["sentences"] < len(sentences):
        page.say(
            f"**On {rows[0]['sentences']} of the {len(sentences)} sentences: there was no time "
            f"for more within --limit {settings.limit:g}.**"
        )
    page.say(
        "Each row drops about as many positions as the sentence has tokens, in all layers and "
        "heads of the dense model, without any training. Moved: mean of 1 - cosine to the dense "
        "embedding. Changed: share of the sentences with another nearest neighbour than before."
    )
    averaged = dropped_positions.average_random(rows)
    columns = [
        Column("dropped", "dropped"),
        Column("moved", "moved", "{:.4f}".format),
        Column("moved_range", "lowest - highest", _range("{:.4f}")),
        Column("changed", "changed", _percent),
        Column("changed_range", "lowest - highest", _range("{:.1%}")),
    ]
    page.table(averaged, columns)
    page.say(dropped_positions.conclusion(averaged))
    page.data(rows, "importance.csv")
    page.picture("importance.png", functools.partial(draw_importance, rows))


def _times(
    page: Page,
    encoder: Encoder,
    masks: dict[str, AttentionMask],
    settings: Settings,
    seconds: float,
) -> None:
    page.title("4. Times")
    passages = text.passages(_PASSAGE_WORDS)
    lengths = tuple(sorted(set(settings.lengths)))
    rows = encoder_times.time_lengths(encoder, masks, passages, lengths, settings.repeats, seconds)
    rounds = [row[f"{part}_speedup"].rounds for row in rows for part in encoder_times.PARTS]
    times = f"{min(rounds)} to {max(rounds)}" if min(rounds) < max(rounds) else str(rounds[0])
    _, clock = own_clock()
    about = (
        f"Forward passes over {encoder_times.TOKENS} tokens or one longer text, {clock} in ms, "
        f"medians of {times} interleaved runs on {rows[0]['threads']} thread(s) of "
        f"{rows[0]['processor']}. Dense is PyTorch's SDPA without a mask; below 1x the sparse one "
        "is slower. Computed: the share of the scores; where tiles are predicted to win too "
        "little, the plan runs dense, with the mask, which costs SDPA more than none."
    )
    if max(lengths) > MAX_LENGTH:
        about += (
            f" Beyond its {MAX_LENGTH} tokens the encoder repeats its positions: the embeddings "
            "are of no use then, the times are right."
        )
    page.say(about)
    columns = [
        Column("tokens", "tokens"),
        Column("texts", "texts"),
        Column("pattern", "pattern"),
        Column("executed", "computed", lambda share: "dense" if share == 1 else f"{share:.1%}"),
        *(
            Column(f"{part}_{what}", f"{part if place == 0 else ''} {heading}".strip(), show)
            for part in encoder_times.PARTS
            for place, (what, heading, show) in enumerate(
                (
                    ("dense_ms", "dense", lambda spread: spread.brief("{:.2f}")),
                    ("sparse_ms", "sparse", lambda spread: spread.brief("{:.2f}")),
                    ("speedup", "ratio", lambda spread: spread.show("{:.2f}x")),
                )
            )
        ),
    ]
    page.table(rows, columns)
    if min(rounds) < min(FEWEST, settings.repeats):
        page.say(
            f"**Some were run less than {FEWEST} times: there was no time for more within "
            f"--limit {settings.limit:g}.**"
        )
    doubts = uncertain_words(
        row[f"{part}_speedup"] for row in rows for part in encoder_times.PARTS
    )
    if doubts:
        page.say(doubts)
    page.say(_begins(rows))
    page.data(rows, "times.csv")
    page.picture("times.png", functools.partial(draw_times, rows))


def _begins(rows: list[dict[str, Any]]) -> str:
    """From which length on each pattern runs in tiles, and is faster."""
    words = []
    for pattern in dict.fromkeys(row["pattern"] for row in rows):
        of_pattern = [row for row in rows if row["pattern"] == pattern]
        tiled = [row["tokens"] for row in of_pattern if row["route"] == "tiles"]
        faster = [
            row["tokens"]
            for row in of_pattern
            if row["attention_speedup"].low > 1.0 and row["attention_speedup"].rounds >= FEWEST
        ]
        begins = f"in tiles from {min(tiled)} tokens on" if tiled else "dense at all lengths"
        gains = (
            f"clearly faster at {', '.join(map(str, faster))}"
            if faster
            else "clearly faster at none"
        )
        words.append(f"{pattern} {begins}, {gains}")
    return f"Where sparse attention begins to pay here: {'; '.join(words)}."


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _scientific(value: float) -> str:
    return f"{value:.1e}"


def _known(show: Callable[[Any], str]) -> Callable[[Any], str]:
    """The same, and nothing for what is not known."""
    return lambda value: "" if value is None else show(value)


def _range(form: str) -> Any:
    def show(ends: tuple[float, float]) -> str:
        low, high = (form.format(end) for end in ends)
        return "" if low == high else f"{low} - {high}"

    return show
