"""``sparsebert show`` and ``sparsebert explain``: what a mask is, and how it would run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from sparsebert.cli.errors import OK, UsageError
from sparsebert.cli.options import Commands, add_command, add_mask, load_layers, load_mask

if TYPE_CHECKING:
    from sparsebert.compiler.report import PlanReport
    from sparsebert.masks import AttentionMask

_FEW_HEADS = 8  # of all layers together, for which each layer is reported at length


def register(commands: Commands) -> None:
    """Add both commands to the parser."""
    show = add_command(
        commands,
        "show",
        show_mask,
        "summarise a mask and draw its heads",
        "  sparsebert show star.safetensors\n"
        "  sparsebert show star.safetensors -o pictures/star.png\n"
        "  sparsebert show star.safetensors --text\n",
    )
    show.add_argument("mask", metavar="MASK", help="a mask file")
    _add_picture(show, ".png")

    explain = add_command(
        commands,
        "explain",
        explain_mask,
        "compile a mask, report what would be executed, and why, and draw its tiles",
        "  sparsebert explain star.safetensors\n"
        "  sparsebert explain star.safetensors --objective area -o tiles.png\n"
        "  sparsebert explain star.safetensors --target sm90 --layer 0 --text\n",
    )
    add_mask(explain)
    _add_picture(explain, ".tiles.png")
    explain.add_argument(
        "--target",
        type=_target,
        metavar="T",
        help="machine to plan for: cpu, sm80, sm90, gfx942, ... (default: this)",
    )
    explain.add_argument(
        "--details", action="store_true", help="report every different head in full"
    )
    explain.add_argument(
        "--objective",
        choices=("time", "area"),
        default="time",
        help="fastest by the cost model, or least executed area (default: %(default)s)",
    )


def _add_picture(parser: argparse.ArgumentParser, suffix: str) -> None:
    picture = parser.add_mutually_exclusive_group()
    picture.add_argument(
        "-o", "--output", metavar="PNG", help=f"picture to write (default: MASK with {suffix})"
    )
    picture.add_argument("--text", action="store_true", help="draw no picture")


def _target(text: str) -> str:
    from sparsebert.compiler.cost.model import is_target
    from sparsebert.compiler.cost.targets import about_targets

    if not is_target(text):
        raise argparse.ArgumentTypeError(
            f"expected cpu, sm90, gfx942 or the like, got {text!r}; {about_targets(text)}"
        )
    return text


def show_mask(arguments: argparse.Namespace) -> int:
    """Print a summary of the mask and write a picture of its heads."""
    mask = load_mask(arguments.mask)
    print(f"{arguments.mask}\n{summary(mask)}")
    if not arguments.text:
        from sparsebert.reporting.plots import draw_mask

        picture = Path(arguments.output or Path(arguments.mask).with_suffix(".png"))
        title = f"{Path(arguments.mask).stem}: {mask.q_len} queries x {mask.kv_len} keys"
        draw_mask(mask, title, picture)
        print(f"  picture      {picture}")
    return OK


def explain_mask(arguments: argparse.Namespace) -> int:
    """Print the compiler's report of each selected layer, and write a picture of the tiles."""
    from sparsebert.compiler.compile import compile_plan

    layers = load_layers(arguments)
    plans = {}
    reports: dict[int, PlanReport] = {}
    for index, mask in layers:
        try:
            plan = compile_plan(mask, target=arguments.target, objective=arguments.objective)
        except ValueError as error:
            raise UsageError.of(error, arguments) from error
        reports[index] = plan.explain()
        plans[f"layer {index}, head " if len(layers) > 1 else "head "] = plan
    print(accounts(reports, arguments.details))
    if not arguments.text:
        from sparsebert.reporting.plots import draw_covers

        picture = Path(arguments.output or Path(arguments.mask).with_suffix(".tiles.png"))
        draw_covers(plans, f"{Path(arguments.mask).stem}, planned for {plan.target}", picture)
        print(f"  picture            {picture}")
    return OK


def accounts(reports: dict[int, PlanReport], details: bool) -> str:
    """The reports of numbered layers: the total first, then each layer, at length if they are few.

    With `details` every different head of every layer gets its full account.
    """
    if len(reports) == 1:
        (report,) = reports.values()
        return report.details() if details else str(report)
    every = list(reports.values())

    def mean(field: str) -> float:
        return float(sum(getattr(report, field) for report in every) / len(every))

    lines = [
        f"{len(every)} layers, each a {every[0].title}",
        f"  density            {mean('density'):8.4f}   share of ones in the masks",
        f"  executed fraction  {mean('executed_fraction'):8.4f}   share of the scores computed",
        f"  predicted time     {mean('predicted_us'):8.4g} us a head forward, "
        f"{mean('predicted_backward_us'):.4g} us backward",
        f"  predicted speed-up {mean('dense_us') / mean('predicted_us'):8.2f}x  over dense "
        "attention, forward",
    ]
    if details or sum(len(report.per_head) for report in every) <= _FEW_HEADS:
        for index, report in reports.items():
            lines += [f"layer {index}", report.details() if details else str(report)]
        return "\n".join(lines)
    lines.append("  layer   density  executed  speed-up  routes")
    for index, report in reports.items():
        lines.append(
            f"  {index:>5}  {report.density:8.4f}  {report.executed_fraction:8.4f}  "
            f"{report.predicted_speedup:7.2f}x  {report.routes}"
        )
    lines.append("  --layer I shows one layer, --details every different head of all")
    return "\n".join(lines)


def summary(mask: AttentionMask) -> str:
    """The facts about a mask that one wants to see first, one a line."""
    layers, heads, q_len, kv_len = mask.shape
    densities = []
    diagonal = blind = unseen = 0
    symmetric = q_len == kv_len
    for layer in range(layers):  # a head at a time: a dense mask of all can be gigabytes
        for head in range(heads):
            dense = mask.layer(layer).head(head).dense()[0, 0]
            densities.append(int(dense.sum()) / dense.numel())
            diagonal += int(dense.diagonal().sum())
            blind += int((~dense.any(dim=1)).sum())
            unseen += int((~dense.any(dim=0)).sum())
            symmetric = symmetric and dense.equal(dense.T)
    facts = {
        "shape": f"{layers} layer(s), {heads} head(s), {q_len} queries x {kv_len} keys",
        "density": f"{mask.density:.2%} allowed, {mask.sparsity:.2%} forbidden",
        "diagonal": f"{diagonal / (layers * heads * min(q_len, kv_len)):.2%} of it allowed",
        "symmetric": "yes" if symmetric else "no",
        "dead rows": f"{blind} (queries that attend to nothing)",
        "dead columns": f"{unseen} (keys that nothing attends to)",
        "fingerprint": mask.fingerprint,
        "provenance": json.dumps(mask.provenance) if mask.provenance else "not recorded",
    }
    if layers * heads > 1:
        facts["density"] += f"; by head {min(densities):.2%} to {max(densities):.2%}"
    return "\n".join(f"  {name:<12} {fact}" for name, fact in facts.items())
