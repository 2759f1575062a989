"""The page and the plots of all rows, from these alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from benchmarks.learned_masks import learned_masks_plots as plots
from benchmarks.learned_masks.paired import Interval, difference
from benchmarks.learned_masks.protocol import (
    DAMS,
    DENSE,
    HAND_MADE,
    IMPORTANCE,
    LAMBDAS,
    SCORED,
    TARGET,
    WITHOUT,
    contenders,
    has_sparsity,
    row_file,
)
from sparsebert.dam.importance import GROUPS
from sparsebert.masks import AttentionMask
from sparsebert.masks.images import distinct_heads
from sparsebert.reporting.figures import draw_panels

_DRAWN = 0.9  # the sparsity of the masks that are shown
_HEADS = 6  # of a mask's first layer, that are

NUMBERS = (
    "loss", "accuracy", "recall_1", "recall_10", "swapped_in", "budget_loss", "budget_accuracy",
    "searched", "sparsity", "executed", "executed_sm90", "predicted", "predicted_sm90", "asked",
    "step", *(f"kept_{group}" for group in GROUPS), *GROUPS,
)  # fmt: skip

_TITLES = {
    "mlm": "Masked-language modelling at the paper's shape",
    "r8": "MiniLM fine-tuned on Reuters R8",
    **{
        f"embeddings-{n}": f"MiniLM's embeddings at N = {n}, without labels"
        for n in (128, 256, 512)
    },
}
_NOTES = {
    "embeddings": "The passages measured are of other texts than those of training; but topics of "
    "Python's documentation repeat one another: of their runs of 12 words three in ten are in "
    "both. ",
}
_PRICED = [name for name in DAMS if name.startswith(("DAM_u", "DAM_s"))]
_MEASURED = {
    "mlm": {"loss": "validation loss, nats a token"},
    "r8": {"loss": "test loss, nats a document", "accuracy": "accuracy"},
    "embeddings": {
        "loss": "drift, 1 - cosine",
        "recall_1": "nearest neighbour kept",
        "recall_10": "recall@10",
    },
}


def read_rows(path: Path) -> pd.DataFrame:
    """All rows, numbers as such; what a row does not have is NaN."""
    rows = pd.DataFrame(row_file(path).read())
    rows["seed"] = rows["seed"].astype(int)
    for name in NUMBERS:
        rows[name] = pd.to_numeric(rows[name])
    return rows


def write_report(folder: Path) -> Path:
    """Make learned_masks.md and its plots of the folder's learned_masks.csv; returns its path."""
    rows = read_rows(folder / "learned_masks.csv")
    path = folder / "learned_masks.md"
    path.write_text("\n".join(_page(rows, folder)) + "\n", encoding="utf-8")
    return path


def _page(rows: pd.DataFrame, folder: Path) -> Iterator[str]:
    yield "# Learned masks against all others, at equal sparsity"
    yield ""
    yield (
        "Made by `python -m benchmarks.learned_masks --report` from learned_masks.csv; the first "
        "lines of that script say what is compared and how. Every number is a mean over seeds "
        "with its 95 % interval (Student's t); differences are taken within seeds, so what a seed "
        "changes for all contenders alike is not in them."
    )
    for task, title in _TITLES.items():
        mine = rows[rows["task"] == task]
        if not mine.empty:
            yield from _section(mine, task, title, folder)


def _section(rows: pd.DataFrame, task: str, title: str, folder: Path) -> Iterator[str]:
    one = rows.iloc[0]
    yield f"\n## {title}\n"
    before = f"{one['dense_steps']} steps with dense attention first; " * bool(
        int(one["dense_steps"])
    )
    yield (
        f"N = {one['seq_len']}, batch {one['batch']}; {before}then {one['steps']} steps for every "
        f"contender, of which a search takes {one['search_steps']} in one budget"
        f"{_left(one)}. {_NOTES.get(task.partition('-')[0], '')}{_origins(rows)}"
    )
    priced = rows[rows["contender"].isin(_PRICED) & rows["executed_sm90"].notna()]
    # What is finished within a cost may be denser than was asked: it has a table of its own.
    every = rows
    rows = rows[~rows["contender"].isin([name for name in DAMS if DAMS[name].executed])]
    ended = rows[rows["contender"] != IMPORTANCE]
    yield "\n### The dense model, less some of every row\n"
    yield from _table(ended[ended["asked"].isna() & ~_is_lambda(ended)], ended, task)
    for asked in sorted(ended["asked"].dropna().unique()):
        yield f"\n### {asked:.0%} sparsity\n"
        yield from _table(ended[ended["asked"] == asked], ended, task)
    learned = ended[ended["contender"].isin(DAMS)]
    if not learned.empty:
        yield "\n### What the searches kept\n"
        yield from _kept(learned)
    if priced["contender"].nunique() > 1:
        yield "\n### What a penalty on tiles is worth\n"
        yield from _priced(priced, ended)
    if _is_lambda(ended).any():
        yield "\n### The paper's penalty weights\n"
        yield from _lambdas(ended)
    yield "\n### The paper's claims here\n"
    yield from _claims(rows, ended)
    yield from _not_run(every, task)
    for name, draw in plots.PLOTS.items():
        file = f"learned_masks_{task}_{name}.png"
        if draw(rows, folder / file, title):
            yield f"\n![{name.replace('_', ' ')}]({file})"
    for path in sorted((folder / "learned_masks").glob(f"{task}-*-{_DRAWN:g}-seed0.safetensors")):
        name = path.stem.removeprefix(f"{task}-").replace("_", " ")
        file = f"learned_masks_{path.stem}.png"
        mask = AttentionMask.load(path).layer(0)
        panels = dict(distinct_heads(mask)[:_HEADS])
        draw_panels(panels, f"{title}\n{name}, first layer", folder / file)
        yield f"\n![the mask of {name}]({file})"


def _left(row: pd.Series) -> str:
    left = int(row["steps"]) - int(row["search_steps"])
    return "" if left else " (none is left there: the mask is put into the dense model as it is)"


def _not_run(rows: pd.DataFrame, task: str) -> Iterator[str]:
    """What the tables lack, for each sparsity that has rows."""
    there = {(row.contender, row.asked) for row in rows.itertuples()}
    missing = []
    for asked in sorted(rows["asked"].dropna().unique()):
        names = [n for n in contenders(task) if has_sparsity(n) and (n, asked) not in there]
        missing += [f"at {asked:.0%}: {'; '.join(names)}"] * bool(names)
    others = set(rows["contender"])
    names = [n for n in contenders(task) if not has_sparsity(n) and n not in others | {IMPORTANCE}]
    missing += ["; ".join(names)] * bool(names)
    if missing:
        yield f"\nNot run yet {'. And '.join(missing)}."


def _is_lambda(rows: pd.DataFrame) -> pd.Series:
    return rows["contender"].str.startswith("lambda ")


def _origins(rows: pd.DataFrame) -> str:
    """Where the rows come from, in a sentence."""

    def values(column: str) -> str:
        return ", ".join(sorted(set(rows[column])))

    return (
        f"Rows of {values('date')} on {values('processor')}, torch {values('torch')}, "
        f"{values('precision')}, commit {values('commit')}."
    )


def by_seed(rows: pd.DataFrame, contender: str, column: str = "loss") -> dict[int, float]:
    """A contender's values, for each seed; rows are of one task and sparsity."""
    mine = rows[(rows["contender"] == contender) & rows[column].notna()]
    return dict(zip(mine["seed"], mine[column], strict=True))


def _table(rows: pd.DataFrame, all_rows: pd.DataFrame, task: str) -> Iterator[str]:
    """A line for each contender, by its mean difference from dense."""
    measured = _MEASURED[task.partition("-")[0]]
    dense = all_rows[all_rows["contender"] == DENSE]
    searched = rows["budget_loss"].notna().any()
    header = ["mask", "seeds", "sparsity", "computed", "predicted, CPU", *measured.values(),
              "loss above dense"]  # fmt: skip
    header += ["above dense, in one budget"] * bool(searched)
    yield f"| {' | '.join(header)} |"
    yield "|---" * len(header) + "|"
    lines = []
    for name, mine in rows.groupby("contender"):
        above = difference(by_seed(rows, name), by_seed(dense, DENSE))
        cells = [
            str(name),
            str(len(mine)),
            f"{mine['sparsity'].fillna(0.0).mean():.3f}",
            f"{mine['executed'].fillna(1.0).mean():.3f}",
            f"{mine['predicted'].fillna(1.0).mean():.1f}x",
            *(Interval.of(mine[column]).show() for column in measured),
            above.show(signed=True),
        ]
        if searched:
            within = by_seed(rows, name, "budget_loss")
            cells.append(difference(within, by_seed(dense, DENSE)).show(signed=True))
        lines.append((above.mean, f"| {' | '.join(cells)} |"))
    yield from (line for _, line in sorted(lines))


def _kept(rows: pd.DataFrame) -> Iterator[str]:
    header = ["mask", "asked", *(f"kept {group}" for group in GROUPS)]
    yield f"| {' | '.join(header)} |"
    yield "|---" * len(header) + "|"
    for (asked, name), mine in rows.groupby(["asked", "contender"]):
        kept = [Interval.of(mine[f"kept_{group}"]).show(3) for group in GROUPS]
        yield f"| {name} | {asked:.2f} | {' | '.join(kept)} |"


def _priced(rows: pd.DataFrame, all_rows: pd.DataFrame) -> Iterator[str]:
    """The paper's masks, without a price on tiles and with one, each beside its plain one."""
    dense = by_seed(all_rows, DENSE)
    yield (
        f"Share of the scores that plans compute which have tiles alone ({TARGET}, least area); "
        "and how many times less than the paper's mask does. The CPU's kernels take single "
        "positions, and compute what is in the tables above.\n"
    )
    yield "| mask | asked | seeds | zeros | computed in tiles | times less | loss above dense |"
    yield "|---|---|---|---|---|---|---|"
    for (asked, name), mine in rows.groupby(["asked", "contender"]):
        area, other = (
            by_seed(rows[rows["asked"] == asked], each, "executed_sm90")
            for each in (str(name), str(name).split(",")[0])
        )
        less = Interval.of(other[seed] / area[seed] for seed in area.keys() & other.keys())
        yield (
            f"| {name} | {asked:.0%} | {len(mine)} | {mine['sparsity'].mean():.3f} | "
            f"{Interval.of(mine['executed_sm90']).show(3)} | {less.show(2)} | "
            f"{difference(by_seed(mine, str(name)), dense).show(signed=True)} |"
        )


def _lambdas(rows: pd.DataFrame) -> Iterator[str]:
    yield "| lambda | seeds | sparsity | loss | loss above dense |"
    yield "|---|---|---|---|---|"
    dense = by_seed(rows, DENSE)
    for weight in LAMBDAS:
        mine = rows[rows["contender"] == f"lambda {weight:g}"]
        if not mine.empty:
            above = difference(by_seed(mine, f"lambda {weight:g}"), dense)
            yield (
                f"| {weight:g} | {len(mine)} | {Interval.of(mine['sparsity']).show(3)} | "
                f"{Interval.of(mine['loss']).show()} | {above.show(signed=True)} |"
            )


def _claims(rows: pd.DataFrame, ended: pd.DataFrame) -> Iterator[str]:
    """What the rows say of each of the paper's claims; nothing where they are too few."""
    last = rows[rows["contender"] == IMPORTANCE]
    if not last.empty:
        final = last[last["step"] == last["step"].max()]
        values = {group: Interval.of(final[group]) for group in GROUPS}
        order = sorted(values, key=lambda group: values[group].mean)
        shown = ", ".join(f"{group} {values[group].show(3)}" for group in order)
        verdict = "holds" if order[0] == "diagonal" else f"fails: the lowest is {order[0]}"
        yield f"* **The diagonal is least important** {verdict}. Final soft mask: {shown}."
    dense = by_seed(ended, DENSE)
    less = {name: difference(by_seed(ended, name), dense) for name in WITHOUT}
    shown = {name: f"{name} {it.show(signed=True)}" for name, it in less.items() if it.count}
    nothing = shown.pop("without others", None)
    if "without diagonal" in shown:
        verdict = {0: "cannot be told from 0", 1: "costs something", -1: "is even a gain"}
        yield (
            f"* **Dropping the diagonal costs nothing**: it "
            f"{verdict[less['without diagonal'].sign]}. Loss above dense: "
            f"{'; '.join(shown.values())}."
        )
    if nothing:
        yield f"* **What attention is worth here at all**: loss above dense {nothing}."
    for asked in sorted(ended["asked"].dropna().unique()):
        yield from _against_the_rest(ended[ended["asked"] == asked], asked, dense)


def _against_the_rest(
    rows: pd.DataFrame, asked: float, dense: Mapping[int, float]
) -> Iterator[str]:
    """The best learned mask by its mean against the hand-made ones and those of scores.

    Of the latter the start of its own search is one.
    """
    names = set(rows["contender"])
    above = {name: difference(by_seed(rows, name), dense) for name in names}
    learned = sorted((n for n in names if n in DAMS), key=lambda name: above[name].mean)
    if not learned:
        return
    best = learned[0]
    for what, family in (("hand-made", HAND_MADE), ("scored", SCORED)):
        others = sorted((n for n in names if n in family), key=lambda name: above[name].mean)
        if not others:
            continue
        each = {n: difference(by_seed(rows, best), by_seed(rows, n)) for n in others}
        touched = [n for n in others if above[n].low <= above[best].high]
        yield (
            f"* **Learned against {what}, {asked:.0%}**: {best} is clearly better than "
            f"{_count(each.values(), -1)} of {len(each)}, clearly worse than "
            f"{_count(each.values(), 1)}; from the best of them, {others[0]}, its loss differs by "
            f"{each[others[0]].show(signed=True)}. Its interval above dense reaches "
            f"{_reached(touched)}."
        )
    within = by_seed(rows, best, "budget_loss")
    made = sorted((n for n in names if n in HAND_MADE), key=lambda name: above[name].mean)
    if within and made:
        yield (
            f"* **In one budget, {asked:.0%}**: with its search inside the same number of steps, "
            f"{best} differs from {made[0]}, which trains in all of them, by "
            f"{difference(within, by_seed(rows, made[0])).show(signed=True)}."
        )


def _reached(names: Sequence[str]) -> str:
    return f"those of {'; '.join(names)}" if names else "none of theirs"


def _count(intervals: Iterable[Interval], sign: int) -> int:
    return sum(interval.sign == sign for interval in intervals)
