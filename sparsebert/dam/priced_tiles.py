"""What a mask that is still a set of chances is expected to cost in the tiles of a plan."""

from __future__ import annotations

import dataclasses

import torch


@dataclasses.dataclass(frozen=True, eq=False)
class PricedTiles:
    """Row groups of a plan, and what each pays for a column; for the masks of K heads.

    Every position of a head is in one group, whether it is in the mask or not. A group pays for a
    column once if it is gathered into a tile, or for each of its entries that stands alone. With p
    the chance of each position, the products and sums over the rows of a group t in column j,

        gathered = column[t] * (1 - prod(1 - p))
        alone = entry * sum(p) + entry_column * (1 - prod(1 - p)),

    and the column costs the smaller one. The product is over positions that are drawn
    independently: those that share a parameter count once.

    Attributes:
        group: int64 [K, N, N], the group of each position; K is 1 where all heads have the same.
        first: bool [K, N, N], False where a row above in the same group and column has the same
            parameter; None where no two share one.
        column: float [K, G], what each group pays for a gathered column.
        entry: what each entry pays that stands alone; None where none can.
        entry_column: what a group pays for a column in which entries stand alone, beside them.
    """

    group: torch.Tensor
    first: torch.Tensor | None
    column: torch.Tensor
    entry: float | None = None
    entry_column: float = 0.0

    def to(self, device: torch.device) -> PricedTiles:
        """The same with its tensors on `device`."""
        first = None if self.first is None else self.first.to(device)
        return dataclasses.replace(
            self, group=self.group.to(device), first=first, column=self.column.to(device)
        )

    def of_heads(self, heads: list[int]) -> PricedTiles:
        """Those of some heads, if they are not the same for all."""
        if len(self.group) == 1:
            return self
        first = None if self.first is None else self.first[heads]
        return dataclasses.replace(
            self, group=self.group[heads], first=first, column=self.column[heads]
        )

    def expected(self, log_dropped: torch.Tensor) -> torch.Tensor:
        """The expected cost of masks whose positions are kept by chance, a scalar.

        Args:
            log_dropped: log(1 - p), [..., N, N], the heads of all layers one after the other.
        """
        n = log_dropped.shape[-1]
        exact = log_dropped.float() if log_dropped.dtype.itemsize < 4 else log_dropped
        heads = exact.reshape(-1, n * n)
        place = self.group * n + torch.arange(n, device=heads.device)
        place = place.reshape(-1, n * n).expand(len(heads), -1)
        free = heads
        if self.first is not None:
            free = heads.masked_fill(~self.first.reshape(-1, n * n), 0.0)
        groups = self.column.shape[-1]
        none_kept = heads.new_zeros(len(heads), groups * n).scatter_add(-1, place, free)
        some_kept = -torch.expm1(none_kept).unflatten(-1, (groups, n))
        cost = some_kept * self.column.to(heads.dtype)[..., None]
        if self.entry is not None:
            kept = -torch.expm1(heads)
            entries = torch.zeros_like(none_kept).scatter_add(-1, place, kept)
            alone = self.entry * entries.unflatten(-1, (groups, n))
            cost = torch.minimum(cost, alone + self.entry_column * some_kept)
        total: torch.Tensor = cost.sum().to(log_dropped.dtype)
        return total
