"""Accuracy and cost over eta, from both stages' answers on labelled data (section 5.1, Fig. 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mscope.core.cascade import check_eta, confidence, exits_early
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
        early = exits_early(sure, eta)
        rate = float(early.mean())
        right = float(np.where(early, coarse_right, fine_right).mean())
        points.append(CurvePoint(eta=float(eta), accuracy=right, exit_rate=rate, gmacs=cost.adaptive(rate)))
    return points


class OperatingPoints:
    """Everything the cascade can do on one labelled set: one point for each distinct coarse confidence, eta ascending.

    The first point lets every image exit (eta 0). The last one refines all that can be refined: images of confidence 1
    exit at any eta.
    """

    def __init__(
        self, sure: npt.NDArray[np.float32], coarse_right: npt.NDArray[np.bool_], fine_right: npt.NDArray[np.bool_]
    ) -> None:
        """Coarse confidence (n,) float32, and whether each stage's answer is right, (n,) bool; n >= 1."""
        self._order = np.argsort(sure, kind="stable")
        self._sure = np.asarray(sure, np.float32)[self._order]
        self._right = np.stack([fine_right[self._order], coarse_right[self._order]]).astype(np.float64)
        distinct = np.flatnonzero(np.diff(self._sure, prepend=np.float32(-1.0)))
        none_exit = [len(sure)] if self._sure[-1] < 1.0 else []
        # Images in the order of their confidence, from this one on, exit.
        self._starts = np.concatenate([distinct, none_exit]).astype(np.int64)

    def __len__(self) -> int:
        return len(self._starts)

    def rates(
        self, weights: npt.NDArray[np.floating | np.integer] | None = None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Accuracy and exit rate of every point, (m,) float64 each; `weights` (n,) counts the images."""
        count = np.ones(len(self._order)) if weights is None else np.asarray(weights, np.float64)[self._order]
        before = np.concatenate([np.zeros((3, 1)), np.cumsum(np.vstack([self._right * count, count]), axis=1)], axis=1)
        total = before[2, -1]
        right = before[0, self._starts] + (before[1, -1] - before[1, self._starts])
        return right / total, (total - before[2, self._starts]) / total

    def eta(self, point: int) -> float:
        """The shortest decimal number that is this point when used as eta, near the middle of all that are."""
        if point == 0:
            return 0.0
        start = int(self._starts[point])
        if start == len(self._sure):
            return 1.0
        return _short_number(self._sure[start - 1], self._sure[start])

    def at(self, eta: float) -> int:
        """The point that eta is on these images."""
        start = np.searchsorted(self._sure, np.float32(check_eta(eta)), side="left")
        return int(np.searchsorted(self._starts, start))

    def thinned(self, count: int, keep: Sequence[int] = ()) -> list[int]:
        """At most about `count` points: both ends, those in `keep`, and others spread evenly over the exit rate."""
        if len(self) <= count:
            return list(range(len(self)))
        wanted = np.linspace(0, len(self._sure), count)
        return sorted({*np.searchsorted(self._starts, wanted).clip(0, len(self) - 1).tolist(), *keep, 0, len(self) - 1})


def _short_number(low: np.float32, high: np.float32) -> float:
    """A number that is, as float32, above `low` and at most `high`, with as few decimals as can be."""
    middle = (float(low) + float(high)) / 2
    for digits in range(1, 10):
        number = round(middle, digits)
        if low < np.float32(number) <= high:
            return number
    return float(high)


@dataclass(frozen=True)
class ReliabilityBin:
    """Images whose confidence lies in one interval: how sure they are on average, and how often right."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


def reliability(
    sure: npt.NDArray[np.float32], right: npt.NDArray[np.bool_], bins: int = 15
) -> tuple[ReliabilityBin, ...]:
    """Confidence (n,) against correctness (n,) over equal-width bins of confidence; empty bins are left out."""
    which = reliability_bin(sure, bins)
    return tuple(
        ReliabilityBin(
            b / bins, (b + 1) / bins, int(inside.sum()), float(sure[inside].mean()), float(right[inside].mean())
        )
        for b in range(bins)
        if (inside := which == b).any()
    )


def reliability_bin(sure: npt.NDArray[np.float32], bins: int = 15) -> npt.NDArray[np.int64]:
    """The bin (n,) of each confidence; 1 belongs to the last one."""
    indices: npt.NDArray[np.int64] = np.minimum((sure * bins).astype(np.int64), bins - 1)
    return indices


def calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """ECE: the mean gap between confidence and accuracy, weighted by the bins' sizes."""
    return sum(abs(b.confidence - b.accuracy) * b.images for b in bins) / sum(b.images for b in bins)


def expected_calibration_error(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], bins: int = 15) -> float:
    """ECE of logits (n, classes) over equal-width bins of confidence."""
    return calibration_error(reliability(confidence(logits), logits.argmax(axis=-1) == labels, bins))
