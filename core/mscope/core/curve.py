"""Accuracy and cost over eta, from both stages' answers on labelled data (section 5.1, Fig. 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mscope.core.cascade import check_eta, confidence
from mscope.core.cost import Cost
from mscope.core.manifest import CurvePoint


@dataclass(frozen=True)
class StageOutputs:
    """Both stages' logits (n, classes) float32 and the labels (n,) int64 of one labelled set, every image refined."""

    coarse_logits: npt.NDArray[np.float32]
    fine_logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def accuracy(self, stage: str) -> float:
        """Top-1 accuracy in [0, 1] of the `coarse` or the `fine` logits alone."""
        logits = self.coarse_logits if stage == "coarse" else self.fine_logits
        return float((logits.argmax(axis=-1) == self.labels).mean())


def eta_curve(outputs: StageOutputs, cost: Cost, etas: Sequence[float]) -> list[CurvePoint]:
    """One point for each eta: images with coarse confidence >= eta keep the coarse answer, the others the fine one."""
    sure = confidence(outputs.coarse_logits)
    coarse_right = outputs.coarse_logits.argmax(axis=-1) == outputs.labels
    fine_right = outputs.fine_logits.argmax(axis=-1) == outputs.labels
    points = []
    for eta in etas:
        early = sure >= np.float32(check_eta(eta))
        rate = float(early.mean())
        right = float(np.where(early, coarse_right, fine_right).mean())
        points.append(CurvePoint(eta=float(eta), accuracy=right, exit_rate=rate, gmacs=cost.adaptive(rate)))
    return points


def expected_calibration_error(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], bins: int = 15) -> float:
    """ECE: the mean gap between confidence and accuracy over equal-width bins of confidence, weighted by their size."""
    sure = confidence(logits)
    right = logits.argmax(axis=-1) == labels
    bin_of = np.minimum((sure * bins).astype(np.int64), bins - 1)
    gaps = [abs(float(sure[bin_of == b].mean() - right[bin_of == b].mean())) * int((bin_of == b).sum())
            for b in range(bins) if (bin_of == b).any()]  # fmt: skip
    return sum(gaps) / len(labels)
