"""What ViM and MambaScope share: patch embedding, class token, positions, the encoder of Mamba blocks, the head."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mscope.core.config import ModelConfig
from mscope.core.geometry import class_row, fine_grid
from mscope.model.importance import MovingAverage, token_scores
from mscope.model.mixer import Block, RMSNorm
from mscope.model.reduction import Reduction

# Standard deviation of a unit normal truncated to [-2, 2]; lecun_normal divides by it.
_TRUNCATED_STD = 0.87962566103423978


class PatchEmbed(nn.Module):
    """Holds the projection under Vim's name. The caller cuts out the patches: the fine stage embeds only some."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch = config.patch
        self.proj = nn.Conv2d(config.channels, config.d_model, config.patch, stride=config.patch)

    def forward(self, pixels: Tensor) -> Tensor:
        """(..., channels * patch * patch) pixels of whole patches -> (..., d_model)."""
        return F.linear(pixels, self.proj.weight.flatten(1), self.proj.bias)

    def cut(self, image: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, patches, channels * patch * patch), patches in raster order."""
        side, (channels, height, width) = self.patch, image.shape[1:]
        rows, cols = height // side, width // side
        blocks = image.reshape(-1, channels, rows, side, cols, side).permute(0, 2, 4, 1, 3, 5)
        return blocks.reshape(-1, rows * cols, channels * side * side)


class Backbone(nn.Module):
    """Vision Mamba's parameters, under the names of the official checkpoints, and what the networks are built from."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.d_model))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + fine_grid(config).count, config.d_model))
        self.layers = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm_f = RMSNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.classes)
        self.reduction = Reduction(config)
        self.initialise()

    def initialise(self, *, backward_delta: bool = False) -> None:
        """Draws what Vim does not leave to PyTorch's defaults; `backward_delta` as in Mixer.initialise."""
        fan_in = self.patch_embed.proj.weight[0].numel()
        std = math.sqrt(1.0 / fan_in) / _TRUNCATED_STD
        nn.init.trunc_normal_(self.patch_embed.proj.weight, std=std, a=-2 * std, b=2 * std)
        for tensor in (self.cls_token, self.pos_embed, self.head.weight):
            nn.init.trunc_normal_(tensor, std=0.02)
        for bias in (self.patch_embed.proj.bias, self.head.bias):
            if bias is not None:
                nn.init.zeros_(bias)
        for block in self.blocks():
            block.mixer.initialise(self.config.depth, backward_delta=backward_delta)

    def blocks(self) -> list[Block]:
        """The encoder's blocks, typed."""
        return [block for block in self.layers if isinstance(block, Block)]

    def encode(self, tokens: Tensor, *, scored: bool = False) -> tuple[Tensor, Tensor | None]:
        """Runs the shared encoder.

        Args:
            tokens: (B, L, d_model) with class token and positions.
            scored: also accumulate the tokens' importance.

        Returns:
            The tokens after norm_f, (B, L, d_model), and the importance (B, L) float32 or None.
        """
        average = MovingAverage(self.config)
        scored_layers = self.config.importance_layers if scored else ()
        # The residual stream stays in at least float32 whatever the weights are.
        residual = tokens if tokens.dtype == torch.float64 else tokens.float()
        for index, block in enumerate(self.blocks()):
            before_gate = index in scored_layers and not self.config.gated_importance
            hidden, y = block.mixer(block.norm(residual), score_before_gate=before_gate)
            if index in scored_layers:
                average.add(token_scores(y, self.config))
            residual = residual + hidden
        return self.norm_f(residual), average.value if scored else None

    def embed_with_class(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Embeds (B, n, pixels), puts the class token in the middle, adds positions (1, n + 1, d_model)."""
        return self._insert_class(self.patch_embed(patches)) + positions

    def _insert_class(self, tokens: Tensor) -> Tensor:
        row = class_row(tokens.shape[1])
        class_token = self.cls_token.expand(tokens.shape[0], -1, -1)
        return torch.cat([tokens[:, :row], class_token, tokens[:, row:]], dim=1)

    def forward_full(self, image: Tensor) -> Tensor:
        """ViM on all patches in raster order, thinned out on the way if so configured.

        Logits (B, classes) of normalised images (B, channels, H, W).
        """
        tokens = self.embed_with_class(self.patch_embed.cut(image), self.pos_embed)
        if len(self.reduction):
            return self.head(self.norm_f(self.reduction.class_token(self.blocks(), tokens)))
        encoded, _ = self.encode(tokens)
        return self.head(encoded[:, class_row(tokens.shape[1] - 1)])
