"""Model configuration: the sizes of the paper and every choice that it leaves open, each as one named option.

Section and equation numbers are those of the MambaScope paper (arXiv 2512.00647).
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mscope.core.errors import InputError

Arch = Literal["mambascope", "vim"]
Metric = Literal["max", "topk", "softplus", "clip", "raw", "l1"]
Order = Literal["class-first", "class-middle", "class-after-important", "unimportant-first"]
Reuse = Literal["mlp", "linear", "none"]
FineOrder = Literal["region", "raster"]


class ModelConfig(BaseModel):
    """One network. Immutable; equal configurations describe interchangeable weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arch: Arch = "mambascope"
    size: str = Field("ti", description="the name of the size; free text for a custom one")
    d_model: int = Field(192, ge=1, le=8192)
    depth: int = Field(24, ge=1, le=256)
    d_state: int = Field(16, ge=1, le=256)
    d_conv: int = Field(4, ge=2, le=4)
    expand: int = Field(2, ge=1, le=8)
    patch: int = Field(16, ge=1, le=256, description="side of a patch, pixels, in both stages")
    channels: int = Field(3, ge=1, le=16)
    height: int = Field(224, ge=2, le=8192, description="pixels; a multiple of 2 * patch for mambascope")
    width: int = Field(224, ge=2, le=8192, description="pixels; likewise")
    classes: int = Field(1000, ge=1, le=1_000_000)

    alpha: float = Field(0.5, gt=0.0, le=1.0, description="refined fraction of the regions, eq. 13")
    metric: Metric = Field("max", description="importance of a token, eq. 11 and Table 4")
    metric_topk: int = Field(16, ge=1, description="channels averaged by the metric `topk`")
    gated_importance: bool = Field(True, description="score Y after the gate SiLU(z) (True) or before it (False)")
    beta: float = Field(0.99, ge=0.0, le=1.0, description="decay of the importance's moving average, eq. 12")
    ema_start: Literal["zero", "first"] = Field("zero", description="the average starts at 0 or at the first layer's S")
    importance_from: int | None = Field(
        None, ge=1, description="first layer (1-based) that is averaged; None: by depth"
    )
    importance_every: int = Field(2, ge=1)
    reuse: Reuse = Field("mlp", description="what carries coarse features to the fine tokens, eqs. 17 to 19")
    reuse_class_token: bool = Field(False, description="add the coarse class token's reused feature to the fine one")
    order: Order = Field("class-first", description="token order of the fine stage, Fig. 5")
    fine_order: FineOrder = Field(
        "region", description="fine tokens by region, its four patches together, or in raster order as in plain ViM"
    )

    @model_validator(mode="after")
    def _fits(self) -> ModelConfig:
        step = 2 * self.patch if self.arch == "mambascope" else self.patch
        for name in ("height", "width"):
            if getattr(self, name) % step:
                raise ValueError(f"{name} {getattr(self, name)} is not a multiple of {step} pixels")
        if self.importance_from is not None and self.importance_from > self.depth:
            raise ValueError(f"importance_from {self.importance_from} is past the last layer, {self.depth}")
        return self

    @property
    def d_inner(self) -> int:
        return self.expand * self.d_model

    @property
    def dt_rank(self) -> int:
        return math.ceil(self.d_model / 16)

    @property
    def importance_layers(self) -> tuple[int, ...]:
        """0-based layers whose scan output is scored: for depth 24 the paper's 12th, 14th, ..., 24th (4.2.1)."""
        first = self.importance_from
        if first is None:
            # The second half of the network, counted back from the last layer.
            first = max(1, self.depth // 2)
            first += (self.depth - first) % self.importance_every
        return tuple(layer - 1 for layer in range(first, self.depth + 1, self.importance_every))

    def replace(self, **changes: Any) -> ModelConfig:
        """A validated copy with some fields changed. Raises InputError naming the field that does not fit."""
        return make_config(self.model_dump() | changes)


def make_config(fields: dict[str, Any]) -> ModelConfig:
    """ModelConfig from plain values. Raises InputError with the first field that does not fit, in one line."""
    try:
        return ModelConfig.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "configuration"
        raise InputError(f"model configuration: {where}: {first['msg']}") from None


SIZES: dict[str, dict[str, Any]] = {
    "ti": {"d_model": 192, "depth": 24},
    "s": {"d_model": 384, "depth": 24},
    "b": {"d_model": 768, "depth": 24},
    # Small enough to be trained on a CPU, shipped with weights: cluttered digits on a 64 x 64 canvas.
    "digits": {
        "d_model": 64, "depth": 6, "d_state": 8, "patch": 8, "channels": 1, "height": 64, "width": 64, "classes": 10,
        "alpha": 0.75, "fine_order": "raster",
    },
}  # fmt: skip


def config_for(size: str, arch: str = "mambascope", **changes: Any) -> ModelConfig:
    """The configuration of a named size: `ti`, `s`, `b` (224 x 224, 1,000 classes) or `digits` (64 x 64, 10 classes).

    Raises:
        InputError: an unknown size, or a value out of range.
    """
    if size not in SIZES:
        raise InputError(f"unknown size '{size}': choose one of {', '.join(SIZES)}")
    return make_config({"arch": arch, "size": size} | SIZES[size] | changes)
