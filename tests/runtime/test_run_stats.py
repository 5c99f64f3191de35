"""Statistics of a run: rates, drift by control limits, and where they are printed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import fakes
from mscope.core.console import run_app
from mscope.runtime.cli import app
from mscope.runtime.result import DeadlineOutcome, Result
from mscope.runtime.stats import MIN_IMAGES, RunRecord, mean_drift, rate_drift


def result(stage: str, sure: float, deadline: DeadlineOutcome | None = None) -> Result:
    coarse = None if stage == "full" else sure
    return Result(
        "x", stage, sure, coarse, 0.6, (), None, 0.0, 0, None, None, {}, "b", "k", "fp32", False, deadline=deadline  # type: ignore[arg-type]
    )  # fmt: skip


def test_numbers_of_a_run() -> None:
    record = RunRecord()
    assert record.stats() is None
    for sure in (0.9, 0.7, 0.2, 0.6):
        record.add(result("coarse" if sure >= 0.6 else "fine", sure))
    stats = record.stats()
    assert stats is not None
    assert (stats.images, stats.exit_rate, stats.mean_confidence) == (4, 0.75, pytest.approx(0.6))
    assert stats.exit_rate_drift is None
    assert not stats.drifted
    assert stats.lines()[0] == "4 images, mean confidence 60.0%, 75.0% left early"
    assert any(f"{MIN_IMAGES} are needed" in line for line in stats.lines())


def test_drift_is_told_from_thirty_images_on() -> None:
    record = RunRecord()
    for count in range(1, 31):
        record.add(result("coarse" if count % 3 else "fine", 0.9))
        stats = record.stats()
        assert stats is not None
        told = [line for line in stats.lines() if line.startswith(("exit rate steady", "confidence steady"))]
        assert (len(told), "too few images" in stats.lines()[-1]) == ((2, False) if count == 30 else (0, True))


def test_plain_vim_has_confidences_only() -> None:
    record = RunRecord()
    for i in range(60):
        record.add(result("full", 0.9 - 0.001 * (i % 7)))
    stats = record.stats()
    assert stats is not None
    assert (stats.exit_rate, stats.exit_rate_drift) == (None, None)
    assert stats.confidence_drift is not None
    assert "left early" not in " ".join(stats.lines())


def test_limits_are_three_standard_errors() -> None:
    values = [1.0] * 6 + [0.0] * 4 + [0.5] * 11 + [1.0] * 2 + [0.0] * 8
    found = rate_drift(values)
    assert found is not None
    # 31 values: thirds of ten. p = 8 / 20.
    assert (found.first, found.last) == (0.6, 0.2)
    assert found.limit == pytest.approx(3 * np.sqrt(0.4 * 0.6 * (1 / 10 + 1 / 10)))
    assert not found.drifted
    rng = np.random.default_rng(0)
    sure = rng.uniform(size=90).tolist()
    mean = mean_drift(sure)
    assert mean is not None
    first, last = np.array(sure[:30]), np.array(sure[-30:])
    assert mean.limit == pytest.approx(3 * np.sqrt(first.var(ddof=1) / 30 + last.var(ddof=1) / 30))
    assert (mean.first, mean.last) == (pytest.approx(first.mean()), pytest.approx(last.mean()))


def test_false_alarms_are_rare_and_drifts_are_seen() -> None:
    rng = np.random.default_rng(1)
    alarms = sum(bool(rate_drift((rng.random(300) < 0.6).astype(float).tolist()).drifted) for _ in range(1000))  # type: ignore[union-attr]
    # 1 in 370 by the normal law: 2.7 of 1000 expected; 10 would be more than four standard deviations.
    assert alarms <= 10
    seen = 0
    for _ in range(100):
        # The share of exits falls from 70 to 40 % over 900 images.
        exits = rng.random(900) < np.linspace(0.7, 0.4, 900)
        found = rate_drift(exits.astype(float).tolist())
        assert found is not None
        seen += found.drifted
    assert seen >= 90


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_run_without_scatter_is_steady(value: float) -> None:
    for drift in (rate_drift([value] * 50), mean_drift([value] * 50)):
        assert drift is not None
        assert (drift.limit, drift.drifted) == (0.0, False)


def test_a_deadline_is_counted_and_does_not_change_the_exit_rate() -> None:
    record = RunRecord()
    for i in range(10):
        skipped = i < 3
        stage, sure = ("coarse", 0.2) if skipped else ("coarse", 0.9)
        record.add(result(stage, sure, DeadlineOutcome(12.0, 5.0, i != 9, skipped)))
    stats = record.stats()
    assert stats is not None
    assert stats.exit_rate == 0.7
    assert stats.deadline == {"met": 9, "skipped_fine": 3}
    assert "deadline met by 9 of 10, the fine stage left out for 3" in stats.lines()


def test_the_command_prints_them_on_stderr(
    bundle: Path, tmp_path: Path, network: fakes.FakeNetwork, capfd: pytest.CaptureFixture[str]
) -> None:
    images = fakes.random_images(network.config, 60)
    images[40:] *= 0.05  # dark pictures at the end: the coarse stage becomes unsure
    np.save(tmp_path / "x.npy", images)
    base = [str(tmp_path / "x.npy"), "--bundle", str(bundle), "--eta", "0.6", "--stats"]
    assert run_app(app, base) == 0
    out, err = capfd.readouterr()
    assert "60 pictures" in out
    assert "exit rate drifted" in err
    assert "the pictures changed over the run" in err
    assert run_app(app, [*base, "--json"]) == 0
    out, err = capfd.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) == 60
    assert all("source" in line for line in lines), "stdout holds results only"
    stats = json.loads(err)["stats"]
    assert stats["images"] == 60
    assert stats["drifted"] is True
    assert stats["exit_rate"] == sum(line["stage"] == "coarse" for line in lines) / 60
    # Nothing was run: nothing to say.
    assert run_app(app, [str(tmp_path / "none.png"), "--bundle", str(bundle), "--stats"]) == 2
    assert capfd.readouterr().err.count("\n") == 1
