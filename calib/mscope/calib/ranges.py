"""From what was observed of a tensor to the range that 8 bits are spread over."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from mscope.calib.observers import Histogram
from mscope.core.errors import InputError

Method = Literal["minmax", "percentile", "entropy"]
METHODS: tuple[Method, ...] = get_args(Method)

PERCENTILE = 99.99
# Magnitudes that a signed 8-bit number tells apart.
_LEVELS = 128


def check_method(method: str) -> Method:
    """`method` if it is one. Raises InputError."""
    for known in METHODS:
        if method == known:
            return known
    raise InputError(f"unknown calibration method '{method}': choose one of {', '.join(METHODS)}")


def limit_from(histogram: Histogram, method: Method) -> float:
    """The magnitude at which a tensor is clipped: its maximum, a percentile, or the least information lost.

    Args:
        histogram: all magnitudes of the tensor.
        method: `minmax` clips nothing; `percentile` clips the largest 0.01 %; `entropy` minimises the Kullback-Leibler
            divergence between the distribution and its quantised self.

    Returns:
        A limit in (0, histogram.limit], or 0 for a tensor that is zero throughout.
    """
    if method == "minmax" or histogram.limit == 0 or not histogram.counts.any():
        return histogram.limit
    edge = _percentile_bins(histogram.counts) if method == "percentile" else _entropy_bins(histogram.counts)
    return histogram.limit * edge / len(histogram.counts)


def _percentile_bins(counts: npt.NDArray[np.int64]) -> int:
    """The fewest bins, from zero on, that hold PERCENTILE of all values."""
    share = np.cumsum(counts) / counts.sum()
    return int(np.searchsorted(share, PERCENTILE / 100)) + 1


def _entropy_bins(counts: npt.NDArray[np.int64]) -> int:
    """The number of bins to keep so that _LEVELS levels over them describe the distribution best.

    For each candidate the clipped distribution (what lies beyond is added to the last bin) is compared with what
    remains of it after its bins are merged into _LEVELS groups and each group is spread evenly over its non-empty bins.
    The first bin counts no more than the second: what lies next to zero is zero at any scale, and a tensor that is
    mostly that would else be clipped hard for nothing.
    """
    values = counts.astype(np.float64)
    values[0] = min(values[0], values[1])
    total = np.concatenate(([0.0], np.cumsum(values)))
    filled = np.concatenate(([0.0], np.cumsum(values > 0)))
    best, fewest = len(values), np.inf
    for kept in range(_LEVELS, len(values) + 1):
        edges = np.arange(_LEVELS + 1) * kept // _LEVELS
        sums, cells = np.diff(total[edges]), np.diff(filled[edges])
        spread = np.divide(sums, cells, out=np.zeros(_LEVELS), where=cells > 0)
        quantised = np.repeat(spread, np.diff(edges)) * (values[:kept] > 0)
        clipped = values[:kept].copy()
        clipped[-1] += total[-1] - total[kept]
        loss = _divergence(clipped, quantised)
        if loss < fewest:
            best, fewest = kept, loss
    return best


def _divergence(actual: npt.NDArray[np.float64], approximate: npt.NDArray[np.float64]) -> float:
    """KL(actual || approximate) of two unnormalised distributions; infinite where a value has no counterpart."""
    there = actual > 0
    if not approximate.any() or np.any(approximate[there] == 0):
        return float(np.inf)
    p, q = actual[there] / actual.sum(), approximate[there] / approximate.sum()
    return float(np.sum(p * np.log(p / q)))
