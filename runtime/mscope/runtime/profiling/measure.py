"""The measuring loop: warm up until steady, then every path in turn until the time is up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mscope.runtime.profiling.schema import MAX_SAMPLES, WarmUp

Clock = Callable[[], float]

# Steady: for every path, the medians of two successive windows of rounds differ by less than the tolerance.
WINDOW = 5
TOLERANCE = 0.03
# The warm-up ends unsteady after this share of the duration, and the measuring with fewer rounds than this never.
WARMUP_SHARE = 0.5
MIN_ROUNDS = 10


@dataclass(frozen=True)
class Timing:
    """One batch on one path, milliseconds: the whole by the host's clock, its parts, and both by a device's own."""

    total_ms: float
    parts_ms: Mapping[str, float]
    device_ms: Mapping[str, float] | None = None
    device_total_ms: float | None = None


Case = Callable[[], Timing]


@dataclass(frozen=True)
class Measured:
    """The timings of each case, one a round, in the order of the rounds."""

    warmup: WarmUp
    rounds: int
    timings: Mapping[str, Sequence[Timing]]


@dataclass
class _History:
    """The totals of the warm-up by case."""

    totals: dict[str, list[float]] = field(default_factory=dict)

    def add(self, timings: Mapping[str, Timing]) -> None:
        for name, timing in timings.items():
            self.totals.setdefault(name, []).append(timing.total_ms)

    def steady(self) -> bool:
        return all(_steady(totals) for totals in self.totals.values())


def measure(
    cases: Mapping[str, Case],
    duration_s: float,
    *,
    seed: int = 0,
    clock: Clock = time.perf_counter,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Measured:
    """Runs all cases once a round, in an order drawn anew each round, so that a drift of the machine meets all alike.

    Args:
        cases: by name; each call runs one batch and returns its timing.
        duration_s: seconds of measuring, after the warm-up; at least MIN_ROUNDS rounds are run, at most MAX_SAMPLES.
        seed: of the orders.
        clock: seconds, rising.
        on_progress: called after each round with the share of the time that is over.
    """
    rng = np.random.default_rng(seed)
    names = list(cases)

    def one_round() -> dict[str, Timing]:
        return {names[i]: cases[names[i]]() for i in rng.permutation(len(names))}

    started = clock()
    history, rounds, steady = _History(), 0, False
    while not steady:
        history.add(one_round())
        rounds += 1
        steady = history.steady()
        # Two rounds at least: the first is slower than all that follow.
        if rounds >= 2 and clock() - started >= duration_s * WARMUP_SHARE:
            break
    begun = clock()
    warmup = WarmUp(rounds=rounds, seconds=begun - started, steady=steady)
    timings: dict[str, list[Timing]] = {name: [] for name in names}
    done, elapsed = 0, 0.0
    while done < MAX_SAMPLES and (done < MIN_ROUNDS or elapsed < duration_s):
        for name, timing in one_round().items():
            timings[name].append(timing)
        done += 1
        elapsed = clock() - begun
        on_progress(min(1.0, elapsed / duration_s, done / MIN_ROUNDS))
    return Measured(warmup, done, timings)


def _steady(totals: Sequence[float]) -> bool:
    if len(totals) < 2 * WINDOW:
        return False
    before = statistics.median(totals[-2 * WINDOW : -WINDOW])
    last = statistics.median(totals[-WINDOW:])
    return abs(last - before) <= TOLERANCE * before
