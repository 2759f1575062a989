"""``sparsebert verify``: run a mask on random inputs and compare with the dense reference."""

from __future__ import annotations

import argparse
import sys

from sparsebert.cli.errors import CHECK_FAILED, OK, UsageError
from sparsebert.cli.options import Commands, add_command, add_mask, load_layers, positive, share
from sparsebert.machine import threads_for

_EXAMPLES = """\
  sparsebert verify star.safetensors
  sparsebert verify star.safetensors --dtype bfloat16 --head-dim 80 --key-padding 0.3
  sparsebert verify star.safetensors --dropout 0.1 --backend torch

Errors are against the reference in fp64. Each element of a result has a bound of its own, which
follows from the roundings of the dtype and of sums in fp32; shown is the largest error, and the
largest share of its bound that an error reaches. The exit code is 1 if one exceeds its bound.
"""


def register(commands: Commands) -> None:
    """Add the command to the parser."""
    verify = add_command(
        commands,
        "verify",
        verify_mask,
        "check a mask's plan against the dense reference, forward and backward",
        _EXAMPLES,
    )
    add_mask(verify)
    verify.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32",
        help="dtype of q, k and v (default: %(default)s)",
    )  # fmt: skip
    verify.add_argument(
        "--head-dim", type=positive, default=64, metavar="D", help="head size (default: 64)"
    )
    verify.add_argument(
        "--batch", type=positive, default=2, metavar="B", help="batch size (default: 2)"
    )
    verify.add_argument(
        "--heads", type=positive, metavar="H",
        help="heads of q, k and v (default: the mask's; 2 if it has one)",
    )  # fmt: skip
    verify.add_argument(
        "--key-padding", type=share, default=0.0, metavar="SHARE",
        help="share of the keys hidden at random; the hidden ones hold NaN (default: 0)",
    )  # fmt: skip
    verify.add_argument(
        "--dropout", type=share, default=0.0, metavar="P", help="dropout (default: 0)"
    )
    verify.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help="what runs the plan; an unknown name lists them (default: its choice)",
    )
    verify.add_argument(
        "--device", default="cpu", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: cpu)"
    )
    verify.add_argument("--seed", type=int, default=0, help="of the inputs (default: 0)")


def verify_mask(arguments: argparse.Namespace) -> int:
    """Compare each selected layer with the reference and print the errors and their bounds."""
    with threads_for(keep=arguments.embedded) as machine:
        print(machine, file=sys.stderr, flush=True)
        return _verify(arguments)


def _verify(arguments: argparse.Namespace) -> int:
    import torch

    from sparsebert.verify import Comparison, in_words, usable_device, verify

    try:
        device = usable_device(arguments.device)
    except ValueError as error:
        raise UsageError(f"--device {error}") from error
    passed = True
    for index, mask in load_layers(arguments):
        try:
            comparison = Comparison(
                mask=mask,
                batch=arguments.batch,
                heads=arguments.heads or max(mask.num_heads, 2),
                head_dim=arguments.head_dim,
                dtype=getattr(torch, arguments.dtype),
                key_padding=arguments.key_padding,
                dropout_p=arguments.dropout,
                backend=arguments.backend,
                device=device,
                seed=arguments.seed,
            )
            print(f"{arguments.mask}, layer {index}: {comparison}")
            outcomes = verify(comparison)
        except (TypeError, ValueError) as error:
            raise UsageError.of(error, arguments) from error
        print(in_words(outcomes))
        passed = passed and all(outcome.passed for outcome in outcomes)
    if not passed:
        print("sparsebert: verify: an error exceeds its bound", file=sys.stderr)
    return OK if passed else CHECK_FAILED
