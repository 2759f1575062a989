"""``sparsebert learn`` from the text to the report."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from sparsebert.learn import sources, speed, training
from sparsebert.learn.comparison import comparison
from sparsebert.learn.conclusion import conclusion
from sparsebert.learn.data import MaskedText
from sparsebert.learn.disk import explained
from sparsebert.learn.handmade import pattern_at_sparsity
from sparsebert.learn.learn_report import Facts, write_report
from sparsebert.learn.phases import DENSE, LEARNED, MASK, Data, Phases, history_rows
from sparsebert.learn.planted import PlantedTask
from sparsebert.learn.run_folder import claim
from sparsebert.learn.settings import ATTENTION, PLANTED, Settings
from sparsebert.masks import AttentionMask
from sparsebert.reporting.provenance import in_words, provenance
from sparsebert.reporting.tables import write_csv

_ROUNDS, _SECONDS = 30, 10.0  # of the timings; what comes first ends them


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Where the report is, and what it comes to."""

    page: Path
    conclusion: str


def run(settings: Settings, folder: Path, machine: str = "") -> Outcome:
    """Learn a mask, compare it, and write everything to `folder`; go on where it was left.

    `machine` are words on the load of the machine, for the report.

    Raises:
        FileNotFoundError, ValueError: unusable input, or a folder with another run.
        OSError: the disk is full; the next call goes on.
        KeyboardInterrupt: the user stopped it; the next call goes on.
    """
    training.quieten_transformers()
    if settings.model is not None and not Path(settings.model).is_dir():
        raise FileNotFoundError(
            f"learn: no model folder {settings.model!r}; give one that save_pretrained "
            "wrote, with its tokenizer (nothing is downloaded)"
        )
    text, where = ("", "") if settings.task == PLANTED else _read(settings)
    with explained(folder):
        claim(folder, settings, text)
        return _run(settings, folder, machine, text, where)


def _run(settings: Settings, folder: Path, machine: str, text: str, where: str) -> Outcome:
    started = time.perf_counter()
    phases = Phases(settings, folder)
    data: Data
    if settings.task == PLANTED:
        data = task = phases.planted()
        guessing, what = task.guessing, str(task)
    else:
        data = found = phases.data(text, where)
        guessing, what = training.frequency_loss(found), found.about(where, len(text))
    heads, head_dim = phases.attention_shape()
    hand_made, refused = _hand_made(settings, heads)

    phases.count = 4 + len(hand_made) + (ATTENTION in settings.against)
    dense_losses, dense_history = phases.dense(data)
    search = phases.search(data)
    search.mask.save(folder / MASK)
    masks = {LEARNED: search.mask, **hand_made}
    if ATTENTION in settings.against:
        masks[ATTENTION] = phases.most_attended(data)
    tuned = {DENSE: phases.tune(DENSE, None, data)}
    for name, mask in masks.items():
        tuned[name] = phases.tune(name, mask, data)

    calls = speed.Calls(settings.batch_size, heads, head_dim)
    print("timing attention with each mask, and the encoder", file=sys.stderr, flush=True)
    times = speed.measured(masks, calls, most=_ROUNDS, seconds=_SECONDS)
    tokens = data.training_set(settings.batch_size).batch(range(settings.batch_size))["input_ids"]
    encoder = speed.encoder(
        phases.dense_model(), search.mask, tokens, most=_ROUNDS, seconds=_SECONDS
    )
    rows = comparison(masks, tuned, times, calls, guessing)
    histories = {
        "dense": dense_history,
        "search": search.history,
        **{f"tune-{name}": each.history for name, each in tuned.items()},
    }
    write_csv(history_rows(histories), folder / "history.csv")
    write_csv(rows, folder / "comparison.csv")
    about = in_words(provenance())
    about += f"; {machine}" * bool(machine)
    seconds = time.perf_counter() - started
    words = conclusion(
        rows, encoder, guessing=guessing, model=str(folder / "model"),
        planted=None if isinstance(data, MaskedText) else _planted(data, masks),
    )  # fmt: skip
    page = write_report(
        folder,
        Facts(
            settings=settings,
            about=f"{about}; {seconds:.0f} seconds (of the last start)",
            data=what,
            validated=len(data.validation),
            search=search,
            trained=dense_losses,
            guessing=guessing,
            tuned=tuned,
            rows=rows,
            encoder=encoder,
            refused=refused,
            histories=histories,
            heads=(heads, head_dim),
            conclusion=words,
        ),
    )
    return Outcome(page, words)


def _planted(task: PlantedTask, masks: Mapping[str, AttentionMask]) -> dict[str, float]:
    return {name: task.kept(mask) for name, mask in masks.items()}


def _read(settings: Settings) -> tuple[str, str]:
    """The text, and what it is."""
    if settings.text is not None:
        return sources.text_of_file(settings.text), settings.text
    if settings.csv is not None:
        return sources.text_of_csv(settings.csv, settings.column), settings.csv
    if settings.dataset is not None:
        return sources.text_of_dataset(settings.dataset, settings.column), settings.dataset
    return sources.python_text(), "Python's own documentation"


def _hand_made(settings: Settings, heads: int) -> tuple[dict[str, AttentionMask], dict[str, str]]:
    """The hand-made masks that are as sparse as asked, and why the others are not there."""
    masks, refused = {}, {}
    for name in settings.against:
        if name == ATTENTION:
            continue
        try:
            masks[name] = pattern_at_sparsity(
                name, settings.seq_len, settings.sparsity, num_heads=heads, seed=settings.seed
            )
        except ValueError as error:
            refused[name] = str(error)
    return masks, refused
