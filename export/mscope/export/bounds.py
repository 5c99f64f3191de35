"""How far a precision may be from float32: counted roundings, added as independent errors add. docs/precision.md."""

from __future__ import annotations

import math

from mscope.core.config import ModelConfig
from mscope.core.contract import Stage
from mscope.core.manifest import Precision

# Relative error of one rounding of a stored value: half a unit in the last place; int8 and fp8 have none that fits
# every tensor: what they lose depends on how their ranges were calibrated.
ROUNDING: dict[Precision, float] = {"fp32": 2.0**-24, "bf16": 2.0**-8, "fp16": 2.0**-11}
# Stored values on a token's way through a block: norm's output, weight of in_proj, xz, weights of the convolutions,
# their output, weight of x_proj, its output, weight of dt_proj, y, weight of out_proj, its output.
_IN_A_BLOCK = 11
# Patches, their weight, their product; the head's input, weight and logits.
_AROUND = 6
# Reused features: norm, two weights, two products, the hidden layer.
_REUSE = 6
# The smallest cosine of an image's logits with the reference's. int8 and fp8 are not held to probes: their ranges are
# calibrated on pictures, which noise exceeds; mscope.calib holds them to accuracy on data.
COSINE: dict[Precision, float] = {"fp32": 0.999999, "fp16": 0.9999, "bf16": 0.995}


def is_judged(config: ModelConfig, precision: Precision) -> bool:
    """Whether probes say if a graph of this precision is right.

    Not of int8 and fp8, whose ranges are of pictures, and not of a ViM with reduced tokens below fp32: where two scores
    nearly tie, rounding keeps or merges another token, and the logits move by what that token is worth.
    """
    return precision == "fp32" or (precision in ROUNDING and not config.reductions)


def roundings(config: ModelConfig, stage: Stage) -> int:
    """Values rounded one after the other from picture to logits; for the fine stage with those of the coarse one."""
    through = _IN_A_BLOCK * config.depth + _AROUND
    return 2 * through + _REUSE if stage == "fine" else through


def tolerance(config: ModelConfig, stage: Stage, precision: Precision, scale: float) -> float | None:
    """How far a value may be from the reference, whose largest is `scale`; None where `is_judged` is False.

    Errors of independent roundings add as the root of their number. In float32 the additions inside a product round as
    well, as many as the longest sum has terms; the lower precisions sum in float32.
    """
    if not is_judged(config, precision):
        return None
    steps = float(roundings(config, stage))
    if precision == "fp32":
        steps *= 4 * config.d_model
    return ROUNDING[precision] * math.sqrt(steps) * scale
