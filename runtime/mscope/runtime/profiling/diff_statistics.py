"""Do two series of latencies differ? Mann-Whitney's U, and bootstrap intervals of the change of a statistic."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from mscope.runtime.profiling.sensors import Floats

CONFIDENCE = 0.95
# Fewer samples in either series are not compared.
MIN_SAMPLES = 8
_RESAMPLES = 1000
_MIN_RESAMPLES = 200
# Numbers drawn for one comparison at most: a fraction of a second.
_MAX_DRAWN = 8_000_000

# The mean, and quantiles, each with the samples that it needs: q needs 1 / (1 - q) to be anything but the largest one.
_QUANTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}
NEEDED = {"mean": MIN_SAMPLES, "p50": MIN_SAMPLES, "p90": 10, "p95": 20, "p99": 100}


@dataclass(frozen=True)
class Change:
    """A statistic of series A and B, milliseconds; `relative` is B / A - 1, between `low` and `high` with 95 %."""

    before: float
    after: float
    relative: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves "no change" out."""
        return self.low > 0.0 or self.high < 0.0


def changes_of(names: Collection[str], before: Floats, after: Floats, seed: int = 0) -> dict[str, Change]:
    """The relative changes of statistics from (n,) to (m,) samples; those that either has too few for are absent.

    The intervals are a circular block bootstrap's: stretches of about n^(1/3) samples, in the order in which they were
    taken, are drawn together, so that slow drifts of a machine do not pass for precision. `names` are keys of NEEDED.
    """
    count = min(before.size, after.size)
    names = [name for name in names if count >= NEEDED[name]]
    if not names or before.min() <= 0.0:
        return {}
    rng = np.random.default_rng(seed)
    times = int(np.clip(_MAX_DRAWN / (before.size + after.size), _MIN_RESAMPLES, _RESAMPLES))
    ratios = _resampled(after, names, times, rng) / _resampled(before, names, times, rng) - 1.0
    tail = (1.0 - CONFIDENCE) / 2
    lows, highs = np.quantile(ratios, (tail, 1.0 - tail), axis=1)
    firsts, seconds = _statistics(before[None], names)[:, 0], _statistics(after[None], names)[:, 0]
    return {
        name: Change(float(a), float(b), float(b / a) - 1.0, float(low), float(high))
        for name, a, b, low, high in zip(names, firsts, seconds, lows, highs, strict=True)
    }


def _statistics(rows: Floats, names: Sequence[str]) -> Floats:
    """(k, r): k statistics of r rows of samples (r, n); quantiles interpolated linearly, as numpy's."""
    ordered = np.sort(rows, axis=-1)
    last = ordered.shape[1] - 1
    found = np.empty((len(names), rows.shape[0]))
    for place, name in enumerate(names):
        if name == "mean":
            found[place] = rows.mean(axis=-1)
            continue
        at = _QUANTILES[name] * last
        low = math.floor(at)
        found[place] = ordered[:, low] + (at - low) * (ordered[:, min(low + 1, last)] - ordered[:, low])
    return found


def _resampled(samples: Floats, names: Sequence[str], times: int, rng: np.random.Generator) -> Floats:
    count = samples.size
    block = max(1, round(count ** (1 / 3)))
    found = []
    # In parts, so that a long series does not fill the memory.
    for part in np.array_split(np.arange(times), max(1, times * count // 2_000_000)):
        starts = rng.integers(0, count, (part.size, -(-count // block)))
        places = (starts[..., None] + np.arange(block)).reshape(part.size, -1)[:, :count] % count
        found.append(_statistics(samples[places], names))
    return np.concatenate(found, axis=1)


def mann_whitney_p(first: Floats, second: Floats) -> float:
    """Two-sided p of "both come from one distribution", by Mann-Whitney's U: (n,) and (m,) samples, at least 8 each.

    Normal approximation with correction for ties and continuity; samples count as independent.
    """
    n, m = first.size, second.size
    both = np.concatenate([first, second])
    _, places, counts = np.unique(both, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    # Equal values share the mean of their ranks.
    ranks = (last - (counts - 1) / 2.0)[places.reshape(-1)]
    u = float(ranks[:n].sum()) - n * (n + 1) / 2.0
    total = n + m
    ties = float(np.sum(counts.astype(np.float64) ** 3 - counts))
    variance = n * m / 12.0 * (total + 1 - ties / (total * (total - 1)))
    if variance <= 0.0:
        return 1.0
    z = max(0.0, abs(u - n * m / 2.0) - 0.5) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2.0))
