import numpy as np
import pytest

from mscope.core.cascade import check_eta, confidence, exits_early, select_regions, softmax
from mscope.core.cost import Cost, break_even_exit_rate
from mscope.core.curve import StageOutputs, eta_curve, expected_calibration_error
from mscope.core.errors import InputError


def test_softmax_is_a_distribution_for_extreme_logits() -> None:
    logits = np.array([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0], [-3e38, -3e38, 3e38]], dtype=np.float32)
    with np.errstate(over="ignore"):  # -3e38 - 3e38 is -inf, whose exponential is the right 0
        probabilities = softmax(logits)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(probabilities[1], 1 / 3, rtol=1e-6)
    assert probabilities[2].tolist() == [0.0, 0.0, 1.0]


def test_empty_batch() -> None:
    assert confidence(np.zeros((0, 10), np.float32)).shape == (0,)
    selected, remaining = select_regions(np.zeros((0, 49), np.float32), 25)
    assert selected.shape == (0, 25)
    assert remaining.shape == (0, 24)


def test_exit_includes_equality_and_the_edges() -> None:
    sure = np.array([0.0, 0.6, 0.59999, 1.0], dtype=np.float32)
    assert exits_early(sure, 0.6).tolist() == [False, True, False, True]
    assert exits_early(sure, 0.0).all()
    assert exits_early(sure, 1.0).tolist() == [False, False, False, True]


@pytest.mark.parametrize("eta", [-0.1, 1.0001, float("nan"), float("inf")])
def test_eta_out_of_range_is_refused(eta: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        check_eta(eta)


def test_selection_against_sorting_by_hand() -> None:
    rng = np.random.default_rng(0)
    # Few distinct values, so that ties are common.
    importance = rng.integers(0, 4, (50, 16)).astype(np.float32)
    for count in (0, 1, 8, 15, 16):
        selected, remaining = select_regions(importance, count)
        for row in range(50):
            by_rank = sorted(range(16), key=lambda i: (-importance[row, i], i))
            assert selected[row].tolist() == sorted(by_rank[:count])
            assert remaining[row].tolist() == sorted(by_rank[count:])


def test_eta_curve_by_hand() -> None:
    def logits(confident: list[tuple[int, float]]) -> np.ndarray:
        return np.log(np.array([[p if c == k else (1 - p) for k in range(2)] for c, p in confident], np.float32))

    coarse = logits([(0, 0.9), (0, 0.8), (1, 0.6)])  # right, wrong, right
    fine = logits([(1, 0.9), (1, 0.9), (1, 0.9)])  # wrong, right, right
    outputs = StageOutputs(coarse, fine, np.array([0, 1, 1]))
    cost = Cost(coarse=1.0, fine=3.0, full=5.0)
    points = eta_curve(outputs, cost, [0.0, 0.7, 0.85, 1.0])
    assert [p.accuracy for p in points] == pytest.approx([2 / 3, 2 / 3, 1.0, 2 / 3])
    assert [p.exit_rate for p in points] == pytest.approx([1.0, 2 / 3, 1 / 3, 0.0])
    assert [p.gmacs for p in points] == pytest.approx([1.0, 2.0, 3.0, 4.0])
    always_first = StageOutputs(coarse, fine, np.array([0, 0, 0]))
    assert always_first.accuracy("coarse") == pytest.approx(2 / 3)
    assert always_first.accuracy("fine") == 0.0


def test_calibration_error_by_hand() -> None:
    # Ten answers at confidence 0.8 of which six are right: the gap is 0.2.
    logits = np.log(np.tile(np.array([[0.8, 0.2]], np.float32), (10, 1)))
    labels = np.array([0] * 6 + [1] * 4)
    assert expected_calibration_error(logits, labels) == pytest.approx(0.2, abs=1e-6)


def test_break_even() -> None:
    rate = break_even_exit_rate(1.0, 3.0, 3.5)
    assert rate == pytest.approx(1 / 6)
    assert Cost(1.0, 3.0, 3.5).adaptive(rate) == pytest.approx(3.5)
