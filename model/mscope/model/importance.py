"""Importance of a token from the scan's output (4.2.1, eqs. 11 and 12, Table 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mscope.core.config import ModelConfig
from mscope.model.softplus import softplus


def token_scores(y: Tensor, config: ModelConfig) -> Tensor:
    """S (B, L), float32, of one layer's Y (B, L, C), by the configured metric.

    `max` is the paper's max-norm, max over channels of softplus(Y); it and `topk` use that softplus is monotonic.
    The others average over channels: `softplus` softplus(Y), `clip` max(Y, 0), `raw` Y, `l1` |Y|.
    """
    y = y.float()
    if config.metric == "max":
        return F.softplus(y.amax(dim=-1))
    if config.metric == "topk":
        largest = torch.topk(y, min(config.metric_topk, y.shape[-1]), dim=-1).values
        return softplus(largest).mean(dim=-1)
    if config.metric == "softplus":
        return softplus(y).mean(dim=-1)
    if config.metric == "clip":
        return F.relu(y).mean(dim=-1)
    if config.metric == "raw":
        return y.mean(dim=-1)
    return y.abs().mean(dim=-1)


class MovingAverage:
    """EMA = beta * EMA + (1 - beta) * S over the scored layers, eq. 12."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._value: Tensor | None = None

    def add(self, scores: Tensor) -> None:
        """Takes the next layer's S (B, L)."""
        beta = self._config.beta
        if self._value is not None:
            self._value = beta * self._value + (1.0 - beta) * scores
        else:
            self._value = scores if self._config.ema_start == "first" else (1.0 - beta) * scores

    @property
    def value(self) -> Tensor:
        """The average (B, L) so far."""
        assert self._value is not None, "no layer was scored"
        return self._value
