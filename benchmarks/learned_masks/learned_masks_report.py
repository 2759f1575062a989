"""Tables and plots of all seeds, from their rows alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from benchmarks.learned_masks.protocol import DAMS, DENSE, IMPORTANCE, START, row_file
from sparsebert.dam.importance import GROUPS
from sparsebert.reporting.figures import new_figure, save_figure, without_frame


def write_report(folder: Path) -> Path:
    """Make learned_masks.md and its plots of the folder's learned_masks.csv; returns its path."""
    rows = pd.DataFrame(row_file(folder / "learned_masks.csv").read())
    draw_importance(rows, folder / "learned_masks_importance.png")
    draw_losses(rows, folder / "learned_masks_loss.png")
    path = folder / "learned_masks.md"
    path.write_text("\n".join(_page(rows)) + "\n", encoding="utf-8")
    return path


def _page(rows: pd.DataFrame) -> list[str]:
    one = rows.iloc[0]
    start = rows[rows["contender"] == START]["loss"].astype(float)
    return [
        "# Learned and hand-made masks at equal sparsity",
        "",
        "Made by `python -m benchmarks.learned_masks --report` from learned_masks.csv; the first",
        "lines of the script say what is compared. A small experiment on a CPU, not the paper's",
        "BERT-base.",
        "",
        f"{rows['seed'].nunique()} seeds; ModernBERT with {one['layers']} layers, "
        f"{one['heads']} heads, width {one['hidden']}, N = {one['seq_len']}, "
        f"batch {one['batch']}, vocabulary {one['vocab']}; "
        f"{one['dense_steps']} steps with dense attention (loss then {mean_and_spread(start)}), "
        f"{one['search_steps']} steps of search, {one['fixed_steps']} with the mask fixed. Means "
        "and standard deviations over seeds; losses in nats a token. "
        f"torch {one['torch']}, {one['processor']}, commit {one['commit']}, {one['date']}.",
        "",
        *loss_table(rows),
        "",
        'Executed: share of the scores that the mask\'s plan computes (objective "area").',
        "",
        "## The search itself",
        "",
        *search_table(rows),
        "",
        "Losses after the search with the soft and with the hard mask, and after the rest of one",
        "budget with the hard mask. Kept: share of each group's positions that the mask keeps.",
        "",
        "![Loss above dense](learned_masks_loss.png)",
        "",
        "![Importance over the training](learned_masks_importance.png)",
    ]


def mean_and_spread(values: Iterable[float]) -> str:
    """Mean and standard deviation over seeds."""
    values = list(values)
    if len(values) < 2:
        return f"{values[0]:.4f}"
    return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"


def losses(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows that ended with a loss, and how much `more` it is than that seed's without a mask."""
    dense = rows[rows["contender"] == DENSE].set_index("seed")["loss"].astype(float)
    ended = ~rows["contender"].isin((START, IMPORTANCE)) & rows["seed"].isin(dense.index)
    kept = rows[ended].astype(dict.fromkeys(("loss", "sparsity", "executed"), float))
    return kept.assign(more=kept["loss"] - kept["seed"].map(dense))


def loss_table(rows: pd.DataFrame) -> list[str]:
    """A line for each contender, by loss; differences are from dense, seed by seed."""
    by_name = losses(rows).groupby("contender")
    order = by_name["loss"].mean().sort_values().index
    cells = by_name.agg(
        {"sparsity": "mean", "executed": "mean", "loss": mean_and_spread, "more": mean_and_spread}
    )
    return [
        "| mask | sparsity | executed | validation loss | more than dense |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {sparsity:.3f} | {executed:.3f} | {loss} | {more} |"
            for name, sparsity, executed, loss, more in cells.loc[order].itertuples()
        ),
    ]


def search_table(rows: pd.DataFrame) -> list[str]:
    """The losses of the search itself; and what kinds of positions were kept."""
    columns = ["soft_loss", "hard_loss", "budget_loss", *(f"kept_{group}" for group in GROUPS)]
    mine = rows[rows["contender"].isin(DAMS)].astype(dict.fromkeys(columns, float))
    cells = mine.groupby("contender")[columns].agg(mean_and_spread)
    header = ["search", "soft mask", "hard mask", "one budget", *(f"kept {g}" for g in GROUPS)]
    return [
        f"| {' | '.join(header)} |",
        "|---" * len(header) + "|",
        *(f"| {name} | {' | '.join(cells.loc[name])} |" for name in DAMS if name in cells.index),
    ]


def draw_importance(rows: pd.DataFrame, path: Path) -> None:
    """The four groups over the steps of the soft-mask run; thin lines are seeds."""
    figure = new_figure(6.0, 3.8)
    axis = figure.subplots()
    mine = rows[rows["contender"] == IMPORTANCE].astype({"step": int})
    for number, group in enumerate(GROUPS):
        curves = mine.pivot(index="step", columns="seed", values=group).astype(float)
        axis.plot(curves, color=f"C{number}", linewidth=0.6, alpha=0.6)
        axis.plot(curves.mean(axis=1), color=f"C{number}", linewidth=2.0, label=group)
    axis.set_ylabel("mean of P = sigmoid(alpha)", fontsize=9)
    axis.set_title(f"Importance of positions, {mine['seed'].nunique()} seeds")
    axis.legend(frameon=False)
    without_frame(axis, "training step")
    save_figure(figure, path)


def draw_losses(rows: pd.DataFrame, path: Path) -> None:
    """Validation loss beyond dense of every contender, one dot a seed."""
    by_name = losses(rows).query("contender != @DENSE").groupby("contender")
    names = by_name["more"].mean().sort_values(ascending=False)
    figure = new_figure(7.0, 4.6)
    axis = figure.subplots()
    for place, (name, mean) in enumerate(names.items()):
        more = by_name.get_group(name)["more"]
        color = "C0" if name in DAMS else "C7" if name.startswith(DENSE) else "C1"
        axis.barh(place, mean, color=color, alpha=0.55)
        axis.plot(more, [place] * len(more), "o", color=color, markersize=4)
    axis.set_yticks(range(len(names)), names.index)
    axis.axvline(0.0, color="black", linewidth=0.8)
    axis.set_title("Learned (blue) and hand-made (orange) masks at equal sparsity")
    without_frame(axis, "validation loss above dense attention (nats a token; dots: seeds)")
    save_figure(figure, path)
