"""What a forward pass uses of a mask that is being learned, and the noise stream it draws from."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from sparsebert.dam.sampling import SAMPLINGS, gumbel_sigmoid, top_share
from sparsebert.support import checks

_NAME = "DifferentiableAttentionMask"


class DrawnMask(nn.Module):
    """The part of a `DifferentiableAttentionMask` that draws; its options are explained there.

    The class that is built on it sets `alpha`, `counts` and `scope`, and then starts the stream.
    """

    alpha: nn.Parameter  # [L, H, P]
    counts: torch.Tensor  # [P], how many positions each parameter decides
    scope: str
    temperature: torch.Tensor
    noise_seed: torch.Tensor
    draws: torch.Tensor

    def __init__(
        self,
        sampling: str,
        temperature: float,
        *,
        density: float,
        hard: bool,
        noise: bool,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        if sampling not in SAMPLINGS:
            raise ValueError(f"{_NAME}: sampling must be one of {SAMPLINGS}, got {sampling!r}")
        if sampling == "top" and not (hard and noise):
            raise ValueError(
                f"{_NAME}: hard={hard} and noise={noise} are of sampling='gumbel'; masks of the "
                "likeliest positions are hard and have no noise: leave both out"
            )
        self.sampling = sampling
        self.hard = bool(hard)
        self.noise = bool(noise)
        self.set_density(density)
        self.register_buffer("temperature", torch.tensor(1.0, device=device))
        self.set_temperature(temperature)
        self._last: torch.Tensor | None = None

    def set_temperature(self, temperature: float) -> None:
        """Set the temperature of the samples.

        Raises:
            ValueError: not above 0.
        """
        if not 0.0 < temperature < math.inf:
            raise ValueError(f"{_NAME}: temperature must be above 0 and finite, got {temperature}")
        self.temperature.fill_(temperature)

    def set_density(self, density: float) -> None:
        """Set the share of the positions that masks keep with sampling="top".

        Raises:
            ValueError: not in (0, 1].
        """
        if not 0.0 < density <= 1.0:
            raise ValueError(f"{_NAME}: density must be in (0, 1], got {density}")
        self.density = float(density)

    def draw(self) -> torch.Tensor:
        """Values of the parameters for one forward pass, [L, H, P]; `expand` makes a mask of them.

        In training mode a sample from the module's own noise stream, whose place is saved with
        the parameters and is the same in all processes of a distributed training, whatever else
        draws random numbers there. In evaluation mode no noise: the kept positions (probability
        above one half) with hard, else the probabilities. With sampling="top" both are the same.
        """
        if self.training or self.sampling == "top":
            noisy = self.noise and self.sampling == "gumbel"
            values = self._sampled(self._next_generator() if noisy else None)
        else:
            values = torch.sigmoid(self.alpha)
            if self.hard:
                values = (values > 0.5).to(values.dtype)
        self._last = values
        return values

    def _sampled(self, generator: torch.Generator | None) -> torch.Tensor:
        """Sampled values of the parameters, [L, H, P]."""
        if self.sampling == "top":
            kept = top_share(self.alpha, self.counts, self.density, self.scope)
            return kept + (self.alpha - self.alpha.detach())
        if self.noise:
            soft = gumbel_sigmoid(self.alpha, self.temperature, generator)
        else:
            soft = torch.sigmoid(self.alpha)
        if not self.hard:
            return soft
        return (soft > 0.5).to(soft.dtype) + (soft - soft.detach())

    # ------------------------------------------------------------------- the noise stream

    def _start_stream(self, seed: int | None) -> None:
        """From its beginning; without a seed, one is taken from torch's generator."""
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        seed = checks.integer(_NAME, "seed", seed, 0, 2**63 - 1)
        # The place in the noise stream is saved, so that a resumed training draws what it would
        # have drawn; Python integers beside the buffers spare a GPU the wait for their values.
        device = self.temperature.device
        self.register_buffer("noise_seed", torch.tensor(seed, device=device))
        self.register_buffer("draws", torch.tensor(0, device=device))
        self._stream = [seed, 0]

    def _next_generator(self) -> torch.Generator:
        seed, draws = self._stream
        self._stream[1] = draws + 1
        self.draws.fill_(draws + 1)
        mixed = (seed + draws * 0x9E3779B97F4A7C15) % 2**63  # far apart for neighbouring draws
        return torch.Generator(device=self.alpha.device).manual_seed(mixed)

    def resume_stream(self) -> None:
        """Draw on from where the buffers `noise_seed` and `draws` say, after they were changed."""
        self._stream = [int(self.noise_seed), int(self.draws)]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_last": None}  # part of a graph, which has no copies
