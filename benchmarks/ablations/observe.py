"""A network on pictures: both stages' answers, which regions it refined, how much of the digit these hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ablations.variants import Regions
from mscope.core.cascade import confidence
from mscope.core.geometry import coarse_grid
from mscope.model.mambascope import MambaScope
from mscope.model.training.digits import Batch
from mscope.model.training.evaluate import to_input

_CHUNK = 100


@dataclass(frozen=True)
class Observed:
    """n pictures, every one refined.

    Attributes:
        coarse_right, fine_right: (n,) bool, whether the stage's answer is the label.
        sure: (n,) float32, the coarse stage's confidence.
        refined: (n, Nc) bool, the regions that were refined.
        covered: (n,) float32, share of the digit's box that lies in them.
    """

    coarse_right: npt.NDArray[np.bool_]
    fine_right: npt.NDArray[np.bool_]
    sure: npt.NDArray[np.float32]
    refined: npt.NDArray[np.bool_]
    covered: npt.NDArray[np.float32]

    def adaptive_right(self, eta: float) -> npt.NDArray[np.bool_]:
        """(n,) whether the cascade's answer at `eta` is the label."""
        return np.where(self.early(eta), self.coarse_right, self.fine_right)

    def early(self, eta: float) -> npt.NDArray[np.bool_]:
        """(n,) whether the coarse answer is accepted at `eta`."""
        accepted: npt.NDArray[np.bool_] = self.sure >= np.float32(eta)
        return accepted

    def save(self, path: Path) -> None:
        """Writes an .npz file, complete or not at all."""
        partial = path.with_name(path.name + ".part")
        with partial.open("wb") as file:
            np.savez_compressed(file, **vars(self))
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Observed:
        """Reads what `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(**{name: stored[name] for name in stored.files})


@torch.no_grad()
def observe(model: MambaScope, pictures: Batch, *, regions: Regions = "important", seed: int = 0) -> Observed:
    """Runs every picture through both stages (eta = 1), `regions` as in Variant; `seed` draws the random ones."""
    draw = torch.Generator().manual_seed(seed)
    coarse_logits, fine_logits, refined, covered = [], [], [], []
    for image, boxes in zip(
        to_input(pictures.images).split(_CHUNK), torch.from_numpy(pictures.boxes).split(_CHUNK), strict=True
    ):
        coarse = model.coarse(image)
        shares = box_shares(model, boxes)
        importance = coarse.importance
        if regions == "random":
            importance = torch.rand(importance.shape, generator=draw)
        elif regions == "box":
            importance = shares
        selected, remaining = model.split(importance)
        coarse_logits.append(coarse.logits)
        fine_logits.append(model.fine(image, coarse.features, coarse.embeddings, selected, remaining))
        refined.append(torch.zeros_like(shares, dtype=torch.bool).scatter_(1, selected, True))
        covered.append(shares.gather(1, selected).sum(1))
    logits = torch.cat(coarse_logits).numpy()
    return Observed(
        coarse_right=logits.argmax(-1) == pictures.labels,
        fine_right=torch.cat(fine_logits).numpy().argmax(-1) == pictures.labels,
        sure=confidence(logits),
        refined=torch.cat(refined).numpy(),
        covered=torch.cat(covered).numpy(),
    )


def box_shares(model: MambaScope, boxes: Tensor) -> Tensor:
    """(n, Nc): the share of each digit's box, (n, 4) x0, y0, x1, y1 in pixels, that lies in each region; sums to 1."""
    grid, side = coarse_grid(model.config), 2 * model.config.patch
    region = torch.arange(grid.count)
    row, column = region // grid.cols * side, region % grid.cols * side
    x0, y0, x1, y1 = boxes.unsqueeze(2).unbind(1)
    width = (torch.minimum(x1, column + side) - torch.maximum(x0, column)).clamp_min(0)
    height = (torch.minimum(y1, row + side) - torch.maximum(y0, row)).clamp_min(0)
    return width * height / ((x1 - x0) * (y1 - y0))
