"""``sparsebert show`` and ``sparsebert explain``: what a mask is, and how it would run."""

from __future__ import annotations

import argparse
from pathlib import Path

from sparsebert.cli.errors import OK, UsageError
from sparsebert.cli.options import Commands, add_command, add_mask, load_layers, load_mask


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
    from sparsebert.compiler.cost.targets import about_targets, is_target

    if not is_target(text):
        raise argparse.ArgumentTypeError(
            f"expected cpu, sm90, gfx942 or the like, got {text!r}; {about_targets(text)}"
        )
    return text


def show_mask(arguments: argparse.Namespace) -> int:
    """Print a summary of the mask and write a picture of its heads."""
    from sparsebert.masks.summary import summarise

    mask = load_mask(arguments.mask)
    print(f"{arguments.mask}\n{summarise(mask)}")
    if not arguments.text:
        from sparsebert.reporting.figures import draw_mask

        picture = Path(arguments.output or Path(arguments.mask).with_suffix(".png"))
        title = f"{Path(arguments.mask).stem}: {mask.q_len} queries x {mask.kv_len} keys"
        draw_mask(mask, title, picture)
        print(f"  picture      {picture}")
    return OK


def explain_mask(arguments: argparse.Namespace) -> int:
    """Print the compiler's report of each selected layer, and write a picture of the tiles."""
    from sparsebert.explain import draw_tiles, explain_plans
    from sparsebert.plan import compile_plan

    options = {"target": arguments.target, "objective": arguments.objective}
    layers = load_layers(arguments)
    try:
        plans = {index: compile_plan(mask, **options) for index, mask in layers}
    except ValueError as error:
        raise UsageError.of(error, arguments) from error
    print(explain_plans(plans, details=arguments.details))
    if not arguments.text:
        picture = Path(arguments.output or Path(arguments.mask).with_suffix(".tiles.png"))
        draw_tiles(plans, Path(arguments.mask).stem, picture)
        print(f"  picture            {picture}")
    return OK
