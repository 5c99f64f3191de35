"""A gradient for the ranking of the regions, which the paper's loss leaves without one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mscope.core.config import ModelConfig
from mscope.core.geometry import coarse_grid


def teach_ranking(image: Tensor, importance: Tensor, config: ModelConfig, strength: float) -> Tensor:
    """The image, unchanged, through which the fine stage's loss teaches the importance of the regions.

    Selection is a sort: no gradient passes it, so nothing in eq. 21 ever says which region should have been refined.
    Here the backward pass, when it arrives at the pixels that the fine stage saw, measures how much the loss depends
    on each region, s = the norm of its pixels' gradient, and gives the importance the gradient of
    `strength` * cross-entropy(softmax(importance), s / sum(s)), averaged over the batch. No value changes, and
    inference knows nothing of it.

    Args:
        image: (B, channels, H, W), normalised.
        importance: (B, Nc) with its graph.
        strength: weight of that cross-entropy.

    Returns:
        (B, channels, H, W), equal to `image`, to be given to the fine stage.
    """
    # The moving average starts at 0: its first term is (1 - beta) * S. That scale is taken out again.
    scale = 1.0 - config.beta if config.ema_start == "zero" and config.beta < 1.0 else 1.0
    taught: Tensor = _TeachRanking.apply(image, importance / scale, config, strength)  # type: ignore[no-untyped-call]
    return taught


def region_saliency(gradient: Tensor, config: ModelConfig) -> Tensor:
    """(B, Nc): each region's share of the gradient's norm, from the gradient (B, channels, H, W); sums to 1."""
    squares = F.avg_pool2d(gradient.square().sum(1, keepdim=True), 2 * config.patch)
    norms = squares.reshape(-1, coarse_grid(config).count).sqrt()
    return norms / norms.sum(1, keepdim=True).clamp_min(torch.finfo(norms.dtype).tiny)


class _TeachRanking(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, logits: Tensor, config: ModelConfig, strength: float) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.config, ctx.strength = config, strength
        return image.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        (logits,) = ctx.saved_tensors
        target = region_saliency(gradient, ctx.config)
        towards = (torch.softmax(logits, dim=1) - target) * (ctx.strength / logits.shape[0])
        return (gradient if ctx.needs_input_grad[0] else None), towards, None, None
