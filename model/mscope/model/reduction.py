"""The encoder of a plain ViM whose tokens grow fewer on the way: what pruning and merging share."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mscope.core.config import ModelConfig
from mscope.core.geometry import class_row, fine_grid
from mscope.model.mixer import Block
from mscope.model.sequence import Sequence
from mscope.model.token_merging import Merging
from mscope.model.token_pruning import Pruning


class Reduction(nn.ModuleList):
    """The steps of a configuration; without parameters, and empty where every token is kept."""

    def __init__(self, config: ModelConfig) -> None:
        steps = config.reductions
        pruned = config.reduce == "prune"
        super().__init__(
            Pruning(config, step.after) if pruned else Merging(config, step.before - step.after) for step in steps
        )
        self._after = {step.block: number for number, step in enumerate(steps)}
        self._class_place = class_row(fine_grid(config).count)

    def class_token(self, blocks: Iterable[Block], tokens: Tensor) -> Tensor:
        """Runs the blocks with the steps between them.

        Args:
            blocks: the encoder's.
            tokens: (B, L, d_model) with class token and positions.

        Returns:
            The class token's residual stream after the last block, (B, d_model), before norm_f.
        """
        residual = tokens if tokens.dtype == torch.float64 else tokens.float()
        sequence = Sequence(residual, self._class_place)
        for index, block in enumerate(blocks):
            hidden, y = block.mixer(block.norm(sequence.tokens), gaps=sequence.gaps)
            sequence = sequence.with_tokens(sequence.tokens + hidden)
            if index in self._after:
                sequence = self[self._after[index]](sequence, hidden, y)
        return sequence.class_token()
