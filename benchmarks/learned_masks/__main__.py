"""Do learned masks beat hand-made ones at equal sparsity? Masked-language modelling, small model.

    python -m benchmarks.learned_masks --seed 0      # one seed, resumable; repeat with others
    python -m benchmarks.learned_masks --report      # tables and plots of all seeds so far

For each seed a small ModernBERT is trained on real text, Python's own English, with dense
attention. (Rotary positions, no windows of its own. A BERT of this size, with learned positions,
does not leave the plateau of token frequencies in so few steps: no mask would matter to it.) From
there every contender trains the same number of further steps, on the same batches:

* hand-made masks of (nearly) the same sparsity, dense, dense without the diagonal, random masks:
  the mask fixed;
* DAM: three quarters of the steps search for the mask, the rest trains with what was found ("one
  budget"). Then, as in the paper, the found mask is trained with anew from the dense model, like a
  hand-made one: that is its loss in the first table, of the mask and not of its search.

One mask for each head, shared by all layers, as in the paper. The loss is that of a fixed
validation set, attention dropout off, with the hard mask through `sparse_attention`. Beside it:
the executed fraction of the mask's plan (objective "area"), and after the search the soft and the
hard loss before any training with the fixed mask. Importance of the four groups of positions is
followed in a run of its own with the paper's soft mask after the softmax (gate "post", no noise).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import ModernBertConfig, ModernBertForMaskedLM, PreTrainedModel

import sparsebert as sb
from benchmarks.harness import origin
from benchmarks.harness.origin import RESULTS, ROOT
from benchmarks.harness.rows import RowFile
from sparsebert.dam.importance import GROUPS, group_importance
from sparsebert.dam.search import MaskSearch
from sparsebert.learn.data import MaskedText, prepare, train_tokenizer
from sparsebert.learn.handmade import pattern_at_sparsity
from sparsebert.learn.sources import python_text
from sparsebert.machine import threads_for

WORK = ROOT / "out" / "learned_masks"
MASKS = RESULTS / "learned_masks"
HAND_MADE = ("sliding_window", "star", "log_sparse", "longformer", "bigbird", "strided", "fixed")
IMPORTANCE = "importance analysis"


@dataclasses.dataclass(frozen=True)
class Setup:
    """Sizes and lengths; tokens a step are batch x seq_len."""

    seq_len: int = 64
    vocab: int = 512
    hidden: int = 128
    layers: int = 2
    heads: int = 4
    batch: int = 16
    dense_steps: int = 800
    search_steps: int = 300
    fixed_steps: int = 100
    lr: float = 3e-3
    mask_lr: float = 0.1
    init_probability: float = 0.8
    sparsity: float = 0.85


QUICK = Setup(hidden=32, batch=4, dense_steps=4, search_steps=4, fixed_steps=2, vocab=256)

DAMS: dict[str, dict[str, Any]] = {
    "DAM_u": {},
    "DAM_s": {"structure": "toeplitz"},
    "DAM_u, executed area": {"penalty": "executed_area"},
    "DAM_s, executed area": {"structure": "toeplitz", "penalty": "executed_area"},
}


def fixed_masks(setup: Setup, seed: int) -> dict[str, Callable[[], sb.AttentionMask]]:
    """Contenders whose mask is known beforehand."""
    n = setup.seq_len
    masks: dict[str, Callable[[], sb.AttentionMask]] = {
        "dense": lambda: sb.patterns.dense(n),
        "dense without diagonal": lambda: sb.patterns.dense(n).without_diagonal(),
        "random": lambda: sb.patterns.random(
            n, 1.0 - setup.sparsity, seed=seed, num_heads=setup.heads
        ),
    }
    for name in HAND_MADE:
        masks[name] = lambda name=name: pattern_at_sparsity(
            name, n, setup.sparsity, num_heads=setup.heads, seed=seed
        )
    return masks


class Run:
    """One seed: the data, the model trained with dense attention, and what continues it."""

    def __init__(self, setup: Setup, seed: int, data: MaskedText) -> None:
        self.setup, self.seed, self.data = setup, seed, data
        total = setup.dense_steps + setup.search_steps + setup.fixed_steps
        self.train = data.training_set(total * setup.batch)

    def batch(self, step: int) -> dict[str, torch.Tensor]:
        size = self.setup.batch
        return self.train.batch(range(step * size, (step + 1) * size))

    def fresh(self) -> PreTrainedModel:
        s = self.setup
        torch.manual_seed(self.seed)
        config = ModernBertConfig(
            vocab_size=s.vocab,
            hidden_size=s.hidden,
            num_hidden_layers=s.layers,
            num_attention_heads=s.heads,
            intermediate_size=2 * s.hidden,
            max_position_embeddings=s.seq_len,
            global_attn_every_n_layers=1,
            **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
            **dict.fromkeys(("cls_token_id", "sep_token_id"), 0),
        )
        return ModernBertForMaskedLM(config)

    def advance(
        self,
        model: PreTrainedModel,
        steps: range,
        *,
        search: MaskSearch | None = None,
        watch: Callable[[int], None] | None = None,
        end: int,
        label: str,
    ) -> None:
        """Train for `steps` of the batches; the learning rate falls to 0 at step `end`."""
        s = self.setup
        groups: Any = [{"params": list(model.parameters()), "lr": s.lr}]
        if search is not None:
            groups = search.parameter_groups(model, lr=s.lr, mask_lr=s.mask_lr)
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        rates = [group["lr"] for group in optimizer.param_groups]
        model.train()
        for step in tqdm(steps, desc=label, leave=False):
            warm = min(1.0, (step - steps.start + 1) / 50)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                of_mask = search is not None and group is optimizer.param_groups[-1]
                group["lr"] = rate if of_mask else rate * warm * max(0.05, 1 - step / end)
            if search is not None:
                search.begin_step(step - steps.start)
            loss = model(**self.batch(step)).loss
            if search is not None:
                loss = loss + search.penalty()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(
                [p for g in optimizer.param_groups[:1] for p in g["params"]], 1.0
            )
            optimizer.step()
            if watch is not None:
                watch(step - steps.start + 1)

    @torch.no_grad()
    def validation_loss(self, model: PreTrainedModel) -> float:
        model.eval()
        blocks = len(self.data.validation)
        losses = []
        for start in range(0, blocks, 64):
            items = range(start, min(start + 64, blocks))
            losses += [model(**self.data.validation.batch(items)).loss.item()] * len(items)
        return statistics.fmean(losses)

    def dense_model(self) -> PreTrainedModel:
        """Trained with dense attention, from a file if it was made before."""
        path = WORK / f"dense-{self.seed}.pt"
        model = self.fresh()
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
            return model
        steps = range(self.setup.dense_steps)
        self.advance(model, steps, end=self.train.length // self.setup.batch, label="dense")
        torch.save(model.state_dict(), path)
        return model

    # ------------------------------------------------------------------------- contenders

    def with_fixed_mask(self, model: PreTrainedModel, mask: sb.AttentionMask) -> dict[str, Any]:
        s = self.setup
        last = s.dense_steps + s.search_steps + s.fixed_steps
        sb.sparsify(model, mask)
        self.advance(model, range(s.dense_steps, last), end=last, label="fixed mask")
        return {"loss": self.validation_loss(model), **facts(mask)}

    def with_dam(self, model: PreTrainedModel, name: str) -> dict[str, Any]:
        s = self.setup
        last = s.dense_steps + s.search_steps + s.fixed_steps
        options = dict(DAMS[name])
        penalty = options.pop("penalty", "expected_l1")
        dense = copy.deepcopy(model)
        dam = sb.DifferentiableAttentionMask(
            1, s.heads, s.seq_len, init_probability=s.init_probability, seed=self.seed, **options
        )
        sb.attach_dam(model, dam)
        search = MaskSearch(dam, s.search_steps, sparsity=s.sparsity, penalty=penalty)
        middle = s.dense_steps + s.search_steps
        self.advance(model, range(s.dense_steps, middle), search=search, end=last, label=name)
        dam.hard = False
        soft = self.validation_loss(model)
        mask = dam.binarize(sparsity=s.sparsity)
        sb.sparsify(sb.detach_dam(model), mask)
        hard = self.validation_loss(model)
        self.advance(model, range(middle, last), end=last, label=f"{name}, fixed")
        MASKS.mkdir(parents=True, exist_ok=True)
        if s != QUICK:
            mask.save(MASKS / f"{slug(name)}-seed{self.seed}.safetensors")
        found = {"soft_loss": soft, "hard_loss": hard, "budget_loss": self.validation_loss(model)}
        groups = group_importance(dam.probabilities())
        kept = group_importance(mask.dense().double())
        return {
            **found,
            **self.with_fixed_mask(dense, mask),
            **{f"p_{group}": groups[group] for group in GROUPS},
            **{f"kept_{group}": kept[group] for group in GROUPS},
        }

    def importance(self, model: PreTrainedModel) -> Iterator[dict[str, Any]]:
        """The paper's figure: a soft mask after the softmax, trained with the weights."""
        s = self.setup
        dam = sb.DifferentiableAttentionMask(
            1, s.heads, s.seq_len, symmetric=False, hard=False, noise=False, seed=self.seed
        )
        sb.attach_dam(model, dam, gate="post")
        search = MaskSearch(dam, s.search_steps, weight=0.0)
        rows: list[dict[str, Any]] = []

        def watch(step: int) -> None:
            if step == 1 or step % max(1, s.search_steps // 20) == 0:
                rows.append({"step": step, **group_importance(dam.probabilities())})

        last = s.dense_steps + s.search_steps + s.fixed_steps
        steps = range(s.dense_steps, s.dense_steps + s.search_steps)
        self.advance(model, steps, search=search, watch=watch, end=last, label=IMPORTANCE)
        yield from rows


def facts(mask: sb.AttentionMask) -> dict[str, float]:
    """Sparsity, and what a plan of the mask executes (all heads)."""
    layer = mask.layer(0)
    area = sb.compile_plan(layer, objective="area", target="cpu").explain().executed_fraction
    return {"sparsity": mask.sparsity, "executed": area}


def slug(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "_")


def run_seed(setup: Setup, seed: int) -> None:
    """All contenders of one seed; what an earlier start has finished is not run again."""
    WORK.mkdir(parents=True, exist_ok=True)
    text = python_text()
    data = prepare(text, train_tokenizer(text, setup.vocab), setup.seq_len, seed=seed)
    run = Run(setup, seed, data)
    dense = run.dense_model()
    start = {"contender": "start", "loss": run.validation_loss(copy.deepcopy(dense))}
    path = WORK / f"seed{seed}.csv"
    done = {row["contender"] for row in read(path)}
    common = {"seed": seed, **dataclasses.asdict(setup)}
    if "start" not in done:
        append(path, [{**common, **start, **origin.origin()}])
    masks = fixed_masks(setup, seed)
    for name in [*masks, *DAMS, IMPORTANCE]:
        if name in done:
            continue
        before = time.perf_counter()
        model = copy.deepcopy(dense)
        if name == IMPORTANCE:
            rows = list(run.importance(model))
        elif name in DAMS:
            rows = [run.with_dam(model, name)]
        else:
            rows = [run.with_fixed_mask(model, masks[name]())]
        seconds = time.perf_counter() - before
        append(
            path,
            [
                {**common, "contender": name, **r, "seconds": seconds, **origin.origin()}
                for r in rows
            ],
        )
        print(name, {k: round(v, 4) for k, v in rows[-1].items()}, f"{seconds:.0f} s", flush=True)


COLUMNS = (
    "seed", "contender", "step", "loss", "soft_loss", "hard_loss", "budget_loss",
    "sparsity", "executed",
    *(f"{kind}{group}" for kind in ("p_", "kept_", "") for group in GROUPS),
    *(field.name for field in dataclasses.fields(Setup) if field.name != "sparsity"),
    "seconds", *origin.COLUMNS,
)  # fmt: skip


def row_file(path: Path) -> RowFile:
    return RowFile(path, COLUMNS, made_by="python -m benchmarks.learned_masks")


def read(path: Path) -> list[dict[str, str]]:
    return row_file(path).read() if path.exists() else []


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    row_file(path).append(
        {k: f"{v:.5f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
    )


# ------------------------------------------------------------------------------------- report


def mean_and_spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    if len(values) < 2:
        return f"{values[0]:.4f}"
    return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"


def table(rows: list[dict[str, str]]) -> list[str]:
    """A line for each contender, by loss; differences are from dense, seed by seed."""
    dense = {row["seed"]: float(row["loss"]) for row in rows if row["contender"] == "dense"}
    contenders: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        if row["contender"] not in ("start", IMPORTANCE) and row["seed"] in dense:
            contenders.setdefault(row["contender"], []).append(row)

    def mean(name: str, column: str) -> float:
        return statistics.fmean(float(row[column]) for row in contenders[name])

    lines = [
        "| mask | sparsity | executed | validation loss | more than dense |",
        "|---|---|---|---|---|",
    ]
    for name in sorted(contenders, key=lambda name: mean(name, "loss")):
        losses = [float(row["loss"]) for row in contenders[name]]
        more = [float(row["loss"]) - dense[row["seed"]] for row in contenders[name]]
        lines.append(
            f"| {name} | {mean(name, 'sparsity'):.3f} | {mean(name, 'executed'):.3f} | "
            f"{mean_and_spread(losses)} | {mean_and_spread(more)} |"
        )
    return lines


def search_table(rows: list[dict[str, str]]) -> list[str]:
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


def importance_plot(rows: list[dict[str, str]], path: Path) -> None:
    """The four groups over the steps of the soft-mask run; thin lines are seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.0, 3.8), constrained_layout=True)
    mine = [row for row in rows if row["contender"] == IMPORTANCE]
    seeds = sorted({row["seed"] for row in mine})
    for number, group in enumerate(GROUPS):
        curves = [[float(r[group]) for r in mine if r["seed"] == seed] for seed in seeds]
        steps = [int(row["step"]) for row in mine if row["seed"] == seeds[0]]
        for curve in curves:
            axes.plot(steps, curve, color=f"C{number}", linewidth=0.6, alpha=0.6)
        mean = [statistics.fmean(point) for point in zip(*curves, strict=True)]
        axes.plot(steps, mean, color=f"C{number}", linewidth=2.0, label=group)
    axes.set(xlabel="training step", ylabel="mean of P = sigmoid(alpha)")
    axes.set_title(f"Importance of positions, {len(seeds)} seeds")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def loss_plot(rows: list[dict[str, str]], path: Path) -> None:
    """Validation loss beyond dense of every contender, one dot a seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    dense = {row["seed"]: float(row["loss"]) for row in rows if row["contender"] == "dense"}
    more: dict[str, list[float]] = {}
    for row in rows:
        if row["contender"] not in ("start", "dense", IMPORTANCE) and row["seed"] in dense:
            more.setdefault(row["contender"], []).append(float(row["loss"]) - dense[row["seed"]])
    names = sorted(more, key=lambda name: -statistics.fmean(more[name]))
    figure, axes = pyplot.subplots(figsize=(7.0, 4.6), constrained_layout=True)
    for place, name in enumerate(names):
        color = "C0" if name in DAMS else "C7" if name.startswith("dense") else "C1"
        axes.barh(place, statistics.fmean(more[name]), color=color, alpha=0.55)
        axes.plot(more[name], [place] * len(more[name]), "o", color=color, markersize=4)
    axes.set_yticks(range(len(names)), names)
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set(xlabel="validation loss above dense attention (nats a token; dots: seeds)")
    axes.set_title("Learned (blue) and hand-made (orange) masks at equal sparsity")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def report() -> None:
    """Markdown and plots of the seeds run here, whose rows are put together, or the committed."""
    collected = row_file(RESULTS / "learned_masks.csv")
    rows = [row for file in sorted(WORK.glob("seed*.csv")) for row in read(file)]
    if rows:
        collected.write(rows)
    else:
        rows = collected.read()
    seeds = len({row["seed"] for row in rows})
    importance_plot(rows, RESULTS / "learned_masks_importance.png")
    loss_plot(rows, RESULTS / "learned_masks_loss.png")
    one = rows[0]
    start = [float(row["loss"]) for row in rows if row["contender"] == "start"]
    text = [
        "# Learned and hand-made masks at equal sparsity",
        "",
        "Made by `python -m benchmarks.learned_masks --report` from learned_masks.csv; the first",
        "lines of the script say what is compared. A small experiment on a CPU, not the paper's",
        "BERT-base.",
        "",
        f"{seeds} seeds; ModernBERT with {one['layers']} layers, {one['heads']} heads, width "
        f"{one['hidden']}, N = {one['seq_len']}, batch {one['batch']}, vocabulary {one['vocab']}; "
        f"{one['dense_steps']} steps with dense attention (loss then {mean_and_spread(start)}), "
        f"{one['search_steps']} steps of search, {one['fixed_steps']} with the mask fixed. Means "
        "and standard deviations over seeds; losses in nats a token. "
        f"torch {one['torch']}, {one['processor']}, commit {one['commit']}, {one['date']}.",
        "",
        *table(rows),
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
    (RESULTS / "learned_masks.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


def main() -> None:
    """Run a seed, or report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--threads", type=int, help="of torch (default: all, fewer on a busy machine)"
    )
    parser.add_argument("--quick", action="store_true", help="a few steps: does it run at all?")
    parser.add_argument("--report", action="store_true", help="only make the report")
    arguments = parser.parse_args()
    if arguments.report:
        report()
        return
    with threads_for(given=arguments.threads) as sentence:
        print(sentence, flush=True)
        run_seed(QUICK if arguments.quick else Setup(), arguments.seed)


if __name__ == "__main__":
    main()
