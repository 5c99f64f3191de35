"""Statistics of latency samples: summaries, a confidence interval of the median, quantiles of a mixture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mscope.runtime.profiling.schema import Clock, Series, Summary

Floats = npt.NDArray[np.float64]

# Microseconds to a hundredth: what a host clock can tell apart.
_DECIMALS = 5


@dataclass(frozen=True)
class Component:
    """One way a batch can go: how often (weights of a mixture sum to 1), and its latencies (n,) in milliseconds."""

    weight: float
    samples: Floats


def series_of(samples_ms: Sequence[float] | Floats, clock: Clock = "host") -> Series:
    """Samples in the order in which they were taken, with their summary. Raises ValueError when there are none."""
    rounded = tuple(round(float(sample), _DECIMALS) for sample in samples_ms)
    return Series(clock=clock, samples_ms=rounded, summary=summarize(rounded))


def summarize(samples_ms: Sequence[float] | Floats) -> Summary:
    """The summary of (n,) samples, n >= 1. `std_ms` has n - 1 in its denominator; it and `cv` are 0 for one sample."""
    samples = np.asarray(samples_ms, np.float64)
    if samples.ndim != 1 or not samples.size:
        raise ValueError("a summary needs a list of one sample or more")
    p50, p90, p95, p99 = (float(value) for value in np.quantile(samples, (0.5, 0.9, 0.95, 0.99)))
    mean = float(samples.mean())
    std = float(samples.std(ddof=1)) if samples.size > 1 else 0.0
    interval = median_interval(samples)
    return Summary(
        count=int(samples.size),
        min_ms=float(samples.min()),
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        max_ms=float(samples.max()),
        mean_ms=mean,
        std_ms=std,
        cv=std / mean if mean > 0 else 0.0,
        p50_low_ms=None if interval is None else interval[0],
        p50_high_ms=None if interval is None else interval[1],
    )


def median_interval(samples: Sequence[float] | Floats, confidence: float = 0.95) -> tuple[float, float] | None:
    """Two of the samples that hold the median of their distribution with at least that confidence; None if too few.

    The number of samples below the median is binomial (n, 1/2), whatever the distribution: the k-th smallest and k-th
    largest hold it with probability 1 - 2 P(Bin(n, 1/2) < k); k is the largest that suffices. It takes 6 samples for
    95 %. Samples must be independent: for drifting ones the interval is too narrow.
    """
    ordered = np.sort(np.asarray(samples, np.float64))
    count, tail = ordered.size, (1.0 - confidence) / 2
    # Logarithms: 2^-n is below the smallest double from n = 1075 on.
    below, rank = 0.0, 0
    while rank < count / 2:
        below += math.exp(_log_choose(count, rank) - count * math.log(2.0))
        if below > tail:
            break
        rank += 1
    return None if rank == 0 else (float(ordered[rank - 1]), float(ordered[count - rank]))


def mixture_mean(components: Sequence[Component]) -> float:
    """The mean of a mixture, milliseconds."""
    return float(sum(part.weight * part.samples.mean() for part in components if part.weight > 0.0))


def mixture_quantiles(components: Sequence[Component], shares: Sequence[float]) -> list[float]:
    """Quantiles of a mixture: for each share, the smallest latency within which at least that share of batches stays.

    Never a value between two samples: between the two humps of an early-exit network there is no latency to report.
    """
    used = [part for part in components if part.weight > 0.0]
    values = np.concatenate([part.samples for part in used])
    weights = np.concatenate([np.full(part.samples.size, part.weight / part.samples.size) for part in used])
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    # Sums of weights such as 0.1 are off by rounding: a share that is reached to 1e-12 is reached.
    places = np.searchsorted(reached / reached[-1], np.asarray(shares) - 1e-12)
    return [float(value) for value in values[order][np.minimum(places, values.size - 1)]]


def binomial_weights(count: int, probability: float) -> list[float]:
    """P(k successes of `count`) for k = 0 ... count, each success with `probability`."""
    if probability in (0.0, 1.0):
        return [float(k == count * probability) for k in range(count + 1)]
    logs = (math.log(probability), math.log1p(-probability))
    return [math.exp(_log_choose(count, k) + k * logs[0] + (count - k) * logs[1]) for k in range(count + 1)]


def _log_choose(count: int, chosen: int) -> float:
    return math.lgamma(count + 1) - math.lgamma(chosen + 1) - math.lgamma(count - chosen + 1)
