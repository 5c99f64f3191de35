"""Both stages' answers, and plain ViM's, on pictures of a split."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mscope.core.curve import StageOutputs
from mscope.core.geometry import coarse_grid, regions_refined
from mscope.model.backbone import Backbone
from mscope.model.mambascope import MambaScope
from mscope.model.training.digits import MEAN, STD, Batch

Regions = Literal["important", "random"]

_CHUNK = 100


def to_input(images: npt.NDArray[np.uint8]) -> Tensor:
    """Pictures (n, 64, 64) uint8 -> the network's input (n, 1, 64, 64) float32."""
    return ((torch.from_numpy(images).float() / 255.0 - MEAN) / STD).unsqueeze(1)


@torch.no_grad()
def stage_outputs(
    model: MambaScope, pictures: Batch, *, alpha: float | None = None, regions: Regions = "important", seed: int = 0
) -> StageOutputs:
    """Every picture through both stages (eta = 1).

    Args:
        model: in evaluation mode.
        pictures: n pictures with labels.
        alpha: refined fraction; None for the model's own.
        regions: which are refined: the K most important ones, or K at random (drawn from `seed`) to see what the
            ranking is worth.
    """
    fraction = model.config.alpha if alpha is None else alpha
    draw = torch.Generator().manual_seed(seed)
    coarse_logits, fine_logits = [], []
    for chunk in to_input(pictures.images).split(_CHUNK):
        coarse = model.coarse(chunk)
        importance = coarse.importance
        if regions == "random":
            importance = torch.rand(importance.shape, generator=draw)
        selected, remaining = model.split(importance, fraction)
        assert selected.shape[1] == regions_refined(fraction, importance.shape[1])
        coarse_logits.append(coarse.logits)
        fine_logits.append(model.fine(chunk, coarse.features, coarse.embeddings, selected, remaining))
    return StageOutputs(torch.cat(coarse_logits).numpy(), torch.cat(fine_logits).numpy(), pictures.labels)


@torch.no_grad()
def plain_logits(model: Backbone, pictures: Batch) -> npt.NDArray[np.float32]:
    """Logits (n, classes) of the plain-ViM path: all patches, raster order."""
    chunks = [model.forward_full(chunk) for chunk in to_input(pictures.images).split(_CHUNK)]
    logits: npt.NDArray[np.float32] = torch.cat(chunks).numpy()
    return logits


def accuracy(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """Top-1 accuracy in [0, 1]."""
    return float((logits.argmax(axis=-1) == labels).mean())


@torch.no_grad()
def box_covered(model: MambaScope, pictures: Batch, *, alpha: float | None = None) -> float:
    """Share of the digit's box that lies in the refined regions, averaged over the pictures; K / Nc is chance."""
    grid = coarse_grid(model.config)
    side = 2 * model.config.patch
    shares = []
    for images, boxes in zip(
        to_input(pictures.images).split(_CHUNK), torch.from_numpy(pictures.boxes).split(_CHUNK), strict=True
    ):
        selected, _ = model.split(model.coarse(images).importance, alpha)
        row, column = selected // grid.cols * side, selected % grid.cols * side
        x0, y0, x1, y1 = boxes.unsqueeze(2).unbind(1)
        width = (torch.minimum(x1, column + side) - torch.maximum(x0, column)).clamp_min(0)
        height = (torch.minimum(y1, row + side) - torch.maximum(y0, row)).clamp_min(0)
        shares.append((width * height).sum(1) / ((x1 - x0) * (y1 - y0)).squeeze(1))
    return float(torch.cat(shares).mean())
