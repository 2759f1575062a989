"""Networks of docs/theory.md, written down instead of trained: one channel, averaging attention.

A token's channel holds a real number. Feed-forward layers map it (one hidden layer of ReLU, added
to the residual stream), attention layers add a multiple of the mean over the tokens that the mask
lets it see: one head of size one, queries and keys zero.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

import torch

import sparsebert as sb

EPS = torch.finfo(torch.float64).eps

Grid = tuple[int, ...]
"""The cell of each token."""
Code = Callable[[int, int, int], int]
"""What a token in state `state` of `states` at position `token` shows to the others."""


class FeedForward:
    """h + a relu(h - b) + a0, linear between the given points, constant outside.

    For h from 0 up: the first unit takes h itself away.
    """

    def __init__(self, points: dict[Fraction, Fraction]) -> None:
        xs = sorted(points)
        ys = [points[x] for x in xs]
        slopes = [
            (ys[at + 1] - ys[at]) / (xs[at + 1] - xs[at]) for at in range(len(xs) - 1)
        ]  # fmt: skip
        turns = [right - left for left, right in zip([0, *slopes], [*slopes, 0], strict=True)]
        self.b = _tensor([0, *xs])
        self.a = _tensor([-1, *turns])
        self.a0 = float(ys[0])

    def __call__(self, h: torch.Tensor) -> torch.Tensor:
        return h + torch.relu(h[..., None] - self.b) @ self.a + self.a0

    def rounding(self, h: torch.Tensor, error: float) -> float:
        """How far __call__ may be from exact arithmetic where `h` is off by `error`.

        A sum of m products is off by m eps times the sum of their sizes; weights, differences and
        the two additions are rounded once each.
        """
        sizes = torch.relu(h[..., None] - self.b) @ self.a.abs() + h.abs() + abs(self.a0)
        offsets = (EPS * (h.abs().max() + self.b.abs().max()) + error) * self.a.abs().sum()
        return float((len(self.b) + 4) * EPS * sizes.max() + offsets + error)


class Network:
    """Encode, then attend and recode, `layers` times over; the last recoding gives the outputs.

    It gives `target(grid)` exactly, but for rounding, wherever each token x lies in its cell
    [c, c + 1 - ramp) / cells, plus its position where `positions` says so.
    """

    def __init__(
        self,
        mask: sb.AttentionMask,
        *,
        cells: int,
        target: Callable[[Grid], Sequence[Fraction]],
        code: Code,
        layers: int = 1,
        positions: bool = False,
        ramp: Fraction = Fraction(1, 100),
    ) -> None:
        tokens = mask.q_len
        allowed = mask.dense()[0, 0]
        seen = [[j for j in range(tokens) if allowed[i, j]] for i in range(tokens)]
        grids = list(itertools.product(range(cells), repeat=tokens))
        self.mask, self.cells, self.ramp, self.positions = mask, cells, float(ramp), positions
        self.feed_forwards: list[FeedForward] = []
        self.weights: list[Fraction] = []

        # What a token knows, at first its own cell, is its state; codes and sums of codes in the
        # stream stand for states. All in exact arithmetic: only the network's own runs round.
        knows = {(grid, i): grid[i] for grid in grids for i in range(tokens)}
        stream = {
            (grid, i): Fraction(grid[i], cells) + (i if positions else 0) for grid, i in knows
        }
        for layer in range(layers):
            states = max(knows.values()) + 1
            codes = {key: Fraction(code(key[1], state, states)) for key, state in knows.items()}
            points = _points((stream[key], codes[key]) for key in knows)
            self.feed_forwards.append(
                FeedForward(_flat(points, (1 - ramp) / cells) if layer == 0 else points)
            )
            weight = 1 / (tokens * (max(codes.values()) + 1))
            self.weights.append(weight)
            means = {
                (grid, i): sum((codes[grid, j] for j in seen[i]), Fraction(0))
                / max(len(seen[i]), 1)
                for grid, i in knows
            }
            stream = {key: codes[key] + weight * means[key] for key in knows}
            # A token's number says what it knows, given its position: numbered for each anew.
            ranks = [sorted({stream[grid, i] for grid in grids}) for i in range(tokens)]
            knows = {(grid, i): ranks[i].index(stream[grid, i]) for grid, i in knows}
        wanted = {grid: target(grid) for grid in grids}
        self.feed_forwards.append(
            FeedForward(_points((stream[grid, i], wanted[grid][i]) for grid, i in knows))
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: fp64 [batch, tokens], each in [0, 1]."""
        return self._run(x)[0]

    def rounding(self, x: torch.Tensor) -> float:
        """How far __call__ may be from exact arithmetic, away from the ramps."""
        return self._run(x)[1]

    def flat(self, x: torch.Tensor) -> torch.Tensor:
        """Bool [batch]: whether every token lies in its cell, off the ramps."""
        within = (x * self.cells) % 1.0
        return ((within < 1 - self.ramp - 1e-9) | (x >= 1 - 1 / self.cells)).all(-1)

    def grid(self, x: torch.Tensor) -> torch.Tensor:
        """The cell of each token."""
        return (x * self.cells).floor().long().clamp(max=self.cells - 1)

    def _run(self, x: torch.Tensor) -> tuple[torch.Tensor, float]:
        h = x + torch.arange(x.shape[-1]) if self.positions else x
        # Off the ramps the first layer is constant: what comes in rounded does no harm.
        error = self.feed_forwards[0].rounding(h, 0.0)
        h = self.feed_forwards[0](h)
        for weight, after in zip(self.weights, self.feed_forwards[1:], strict=True):
            h, error = attend(h, self.mask, float(weight)), error + 8 * EPS * float(h.abs().max())
            error, h = after.rounding(h, error), after(h)
        return h, error


def attend(h: torch.Tensor, mask: sb.AttentionMask, weight: float) -> torch.Tensor:
    """h + weight * the mean over what the mask allows, by attention: queries and keys are zero."""
    v = h[:, None, :, None]
    zeros = torch.zeros_like(v)
    return h + weight * sb.sparse_attention(zeros, zeros, v, mask)[:, 0, :, 0]


def powers_of_the_length(tokens: int) -> Code:
    """n^state: a sum over n - 1 tokens is a number in base n, whose digits count the states."""
    return lambda token, state, states: tokens**state


def digits_of_positions(token: int, state: int, states: int) -> int:
    """Digit state + 1 at the token's own place: a sum over tokens says who is in which state."""
    return (state + 1) * (states + 1) ** token


def _points(pairs: Iterable[tuple[Fraction, Fraction]]) -> dict[Fraction, Fraction]:
    points: dict[Fraction, Fraction] = {}
    for x, y in pairs:
        if points.setdefault(x, y) != y:
            raise ValueError(f"two tokens hold {x} and should give {points[x]} and {y}")
    return points


def _flat(points: dict[Fraction, Fraction], width: Fraction) -> dict[Fraction, Fraction]:
    """Constant for `width` from each point on, then the ramp to the next."""
    return points | {x + width: y for x, y in points.items()}


def _tensor(values: Sequence[Fraction | int]) -> torch.Tensor:
    return torch.tensor([float(value) for value in values], dtype=torch.float64)
