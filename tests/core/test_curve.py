"""Operating points against the plain definition, and calibration error worked by hand."""

import numpy as np
import pytest

from mscope.core.cascade import confidence, exits_early, softmax
from mscope.core.curve import OperatingPoints, calibration_error, reliability


def random_case(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidences with many ties and both ends, and who is right."""
    images = int(rng.integers(1, 40))
    levels = rng.choice([0.1, 0.25, 0.5, 0.6, 0.7, 0.75, 0.9, 0.999999, 1.0], size=images)
    smooth = rng.uniform(0.1, 1.0, size=images)
    sure = np.where(rng.random(images) < 0.5, levels, smooth).astype(np.float32)
    return sure, rng.random(images) < 0.6, rng.random(images) < 0.8


def test_every_point_is_what_its_eta_does_and_none_is_missing() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        sure, coarse, fine = random_case(rng)
        points = OperatingPoints(sure, coarse, fine)
        accuracy, exit_rate = points.rates()
        seen = set()
        for point in range(len(points)):
            early = exits_early(sure, points.eta(point))
            assert exit_rate[point] == pytest.approx(early.mean())
            assert accuracy[point] == pytest.approx(np.where(early, coarse, fine).mean())
            assert points.at(points.eta(point)) == point
            seen.add(int(early.sum()))
        # Whatever eta one tries, its behaviour is among the points.
        for eta in [0.0, 1.0, *rng.random(30), *sure.tolist()]:
            early = exits_early(sure, eta)
            assert int(early.sum()) in seen
            assert exit_rate[points.at(eta)] == pytest.approx(early.mean())


def test_weights_count_images() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        sure, coarse, fine = random_case(rng)
        counts = rng.integers(0, 4, len(sure))
        if not counts.any():
            continue
        points = OperatingPoints(sure, coarse, fine)
        accuracy, exit_rate = points.rates(counts)
        for point in range(len(points)):
            early = exits_early(sure, points.eta(point))
            assert exit_rate[point] == pytest.approx(np.average(early, weights=counts))
            assert accuracy[point] == pytest.approx(np.average(np.where(early, coarse, fine), weights=counts))


def test_etas_are_short_where_there_is_room() -> None:
    right = np.array([True, True])
    points = OperatingPoints(np.array([0.5, 0.92], np.float32), right, right)
    assert [points.eta(point) for point in range(3)] == [0.0, 0.7, 1.0]
    # Neighbours in float32; between those at 0.002 lies no number of nine decimals: the upper one itself it is.
    for low in (np.float32(0.7), np.float32(0.002)):
        high = np.nextafter(low, np.float32(1))
        close = OperatingPoints(np.array([low, high], np.float32), right, right)
        assert np.float32(close.eta(1)) == high


def test_images_of_confidence_one_exit_at_any_eta() -> None:
    right = np.array([True, False])
    points = OperatingPoints(np.array([1.0, 1.0], np.float32), right, ~right)
    assert len(points) == 1
    assert points.at(1.0) == 0


def test_thinning_keeps_both_ends_and_what_is_asked_for() -> None:
    rng = np.random.default_rng(2)
    sure = rng.random(5000).astype(np.float32)
    points = OperatingPoints(sure, sure > 0.3, sure > 0.1)
    shown = points.thinned(100, [1234])
    assert len(shown) <= 103
    assert {0, 1234, len(points) - 1} <= set(shown)
    assert shown == sorted(set(shown))
    assert points.thinned(10_000) == list(range(len(points)))
    # Few points are all shown, however close together: 5,000 images at 0.5, then twenty of their own.
    sure = np.concatenate([np.full(5000, 0.5), np.linspace(0.6, 0.9, 20)]).astype(np.float32)
    few = OperatingPoints(sure, sure > 0.3, sure > 0.1)
    assert few.thinned(30) == list(range(22)) == few.thinned(22)


def test_calibration_error_worked_by_hand() -> None:
    # Lower half: 0.2 wrong, 0.4 right, a gap of |0.3 - 1/2|. Upper: 0.5 wrong, 0.7 right, 1.0 right, |2.2/3 - 2/3|.
    sure = np.array([0.2, 0.4, 0.5, 0.7, 1.0], np.float32)
    bins = reliability(sure, np.array([False, True, False, True, True]), bins=2)
    assert [(one.images, one.low, one.high) for one in bins] == [(2, 0.0, 0.5), (3, 0.5, 1.0)]
    assert bins[0].confidence == pytest.approx(0.3)
    assert bins[1].accuracy == pytest.approx(2 / 3)
    assert calibration_error(bins) == pytest.approx((2 * 0.2 + 3 * (2.2 / 3 - 2 / 3)) / 5)


def test_a_temperature_of_one_changes_no_bit_and_others_are_a_division() -> None:
    logits = np.random.default_rng(3).normal(size=(50, 7)).astype(np.float32) * 30
    shifted = logits - logits.max(axis=1, keepdims=True)
    plain = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    assert softmax(logits).tobytes() == plain.tobytes() == softmax(logits, 1.0).tobytes()
    scaled = np.exp(logits.astype(np.float64) / 2.5)
    # float32: a few roundings of logits of up to 100.
    np.testing.assert_allclose(softmax(logits, 2.5), scaled / scaled.sum(axis=1, keepdims=True), rtol=1e-4)
    each = np.full((50, 1), 2.5, np.float32)
    assert softmax(logits, each).tobytes() == softmax(logits, 2.5).tobytes()
    assert (confidence(logits, 2.5) <= confidence(logits)).all()
    assert confidence(logits, 2.5).mean() < confidence(logits).mean() - 0.01
