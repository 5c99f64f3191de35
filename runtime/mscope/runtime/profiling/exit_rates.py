"""How many images leave early at which eta: from confidences, from the bundle's curve, or as given."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from mscope.core.cascade import check_eta, exits_early
from mscope.core.errors import InputError
from mscope.core.manifest import CurvePoint
from mscope.runtime.profiling.schema import ExitRates

# Of eta, for a table from confidences.
_STEP = 0.01


def rates_from_confidences(confidences: npt.NDArray[np.float32], etas: Sequence[float]) -> ExitRates:
    """Exit rates at every hundredth of eta and at `etas`, of coarse confidences (n,), n >= 1."""
    grid = {round(float(eta), 10) for eta in np.arange(0.0, 1.0 + _STEP / 2, _STEP)} | {check_eta(eta) for eta in etas}
    points = tuple((eta, float(exits_early(confidences, eta).mean())) for eta in sorted(grid))
    return ExitRates(source="data", images=len(confidences), points=points)


def rates_from_curve(curve: Sequence[CurvePoint], etas: Sequence[float], asked: Sequence[float]) -> ExitRates:
    """Exit rates at the curve's points, and between them, linearly, at `etas` as far as it goes.

    Args:
        curve: one point or more.
        etas: left out where the curve does not reach.
        asked: must be within the curve.

    Raises:
        InputError: one of `asked` is outside the curve.
    """
    ordered = sorted(curve, key=lambda point: point.eta)
    low, high = ordered[0].eta, ordered[-1].eta
    for eta in asked:
        if not low <= check_eta(eta) <= high:
            raise InputError(
                f"--eta {eta:g}: the bundle's curve goes from {low:g} to {high:g}: "
                "give --data with pictures, or --exit-rate"
            )
    wanted = {point.eta for point in ordered} | {eta for eta in (*etas, *asked) if low <= eta <= high}
    rates = interpolated([(point.eta, point.exit_rate) for point in ordered], sorted(wanted))
    return ExitRates(source="curve", points=tuple(zip(sorted(wanted), rates, strict=True)))


def accuracy_at(curve: Sequence[CurvePoint] | None, eta: float) -> float | None:
    """The curve's accuracy at eta, linearly between its points; None outside it, or without one."""
    if not curve:
        return None
    ordered = sorted(curve, key=lambda point: point.eta)
    if not ordered[0].eta <= eta <= ordered[-1].eta:
        return None
    return interpolated([(point.eta, point.accuracy) for point in ordered], [eta])[0]


def interpolated(points: Sequence[tuple[float, float]], at: Sequence[float]) -> list[float]:
    """Values at `at`, linearly between the points, x rising."""
    x, y = zip(*points, strict=True)
    return [float(value) for value in np.interp(at, x, y)]


def eta_of_rate(rate: float, points: Sequence[tuple[float, float]]) -> float | None:
    """The eta at which the exit rate falls to `rate`, linearly between points (eta, exit rate), eta rising.

    None where it never crosses: more than `rate` exit at the last point, or no more than that at the first.
    """
    for (before, high), (after, low) in pairwise(points):
        if high > rate >= low:
            return before + (high - rate) / (high - low) * (after - before)
    return None
