"""What a batch costs on average and at worst, by exit rate: the measured paths, mixed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mscope.runtime.profiling.schema import Expected
from mscope.runtime.profiling.statistics import (
    Component,
    Floats,
    binomial_weights,
    mixture_mean,
    mixture_quantiles,
)

_SHARES = (0.5, 0.9, 0.95, 0.99)
_STEPS = 60


@dataclass(frozen=True)
class Paths:
    """Latencies of one batch size, milliseconds of the batch.

    Attributes:
        batch: its images.
        exit_ms, refine_ms: (n,), every image of the batch on that path.
        fine_ms: (n,), the fine stage's part of `refine_ms`, sample by sample.
        fine_one_ms: median of the fine stage for one single image; None for batch 1.
        plain_ms: mean of plain ViM; None where it was not measured.
    """

    batch: int
    exit_ms: Floats
    refine_ms: Floats
    fine_ms: Floats
    fine_one_ms: float | None = None
    plain_ms: float | None = None

    def components(self, exit_rate: float) -> list[Component]:
        """The mixture at an exit rate: the number of refined images of a batch is binomial.

        With some, not all, refined, the fine stage's time lies on the line between that of one image and of all.
        """
        weights = binomial_weights(self.batch, 1.0 - exit_rate)
        parts = [Component(weights[0], self.exit_ms)]
        for refined in range(1, self.batch):
            parts.append(Component(weights[refined], self.refine_ms - self.fine_ms * (1.0 - self._scale(refined))))
        return [*parts, Component(weights[-1], self.refine_ms)]

    def _scale(self, refined: int) -> float:
        """Time of the fine stage for some images, as a fraction of that for the whole batch."""
        whole = float(np.median(self.fine_ms))
        if whole <= 0.0:
            return 1.0
        one = whole / self.batch if self.fine_one_ms is None else min(self.fine_one_ms, whole)
        return (one + (whole - one) * (refined - 1) / (self.batch - 1)) / whole


def expected_at(paths: Paths, exit_rate: float, *, eta: float | None = None, accuracy: float | None = None) -> Expected:
    """Latency at an exit rate in [0, 1]."""
    components = paths.components(exit_rate)
    mean = mixture_mean(components)
    p50, p90, p95, p99 = mixture_quantiles(components, _SHARES)
    return Expected(
        eta=eta,
        exit_rate=exit_rate,
        mean_ms=mean,
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        images_per_second=_per_second(paths.batch, mean),
        saving=None if not paths.plain_ms else 1.0 - mean / paths.plain_ms,
        accuracy=accuracy,
    )


def break_even_rate(paths: Paths) -> float | None:
    """The exit rate at which the mean equals plain ViM's; at or below 0 the cascade always pays, above 1 never.

    None where plain ViM was not measured, or where the fine stage costs nothing that could be measured.
    """
    if paths.plain_ms is None:
        return None
    leave, refine = float(paths.exit_ms.mean()), float(paths.refine_ms.mean())
    if refine <= leave:
        return None
    # Exact for one image; for a batch exact outside [0, 1], where only "always" or "never" matters.
    rate = (refine - paths.plain_ms) / (refine - leave)
    if paths.batch == 1 or not 0.0 < rate < 1.0:
        return rate
    plain = paths.plain_ms
    return _root(lambda tried: mixture_mean(paths.components(tried)) - plain)


def _root(difference: Callable[[float], float]) -> float:
    """Where a falling function on [0, 1] with a change of sign is 0, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if difference(middle) > 0.0 else (low, middle)
    return (low + high) / 2


def _per_second(batch: int, mean_ms: float) -> float:
    return batch / mean_ms * 1e3 if mean_ms > 0.0 else 0.0
