"""The measuring loop on clocks that a test turns: warm-up, interleaving, parts that add up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from mscope.runtime.preprocess import Prepared
from mscope.runtime.profiling.measure import MIN_ROUNDS, WINDOW, Timing, measure
from mscope.runtime.profiling.workload import Workload
from mscope.runtime.result import Floats, Outcome, Result


class FakeClock:
    """Seconds that pass only when told; a drifting machine multiplies what it is told."""

    def __init__(self, slower: Callable[[float], float] = lambda now: 1.0) -> None:
        self.now = 100.0
        self._slower = slower

    def __call__(self) -> float:
        return self.now

    def work(self, ms: float) -> float:
        """`ms` of work done; what it took."""
        took = ms * self._slower(self.now)
        self.now += took / 1e3
        return took


def case(clock: FakeClock, ms: Callable[[], float]) -> Callable[[], Timing]:
    def call() -> Timing:
        took = clock.work(ms())
        return Timing(took, {"all": took})

    return call


def test_it_runs_every_case_once_a_round_for_the_duration() -> None:
    clock = FakeClock()
    shares: list[float] = []
    measured = measure(
        {"a": case(clock, lambda: 6.0), "b": case(clock, lambda: 4.0)}, 2.0, clock=clock, on_progress=shares.append
    )
    assert measured.warmup.steady
    assert measured.warmup.rounds == 2 * WINDOW
    assert measured.warmup.seconds == pytest.approx(2 * WINDOW * 0.01)
    assert measured.rounds == 200
    assert [len(timings) for timings in measured.timings.values()] == [200, 200]
    assert {timing.total_ms for timing in measured.timings["a"]} == {6.0}
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_warm_up_goes_on_while_latencies_fall() -> None:
    clock = FakeClock()
    calls = iter(range(10_000))
    measured = measure({"a": case(clock, lambda: 10.0 + 90.0 * 0.8 ** next(calls))}, 60.0, clock=clock)
    assert measured.warmup.steady
    # Windows of five: 10 + 90 * 0.8^n falls by less than 3 % from one to the next from n = 26 on.
    assert 20 < measured.warmup.rounds < 40
    assert max(timing.total_ms for timing in measured.timings["a"]) < 10.5


def test_warm_up_ends_unsteady_after_half_the_duration() -> None:
    clock = FakeClock()
    calls = iter(range(1, 10_000))
    measured = measure({"a": case(clock, lambda: float(next(calls)))}, 1.0, clock=clock)
    assert not measured.warmup.steady
    assert 0.5 <= measured.warmup.seconds < 0.55


def test_a_slow_network_is_still_measured_ten_times() -> None:
    clock = FakeClock()
    measured = measure({"a": case(clock, lambda: 5000.0)}, 0.2, clock=clock)
    assert measured.rounds == MIN_ROUNDS
    assert not measured.warmup.steady
    assert measured.warmup.rounds == 2


def test_a_drift_of_the_machine_meets_all_cases_alike() -> None:
    # The machine gets 3 times slower over the run; one case after the other would differ by far more than a tenth.
    clock = FakeClock(lambda now: 1.0 + max(0.0, now - 100.0) / 5)
    measured = measure({"a": case(clock, lambda: 10.0), "b": case(clock, lambda: 10.0)}, 10.0, clock=clock)
    a, b = ([timing.total_ms for timing in measured.timings[name]] for name in ("a", "b"))
    assert max(a) > 2 * min(a)
    assert np.mean(a) == pytest.approx(np.mean(b), rel=0.01)


def test_the_order_within_a_round_changes() -> None:
    clock = FakeClock()
    order: list[str] = []

    def noted(name: str) -> Callable[[], Timing]:
        def call() -> Timing:
            order.append(name)
            clock.work(1.0)
            return Timing(1.0, {})

        return call

    measure({"a": noted("a"), "b": noted("b")}, 0.2, clock=clock)
    firsts = order[::2]
    assert {"a", "b"} == set(firsts)
    assert all(set(order[i : i + 2]) == {"a", "b"} for i in range(0, len(order), 2))


class FakeSubject:
    """A bundle whose steps take given milliseconds on a fake clock."""

    def __init__(self, clock: FakeClock, *, claims: float = 1.0) -> None:
        self.clock = clock
        self.claims = claims
        self.batches: list[tuple[int, float | None, bool]] = []

    def prepare(self, image: Any, source: str | None = None) -> Prepared:
        self.clock.work(2.0)
        return Prepared(np.zeros((1, 2, 2), np.float32), (0, 0, 2, 2), (2, 2), None)

    def stack(self, prepared: Sequence[Prepared]) -> Floats:
        self.clock.work(0.25)
        return np.stack([picture.tensor for picture in prepared])

    def run(
        self, tensor: Floats, eta: float | None = None, *, refine_all: bool = False, may_refine: Any = None
    ) -> Outcome:
        assert may_refine is None, "only where a device decides beside it"
        count = len(tensor)
        self.batches.append((count, eta, refine_all))
        self.clock.work(0.25)
        stages = {"full": 20.0} if eta is None else {"coarse": 7.0, "select": 0.5}
        if refine_all:
            stages["fine"] = 14.0
        for ms in stages.values():
            self.clock.work(ms * count)
        claimed = {name: ms * count * self.claims for name, ms in stages.items()}
        if eta is not None and not refine_all:
            claimed["fine"] = 0.0
        logits = np.zeros((count, 2), np.float32)
        return Outcome(logits, logits[:, 0], ("coarse",) * count, None, None, None, None, claimed)

    def results(
        self, outcome: Outcome, sources: Sequence[str], preprocess_ms: Sequence[float], *, eta: float | None = None
    ) -> list[Result]:
        self.clock.work(0.5)
        return []


@pytest.mark.parametrize("batch", [1, 3])
def test_the_parts_of_every_path_add_up_to_its_total(batch: int) -> None:
    clock = FakeClock()
    subject = FakeSubject(clock)
    work = Workload(subject, ["a", "b"], clock)
    expected = {
        "exit": {"preprocess": 2.0 * batch, "check": 0.5, "coarse": 7.0 * batch, "select": 0.5 * batch},
        "refine": {"preprocess": 2.0 * batch, "check": 0.5, "coarse": 7.0 * batch, "select": 0.5 * batch,
                   "fine": 14.0 * batch},
        "plain": {"preprocess": 2.0 * batch, "check": 0.5, "full": 20.0 * batch},
    }  # fmt: skip
    for name, parts in expected.items():
        timing = work.path(name, batch)()  # type: ignore[arg-type]
        assert dict(timing.parts_ms) == pytest.approx(parts | {"postprocess": 0.5})
        assert sum(timing.parts_ms.values()) == pytest.approx(timing.total_ms, rel=1e-9)
    assert subject.batches == [(batch, 0.0, False), (batch, 1.0, True), (batch, None, False)]


def test_stages_that_claim_more_than_the_run_took_show_as_a_gap() -> None:
    clock = FakeClock()
    timing = Workload(FakeSubject(clock, claims=1.5), ["a"], clock).path("refine", 1)()
    gap = abs(sum(timing.parts_ms.values()) - timing.total_ms) / timing.total_ms
    assert gap > 0.02


def test_the_fine_stage_alone_and_the_load_for_a_power_meter() -> None:
    clock = FakeClock()
    work = Workload(FakeSubject(clock), ["a"], clock)
    assert work.fine_alone()().total_ms == pytest.approx(14.0)
    assert work.load("exit", 5)() == 5
