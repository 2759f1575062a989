"""Targets, the machines to plan for: their names, the one at hand, and advice for other names."""

from __future__ import annotations

import re

import torch

from sparsebert.compiler.cost.constants import DEFAULT_GPU, targets
from sparsebert.kernels.architecture import architecture

# What people call a machine, and its compute capability or architecture.
_CARDS = {
    "v100": "sm70", "t4": "sm75",
    "a100": "sm80", "a30": "sm80", "ampere": "sm80",
    "a10": "sm86", "a10g": "sm86", "a40": "sm86", "a6000": "sm86", "rtx3090": "sm86",
    "l4": "sm89", "l40": "sm89", "l40s": "sm89", "ada": "sm89", "rtx4090": "sm89",
    "h100": "sm90", "h200": "sm90", "gh200": "sm90", "hopper": "sm90",
    "b100": "sm100", "b200": "sm100", "gb200": "sm100", "blackwell": "sm100",
    "rtx5090": "sm120",
    "mi210": "gfx90a", "mi250": "gfx90a", "mi250x": "gfx90a",
    "mi300": "gfx942", "mi300a": "gfx942", "mi300x": "gfx942", "mi325x": "gfx942",
}  # fmt: skip


def is_target(name: object) -> bool:
    """Whether `name` reads like a machine: "cpu", "sm90", "gfx942" and so on."""
    return isinstance(name, str) and bool(re.fullmatch(r"cpu|sm\d{2,3}|gfx[0-9a-f]{3,4}", name))


def machine_target() -> str:
    """The target that stands for the machine at hand: its current GPU, or the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    return str(architecture(torch.device("cuda", torch.cuda.current_device())))


def about_targets(name: object) -> str:
    """Advice for `name`, which is no target.

    >>> about_targets("A100")
    'A100 is sm80; the targets with costs of their own are cpu, sm80, sm90, sm100, gfx942, and \
other GPUs are planned for with the costs of sm90'
    """
    plain = re.sub(r"[^a-z0-9]", "", str(name).lower())
    capability = re.fullmatch(r"(?:sm|compute|cuda)?(\d{2,3})", plain)
    meant = _CARDS.get(plain) or (f"sm{capability[1]}" if capability else None)
    return (f"{name} is {meant}; " if meant else "") + (
        f"the targets with costs of their own are {', '.join(targets())}, and other GPUs "
        f"are planned for with the costs of {DEFAULT_GPU}"
    )
