"""Model configuration: the sizes of the paper and every choice that it leaves open, each as one named option.

Section and equation numbers are those of the MambaScope paper (arXiv 2512.00647).
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mscope.core.errors import InputError
from mscope.core.reduction import Method, Reduction, Steps, default_blocks, reductions

Arch = Literal["mambascope", "vim"]
Metric = Literal["max", "topk", "softplus", "clip", "raw", "l1"]
Order = Literal["class-first", "class-middle", "class-after-important", "unimportant-first"]
Reuse = Literal["mlp", "linear", "none"]
FineOrder = Literal["region", "raster"]
Alignment = Literal["zero", "repeat", "none"]


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

    # Static token reduction of a plain ViM, docs/reduction.md.
    reduce: Method = Field("none", description="how a plain ViM is thinned out: not, by pruning, by merging")
    keep: float = Field(1.0, gt=0.0, le=1.0, description="fraction of the patch tokens left after the last step")
    reduce_after: tuple[int, ...] | None = Field(
        None, description="blocks (1-based) that a step follows; None: by method and depth"
    )
    reduce_steps: Steps | None = Field(
        None, description="a step keeps the same ratio or removes the same count; None: ratio to prune, count to merge"
    )
    prune_metric: Metric = Field("clip", description="importance of a token in the block that a pruning step follows")
    prune_alignment: Alignment = Field(
        "repeat",
        description="how a pruned token still decays the state: as the next kept one, as one of zeros, not at all",
    )
    merge_features: Literal["hidden", "residual"] = Field(
        "hidden", description="what is compared: the output of the block before, or the residual stream"
    )

    @model_validator(mode="after")
    def _fits(self) -> ModelConfig:
        step = 2 * self.patch if self.arch == "mambascope" else self.patch
        for name in ("height", "width"):
            if getattr(self, name) % step:
                raise ValueError(f"{name} {getattr(self, name)} is not a multiple of {step} pixels")
        if self.importance_from is not None and self.importance_from > self.depth:
            raise ValueError(f"importance_from {self.importance_from} is past the last layer, {self.depth}")
        self._check_reduction()
        return self

    def _check_reduction(self) -> None:
        if self.reduce == "none":
            if self.keep != 1.0 or self.reduce_after is not None or self.reduce_steps is not None:
                raise ValueError("keep, reduce_after and reduce_steps go with reduce, which is none")
            return
        if self.arch != "vim":
            raise ValueError(f"reduce {self.reduce} goes with arch vim: mambascope chooses its tokens itself")
        if self.reduce == "prune" and not self.gated_importance:
            raise ValueError("reduce prune scores the gated output: gated_importance must stay true")
        blocks = self.reduce_after
        if blocks is not None and (list(blocks) != sorted(set(blocks)) or not all(0 < b < self.depth for b in blocks)):
            raise ValueError(f"reduce_after {list(blocks)} are not ascending blocks from 1 to {self.depth - 1}")
        if self.keep < 1.0 and not self.reductions:
            raise ValueError(f"keep {self.keep:g} leaves all tokens: a lower one, or more blocks, would reduce any")
        for step in self.reductions if self.reduce == "merge" else ():
            if step.before - step.after > step.before // 2:
                raise ValueError(
                    f"keep {self.keep:g} merges {step.before - step.after} of {step.before} tokens after block "
                    f"{step.block + 1}, at most half can: raise keep or merge after more blocks"
                )

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

    @property
    def plain(self) -> bool:
        """Whether this is the plain ViM that everything is compared with: all tokens in every block."""
        return self.arch == "vim" and not self.reductions

    @property
    def reductions(self) -> tuple[Reduction, ...]:
        """The steps of the static token reduction; none for mambascope, and where every token is kept."""
        if self.reduce == "none":
            return ()
        patches = (self.height // self.patch) * (self.width // self.patch)
        blocks = default_blocks(self.reduce, self.depth) if self.reduce_after is None else self.reduce_after
        steps = self.reduce_steps or ("ratio" if self.reduce == "prune" else "count")
        return reductions(patches, self.keep, blocks, steps)

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
