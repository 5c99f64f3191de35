"""Merging of the most similar tokens, after R-MeeTo (2412.12496), whose matching is that of ToMe (2210.09461)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from mscope.core.config import ModelConfig
from mscope.model.rows import ascending, largest, rows
from mscope.model.sequence import Sequence

# A token of zeros is like no other: its cosine is 0, not 0 / 0.
_SHORTEST = 1e-12


class Merging(nn.Module):
    """One step of bipartite soft matching, which removes `removed` patch tokens.

    Without the class token, the tokens in turn are sources (the 1st, 3rd, ...) and destinations (the 2nd, 4th, ...).
    Each source has the destination whose features are most like its own, by cosine; the `removed` sources with the
    largest cosine go into theirs. A token is the mean of the patches in it. All that is left keeps its order.
    """

    def __init__(self, config: ModelConfig, removed: int) -> None:
        super().__init__()
        self.removed = removed
        self._residual = config.merge_features == "residual"

    def forward(self, sequence: Sequence, hidden: Tensor, y: Tensor) -> Sequence:
        """`hidden` (B, L, d_model): the output of the block before; `y` is not used."""
        width, patches = sequence.tokens.shape[2], self._patches(sequence)
        table = _table(sequence)
        kept = rows(table, patches)
        order, best = self._match(kept[..., :width] if self._residual else rows(hidden, patches))
        sources = torch.cat([kept[:, ::2], best.unsqueeze(2).to(kept.dtype)], dim=2)
        sources, destinations = rows(sources, order), kept[:, 1::2]
        merged, left = sources[:, : self.removed], sources[:, self.removed :, :-1]

        count = destinations.shape[1]
        into = torch.arange(count, device=kept.device).to(kept.dtype).unsqueeze(1) == merged[..., -1].unsqueeze(1)
        # (B, destinations, merged): the size of a source where it goes into that destination.
        share = into.to(kept.dtype) * merged[..., width].unsqueeze(1)
        own = destinations[..., width : width + 1]
        size = own + share.sum(dim=2, keepdim=True)
        means = (destinations[..., :width] * own + share @ merged[..., :width]) / size

        # The class token, the sources that stay and the destinations, put back into order.
        grown = torch.cat([means, size, destinations[..., width + 1 :]], dim=2)
        table = torch.cat([rows(table, sequence.class_row()), left, grown], dim=1)
        place, back = ascending(table[..., width + 1])
        table = rows(table, back)
        return replace(sequence, tokens=table[..., :width], size=table[..., width : width + 1], place=place)

    def _patches(self, sequence: Sequence) -> Tensor:
        """(B, L - 1) int64: the rows of the patch tokens."""
        count = sequence.tokens.shape[1] - 1
        index = torch.arange(count, device=sequence.tokens.device).unsqueeze(0)
        return index + (index >= sequence.class_row()).to(index.dtype)

    def _match(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Of (B, n, F): the sources, the surest to be merged first, and each source's destination; both (B, sources).

        Of equal cosines the lower index goes first.
        """
        length = torch.linalg.vector_norm(features, dim=2, keepdim=True)
        unit = (features / length.clamp_min(_SHORTEST)).detach()
        cosine = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
        return largest(cosine.amax(dim=2), cosine.shape[1]), cosine.argmax(dim=2)


def _table(sequence: Sequence) -> Tensor:
    """(B, L, d_model + 2): features, size and place side by side, so that one gather moves all of a token."""
    tokens, place, size = sequence.tokens, sequence.place, sequence.size
    if place is None:
        place = sequence.places().expand(tokens.shape[0], -1)
    return torch.cat([tokens, torch.ones_like(tokens[..., :1]) if size is None else size, place.unsqueeze(2)], dim=2)
