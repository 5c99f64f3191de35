"""What Polygraphy's comparator says of outputs, as the project reports it: held to plain float64."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mscope.core.console import OLDEST_POLYGRAPHY
from mscope.core.errors import MscopeError
from mscope.export.comparison import Distance, check_comparator, compare_outputs


def distance(got: npt.ArrayLike, expected: npt.ArrayLike) -> Distance:
    pair = np.asarray(got, np.float32), np.asarray(expected, np.float32)
    return compare_outputs({"logits": pair}, lambda name, scale: scale)["logits"]


def test_every_output_is_measured_in_float64() -> None:
    """In float32 these cosines were 1 and one of the sums off: the vectors are long and nearly the same."""
    random = np.random.default_rng(3)
    outputs = {}
    for name, shape in {"coarse.logits": (4, 10), "coarse.features": (4, 49, 192), "fine.logits": (4, 1000)}.items():
        expected = random.standard_normal(shape).astype(np.float32)
        outputs[name] = (expected + 3e-6 * random.standard_normal(shape)).astype(np.float32), expected
    measured = compare_outputs(outputs, lambda name, scale: None if name == "coarse.features" else 2 * scale)
    assert list(measured) == list(outputs)
    for name, (got, expected) in outputs.items():
        a, b = (array.astype(np.float64).reshape(4, -1) for array in (got, expected))
        cosine = min(u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in zip(a, b, strict=True))
        found = measured[name]
        assert found.max_abs == np.abs(a - b).max()
        assert found.relative == found.max_abs / np.abs(b).max()
        assert 0 < 1 - found.cosine == pytest.approx(1 - cosine, rel=1e-3)
        assert found.tolerance == (None if name == "coarse.features" else 2 * np.abs(b).max())


def test_the_cosine_is_the_worst_images() -> None:
    expected = [[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]
    found = distance([[1.0, 0.0], [2.0, 2.0], [0.0, 0.0]], expected)
    assert found.cosine == pytest.approx(2**-0.5)
    assert (found.max_abs, found.relative) == (2.0, 1.0)
    assert distance(expected, expected).cosine == pytest.approx(1.0)
    assert distance([[1.0]], [[0.0]]) == Distance(max_abs=1.0, relative=1.0, cosine=0.0, tolerance=0.0)


def test_what_is_no_number_is_within_no_bound() -> None:
    found = distance([[1.0, 2.0], [np.nan, 2.0], [1.0, 2.0]], [[1.0, 2.0]] * 3)
    assert np.isnan(found.max_abs)
    assert np.isnan(found.cosine)


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """Polygraphy's own log goes to stdout, where `verify --json` prints its one object."""
    from polygraphy.logger import G_LOGGER

    before = G_LOGGER.module_severity.get()
    with caplog.at_level(logging.DEBUG):
        distance([[1.0, 0.0]], [[0.0, 1.0]])
    captured = capsys.readouterr()
    assert (captured.out, captured.err, caplog.text) == ("", "", "")
    assert G_LOGGER.module_severity.get() == before, "another user of Polygraphy in this process keeps the log"


def test_an_older_polygraphy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.49 has one function for all measures and no such classes."""
    import polygraphy.comparator

    check_comparator()
    monkeypatch.delattr(polygraphy.comparator, "CosineSimilarityCompareFunc")
    with pytest.raises(MscopeError, match=re.escape(f"pip install 'polygraphy>={OLDEST_POLYGRAPHY}'")):
        check_comparator()


def test_the_oldest_is_the_one_that_is_declared() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert re.findall(r"polygraphy>=([\d.]+)", project) == [OLDEST_POLYGRAPHY]
