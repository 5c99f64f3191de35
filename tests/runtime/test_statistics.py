"""Statistics against numpy and brute force, on even and on skewed traces."""

import math

import numpy as np
import numpy.typing as npt
import pytest

from mscope.runtime.profiling.expectation import Paths, break_even_rate, expected_at
from mscope.runtime.profiling.statistics import (
    Component,
    binomial_weights,
    median_interval,
    mixture_mean,
    mixture_quantiles,
    series_of,
    summarize,
)

Floats = npt.NDArray[np.float64]
COUNT = 1000


def traces() -> dict[str, Floats]:
    rng = np.random.default_rng(0)
    return {
        "normal": rng.normal(20.0, 1.0, COUNT),
        "skewed": 7.0 + rng.lognormal(0.0, 1.5, COUNT),
        "two humps": np.concatenate([rng.normal(7, 0.1, COUNT // 2), rng.normal(21, 0.3, COUNT // 2)]),
        "ties": np.repeat([1.0, 2.0, 3.0], COUNT // 3),
        "constant": np.full(COUNT, 5.0),
        "spike": np.r_[np.full(COUNT - 1, 1.0), 1e6],
        "single": np.array([4.2]),
    }


@pytest.mark.parametrize("name", traces())
def test_summary_is_numpys(name: str) -> None:
    samples = traces()[name]
    found = summarize(samples)
    expected = np.quantile(samples, [0, 0.5, 0.9, 0.95, 0.99, 1])
    got = [found.min_ms, found.p50_ms, found.p90_ms, found.p95_ms, found.p99_ms, found.max_ms]
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert found.count == samples.size
    assert found.mean_ms == pytest.approx(samples.mean(), rel=1e-12)
    assert (found.p50_low_ms, found.p50_high_ms) == (median_interval(samples) or (None, None))
    if samples.size > 1:
        assert found.std_ms == pytest.approx(samples.std(ddof=1), rel=1e-9, abs=1e-12)
        assert found.cv == pytest.approx(samples.std(ddof=1) / samples.mean(), rel=1e-9, abs=1e-12)
    else:
        assert (found.std_ms, found.cv, found.p50_low_ms) == (0.0, 0.0, None)


def test_samples_too_short_for_the_clock() -> None:
    assert summarize([0.0, 0.0]).cv == 0.0
    # A hundredth of a microsecond is kept.
    found = series_of([1.2345678, 0.0000049])
    assert found.samples_ms == (1.23457, 0.0)
    assert found.summary.max_ms == 1.23457


def test_no_samples_is_an_error() -> None:
    assert median_interval([]) is None
    with pytest.raises(ValueError, match="one sample"):
        summarize([])
    with pytest.raises(ValueError, match="one sample"):
        series_of([])


def exact_rank(count: int, confidence: float) -> int:
    """The rank by whole numbers: the largest k with P(Bin(n, 1/2) < k) <= (1 - confidence) / 2."""
    rank, below = 0, 0
    while True:
        below += math.comb(count, rank)
        if below > (1 - confidence) / 2 * 2**count:
            return rank
        rank += 1


@pytest.mark.parametrize("count", [1, 5, 6, 7, 8, 20, 37, 100, 999])
def test_interval_of_the_median_has_the_exact_ranks(count: int) -> None:
    ordered = np.arange(1.0, count + 1)
    rank = exact_rank(count, 0.95)
    found = median_interval(np.random.default_rng(1).permutation(ordered))
    assert found == (None if rank == 0 else (rank, count + 1 - rank))


def test_interval_holds_the_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(2000):
        interval = median_interval(rng.lognormal(0.0, 2.0, 31))  # median 1
        assert interval is not None
        hits += interval[0] <= 1.0 <= interval[1]
    # At least 95 %; three standard errors of 2000 trials are 1.5 %.
    assert 0.935 < hits / 2000 <= 1.0
    # 20,000 samples underflow 2^-n: the interval is still there, and narrow.
    wide = median_interval(rng.lognormal(0.0, 2.0, 20_000))
    assert wide is not None
    assert 0.9 < wide[0] < 1.0 < wide[1] < 1.1


@pytest.mark.parametrize("probability", [0.0, 0.01, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("count", [1, 2, 8, 64])
def test_binomial_weights(count: int, probability: float) -> None:
    exact = [math.comb(count, k) * probability**k * (1 - probability) ** (count - k) for k in range(count + 1)]
    np.testing.assert_allclose(binomial_weights(count, probability), exact, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("weight", [0.0, 0.03, 0.5, 0.6, 0.99, 1.0])
def test_mixture_quantiles_are_those_of_a_weighted_sample(weight: float) -> None:
    all_traces = traces()
    fast, slow = all_traces["skewed"], all_traces["normal"][:333] + 30
    parts = [Component(weight, fast), Component(1 - weight, slow)]
    values = np.concatenate([fast, slow])
    weights = np.concatenate([np.full(fast.size, weight / fast.size), np.full(slow.size, (1 - weight) / slow.size)])
    shares = [0.013, 0.25, 0.5, 0.9, 0.951, 0.99]
    order = np.argsort(values)
    cumulated = weights[order].cumsum()
    brute = [values[order][np.flatnonzero(cumulated >= share - 1e-12)[0]] for share in shares]
    np.testing.assert_array_equal(mixture_quantiles(parts, shares), brute)
    assert mixture_mean(parts) == pytest.approx(weight * fast.mean() + (1 - weight) * slow.mean(), rel=1e-12)


def test_a_mixture_that_turns_at_the_quantile_takes_the_sample_that_reaches_it() -> None:
    parts = [Component(0.9, np.array([1.0])), Component(0.1, np.array([100.0]))]
    assert mixture_quantiles(parts, [0.9, 0.9001]) == [1.0, 100.0]
    # Ten weights of a tenth add up to less than 1 in binary.
    tenths = [Component(0.1, np.array([float(i)])) for i in range(10)]
    assert mixture_quantiles(tenths, [0.1, 0.8, 1.0]) == [0.0, 7.0, 9.0]


def make_paths(batch: int = 1, plain: float | None = 20.0, fine_one: float | None = None) -> Paths:
    rng = np.random.default_rng(3)
    leave = 8.0 + rng.lognormal(-1.0, 1.0, 400)
    fine = 14.0 * batch + rng.lognormal(0.0, 1.0, 400)
    return Paths(batch, leave * batch, leave * batch + fine, fine, fine_one, plain)


@pytest.mark.parametrize("exit_rate", [0.0, 0.2, 0.6, 1.0])
def test_expected_latency_against_simulation(exit_rate: float) -> None:
    paths = make_paths()
    rng = np.random.default_rng(4)
    drawn = np.where(
        rng.random(400_000) < exit_rate, rng.choice(paths.exit_ms, 400_000), rng.choice(paths.refine_ms, 400_000)
    )
    found = expected_at(paths, exit_rate, eta=0.6, accuracy=0.9)
    # Monte Carlo: the mean of 400,000 draws of a spread below 8 is good to 0.04 (3 sigma).
    assert found.mean_ms == pytest.approx(drawn.mean(), abs=0.04)
    for share, value in zip(
        (0.5, 0.9, 0.95, 0.99), (found.p50_ms, found.p90_ms, found.p95_ms, found.p99_ms), strict=True
    ):
        # Between the humps a quantile jumps: what can be compared is the share of draws within it.
        assert (drawn <= value).mean() >= share - 0.004
        assert (drawn < value).mean() <= share + 0.004
    assert found.saving == pytest.approx(1 - found.mean_ms / 20.0)
    assert found.images_per_second == pytest.approx(1e3 / found.mean_ms)
    assert (found.eta, found.accuracy, found.exit_rate) == (0.6, 0.9, exit_rate)


def test_expected_latency_of_a_batch_against_simulation() -> None:
    batch, one = 8, 15.0
    paths = make_paths(batch, plain=150.0, fine_one=one)
    rng = np.random.default_rng(5)
    whole = float(np.median(paths.fine_ms))
    draws = []
    for refined in rng.binomial(batch, 0.4, 40_000):
        pick = int(rng.integers(400))
        if refined == 0:
            draws.append(paths.exit_ms[pick])
            continue
        scale = (one + (whole - one) * (refined - 1) / (batch - 1)) / whole
        draws.append(paths.refine_ms[pick] - paths.fine_ms[pick] * (1 - scale))
    found = expected_at(paths, 0.6)
    # The spread is about 20 ms: 40,000 draws are good to 0.3 (3 sigma).
    assert found.mean_ms == pytest.approx(np.mean(draws), abs=0.3)
    assert found.p99_ms == pytest.approx(np.quantile(draws, 0.99), rel=0.01)
    assert found.images_per_second == pytest.approx(8e3 / found.mean_ms)


def test_some_of_a_batch_refined_lies_between_one_and_all() -> None:
    refine, fine = np.array([20.0, 22.0, 30.0]), np.array([8.0, 10.0, 12.0])
    leave = refine - fine
    # One image in 4 ms, all four in 10 (the median): two in 6, three in 8.
    parts = Paths(4, leave, refine, fine, 4.0).components(0.5)
    assert [part.weight for part in parts] == pytest.approx([1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16])
    for part, share in zip(parts, (0.0, 0.4, 0.6, 0.8, 1.0), strict=True):
        np.testing.assert_allclose(part.samples, leave + fine * share, rtol=1e-12)
    # Not measured for one image: in proportion.
    for part, share in zip(Paths(4, leave, refine, fine).components(0.5), (0.0, 0.25, 0.5, 0.75, 1.0), strict=True):
        np.testing.assert_allclose(part.samples, leave + fine * share, rtol=1e-12)
    # A single image that took longer than all: as long as all.
    for part in Paths(4, leave, refine, fine, 11.0).components(0.5)[1:]:
        np.testing.assert_allclose(part.samples, refine, rtol=1e-12)
    # No time at all.
    for part in Paths(4, leave, leave, np.zeros(3), 0.0).components(0.5):
        np.testing.assert_array_equal(part.samples, leave)


def test_break_even_is_where_the_means_meet() -> None:
    paths = make_paths(plain=15.0)
    rate = break_even_rate(paths)
    assert rate is not None
    assert 0 < rate < 1
    assert expected_at(paths, rate).mean_ms == pytest.approx(15.0, rel=1e-9)
    # The formula of the cost model, with latencies in it.
    leave, refine = paths.exit_ms.mean(), paths.refine_ms.mean()
    assert rate == pytest.approx(1 - (15.0 - leave) / (refine - leave))
    batch = make_paths(8, plain=120.0, fine_one=20.0)
    rate = break_even_rate(batch)
    assert rate is not None
    assert expected_at(batch, rate).mean_ms == pytest.approx(120.0, rel=1e-6)


@pytest.mark.parametrize("batch", [1, 4])
def test_break_even_at_the_ends(batch: int) -> None:
    always = break_even_rate(make_paths(batch, plain=1000.0, fine_one=15.0))
    never = break_even_rate(make_paths(batch, plain=1.0, fine_one=15.0))
    assert always is not None
    assert always <= 0
    assert never is not None
    assert never > 1
    assert break_even_rate(make_paths(batch, plain=None)) is None
    flat = np.full(10, 5.0)
    assert break_even_rate(Paths(1, flat, flat, np.zeros(10), None, 4.0)) is None
