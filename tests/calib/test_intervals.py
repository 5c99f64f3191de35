"""Intervals cover what they should, temperatures are those that were put in."""

import numpy as np
import pytest

from mscope.calib.intervals import (
    check_level,
    estimate,
    few_images_warning,
    percentile_interval,
    resampled_counts,
    wilson,
)
from mscope.calib.temperature import fit_temperature
from mscope.core.errors import InputError


def test_wilson_against_its_textbook_values() -> None:
    # Brown, Cai and DasGupta's form, worked by hand for 8 of 10: centre (0.8 + z^2/20) / (1 + z^2/10).
    low, high = wilson(0.8, 10, 0.95)
    assert (float(low), float(high)) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert [float(end) for end in wilson(1.0, 50, 0.95)] == [pytest.approx(0.92865, abs=1e-4), 1.0]
    ends = wilson(np.array([0.0, 1.0]), 1, 0.95)
    assert ends[0][0] == 0.0
    assert ends[1][1] == 1.0


@pytest.mark.parametrize("share", [0.5, 0.9, 0.975])
def test_wilson_covers(share: float) -> None:
    rng = np.random.default_rng(0)
    found = rng.binomial(200, share, size=4000) / 200
    low, high = wilson(found, 200, 0.95)
    # 4,000 draws: three standard errors are one point; Wilson itself swings by about one around 95 %.
    assert ((low <= share) & (share <= high)).mean() == pytest.approx(0.95, abs=0.025)


def test_the_bootstrap_covers_a_paired_difference() -> None:
    """Two ways to answer that are wrong on nearly the same images: the truth is known, the interval must hold it."""
    rng = np.random.default_rng(1)
    covered, widths, unpaired = 0, [], []
    runs = 200
    for seed in range(runs):
        hard = rng.random(300) < 0.2
        first = ~hard | (rng.random(300) < 0.3)
        second = np.where(rng.random(300) < 0.05, rng.random(300) < 0.86, first)
        # P(first) = 0.8 + 0.2 * 0.3 = 0.86; second replaces 5 % by a coin of the same 86 %: the true difference is 0.
        gap = first.astype(float) - second
        draws = np.array([counts @ gap / 300 for counts in resampled_counts(300, 300, seed)])
        low, high = percentile_interval(draws, 0.95)
        covered += low <= 0.0 <= high
        widths.append(high - low)
        unpaired.append(2 * 1.96 * np.sqrt(2 * 0.86 * 0.14 / 300))
    # Three standard errors of 200 runs are 4.6 points, and a bootstrap of few differing images is a little narrow.
    assert covered / runs >= 0.885
    assert np.mean(widths) < 0.6 * np.mean(unpaired)


def test_resamples_are_of_the_right_size_and_repeatable() -> None:
    first = list(resampled_counts(50, 20, 7))
    assert all(counts.sum() == 50 and len(counts) == 50 for counts in first)
    np.testing.assert_array_equal(first, list(resampled_counts(50, 20, 7)))
    assert not np.array_equal(first, list(resampled_counts(50, 20, 8)))
    assert np.std([counts[0] for counts in first]) > 0


def test_where_all_resamples_agree_wilson_takes_over() -> None:
    sure = estimate(1.0, np.ones(100), 0.95, share_of=20)
    assert (sure.low, sure.high) == (pytest.approx(0.8389, abs=1e-4), 1.0)
    flat = estimate(3.0, np.full(100, 3.0), 0.95)
    assert (flat.low, flat.high) == (3.0, 3.0)


def test_an_interval_of_gaps_is_moved_onto_the_figure() -> None:
    draws = np.abs(np.random.default_rng(2).normal(0.02, 0.01, 4000)) + 0.03
    moved = estimate(0.02, draws, 0.95, biased=True)
    assert 0.0 <= moved.low < 0.02 < moved.high
    assert moved.high - moved.low == pytest.approx(np.subtract(*percentile_interval(draws, 0.95)[::-1]), rel=1e-6)


def test_levels_and_warnings() -> None:
    for level in (0.3, 1.0, 95.0, float("nan")):
        with pytest.raises(InputError, match="a confidence level is from"):
            check_level(level)
    assert check_level(0.95) == 0.95
    assert few_images_warning(100, 0.95) is None
    assert (few_images_warning(1, 0.95) or "").startswith("one image: ")
    # Wilson's interval of 9 in 10 by hand, z = 1.95996: 0.7890 +- 0.1931, so 38.6 points wide.
    assert "10 images: an accuracy of 90 % would be known to within 39 points" in (few_images_warning(10, 0.95) or "")
    assert few_images_warning(99, 0.95) is not None


def calibrated(images: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the distribution that the labels are drawn from."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(images, classes)) * 2
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (shares.cumsum(axis=1) > rng.random((images, 1))).argmax(axis=1)
    return logits.astype(np.float32), labels


@pytest.mark.parametrize("true", [0.4, 1.0, 1.7, 6.0])
def test_the_temperature_that_was_put_in_comes_out(true: float) -> None:
    logits, labels = calibrated(20_000, 7, 3)
    found = fit_temperature((logits * np.float32(true)).astype(np.float32), labels)
    # The standard error of log T is near 1 % with 20,000 images.
    assert found == pytest.approx(true, rel=0.04)


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """Mean -log softmax(logits / temperature)[label], in nats."""
    exps = np.exp(logits.astype(np.float64) / temperature)
    return float(-np.log(exps[np.arange(len(labels)), labels] / exps.sum(axis=1)).mean())


def test_no_other_temperature_is_better() -> None:
    logits, labels = calibrated(500, 5, 4)
    logits *= 3
    found = fit_temperature(logits, labels)
    best = negative_log_likelihood(logits, labels, found)
    for factor in (0.5, 0.9, 0.999, 1.001, 1.1, 2.0):
        assert negative_log_likelihood(logits, labels, found * factor) > best
    # A constant added to a row changes nothing, however large.
    assert fit_temperature(logits + np.float32(1000), labels) == pytest.approx(found, rel=1e-3)


def test_the_range_of_temperatures() -> None:
    """0.05 to 50; the fit is good to 4 %, as above."""
    logits, labels = calibrated(20_000, 7, 3)
    for inside, outside in ((0.056, 0.045), (45.0, 56.0)):
        assert fit_temperature((logits * np.float32(inside)).astype(np.float32), labels) == pytest.approx(
            inside, rel=0.04
        )
        with pytest.raises(InputError, match=r"no optimum between 0\.05 and 50"):
            fit_temperature((logits * np.float32(outside)).astype(np.float32), labels)


def test_a_temperature_without_an_optimum_is_refused() -> None:
    logits = np.eye(4, dtype=np.float32)[[0, 1, 2, 3]] * 9
    for labels in ([0, 1, 2, 3], [1, 2, 3, 0]):
        with pytest.raises(InputError, match="temperature of the coarse stage: 4 images"):
            fit_temperature(logits, np.array(labels), "coarse stage")
