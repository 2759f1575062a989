"""One training run's worth of decisions about a mask: temperature, penalty, what to log.

`MaskSearch` knows nothing of the training loop; `DAMTrainer` and `DAMCallback` are built on it,
and so is a loop of your own:

    search = MaskSearch(dam, total_steps=1000, sparsity=0.9)
    optimizer = torch.optim.AdamW(search.parameter_groups(model, lr=5e-5, weight_decay=0.01))
    for step, batch in enumerate(batches):
        search.begin_step(step)
        loss = model(**batch).loss + search.penalty()
        loss.backward()
        ...
    mask = dam.binarize(sparsity=0.9)

If you clip gradients, clip those of the model's own parameters: a dropped position with a high
score gives alpha a huge gradient, beside which nothing would be left of the model's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from sparsebert.dam.followed_plan import FollowedPlan
from sparsebert.dam.mask import DifferentiableAttentionMask
from sparsebert.dam.penalties import KINDS, consecutive_tiles
from sparsebert.dam.priced_tiles import PricedTiles
from sparsebert.dam.sampling import top_share
from sparsebert.dam.schedules import SparsityController, annealed, ramp
from sparsebert.support import checks

_NAME = "MaskSearch"


class MaskSearch:
    """Temperature, density, penalty weight and optimizer groups of a mask that is being learned.

    Args:
        dam: the mask.
        total_steps: optimizer steps of the training.
        sparsity: the goal, in (0, 1): the weight of the penalty is found on the way
            (`SparsityController`), or, of a DAM with sampling="top", the density of its masks
            goes there by itself, from `first_sparsity` on. None to use a fixed `weight`.
        weight: of the penalty: fixed where sparsity is None or sampling is "top" (None: 0, no
            penalty); else the one to begin with (None: 0.1). The penalty is a mean over all
            scores, so this is the paper's lambda times L * H * N * N.
        penalty: "expected_l1", "l1", "executed_area" or "plan", see
            `DifferentiableAttentionMask.penalty`. To the last two the expected L1 is added, at
            the same weight: a position in a column that its tile gathers anyway costs nothing
            there, so it would stay whether it is of use or not, and outrank others when the mask
            is binarized.
        tile_rows: for "executed_area".
        target: for "plan": the machine whose plans give the prices, as for `compile_plan`; None
            means the one at hand.
        objective: for "plan": "area", or "time" by the cost model, as for `compile_plan`. The
            fastest tiles of a GPU are so tall that nearly every column is gathered anyway until
            the mask is very sparse, so that one position more or less changes nothing: by time
            the mask hardly moves there.
        refresh: for "plan": steps from one plan to the next. Each binarizes the mask at the
            sparsity that it should have by then, and compiles it.
        temperature: of the Gumbel-sigmoid, first and last; equal ones keep it fixed, as in the
            paper.
        first_sparsity: with sampling="top": sparsity of the masks until `warmup` is over; from
            there it rises to the goal. None: they have the goal's from the first step on.
        warmup: share of the steps before the penalty begins, in which the mask sees what the
            task needs.
        settle: share of the steps at the end in which the sparsity no longer changes: the goal
            is reached before them.

    Raises:
        TypeError, ValueError: values out of range; neither sparsity nor weight; a sparsity that
            leaves less than one position a row.
    """

    def __init__(
        self,
        dam: DifferentiableAttentionMask,
        total_steps: int,
        *,
        sparsity: float | None = None,
        weight: float | None = None,
        penalty: str = "expected_l1",
        tile_rows: int = 16,
        target: str | None = None,
        objective: str = "area",
        refresh: int = 50,
        temperature: tuple[float, float] = (1.0, 1.0),
        first_sparsity: float | None = None,
        warmup: float = 0.1,
        settle: float = 0.3,
    ) -> None:
        if not isinstance(dam, DifferentiableAttentionMask):
            raise TypeError(
                f"{_NAME}: dam must be a DifferentiableAttentionMask, got {type(dam).__name__}"
            )
        if penalty not in KINDS:
            raise ValueError(f"{_NAME}: penalty must be one of {KINDS}, got {penalty!r}")
        top = dam.sampling == "top"
        if top and sparsity is None:
            raise ValueError(
                f"{_NAME}: the DAM's masks keep a given share of the positions (sampling='top'); "
                "give sparsity, the goal"
            )
        if first_sparsity is not None and not top:
            raise ValueError(
                f"{_NAME}: first_sparsity={first_sparsity}, but the DAM draws its masks with "
                f"sampling={dam.sampling!r}, where the penalty makes them sparse; leave it out, "
                "or build the DAM with sampling='top'"
            )
        if first_sparsity is not None and not 0.0 <= first_sparsity <= (sparsity or 0.0):
            raise ValueError(
                f"{_NAME}: first_sparsity must be from 0 to the goal, sparsity={sparsity}, got "
                f"{first_sparsity}"
            )
        if top and weight is None and penalty in ("executed_area", "plan"):
            raise ValueError(
                f"{_NAME}: penalty={penalty!r} of a DAM with sampling='top' has the weight 0 "
                "unless one is given; give weight"
            )
        if sparsity is None and weight is None:
            raise ValueError(f"{_NAME}: give sparsity (the goal) or weight (of the penalty)")
        most = 1.0 - 1.0 / dam.seq_len
        if sparsity is not None and sparsity > most:
            raise ValueError(
                f"{_NAME}: sparsity={sparsity}, but a mask of seq_len={dam.seq_len} that leaves "
                f"no row empty has at most {most:.4f}; ask for less"
            )
        if weight is not None and not 0.0 <= weight < math.inf:
            raise ValueError(f"{_NAME}: weight must be finite and not negative, got {weight}")
        for each in temperature:
            if not 0.0 < each < math.inf:
                raise ValueError(f"{_NAME}: temperature must be above 0, got {temperature}")
        for name, share in (("warmup", warmup), ("settle", settle), ("both", warmup + settle)):
            if not 0.0 <= share < 1.0:
                raise ValueError(
                    f"{_NAME}: warmup and settle are shares of the steps and leave some between "
                    f"them, but {name} is {share}"
                )
        self.dam = dam
        self.total_steps = checks.integer(_NAME, "total_steps", total_steps, 1)
        self.kind = penalty
        self.tile_rows = checks.integer(_NAME, "tile_rows", tile_rows, 1)
        self.plan = None
        if penalty == "plan":
            self.plan = FollowedPlan(dam, target, objective, refresh)
        self.temperature = temperature
        self.warmup = warmup
        self.settle = settle
        self.weight = 0.0
        self._fixed = 0.0 if weight is None else weight
        self.sparsity = sparsity
        self.first_sparsity = sparsity if first_sparsity is None else first_sparsity
        self.controller = (
            None if sparsity is None or top else SparsityController(sparsity, weight=weight or 0.1)
        )

    def begin_step(self, step: int) -> None:
        """Before the forward passes of optimizer step `step`, counted from 0."""
        done = step / self.total_steps
        progress = (done - self.warmup) / (1.0 - self.warmup - self.settle)
        self.dam.set_temperature(annealed(*self.temperature, done))
        if self.dam.sampling == "top":
            assert self.sparsity is not None and self.first_sparsity is not None
            self.dam.set_density(1.0 - ramp(self.sparsity, progress, self.first_sparsity))
        if done < self.warmup:
            self.weight = 0.0
        elif self.controller is None:
            self.weight = self._fixed
        else:
            self.weight = self.controller.update(self.dam.expected_density, progress)
        if self.plan is not None and self.weight != 0.0:
            self.plan.begin_step(step, self._wanted(progress))

    def _wanted(self, progress: float) -> float:
        """The sparsity that the mask should have at this place of the way to the goal."""
        if self.dam.sampling == "top":
            return 1.0 - self.dam.density
        if self.controller is not None:
            return self.controller.wanted(progress)
        return 1.0 - self.dam.expected_density

    def penalty(self) -> torch.Tensor:
        """What to add to the task's loss, a scalar."""
        if self.weight == 0.0:
            return self.dam.alpha.new_zeros(())
        tiles = None if self.plan is None else self.plan.tiles
        cost = self.dam.penalty(self.kind, tile_rows=self.tile_rows, tiles=tiles, reduction="mean")
        if self.kind in ("executed_area", "plan"):
            cost = cost + self.dam.penalty("expected_l1", reduction="mean")
        return self.weight * cost

    @property
    def tiles(self) -> list[PricedTiles]:
        """What `binarize(executed=..., tiles=...)` is to go by, of which each head takes the best.

        With the penalty "plan" the tiles of the last plan, and rows in order; else `tile_rows`
        consecutive rows each.
        """
        if self.plan is not None:
            return [self.plan.tiles, self.plan.in_order]
        return [consecutive_tiles(self.dam.layout, self.tile_rows)]

    def parameter_groups(
        self,
        model: nn.Module,
        *,
        lr: float,
        mask_lr: float = 0.05,
        weight_decay: float = 0.0,
        no_decay: Iterable[str] = (),
    ) -> list[dict[str, Any]]:
        """Optimizer groups of `model`, the mask's parameters apart, with no weight decay.

        Args:
            model: with or without the DAM in it.
            lr, weight_decay: of the model's parameters.
            mask_lr: of the mask's. Larger than a model's, because alpha has to travel by units,
                not by hundredths.
            no_decay: names of model parameters without weight decay.
        """
        exempt, own = set(no_decay), self.dam.alpha
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and p is not own]
        groups = [
            {"params": [p for n, p in named if n not in exempt], "weight_decay": weight_decay},
            {"params": [p for n, p in named if n in exempt], "weight_decay": 0.0},
        ]
        groups = [{**group, "lr": lr} for group in groups if group["params"]]
        return [*groups, {"params": [own], "lr": mask_lr, "weight_decay": 0.0}]

    def metrics(self) -> dict[str, float]:
        """What to log: expected and hard sparsity, temperature, penalty weight.

        With sampling="top" both sparsities are those of the masks that the model has now.
        """
        with torch.no_grad():
            dam, top = self.dam, self.dam.sampling == "top"
            kept = dam.alpha > 0
            if top:
                kept = top_share(dam.alpha, dam.counts, dam.density, dam.scope) > 0
            scores = dam.num_layers * dam.num_heads * dam.seq_len**2
            hard = 1.0 - float((kept * dam.counts).sum()) / scores
            return {
                "mask_sparsity": hard if top else 1.0 - dam.expected_density,
                "mask_hard_sparsity": hard,
                "mask_temperature": float(self.dam.temperature),
                "mask_penalty_weight": self.weight,
            }

    def state_dict(self) -> dict[str, Any]:
        """What a resumed search needs beside the DAM's own state, JSON-able."""
        weight = self._fixed if self.controller is None else self.controller.weight
        state: dict[str, Any] = {"weight": self.weight, "controller_weight": weight}
        if self.dam.sampling == "top":
            state["density"] = self.dam.density
        if self.plan is not None:
            state["plan"] = self.plan.state()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`.

        With the penalty "plan" the mask that was compiled last is compiled again; its prices are
        the same where the target is, and the instruction set of a CPU.
        """
        if self.plan is not None:
            self.plan.load_state(state.get("plan"))
        self.weight = state["weight"]
        if self.dam.sampling == "top" and "density" in state:
            self.dam.set_density(state["density"])
        if self.controller is not None:
            self.controller.weight = state["controller_weight"]
