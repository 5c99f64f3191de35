"""MambaScope (arXiv 2512.00647): a coarse pass over regions, and a fine pass over the important ones, on one Vim."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mscope.core.config import ModelConfig
from mscope.core.cost import MLP_RATIO
from mscope.core.geometry import class_row, coarse_grid, regions_refined
from mscope.model.backbone import Backbone
from mscope.model.mixer import NORM_EPS
from mscope.model.rows import rows


class CoarseOutput(NamedTuple):
    """What the coarse stage hands on; Nc regions in raster order."""

    logits: Tensor  # (B, classes)
    importance: Tensor  # (B, Nc) float32
    features: Tensor  # (B, Nc, d_model) after norm_f; with reuse_class_token the class token's as a last row
    embeddings: Tensor  # (B, Nc, d_model) input tokens of the coarse stage, positions included


class FeatureReuse(nn.Module):
    """reuse(t) = MLP(LayerNorm(t)), eqs. 17 to 19; with the `linear` ablation one Linear in the MLP's place."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model, eps=NORM_EPS)
        hidden = MLP_RATIO * config.d_model
        if config.reuse == "mlp":
            self.fc1 = nn.Linear(config.d_model, hidden)
            self.fc2 = nn.Linear(hidden, config.d_model)
        else:
            self.fc = nn.Linear(config.d_model, config.d_model)
        self._mlp = config.reuse == "mlp"

    def silence(self) -> None:
        """Makes the output zero, so that a network derived from plain Vim starts as that Vim."""
        last = self.fc2 if self._mlp else self.fc
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, n, d_model) -> (B, n, d_model)."""
        normed = self.norm(features)
        return self.fc2(F.gelu(self.fc1(normed))) if self._mlp else self.fc(normed)


class MambaScope(Backbone):
    """ViM's parameters plus pos_embed_coarse and reuse; `coarse` and `fine` are the two stages."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.pos_embed_coarse = nn.Parameter(torch.empty(1, 1 + coarse_grid(config).count, config.d_model))
        nn.init.trunc_normal_(self.pos_embed_coarse, std=0.02)
        self.reuse = FeatureReuse(config) if config.reuse != "none" else None

    def coarse(self, image: Tensor) -> CoarseOutput:
        """The coarse stage (4.1): (B, channels, H, W), averaged down 2 x 2, one token for each region."""
        patches = self.patch_embed.cut(F.avg_pool2d(image, 2))
        tokens = self.embed_with_class(patches, self.pos_embed_coarse)
        encoded, importance = self.encode(tokens, scored=True)
        assert importance is not None
        row = class_row(patches.shape[1])
        features = _without(encoded, row)
        if self.config.reuse_class_token:
            features = torch.cat([features, encoded[:, row : row + 1]], dim=1)
        return CoarseOutput(self.head(encoded[:, row]), _without(importance, row), features, _without(tokens, row))

    def fine(self, image: Tensor, features: Tensor, embeddings: Tensor, selected: Tensor, remaining: Tensor) -> Tensor:
        """The fine stage (4.2): logits (B, classes).

        Args:
            image: (B, channels, H, W), the full-size image.
            features: the coarse stage's, as in CoarseOutput; likewise embeddings.
            selected: (B, K) int64 regions to refine, in spatial order.
            remaining: (B, Nc - K) int64, the others, in spatial order.
        """
        kept, width = selected.shape[1], self.config.d_model
        tokens = self.patch_embed(rows(self._region_pixels(image), selected).reshape(-1, kept, 4, self._pixels))
        positions = self._region_positions().index_select(0, selected.reshape(-1))
        tokens = tokens + positions.reshape(-1, kept, 4, width)
        if self.reuse is not None:
            tokens = tokens + self.reuse(rows(features, selected)).unsqueeze(2)
        important = tokens.reshape(-1, 4 * kept, width)
        if self.config.fine_order == "raster":
            important = rows(important, self._raster_ranks(selected))
        encoded, row = self._encode_ordered(self._fine_class_token(features), important, rows(embeddings, remaining))
        return self.head(encoded[:, row])

    def forward(self, image: Tensor, alpha: float | None = None) -> tuple[Tensor, Tensor]:
        """Both stages for every image (eta = 1), as in training: coarse and fine logits, (B, classes) each.

        `alpha` overrides the configuration's refined fraction.
        """
        coarse = self.coarse(image)
        return coarse.logits, self.fine(
            image, coarse.features, coarse.embeddings, *self.split(coarse.importance, alpha)
        )

    def split(self, importance: Tensor, alpha: float | None = None) -> tuple[Tensor, Tensor]:
        """(selected, remaining) of importance (B, Nc): what mscope.core.cascade.select_regions does, in torch."""
        count = regions_refined(self.config.alpha if alpha is None else alpha, importance.shape[1])
        ranked = torch.argsort(importance.detach(), dim=1, descending=True, stable=True)
        return ranked[:, :count].sort(dim=1).values, ranked[:, count:].sort(dim=1).values

    @property
    def _pixels(self) -> int:
        return self.config.channels * self.config.patch**2

    def _region_pixels(self, image: Tensor) -> Tensor:
        """(B, Nc, 4 * pixels): the pixels of each region's four patches, in the order of eqs. 15 and 16."""
        side, grid = self.config.patch, coarse_grid(self.config)
        blocks = image.reshape(-1, self.config.channels, grid.rows, 2, side, grid.cols, 2, side)
        return blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(-1, grid.count, 4 * self._pixels)

    def _region_positions(self) -> Tensor:
        """(Nc, 4 * d_model): rows of pos_embed for each region's four patches."""
        grid = coarse_grid(self.config)
        rows = _without(self.pos_embed, class_row(4 * grid.count))
        blocks = rows.reshape(grid.rows, 2, grid.cols, 2, -1).permute(0, 2, 1, 3, 4)
        return blocks.reshape(grid.count, -1)

    def _raster_ranks(self, selected: Tensor) -> Tensor:
        """(B, 4K): which of the fine tokens, listed region by region, comes at each place in raster order."""
        cols = coarse_grid(self.config).cols
        row = torch.div(selected, cols, rounding_mode="trunc")
        first = 4 * cols * row + 2 * (selected - row * cols)
        patches = first.unsqueeze(2) + torch.tensor([0, 1, 2 * cols, 2 * cols + 1], device=selected.device)
        # argsort by another name, as all are different: topk's count is a constant of the ONNX graph, argsort's is
        # computed there.
        count = 4 * selected.shape[1]
        return patches.reshape(-1, count).topk(count, dim=1, largest=False).indices

    def _fine_class_token(self, features: Tensor) -> Tensor:
        token = self.cls_token + self.pos_embed[:, class_row(self.pos_embed.shape[1] - 1)].unsqueeze(1)
        token = token.expand(features.shape[0], -1, -1)
        if self.config.reuse_class_token and self.reuse is not None:
            token = token + self.reuse(features[:, -1:])
        return token

    def _encode_ordered(self, class_token: Tensor, important: Tensor, others: Tensor) -> tuple[Tensor, int]:
        """Encodes the three groups in the configured order; also says at which row the class token is."""
        order = self.config.order
        if order == "class-after-important":
            groups, row = [important, class_token, others], important.shape[1]
        elif order == "unimportant-first":
            groups, row = [class_token, others, important], 0
        elif order == "class-middle":
            tokens = torch.cat([important, others], dim=1)
            row = class_row(tokens.shape[1])
            groups = [tokens[:, :row], class_token, tokens[:, row:]]
        else:
            groups, row = [class_token, important, others], 0
        # At alpha = 1 no coarse token remains.
        return self.encode(torch.cat([group for group in groups if group.shape[1]], dim=1))[0], row


def _without(tokens: Tensor, row: int) -> Tensor:
    """`tokens` (B, n, ...) less one row of its second axis."""
    return torch.cat([tokens[:, :row], tokens[:, row + 1 :]], dim=1)
