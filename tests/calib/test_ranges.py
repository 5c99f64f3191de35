"""Observers and the ranges that follow: known answers, order independence, degenerate tensors."""

import itertools

import numpy as np
import pytest

from mscope.calib.observers import BINS, ChannelMax, Histogram
from mscope.calib.ranges import METHODS, check_method, limit_from
from mscope.core.errors import InputError, MscopeError


def histogram_of(values: np.ndarray) -> Histogram:
    histogram = Histogram("x", float(np.abs(values).max(initial=0.0)))
    histogram.update(values.astype(np.float32))
    return histogram


def test_channel_max_is_the_largest_magnitude_of_each_channel() -> None:
    observer = ChannelMax("x", 3)
    observer.update(np.array([[[1, -5, 0], [2, 4, 0]]], np.float32))
    observer.update(np.array([[[-3, 1, 0]]], np.float32))
    assert observer.values.tolist() == [3, 5, 0]
    assert observer.rows == 3
    observer.update(np.zeros((0, 7, 3), np.float32))  # an empty batch changes nothing
    assert observer.values.tolist() == [3, 5, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_with_the_tensors_name(bad: float) -> None:
    tensor = np.array([[1.0, bad]], np.float32)
    with pytest.raises(MscopeError, match=r"layers\.3 holds NaN or infinity"):
        ChannelMax("layers.3", 2).update(tensor)
    with pytest.raises(MscopeError, match=r"layers\.3 holds NaN or infinity"):
        Histogram("layers.3", 1.0).update(tensor)


def test_a_histogram_counts_every_value_once_whatever_order_and_batches() -> None:
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    limit = float(np.abs(values).max())
    whole = histogram_of(values)
    assert whole.counts.sum() == len(values)
    # Brute force on a coarser grid: bin edges are where they should be.
    edges = np.linspace(0, limit, 17)
    expected = [int(((np.abs(values) >= a) & (np.abs(values) < b)).sum()) for a, b in itertools.pairwise(edges)]
    expected[-1] += 1  # the largest value itself
    got = whole.counts.reshape(16, -1).sum(axis=1)
    assert np.abs(got - expected).max() <= 1  # a value on an edge may round to either side
    for parts in (np.array_split(values, 7), np.array_split(values[::-1], 3)):
        pieces = Histogram("x", limit)
        for part in parts:
            pieces.update(part)
        assert np.array_equal(pieces.counts, whole.counts)


def test_a_value_past_the_first_passs_limit_is_refused() -> None:
    with pytest.raises(MscopeError, match=r"reached 2 where the first pass .* 1"):
        Histogram("x", 1.0).update(np.array([0.5, -2.0], np.float32))


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_that_is_always_zero_has_the_range_zero(method: str) -> None:
    histogram = histogram_of(np.zeros(100))
    assert histogram.counts[0] == 100
    assert limit_from(histogram, check_method(method)) == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_one_value_keeps_it(method: str) -> None:
    limit = limit_from(histogram_of(np.full(1000, -2.5)), check_method(method))
    assert limit == pytest.approx(2.5, rel=1 / BINS)


def test_minmax_clips_nothing() -> None:
    outlier = histogram_of(np.append(np.random.default_rng(0).standard_normal(20_000), -60.0))
    assert limit_from(outlier, "minmax") == 60.0
    assert all(limit_from(outlier, method) < 60.0 for method in METHODS if method != "minmax")


@pytest.mark.parametrize("seed", range(3))
def test_percentile_is_the_sorted_values(seed: int) -> None:
    values = np.random.default_rng(seed).standard_t(3, 200_000).astype(np.float32)
    histogram = histogram_of(values)
    width = histogram.limit / BINS
    exact = np.sort(np.abs(values))[int(np.ceil(0.9999 * len(values))) - 1]
    assert exact <= limit_from(histogram, "percentile") + width * 1e-3
    assert limit_from(histogram, "percentile") - exact <= width * 1.01


def test_entropy_keeps_a_flat_distribution_and_gives_up_a_lone_outlier() -> None:
    random = np.random.default_rng(0)
    flat = random.uniform(-1, 1, 200_000)
    assert limit_from(histogram_of(flat), "entropy") > 0.95
    bell = random.standard_normal(200_000)
    assert limit_from(histogram_of(np.append(bell, 60.0)), "entropy") < 12


def brute_force_entropy(counts: np.ndarray, levels: int = 128) -> int:
    """The definition, bin by bin."""
    counts = counts.astype(float).copy()
    counts[0] = min(counts[0], counts[1])
    best, fewest = len(counts), np.inf
    for kept in range(levels, len(counts) + 1):
        p = counts[:kept].copy()
        p[-1] += counts[kept:].sum()
        q = np.zeros(kept)
        for level in range(levels):
            start, stop = level * kept // levels, (level + 1) * kept // levels
            filled = [i for i in range(start, stop) if counts[i] > 0]
            for i in filled:
                q[i] = counts[start:stop].sum() / len(filled)
        if q.sum() == 0 or any(p[i] > 0 and q[i] == 0 for i in range(kept)):
            continue
        p, q = p / p.sum(), q / q.sum()
        loss = sum(p[i] * np.log(p[i] / q[i]) for i in range(kept) if p[i] > 0)
        if loss < fewest - 1e-15:
            best, fewest = kept, loss
    return best


@pytest.mark.parametrize("zeros", [0, 20_000])
@pytest.mark.parametrize("count", [300, 2000, 5000])
@pytest.mark.parametrize("seed", [1, 2])
def test_entropy_is_its_definition(seed: int, count: int, zeros: int) -> None:
    random = np.random.default_rng(seed)
    for width in (25.0, 40.0):
        # A bell and a few outliers in 200 bins: enough for the definition, and few enough for brute force.
        values = np.r_[np.abs(random.standard_normal(count)) * width, random.uniform(0, 200, 5)]
        histogram = Histogram("x", 1.0)
        histogram.counts = np.bincount(np.minimum(values.astype(int), 199), minlength=200)
        histogram.counts[0] += zeros
        best = brute_force_entropy(histogram.counts)
        assert best < 200, "nothing is clipped: the case says nothing"
        assert limit_from(histogram, "entropy") == best / 200


@pytest.mark.parametrize("seed", range(3))
def test_zeros_do_not_pull_the_entropy_s_limit_down(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = np.r_[np.abs(random.standard_normal(2000)) * 85, random.uniform(0, 512, 5)]
    histogram = Histogram("x", 1.0)
    histogram.counts = np.bincount(np.minimum(values.astype(int), 511), minlength=512)
    histogram.counts[0] = histogram.counts[1]
    expected = limit_from(histogram, "entropy")
    assert expected < 0.7
    histogram.counts[0] += 20_000
    assert limit_from(histogram, "entropy") == expected


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(InputError, match="unknown calibration method 'guess': choose one of minmax"):
        check_method("guess")
