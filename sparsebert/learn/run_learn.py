"""``sparsebert learn`` from the text to the report."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from sparsebert.learn import sources, speed, training
from sparsebert.learn.comparison import comparison
from sparsebert.learn.handmade import pattern_at_sparsity
from sparsebert.learn.learn_report import Facts, write_report
from sparsebert.learn.phases import DENSE, LEARNED, MASK, Phases, history_rows
from sparsebert.learn.run_folder import claim
from sparsebert.learn.settings import Settings
from sparsebert.masks import AttentionMask
from sparsebert.reporting.provenance import in_words, provenance
from sparsebert.reporting.tables import write_csv

_ROUNDS, _SECONDS = 30, 20.0  # of the timings; what comes first ends them


def run(settings: Settings, folder: Path, machine: str = "") -> Path:
    """Learn a mask, compare it, and write everything to `folder`; go on where it was left.

    `machine` are words on the load of the machine, for the report. Returns the report's path.

    Raises:
        FileNotFoundError, ValueError: unusable input, or a folder with another run.
        KeyboardInterrupt: the user stopped it; the next call goes on.
    """
    started = time.perf_counter()
    training.quieten_transformers()
    if settings.model is not None and not Path(settings.model).is_dir():
        raise FileNotFoundError(
            f"learn: no model folder {settings.model!r}; give one that save_pretrained "
            "wrote, with its tokenizer (nothing is downloaded)"
        )
    text, where = _read(settings)
    claim(folder, settings, text)
    phases = Phases(settings, folder)
    data = phases.data(text, where)
    heads, head_dim = phases.attention_shape()
    hand_made, refused = _hand_made(settings, heads)

    phases.count = 4 + len(hand_made)
    dense_losses, dense_history = phases.dense(data)
    search = phases.search(data)
    search.mask.save(folder / MASK)
    masks = {LEARNED: search.mask, **hand_made}
    tuned = {DENSE: phases.tune(DENSE, None, data)}
    for name, mask in masks.items():
        tuned[name] = phases.tune(name, mask, data)

    calls = speed.Calls(settings.batch_size, heads, head_dim)
    print("timing attention with each mask", file=sys.stderr, flush=True)
    times = speed.measured(masks, calls, most=_ROUNDS, seconds=_SECONDS)
    rows = comparison(masks, tuned, times, calls)
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
    return write_report(
        folder,
        Facts(
            settings=settings,
            about=f"{about}; {seconds:.0f} seconds (of the last start)",
            text=f"{where}, {len(text) / 1e6:.2f} million characters, "
            f"{len(data.train)} blocks for training and {len(data.validation)} for validation",
            search=search,
            trained=dense_losses,
            by_frequency=training.frequency_loss(data),
            tuned=tuned,
            rows=rows,
            refused=refused,
            histories=histories,
            heads=(heads, head_dim),
        ),
    )


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
        try:
            masks[name] = pattern_at_sparsity(
                name, settings.seq_len, settings.sparsity, num_heads=heads, seed=settings.seed
            )
        except ValueError as error:
            refused[name] = str(error)
    return masks, refused
