"""Analytic cost: parameters, multiply-accumulates (GMACs; the paper writes "FLOPs (G)") and tokens of each stage.

Counted per token and layer: the projections, the two convolutions, and three MACs for each channel and state of each
direction (delta*x times B, the update of h, C . h). Not counted, as is usual: exponentials and other activations,
norms, additions of residuals. Merging adds the products that compare and sum tokens. docs/cost.md compares the results
with the paper's tables.
"""

from __future__ import annotations

from dataclasses import dataclass

from mscope.core.config import ModelConfig
from mscope.core.geometry import block_tokens, coarse_grid, fine_grid, regions_refined, token_counts

SCAN_MACS_PER_STATE = 3
MLP_RATIO = 4


@dataclass(frozen=True)
class Cost:
    """GMACs of each stage for one image. `fine` excludes the coarse pass; `full` is ViM of the same size, on all
    patches, or reduced as the configuration says."""

    coarse: float
    fine: float
    full: float

    def adaptive(self, exit_rate: float) -> float:
        """Mean GMACs an image when `exit_rate` of the images leave after the coarse stage."""
        return self.coarse + (1.0 - exit_rate) * self.fine


def break_even_exit_rate(coarse: float, fine: float, full: float) -> float:
    """r* = 1 - (full - coarse) / fine: the share of early exits above which the cascade costs less than plain ViM.

    The three may be GMACs or latencies, in one unit. At or below 0 the cascade always pays, above 1 never.
    """
    return 1.0 - (full - coarse) / fine


def describe_break_even(rate: float) -> str:
    """A break-even exit rate in words; `rate` as `break_even_exit_rate` returns it."""
    if rate <= 0.0:
        return "always pays: it costs less than plain ViM even if no image exits early"
    if rate > 1.0:
        return "does not pay: even if every image exits early it costs more than plain ViM"
    return f"pays only if more than {rate:.0%} of the images exit early"


def _layer_macs_per_token(config: ModelConfig) -> int:
    d_model, d_inner, d_state, dt_rank = config.d_model, config.d_inner, config.d_state, config.dt_rank
    projections = d_model * 2 * d_inner + d_inner * d_model
    per_direction = (
        d_inner * (dt_rank + 2 * d_state)  # x_proj
        + dt_rank * d_inner  # dt_proj
        + config.d_conv * d_inner
        + SCAN_MACS_PER_STATE * d_state * d_inner
    )
    return projections + 2 * per_direction


def _reuse_macs_per_token(config: ModelConfig) -> int:
    return {"mlp": 2 * MLP_RATIO, "linear": 1, "none": 0}[config.reuse] * config.d_model**2


def _merge_macs(config: ModelConfig) -> int:
    """Of every merging step: each source compared with each destination, then the merged sources summed into them."""
    if config.reduce != "merge":
        return 0
    total = 0
    for step in config.reductions:
        sources, destinations, merged = step.before - step.before // 2, step.before // 2, step.before - step.after
        total += sources * destinations * config.d_model + destinations * merged * config.d_model
    return total


def stage_cost(config: ModelConfig) -> Cost:
    """GMACs of the three stages, for one image, at the configuration's alpha, resolution and token reduction."""
    tokens = token_counts(config)
    regions = coarse_grid(config).count
    refined = regions_refined(config.alpha, regions)
    trunk = config.depth * _layer_macs_per_token(config)
    patch = config.patch**2 * config.channels * config.d_model
    head = config.d_model * config.classes
    reused = refined + (1 if config.reuse_class_token else 0)
    coarse = tokens.coarse * trunk + regions * patch + head
    fine = tokens.fine * trunk + 4 * refined * patch + reused * _reuse_macs_per_token(config) + head
    full = sum(block_tokens(config)) * _layer_macs_per_token(config) + fine_grid(config).count * patch + head
    full += _merge_macs(config)
    return Cost(coarse=coarse / 1e9, fine=fine / 1e9, full=full / 1e9)


def parameter_count(config: ModelConfig) -> int:
    """Trainable parameters of the network; equals the sum over the PyTorch module's tensors."""
    d_model, d_inner, d_state, dt_rank = config.d_model, config.d_inner, config.d_state, config.dt_rank
    per_direction = (
        d_inner * (config.d_conv + 1)  # conv1d
        + d_inner * (dt_rank + 2 * d_state)  # x_proj
        + d_inner * (dt_rank + 1)  # dt_proj
        + d_inner * d_state  # A_log
        + d_inner  # D
    )
    layer = d_model + d_model * 2 * d_inner + d_inner * d_model + 2 * per_direction
    total = config.depth * layer
    total += (config.patch**2 * config.channels + 1) * d_model  # patch embedding
    total += d_model + (1 + fine_grid(config).count) * d_model  # class token, positions
    total += d_model + (d_model + 1) * config.classes  # norm_f, head
    if config.arch == "mambascope":
        total += (1 + coarse_grid(config).count) * d_model
        if config.reuse != "none":
            total += 2 * d_model  # reuse.norm
        if config.reuse == "mlp":
            total += 2 * MLP_RATIO * d_model**2 + (MLP_RATIO + 1) * d_model
        elif config.reuse == "linear":
            total += d_model**2 + d_model
    return total
