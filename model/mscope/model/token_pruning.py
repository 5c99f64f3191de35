"""Pruning of the least important tokens, after "Exploring Token Pruning in Vision State Space Models" (2409.18962)."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mscope.core.config import ModelConfig
from mscope.model.importance import token_scores
from mscope.model.rows import ascending, largest, rows
from mscope.model.sequence import Gaps, Sequence


class Pruning(nn.Module):
    """One step: the `kept` patch tokens with the largest scores stay, and the class token, all in their order."""

    def __init__(self, config: ModelConfig, kept: int) -> None:
        super().__init__()
        self.kept = kept
        self._aligned = config.prune_alignment != "none"
        self._metric = config.model_copy(update={"metric": config.prune_metric})

    def forward(self, sequence: Sequence, hidden: Tensor, y: Tensor) -> Sequence:
        """`y` (B, L, d_inner): the scan's output in the block before, as it entered out_proj; `hidden` is not used."""
        places = sequence.places()
        scores = token_scores(y, self._metric)
        scores = torch.where(places == sequence.class_place, torch.inf, scores)
        index, _ = ascending(largest(scores, self.kept + 1))
        place = index.to(places.dtype) if sequence.place is None else rows(places.unsqueeze(2), index).squeeze(2)
        return replace(
            sequence,
            tokens=rows(sequence.tokens, index),
            place=place,
            gaps=gaps_between(place) if self._aligned else None,
        )


def gaps_between(place: Tensor) -> Gaps:
    """How many tokens of the full sequence are missing between neighbours; the ends count none: no state is there."""
    missing = place[:, 1:] - place[:, :-1] - 1
    return Gaps(before=F.pad(missing, (1, 0)).unsqueeze(2), after=F.pad(missing, (0, 1)).unsqueeze(2))
