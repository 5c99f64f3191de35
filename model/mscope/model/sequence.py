"""The tokens of a reduced ViM on their way through the blocks: which are left, and what each stands for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mscope.model.rows import rows


@dataclass(frozen=True)
class Gaps:
    """Pruned tokens beside each one that is left, (B, L, 1) in the dtype of the tokens."""

    before: Tensor  # between the token before and this one: what the forward scan has passed over
    after: Tensor  # between this one and the token after: what the backward scan has


@dataclass(frozen=True)
class Sequence:
    """Tokens in their original order.

    Attributes:
        tokens: (B, L, d_model) the residual stream.
        class_place: where the class token is in the full sequence.
        place: (B, L) where each token is in the full sequence, ascending, in the dtype of `tokens`, which holds such
            numbers exactly; None while all are there.
        size: (B, L, 1) how many patches each token is the mean of; None: one.
        gaps: None while no token is pruned.
    """

    tokens: Tensor
    class_place: int
    place: Tensor | None = None
    size: Tensor | None = None
    gaps: Gaps | None = None

    def with_tokens(self, tokens: Tensor) -> Sequence:
        """The same sequence with other features."""
        return replace(self, tokens=tokens)

    def places(self) -> Tensor:
        """`place`, or the same written out for all images: (B, L) or (1, L)."""
        if self.place is not None:
            return self.place
        return torch.arange(self.tokens.shape[1], device=self.tokens.device).to(self.tokens.dtype).unsqueeze(0)

    def class_row(self) -> Tensor:
        """Where the class token is now, int64: (B, 1), or (1, 1) while all tokens are there."""
        return (self.places() < self.class_place).sum(dim=1, keepdim=True)

    def class_token(self) -> Tensor:
        """(B, d_model)."""
        return rows(self.tokens, self.class_row())[:, 0]
