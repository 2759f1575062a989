"""The plan that would run a mask in the making, compiled anew from time to time."""

from __future__ import annotations

import base64
import zlib

import numpy as np

from sparsebert.compiler.compile import check_target
from sparsebert.compiler.pricing import OBJECTIVES
from sparsebert.dam.mask import DifferentiableAttentionMask
from sparsebert.dam.plan_prices import price_tiles, tiles_in_order
from sparsebert.dam.priced_tiles import PricedTiles
from sparsebert.masks import AttentionMask
from sparsebert.support import checks

_NAME = "MaskSearch"


class FollowedPlan:
    """The priced tiles of the mask that a DAM would give now.

    Args:
        dam: the mask in the making.
        target: the machine to plan for, as for `compile_plan`; None means the one at hand.
        objective: "time" or "area".
        refresh: steps from one compilation to the next.

    Raises:
        TypeError, ValueError: what is no target or objective, or no positive number of steps.
    """

    def __init__(
        self,
        dam: DifferentiableAttentionMask,
        target: str | None,
        objective: str,
        refresh: int,
    ) -> None:
        self.target = check_target(target)
        if objective not in OBJECTIVES:
            raise ValueError(f"{_NAME}: objective must be one of {OBJECTIVES}, got {objective!r}")
        self.objective = objective
        self.refresh = checks.integer(_NAME, "refresh", refresh, 1)
        self._dam = dam
        self._tiles: PricedTiles | None = None
        self._kept: str | None = None

    @property
    def tiles(self) -> PricedTiles:
        """Those of the last compilation, on the DAM's device.

        Raises:
            ValueError: nothing was compiled yet.
        """
        if self._tiles is None:
            raise ValueError(
                f"{_NAME}: penalty='plan', and no plan was compiled yet; call begin_step(step) "
                "before penalty()"
            )
        device = self._dam.alpha.device
        if self._tiles.group.device != device:
            self._tiles = self._tiles.to(device)
        return self._tiles

    @property
    def in_order(self) -> PricedTiles:
        """Tiles of rows that follow each other, with the same prices."""
        return tiles_in_order(self._dam.layout, self._dam.num_heads, self.target, self.objective)

    def begin_step(self, step: int, sparsity: float) -> None:
        """Compile the DAM, binarized at this sparsity, if that is due at optimizer step `step`."""
        if self._tiles is None or step % self.refresh == 0:
            mask = self._dam.binarize(sparsity=sparsity, allow_empty_rows=True)
            self._kept = base64.b64encode(zlib.compress(mask.bits.tobytes())).decode()
            self._compile(mask)

    def _compile(self, mask: AttentionMask) -> None:
        self._tiles = price_tiles(mask, self._dam.layout, self.target, self.objective)

    def state(self) -> str | None:
        """The mask that was compiled last, packed into text; None before the first."""
        return self._kept

    def load_state(self, kept: str | None) -> None:
        """Compile the mask that `state` gave, or forget what was compiled."""
        self._kept, self._tiles = kept, None
        if kept is not None:
            dam, n = self._dam, self._dam.seq_len
            bits = np.frombuffer(zlib.decompress(base64.b64decode(kept)), dtype=np.uint8)
            shape = (dam.num_layers, dam.num_heads, n, -1)
            self._compile(AttentionMask.from_packed(bits.reshape(shape), n, bitorder="little"))
