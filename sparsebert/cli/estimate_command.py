"""``sparsebert estimate``: what a mask would save in a whole model, without running it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from sparsebert.cli.errors import OK, UsageError
from sparsebert.cli.options import Commands, add_command, load_mask, positive
from sparsebert.cli.pattern_commands import parse_parameters
from sparsebert.machine import threads_for

if TYPE_CHECKING:
    from sparsebert.estimate import ModelShape
    from sparsebert.masks import AttentionMask

LENGTHS = (128, 256, 512, 1024, 2048, 4096)

_EXAMPLES = """\
  sparsebert estimate --config path/to/model --pattern longformer --seq-len 1024
  sparsebert estimate --hidden-size 768 --layers 12 --heads 12 --intermediate-size 3072 \\
      --mask star.safetensors --batch 8 --target sm90
  sparsebert estimate --config config.json --pattern strided --param stride=32 --seq-len 2048

Attention comes from the compiler's cost model, the rest of the layers from a rate of operations:
measured here in less than a second where the target is this machine's CPU (--no-calibrate: a
stored constant), else the documented peak times a stated utilisation. Embeddings, pooler and task
heads are left out, and all layers are taken to attend to everything without the mask.
"""


def register(commands: Commands) -> None:
    """Add the command to the parser."""
    command = add_command(
        commands,
        "estimate",
        estimate_model,
        "predict what a mask saves in a whole model, and what any mask could",
        _EXAMPLES,
    )
    model = command.add_argument_group("the model: --config, or its sizes")
    model.add_argument("--config", metavar="PATH", help="a model's folder or its config.json")
    for option, what in (
        ("--hidden-size", "size of the hidden states"),
        ("--layers", "number of layers"),
        ("--heads", "attention heads"),
        ("--intermediate-size", "size of the feed-forward (default: 4 times hidden)"),
        ("--head-dim", "head size (default: hidden / heads)"),
    ):
        model.add_argument(option, type=positive, metavar="N", help=what)
    mask = command.add_argument_group("the mask: a file, or a pattern for each length")
    source = mask.add_mutually_exclusive_group(required=True)
    source.add_argument("--mask", metavar="FILE", help="a mask file; shorter lengths crop it")
    source.add_argument(
        "--pattern", metavar="NAME", help="a pattern, see 'sparsebert patterns list'"
    )
    mask.add_argument(
        "--param", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help="parameters of the pattern",
    )  # fmt: skip
    mask.add_argument(
        "--without-diagonal", action="store_true", help="forbid each token to attend to itself"
    )
    command.add_argument(
        "--seq-len", type=positive, metavar="N", help="tokens (default: the mask's, or 512)"
    )
    command.add_argument("--batch", type=positive, default=1, metavar="B", help="(default: 1)")
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"),
        help="float32 on a CPU, bfloat16 or float16 on a GPU (default: the first)",
    )  # fmt: skip
    command.add_argument(
        "--target", metavar="T", help="machine: cpu, sm80, sm90, gfx942, ... (default: this)"
    )
    command.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="threads of the CPU (default: torch's, fewer where a busy one is timed)",
    )
    command.add_argument(
        "--calibrate", action=argparse.BooleanOptionalAction,
        help="time a layer here first (default: if the target is this machine's CPU)",
    )  # fmt: skip


def estimate_model(arguments: argparse.Namespace) -> int:
    """Print the report for one length, and a table over several."""
    import torch

    from sparsebert.compiler.cost.targets import machine_target
    from sparsebert.estimate import calibrate, estimate, table
    from sparsebert.masks.pattern_list import takes_length

    try:
        shape = _shape(arguments)
        mask_of, longest = _masks(arguments)
        length = arguments.seq_len or longest or 512
        if longest is not None and length > longest:
            raise UsageError(f"--seq-len {length}: the mask covers {longest} tokens")
        target = arguments.target or machine_target()
        here = target == machine_target() == "cpu"
        if arguments.calibrate and not here:
            raise UsageError(
                f"--calibrate: only this machine's CPU can be timed, not {target}; leave it out"
            )
        wanted = here if arguments.calibrate is None else arguments.calibrate
        rates, threads = None, arguments.threads
        if wanted:
            with threads_for(given=threads, keep=arguments.embedded) as machine:
                print(machine, file=sys.stderr, flush=True)
                rates, threads = calibrate(shape), torch.get_num_threads()
        options = {
            "batch": arguments.batch,
            "target": target,
            "dtype": arguments.dtype,
            "threads": threads,
            "rates": rates,
        }
        print(estimate(shape, mask_of(length), **options))
        lengths = [n for n in LENGTHS if longest is None or n <= longest]
        if arguments.mask or takes_length(arguments.pattern):
            print(f"\n{table(estimate(shape, mask_of(n), **options) for n in lengths)}")
    except (TypeError, ValueError) as error:
        raise UsageError.of(error, arguments) from error
    return OK


def _shape(arguments: argparse.Namespace) -> ModelShape:
    from sparsebert.estimate import ModelShape

    sizes = ("hidden_size", "layers", "heads", "intermediate_size", "head_dim")
    given = {name: getattr(arguments, name) for name in sizes if getattr(arguments, name)}
    if arguments.config:
        if given:
            option = "--" + next(iter(given)).replace("_", "-")
            raise UsageError(f"{option} contradicts --config; give one or the other")
        try:
            return ModelShape.from_config(arguments.config)
        except FileNotFoundError as error:
            raise UsageError(
                f"no model {arguments.config!r}; --config takes a folder with a config.json, or "
                "that file (nothing is downloaded)"
            ) from error
    missing = [name for name in ("hidden_size", "layers", "heads") if name not in given]
    if missing:
        options = ", ".join("--" + name.replace("_", "-") for name in missing)
        raise UsageError(f"give --config PATH, or the model's sizes: {options} missing")
    given.setdefault("intermediate_size", 4 * given["hidden_size"])
    return ModelShape(**given)


def _masks(
    arguments: argparse.Namespace,
) -> tuple[Callable[[int], AttentionMask], int | None]:
    """The mask of each length, and the longest length if there is one."""
    from sparsebert.masks.pattern_list import takes_length
    from sparsebert.masks.patterns import build

    def finish(mask: AttentionMask) -> AttentionMask:
        return mask.without_diagonal() if arguments.without_diagonal else mask

    if arguments.mask:
        if arguments.param:
            raise UsageError("--param is for --pattern, not for --mask")
        mask = finish(load_mask(arguments.mask))
        return mask.crop, min(mask.q_len, mask.kv_len)
    parameters = parse_parameters(arguments.param)
    if takes_length(arguments.pattern):
        return lambda length: finish(build(arguments.pattern, length, **parameters)), None
    mask = finish(build(arguments.pattern, None, **parameters))
    return mask.crop, mask.q_len
