"""Deadlines on a clock that the test turns, then on the command."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import fakes
from mscope.core.console import run_app
from mscope.core.errors import InputError
from mscope.runtime import Scope
from mscope.runtime.cli import app
from mscope.runtime.deadline import Deadline, FineTimes, RunningEstimate
from mscope.runtime.result import Outcome, Result

ETA = 0.6


@dataclass
class Machine:
    """A clock, and how long the stages take on it, milliseconds."""

    now: float = 50.0
    coarse: float = 5.0
    fine: float = 10.0
    after: float = 1.0

    def __call__(self) -> float:
        return self.now

    def work(self, ms: float) -> None:
        self.now += ms / 1e3


def outcome(stages: list[str], fine_ms: float) -> Outcome:
    logits = np.zeros((len(stages), 2), np.float32)
    return Outcome(logits, logits[:, 0], tuple(stages), None, None, None, None, {"fine": fine_ms})  # type: ignore[arg-type]


def result(stage: str, sure: float) -> Result:
    return Result("x", stage, sure, sure, ETA, (), None, 0.0, 0, None, None, {}, "b", "k", "fp32", False)  # type: ignore[arg-type]


def one_batch(deadline: Deadline, machine: Machine, sure: list[float]) -> list[Result]:
    """What a session does with a batch of these coarse confidences: fine takes `machine.fine` an image."""
    deadline.start()
    machine.work(machine.coarse)
    confidence = np.array(sure, np.float32)
    wanted = confidence < ETA
    allowed = deadline.may_refine(confidence, wanted) if wanted.any() else wanted
    assert allowed.dtype == bool
    assert not (allowed & ~wanted).any()
    fine_ms = machine.fine * int(allowed.sum())
    machine.work(fine_ms)
    stages = ["fine" if row else "coarse" for row in allowed]
    deadline.ran(outcome(stages, fine_ms))
    machine.work(machine.after)
    return deadline.finish([result(stage, value) for stage, value in zip(stages, sure, strict=True)])


def warm(ms: float, machine: Machine) -> Deadline:
    deadline = Deadline(ms, machine)
    for _ in range(5):
        deadline._fine.add(1, machine.fine)
        deadline._after.add(machine.after)
    return deadline


def essence(results: list[Result]) -> list[tuple[str, bool, bool]]:
    assert all(found.deadline is not None for found in results)
    return [(found.stage, found.deadline.met, found.deadline.skipped_fine) for found in results]  # type: ignore[union-attr]


def test_refines_when_there_is_time_and_not_when_there_is_none() -> None:
    machine = Machine()
    # 5 coarse + 10 fine + 1 after.
    assert essence(one_batch(warm(16.5, machine), machine, [0.2])) == [("fine", True, False)]
    assert essence(one_batch(warm(15.5, machine), machine, [0.2])) == [("coarse", True, True)]
    assert essence(one_batch(warm(5.5, machine), machine, [0.2])) == [("coarse", False, True)]
    # A sure image needs no fine stage: nothing was left out.
    assert essence(one_batch(warm(15.5, machine), machine, [0.9])) == [("coarse", True, False)]
    found = one_batch(warm(16.5, machine), machine, [0.2])[0].deadline
    assert found is not None
    assert (found.ms, found.elapsed_ms) == (16.5, pytest.approx(16.0))


def test_what_comes_after_the_stages_is_measured_too() -> None:
    machine = Machine(after=3.0)
    deadline = warm(16.5, Machine())
    deadline._clock = machine
    # 5 coarse + 10 fine + 3 after, where 1 was known.
    assert essence(one_batch(deadline, machine, [0.2])) == [("fine", False, False)]
    assert essence(one_batch(deadline, machine, [0.2])) == [("coarse", True, True)]


def test_in_a_batch_the_least_sure_come_first() -> None:
    machine = Machine()
    # Of 30 ms 24 are left after the coarse stage and what follows: two images of ten.
    found = essence(one_batch(warm(30.0, machine), machine, [0.5, 0.9, 0.1, 0.3, 0.59]))
    assert [stage for stage, _, _ in found] == ["coarse", "coarse", "fine", "fine", "coarse"]
    assert [skipped for _, _, skipped in found] == [True, False, False, False, True]
    assert all(met for _, met, _ in found)


def test_nothing_is_refined_before_anything_was_measured() -> None:
    machine = Machine()
    assert essence(one_batch(Deadline(1000.0, machine), machine, [0.1])) == [("coarse", True, True)]


def test_a_machine_that_slows_down_stops_refining_and_one_that_recovers_starts_again() -> None:
    machine = Machine()
    deadline = warm(20.0, machine)
    assert essence(one_batch(deadline, machine, [0.1])) == [("fine", True, False)]
    machine.fine = 40.0
    slow = [essence(one_batch(deadline, machine, [0.1]))[0] for _ in range(60)]
    missed = [i for i, (_, met, _) in enumerate(slow) if not met]
    # The first shows it; after that one image in 25 finds out whether it is over.
    assert missed == [0, 25, 50]
    assert {stage for i, (stage, _, _) in enumerate(slow) if i not in missed} == {"coarse"}
    machine.fine = 10.0
    # The slow samples leave the window of 50 only when fast ones come in, one in 25 at first.
    fast = [essence(one_batch(deadline, machine, [0.1]))[0] for _ in range(3000)]
    assert all(met for _, met, _ in fast)
    assert [stage for stage, _, _ in fast[-100:]] == ["fine"] * 100


def test_a_deadline_that_was_never_possible_is_never_tried() -> None:
    machine = Machine()
    deadline = warm(12.0, machine)
    assert {essence(one_batch(deadline, machine, [0.1]))[0] for _ in range(200)} == {("coarse", True, True)}


def test_estimates() -> None:
    estimate = RunningEstimate(window=20)
    assert estimate.ms is None
    for ms in [1.0] * 19 + [9.0]:
        estimate.add(ms)
    assert estimate.ms == np.quantile([1.0] * 19 + [9.0], 0.95, method="higher")
    for _ in range(20):
        estimate.add(2.0)
    assert estimate.ms == 2.0, "old times are forgotten"
    times = FineTimes()
    assert times.ms(1) == math.inf
    times.add(2, 20.0)
    times.add(8, 50.0)
    # As measured; between two no more than the larger, nor than the smaller in proportion; beyond in proportion.
    assert [times.ms(count) for count in (1, 2, 3, 6, 8, 16)] == [20.0, 20.0, 30.0, 50.0, 50.0, 100.0]


@pytest.mark.parametrize("ms", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_a_deadline_is_a_time(ms: float) -> None:
    with pytest.raises(InputError, match="--deadline-ms is above 0"):
        Deadline(ms)


def test_scope_keeps_the_coarse_answer_where_it_may_not_refine(scope: Scope, network: fakes.FakeNetwork) -> None:
    images = fakes.random_images(network.config, 12)
    seen = []

    def every_second(sure: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        seen.append((sure, wanted.copy()))
        return np.arange(len(wanted)) % 2 == 0

    usual, fewer = scope.run(images, 0.9), scope.run(images, 0.9, may_refine=every_second)
    assert "fine" in usual.stages
    ((sure, wanted),) = seen
    np.testing.assert_array_equal(sure, usual.coarse_confidence)
    np.testing.assert_array_equal(wanted, np.array(usual.stages) == "fine")
    for row, stage in enumerate(usual.stages):
        assert fewer.stages[row] == (stage if row % 2 == 0 else "coarse")
        kept = usual.logits[row] if row % 2 == 0 else usual.coarse_logits[row]  # type: ignore[index]
        np.testing.assert_allclose(fewer.logits[row], kept, rtol=1e-5, atol=1e-5)
    assert scope.run(images, 0.0, may_refine=every_second).stages == ("coarse",) * 12
    assert len(seen) == 1, "not asked where nothing is to be refined"


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        status = run_app(app, [str(argument) for argument in arguments])
        return status, *capfd.readouterr()

    return call


def test_the_command_records_what_the_deadline_did(
    run: Run, bundle: Path, vim_bundle: Path, tmp_path: Path, network: fakes.FakeNetwork
) -> None:
    np.save(tmp_path / "x.npy", fakes.random_images(network.config, 9))
    base = (tmp_path / "x.npy", "--json", "--batch", "2")
    status, out, err = run(*base, "--bundle", bundle, "--eta", "0.9", "--deadline-ms", "3600000")
    assert (status, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert {"fine", "coarse"} == {line["stage"] for line in lines}
    for line in lines:
        assert line["deadline"] | {"elapsed_ms": 0} == {
            "ms": 3600000.0, "elapsed_ms": 0, "met": True, "skipped_fine": False,
        }  # fmt: skip
    # A nanosecond: no time for anything.
    _, out, _ = run(*base, "--bundle", bundle, "--eta", "0.9", "--deadline-ms", "0.000001")
    hurried = [json.loads(line) for line in out.splitlines()]
    assert {line["stage"] for line in hurried} == {"coarse"}
    for line, usual in zip(hurried, lines, strict=True):
        assert line["deadline"]["met"] is False
        assert line["deadline"]["skipped_fine"] == (usual["stage"] == "fine")
        assert line["coarse_confidence"] == usual["coarse_confidence"]
    wanted = sum(line["stage"] == "fine" for line in lines)
    _, out, _ = run(base[0], "--bundle", bundle, "--eta", "0.9", "--deadline-ms", "0.000001")
    assert out.count("coarse (deadline)") == wanted
    assert f"9 pictures, {9 - wanted} left early" in out
    assert f"{wanted} kept the coarse answer for the deadline" in out
    assert "deadline" not in json.loads(run(*base, "--bundle", bundle)[1].splitlines()[0])
    for arguments, message in [
        ((*base, "--bundle", bundle, "--deadline-ms", "0"), "--deadline-ms is above 0"),
        ((*base, "--bundle", vim_bundle, "--deadline-ms", "5"), "plain ViM"),
    ]:
        status, out, err = run(*arguments)
        assert (status, out) == (2, "")
        assert message in err
