"""Plain Vision Mamba (Vim, arXiv 2401.09417): the baseline that everything is compared with."""

from __future__ import annotations

from torch import Tensor

from mscope.model.backbone import Backbone


class Vim(Backbone):
    """Plain ViM: every patch, class token in the middle."""

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, classes) of normalised images (B, channels, H, W)."""
        return self.forward_full(image)
