"""From a trained plain ViM to the two stages, in place: what MODEL.md's rule derives from a ViM checkpoint."""

from __future__ import annotations

import torch

from mscope.core.geometry import coarse_grid, fine_grid
from mscope.model.checkpoint import resize_positions
from mscope.model.mambascope import MambaScope


def derive_stages(model: MambaScope) -> list[str]:
    """Sets pos_embed_coarse by bicubic resizing of pos_embed and silences the feature reuse.

    With it the coarse stage starts as that ViM on a half-size picture, and the fine stage, at alpha 1, as that ViM in
    another token order. Returns the names of the parameters that were set.
    """
    config = model.config
    with torch.no_grad():
        positions = resize_positions(model.pos_embed, fine_grid(config), coarse_grid(config))
        model.pos_embed_coarse.copy_(positions)
    if model.reuse is not None:
        model.reuse.silence()
    return [name for name, _ in model.named_parameters() if name.startswith(("pos_embed_coarse", "reuse."))]
