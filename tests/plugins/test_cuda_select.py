"""The selection kernel's own source, compiled for the host, against core.cascade."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

import cuda_host
from cuda_calls import SelectCall
from mscope.core.cascade import confidence, exits_early, select_regions
from mscope.core.errors import BackendError
from mscope.plugins import cuda, cuda_select
from mscope.plugins.cuda_select import MOST_REGIONS, confidence_margin


@pytest.fixture(scope="module")
def host() -> ctypes.CDLL:
    if cuda_host.compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    return cuda_host.library()


def draw_importance(kind: str, batch: int, regions: int, draw: np.random.Generator) -> Any:
    scores = draw.normal(size=(batch, regions)).astype(np.float32)
    if kind == "ties":
        scores = np.round(scores)
    if kind == "equal":
        scores[:] = 0.25
    if kind == "zeros":  # of both signs, which are equal
        scores = np.where(scores < 0, np.float32(-0.0), np.float32(0.0))
    if kind == "wild":
        scores = (scores * 1e38).astype(np.float32)
        scores[:, ::5], scores[:, 1::5] = np.inf, -np.inf
    if kind == "nan":
        scores[:, ::3] = np.nan
        scores[:, 1::6] = -np.inf
    return scores


@pytest.mark.parametrize("kind", ["plain", "ties", "equal", "zeros", "wild", "nan"])
@pytest.mark.parametrize("regions", [1, 2, 49, 256, 1000])
def test_the_selection_is_the_hosts(host: ctypes.CDLL, kind: str, regions: int) -> None:
    draw = np.random.default_rng(regions)
    for turn, count in enumerate(sorted({0, 1, regions // 2, regions - 1, regions})):
        with np.errstate(over="ignore"):
            importance = draw_importance(kind, 2, regions, draw)
        call = SelectCall(draw.normal(size=(2, 10)), importance, count, 0.5)
        call.run(host, turn % 3)
        selected, remaining = select_regions(importance, count)
        np.testing.assert_array_equal(call.selected, selected)
        np.testing.assert_array_equal(call.remaining, remaining)


def raised(eta: float, classes: int) -> float:
    """The threshold for eta, as the runtime gives it."""
    return float(np.nextafter(np.float32(eta * (1.0 + confidence_margin(classes))), np.float32(np.inf)))


@pytest.mark.parametrize("classes", [1, 2, 10, 999, 1000, 21841])
@pytest.mark.parametrize("temperature", [1.0, 0.37, 2.9])
def test_no_image_that_the_host_refines_leaves(host: ctypes.CDLL, classes: int, temperature: float) -> None:
    """Even where eta is the host's own confidence, or the next number; and beyond the margin both say the same."""
    draw = np.random.default_rng(classes)
    importance = draw.normal(size=(1, 5))
    margin = confidence_margin(classes)
    assert margin < 2e-5
    for scale in (0.01, 1.0, 5.0, 30.0):
        logits = (draw.normal(size=(1, classes)) * scale).astype(np.float32)
        sure = confidence(logits, temperature)
        near = [float(np.nextafter(sure[0], np.float32(to))) for to in (0, 2)]
        for eta in (0.0, 1.0, 0.5, float(sure[0]), *near, sure[0] * (1 - 2 * margin), sure[0] * (1 + 2 * margin)):
            eta = min(max(float(eta), 0.0), 1.0)
            call = SelectCall(logits, importance, 2, raised(eta, classes), temperature)
            call.run(host)
            leaves, host_leaves = not call.goes_on[0], bool(exits_early(sure, eta)[0])
            assert not (leaves and not host_leaves)
            if not np.isclose(sure[0], eta, rtol=2 * margin, atol=0.0):
                assert leaves == host_leaves, (sure[0], eta)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_go_on(host: ctypes.CDLL, bad: float) -> None:
    """The host finds them afterwards, and says so."""
    logits = np.zeros((1, 10), np.float32)
    logits[0, 3] = bad
    call = SelectCall(logits, np.zeros((1, 4)), 2, raised(0.95, 10))
    call.run(host)
    assert call.goes_on[0] == 1
    all_bad = SelectCall(np.full((1, 10), bad), np.zeros((1, 4)), 2, 0.0)
    all_bad.run(host)
    assert all_bad.goes_on[0] == 1


def test_infinity_as_threshold_lets_nobody_leave(host: ctypes.CDLL) -> None:
    sure = np.array([[1e4, 0.0]])
    assert confidence(sure.astype(np.float32))[0] == 1.0
    for threshold, goes_on in ((np.inf, 1), (1.0, 0), (0.0, 0)):
        call = SelectCall(sure, np.zeros((1, 4)), 2, threshold)
        call.run(host)
        assert call.goes_on[0] == goes_on


def test_the_order_of_threads_does_not_matter(host: ctypes.CDLL) -> None:
    draw = np.random.default_rng(5)
    logits, importance = draw.normal(size=(3, 700)), draw.normal(size=(3, 300)).round(1)
    reports = []
    for order in range(3):
        call = SelectCall(logits, importance, 100, 0.01)
        call.run(host, order)
        reports.append((call.report, call.remaining))
    for report, remaining in reports[1:]:
        np.testing.assert_array_equal(report, reports[0][0])
        np.testing.assert_array_equal(remaining, reports[0][1])


def test_the_condition_is_set(host: ctypes.CDLL) -> None:
    for threshold in (0.0, 2.0):
        word = ctypes.c_uint(9)
        call = SelectCall(np.zeros((1, 3)), np.zeros((1, 4)), 2, threshold, condition=ctypes.addressof(word))
        call.run(host)
        assert word.value == call.goes_on[0] == (threshold > 1)


def test_what_cannot_be_is_refused(host: ctypes.CDLL) -> None:
    def status(**changes: Any) -> int:
        call = SelectCall(np.zeros((1, 3)), np.zeros((1, 4)), 2, 0.5)
        for name, value in changes.items():
            setattr(call.params, name, value)
        return int(host.host_select(ctypes.byref(call.params), 0))

    assert status() == 0
    assert status(batch=0, logits=0) == 0
    for changes in (
        {"batch": -1}, {"classes": 0}, {"regions": 0}, {"regions": MOST_REGIONS + 1}, {"selected_regions": 5},
        {"selected_regions": -1}, {"batch": 2, "condition": 8},
    ):  # fmt: skip
        assert status(**changes) == -1, changes
    for name in ("logits", "importance", "threshold", "selected", "remaining", "report"):
        assert status(**{name: 0}) == -3, name


def test_the_largest_number_of_regions(host: ctypes.CDLL) -> None:
    importance = np.random.default_rng(0).normal(size=(1, MOST_REGIONS)).astype(np.float32)
    call = SelectCall(np.zeros((1, 3)), importance, MOST_REGIONS // 2, 0.5)
    call.run(host)
    np.testing.assert_array_equal(call.selected, select_regions(importance, MOST_REGIONS // 2)[0])


def test_the_binding(monkeypatch: pytest.MonkeyPatch, host: ctypes.CDLL) -> None:
    monkeypatch.setattr(cuda, "load", cuda_host.HostLibrary)
    call = SelectCall(np.zeros((1, 3)), np.array([[1.0, 3.0, 2.0]]), 2, 0.5)
    cuda_select.select(call.params)
    np.testing.assert_array_equal(call.selected, [[1, 2]])
    call.params.regions = 0
    with pytest.raises(BackendError, match=r"was not launched \(-1\)"):
        cuda_select.select(call.params)
