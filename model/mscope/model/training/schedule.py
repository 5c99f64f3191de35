"""What a step trains, and at which learning rate: a pure function of the step's number, never of the clock."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mscope.model.training.recipe import Recipe

Phase = Literal["plain", "full", "adaptive"]


@dataclass(frozen=True)
class Step:
    """The settings of one optimiser step."""

    phase: Phase  # plain: ViM's path alone; full: both stages, alpha 1; adaptive: both stages, the recipe's alpha
    lr: float
    alpha: float
    kl_weight: float  # r of loss.cascade_loss
    coarse_weight: float


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then one cosine over the whole run; phases by shares of the samples.

    mambascope: plain ViM up to `warm_share` (the warm start), then both stages with alpha 1 up to `full_share` (the
    warm start is part of section 4.3's two thirds with all patches fine), then with the recipe's alpha. Over
    `ramp_share` from the end of the warm start the coarse stage's loss goes from cross-entropy to the paper's KL.
    vim: plain throughout.
    """

    recipe: Recipe
    peak_lr: float

    @property
    def warm_steps(self) -> int:
        """Steps of the warm start, before the paper's loss is phased in; all of them for `vim`."""
        if self.recipe.arch == "vim":
            return self.recipe.steps
        return round(self.recipe.warm_share * self.recipe.steps)

    @property
    def plain_steps(self) -> int:
        """Steps as plain ViM, from which the two stages are then derived; all of them for `vim`."""
        joint = self.recipe.arch == "mambascope" and self.recipe.warm_start == "joint"
        return 0 if joint else self.warm_steps

    def at(self, step: int) -> Step:
        """The settings of step 0 <= step < recipe.steps."""
        recipe = self.recipe
        if step < self.plain_steps:
            return Step("plain", self._lr(step), alpha=1.0, kl_weight=0.0, coarse_weight=0.0)
        ramp_steps = recipe.ramp_share * recipe.steps
        done = (step - self.warm_steps) / ramp_steps if ramp_steps else float(step >= self.warm_steps)
        ramp = min(1.0, max(0.0, done))
        full = step < round(recipe.full_share * recipe.steps)
        return Step(
            phase="full" if full else "adaptive",
            lr=self._lr(step),
            alpha=1.0 if full else recipe.alpha,
            kl_weight=ramp * recipe.kl_weight,
            coarse_weight=max(1.0 - ramp, recipe.coarse_floor),
        )

    def _lr(self, step: int) -> float:
        recipe = self.recipe
        warmup = min(recipe.warmup_steps, recipe.steps)
        if step < warmup:
            return self.peak_lr * (step + 1) / warmup
        progress = (step - warmup) / max(1, recipe.steps - warmup)
        floor = min(recipe.lr_final, self.peak_lr)
        return floor + (self.peak_lr - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
