"""From a power trace to energy: integration over a window of time, and how far sampling lets it be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mscope.runtime.profiling.sensors import Floats, PowerTrace

# Fewer readings inside a window say nothing about its mean.
MIN_READINGS = 5
# A window needs readings on both sides, or as near to its ends as this many periods.
_EDGE_PERIODS = 3.0
_Z = 1.96


@dataclass(frozen=True)
class Energy:
    """Energy of a window of time.

    Attributes:
        joules: of the whole window.
        uncertainty: plus or minus joules with 95 % confidence, from sampling alone: the sensor's own error, some
            percent on the boards known, comes on top.
        readings: inside the window.
    """

    joules: float
    uncertainty: float
    seconds: float
    readings: int

    @property
    def watts(self) -> float:
        return self.joules / self.seconds


def energy_between(trace: PowerTrace, start: float, end: float, rails: tuple[str, ...] | None = None) -> Energy | str:
    """Energy between two moments of the trace's clock, seconds; of the total, or of the sum of some rails.

    Power is integrated by the trapezoid rule, its values at both ends interpolated; a counter is read at both ends,
    interpolated. Uncertainty: for power, readings are samples of what it did between them, so 1.96 standard errors of
    their mean; for a counter, what may pass in one period at either end.

    Returns:
        The energy, or why it cannot be given: too few readings, a sensor that was lost, rails that were not there.
    """
    if end <= start:
        return "the window is empty"
    seconds, values = trace.values(trace.total if rails is None else rails)
    inside = (seconds >= start) & (seconds <= end)
    count = int(inside.sum())
    if count < MIN_READINGS:
        gone = f" ({trace.sensor}: {trace.lost})" if trace.lost else ""
        return f"{count} readings in {end - start:.2g} s are too few{gone}: at least {MIN_READINGS}, so measure longer"
    slack = _EDGE_PERIODS * max(trace.period_s, float(np.median(np.diff(seconds))))
    if seconds[0] > start + slack or seconds[-1] < end - slack:
        gone = f": {trace.lost}" if trace.lost else ""
        return f"{trace.sensor} did not last the whole window{gone}"
    duration = end - start
    if trace.kind == "joules":
        joules = _counter(seconds, values, start, end)
        uncertainty = 2.0 * joules * min(1.0, trace.period_s / duration)
        return Energy(joules, uncertainty, duration, count)
    joules = _trapezoid(seconds, values, start, end)
    error = float(values[inside].std(ddof=1)) / math.sqrt(count)
    return Energy(joules, _Z * error * duration, duration, count)


def _trapezoid(seconds: Floats, watts: Floats, start: float, end: float) -> float:
    inner = (seconds > start) & (seconds < end)
    times = np.concatenate([[start], seconds[inner], [end]])
    # Beyond the first and last reading np.interp holds their value.
    power = np.interp(times, seconds, watts)
    return float(np.sum(np.diff(times) * (power[1:] + power[:-1]) / 2.0))


def _counter(seconds: Floats, joules: Floats, start: float, end: float) -> float:
    """The counter's rise; where the trace ends inside the window, at the mean rate that it had there."""
    first, last = max(start, float(seconds[0])), min(end, float(seconds[-1]))
    rise = float(np.interp(last, seconds, joules) - np.interp(first, seconds, joules))
    return rise * (end - start) / (last - first)
