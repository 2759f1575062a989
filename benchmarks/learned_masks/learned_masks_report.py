"""Tables and plots of all seeds, from their rows alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.learned_masks.protocol import DAMS, DENSE, IMPORTANCE, START, row_file
from sparsebert.dam.importance import GROUPS
from sparsebert.reporting.figures import new_figure, save_figure, without_frame

Rows = Sequence[Mapping[str, str]]


def write_report(folder: Path) -> Path:
    """Make learned_masks.md and its plots of the folder's learned_masks.csv; returns its path."""
    rows = row_file(folder / "learned_masks.csv").read()
    draw_importance(rows, folder / "learned_masks_importance.png")
    draw_losses(rows, folder / "learned_masks_loss.png")
    path = folder / "learned_masks.md"
    path.write_text("\n".join(_page(rows)) + "\n", encoding="utf-8")
    return path


def _page(rows: Rows) -> list[str]:
    one = rows[0]
    seeds = {row["seed"] for row in rows}
    start = [float(row["loss"]) for row in rows if row["contender"] == START]
    return [
        "# Learned and hand-made masks at equal sparsity",
        "",
        "Made by `python -m benchmarks.learned_masks --report` from learned_masks.csv; the first",
        "lines of the script say what is compared. A small experiment on a CPU, not the paper's",
        "BERT-base.",
        "",
        f"{len(seeds)} seeds; ModernBERT with {one['layers']} layers, {one['heads']} heads, width "
        f"{one['hidden']}, N = {one['seq_len']}, batch {one['batch']}, vocabulary {one['vocab']}; "
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


def mean_and_spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    if len(values) < 2:
        return f"{values[0]:.4f}"
    return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"


def _of_seeds_with_dense(rows: Rows) -> dict[str, list[Mapping[str, str]]]:
    """The rows of each contender that ended with a loss, of seeds that have one without a mask."""
    seeds = {row["seed"] for row in rows if row["contender"] == DENSE}
    found: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        if row["contender"] not in (START, IMPORTANCE) and row["seed"] in seeds:
            found.setdefault(row["contender"], []).append(row)
    return found


def more_than_dense(rows: Rows) -> dict[str, list[float]]:
    """The loss of each contender above that of dense attention, seed by seed."""
    contenders = _of_seeds_with_dense(rows)
    dense = {row["seed"]: float(row["loss"]) for row in contenders.get(DENSE, ())}
    return {
        name: [float(row["loss"]) - dense[row["seed"]] for row in mine]
        for name, mine in contenders.items()
    }


def loss_table(rows: Rows) -> list[str]:
    """A line for each contender, by loss; differences are from dense, seed by seed."""
    contenders = _of_seeds_with_dense(rows)

    def mean(name: str, column: str) -> float:
        return statistics.fmean(float(row[column]) for row in contenders[name])

    more = more_than_dense(rows)

    lines = [
        "| mask | sparsity | executed | validation loss | more than dense |",
        "|---|---|---|---|---|",
    ]
    for name in sorted(contenders, key=lambda name: mean(name, "loss")):
        losses = [float(row["loss"]) for row in contenders[name]]
        lines.append(
            f"| {name} | {mean(name, 'sparsity'):.3f} | {mean(name, 'executed'):.3f} | "
            f"{mean_and_spread(losses)} | {mean_and_spread(more[name])} |"
        )
    return lines


def search_table(rows: Rows) -> list[str]:
    """The losses of the search itself; and what kinds of positions were kept."""
    lines = [
        "| search | soft mask | hard mask | one budget | "
        + " | ".join(f"kept {group}" for group in GROUPS)
        + " |",
        "|---|---|---|---|" + "---|" * len(GROUPS),
    ]
    for name in DAMS:
        mine = [row for row in rows if row["contender"] == name]
        if mine:
            cells = [
                mean_and_spread([float(row[c]) for row in mine])
                for c in (
                    "soft_loss",
                    "hard_loss",
                    "budget_loss",
                    *(f"kept_{group}" for group in GROUPS),
                )
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def draw_importance(rows: Rows, path: Path) -> None:
    """The four groups over the steps of the soft-mask run; thin lines are seeds."""
    figure = new_figure(6.0, 3.8)
    axis = figure.subplots()
    mine = [row for row in rows if row["contender"] == IMPORTANCE]
    seeds = sorted({row["seed"] for row in mine})
    for number, group in enumerate(GROUPS):
        curves = [[float(r[group]) for r in mine if r["seed"] == seed] for seed in seeds]
        steps = [int(row["step"]) for row in mine if row["seed"] == seeds[0]]
        for curve in curves:
            axis.plot(steps, curve, color=f"C{number}", linewidth=0.6, alpha=0.6)
        mean = [statistics.fmean(point) for point in zip(*curves, strict=True)]
        axis.plot(steps, mean, color=f"C{number}", linewidth=2.0, label=group)
    axis.set_ylabel("mean of P = sigmoid(alpha)", fontsize=9)
    axis.set_title(f"Importance of positions, {len(seeds)} seeds")
    axis.legend(frameon=False)
    without_frame(axis, "training step")
    save_figure(figure, path)


def draw_losses(rows: Rows, path: Path) -> None:
    """Validation loss beyond dense of every contender, one dot a seed."""
    more = more_than_dense(rows)
    del more[DENSE]
    names = sorted(more, key=lambda name: -statistics.fmean(more[name]))
    figure = new_figure(7.0, 4.6)
    axis = figure.subplots()
    for place, name in enumerate(names):
        color = "C0" if name in DAMS else "C7" if name.startswith(DENSE) else "C1"
        axis.barh(place, statistics.fmean(more[name]), color=color, alpha=0.55)
        axis.plot(more[name], [place] * len(more[name]), "o", color=color, markersize=4)
    axis.set_yticks(range(len(names)), names)
    axis.axvline(0.0, color="black", linewidth=0.8)
    axis.set_title("Learned (blue) and hand-made (orange) masks at equal sparsity")
    without_frame(axis, "validation loss above dense attention (nats a token; dots: seeds)")
    save_figure(figure, path)
