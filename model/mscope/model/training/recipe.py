"""One training run as plain values: what the command asks for, what a checkpoint carries, what the report records."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mscope.core.config import Arch, FineOrder, Metric, ModelConfig, Order, Reuse
from mscope.core.errors import InputError


class Recipe(BaseModel):
    """Immutable. Everything that decides the resulting weights, up to the machine's rounding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str = "digits"
    arch: Arch = "mambascope"
    samples: int = Field(500_000, ge=1, le=10**9, description="pictures seen in all, warm start included")
    batch: int = Field(32, ge=1, le=65536)
    seed: int = Field(0, ge=0, lt=2**32)

    alpha: float = Field(0.75, gt=0, le=1, description="refined fraction of the last phase, eq. 13")
    order: Order = "class-first"
    fine_order: FineOrder = Field("raster", description="region order undoes what the warm start learned along rows")
    metric: Metric = Field("max", description="this and the following: as in ModelConfig")
    metric_topk: int = Field(16, ge=1)
    gated_importance: bool = True
    beta: float = Field(0.99, ge=0, le=1)
    ema_start: Literal["zero", "first"] = "zero"
    importance_from: int | None = Field(None, ge=1)
    importance_every: int = Field(2, ge=1)
    reuse: Reuse = "mlp"
    reuse_class_token: bool = False

    lr: float = Field(2e-3, gt=0, le=1, description="the schedule's peak")
    lr_final: float = Field(1e-5, ge=0, le=1, description="where the cosine ends")
    warmup_steps: int = Field(150, ge=0)
    weight_decay: float = Field(0.05, ge=0, le=10)
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the weights' moving average")

    easy_share: float = Field(0.1, ge=0, le=1, description="share of the samples that go from easy to the full task")
    smallest_digit: float = Field(16.0, ge=8, le=30, description="in training; pixels. The other splits start at 16")
    warm_start: Literal["plain", "joint"] = Field(
        "plain", description="plain: as ViM on the shared weights; joint: both stages at once, each by cross-entropy"
    )
    warm_share: float = Field(
        0.5, ge=0, lt=1, description="share of the samples for the warm start as plain ViM; 0 with --init"
    )
    ramp_share: float = Field(0.03, ge=0, le=1, description="share of the samples over which KL replaces CE(coarse)")
    full_share: float = Field(2 / 3, ge=0, le=1, description="share of the samples with every patch fine (alpha = 1)")
    kl_weight: float = Field(1.0, ge=0, description="weight of the KL term after the ramp; paper: 1")
    coarse_floor: float = Field(0.0, ge=0, le=1, description="weight of CE(coarse) that stays after the ramp; paper: 0")
    ranking: float = Field(0.5, ge=0, description="weight of the gradient that teaches the ranking; paper: 0")

    plateau_steps: int = Field(800, ge=1, description="the warm start must have left chance by then")
    plateau_accuracy: float = Field(0.15, ge=0, le=1)

    @property
    def steps(self) -> int:
        """Optimiser steps of the run, at least one."""
        return max(1, self.samples // self.batch)

    @property
    def choices(self) -> dict[str, Any]:
        """The fields that are fields of the network's configuration too: what the paper leaves open, and alpha."""
        return {name: value for name, value in self if name in ModelConfig.model_fields and name != "arch"}


def make_recipe(**fields: Any) -> Recipe:
    """A validated Recipe. Raises InputError that names the first value that does not fit."""
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "recipe"
        if first["type"] == "extra_forbidden":
            choices = ", ".join(Recipe.model_fields)
            raise InputError(f"no training option is called '{where}': choose one of {choices}") from None
        raise InputError(f"training option {where}: {first['msg']} (got {first['input']!r})") from None
