"""The moving average of the weights, which is what is evaluated and shipped."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor

from mscope.model.backbone import Backbone


class WeightAverage:
    """average += (1 - d) * (weight - average) after every step.

    d = min(decay, (1 + n) / (10 + n)) at the n-th update, so that the random start is forgotten at once.
    """

    def __init__(self, model: Backbone, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0
        self._averaged: list[Tensor] = list(self.model.parameters())
        self._watched: list[Tensor] = list(model.parameters())

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights as they are now."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._averaged, [p.detach() for p in self._watched], 1.0 - decay)

    @torch.no_grad()
    def adopt(self, names: Iterable[str]) -> None:
        """Sets the average of the named parameters to their present value: for parameters that were just derived."""
        wanted = set(names)
        for (name, averaged), watched in zip(self.model.named_parameters(), self._watched, strict=True):
            if name in wanted:
                averaged.copy_(watched)
