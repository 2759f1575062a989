"""The name of a device's architecture; needs torch alone."""

from __future__ import annotations

import functools

import torch


@functools.cache
def architecture(device: torch.device) -> str:
    """What launch tables and cost models are keyed by: "sm90", "gfx942", ...; "cpu" on the CPU.

    `device` has an index, unless it is the CPU: an answer is kept, and the current device changes.
    """
    if device.type == "cpu":
        return "cpu"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:  # "gfx942:sramecc+:xnack-": what it adds about its modes is left out
        return str(properties.gcnArchName).split(":")[0]
    return f"sm{properties.major}{properties.minor}"
