"""Anytime mode (`mscope-run --deadline-ms`): the coarse answer where the fine stage would not be done in time."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mscope.core.cascade import Bools, exits_early
from mscope.core.errors import InputError
from mscope.runtime.result import DeadlineOutcome, Floats, Outcome, Result

if TYPE_CHECKING:
    from mscope.runtime.scope import Scope

Clock = Callable[[], float]

_MAX_MS = 3_600_000.0
# The estimate is this quantile of the latest times: the mean would be late every other time.
_QUANTILE = 0.95
_WINDOW = 50
# After so many batches in a row with nothing refined one image is, if the fine stage was ever fast enough: otherwise a
# slow moment, after which nothing is measured any more, would be remembered for ever.
_PROBE_EVERY = 25
# Refined batches before the first image: the first is slow for reasons of its own and is not counted.
_WARMUP_RUNS = 6


class RunningEstimate:
    """What something takes, milliseconds: a high quantile of the latest measurements."""

    def __init__(self, window: int = _WINDOW, quantile: float = _QUANTILE) -> None:
        self._latest: deque[float] = deque(maxlen=window)
        self._quantile = quantile

    def add(self, ms: float) -> None:
        self._latest.append(ms)

    @property
    def ms(self) -> float | None:
        """None before the first measurement."""
        if not self._latest:
            return None
        # The sample, not a value between two: with few of them this is the largest.
        return float(np.quantile(np.array(self._latest), self._quantile, method="higher"))


class FineTimes:
    """Estimates of the fine stage's time by the number of images in it; `best_one_ms` is the least for one, ever."""

    def __init__(self) -> None:
        self.best_one_ms = math.inf
        self._by_count: dict[int, RunningEstimate] = {}

    def add(self, count: int, ms: float) -> None:
        """The fine stage took `ms` for `count` >= 1 images."""
        self._by_count.setdefault(count, RunningEstimate()).add(ms)
        self.best_one_ms = min(self.best_one_ms, ms) if count == 1 else self.best_one_ms

    def ms(self, count: int) -> float:
        """What it will take for `count` images; infinity before the first measurement.

        A count not met yet takes at most what the next larger one took, or in proportion what the next smaller one did.
        """
        larger = min((known for known in self._by_count if known >= count), default=None)
        smaller = max((known for known in self._by_count if known < count), default=None)
        bounds = []
        if larger is not None:
            bounds.append(self._by_count[larger].ms)
        if smaller is not None and larger != count:
            estimate = self._by_count[smaller].ms
            bounds.append(None if estimate is None else estimate * count / smaller)
        return min((bound for bound in bounds if bound is not None), default=math.inf)


class Deadline:
    """Decides, batch after batch, which images there is still time to refine, and records what came of it.

    The deadline runs from `start` to `finish`, for a batch as a whole. Of the images that eta would refine those with
    the least confidence come first, as many as fit into what is left by the latest times (95th percentile).

    Args:
        ms: the deadline, milliseconds.
        clock: seconds, rising.
    """

    def __init__(self, ms: float, clock: Clock = time.perf_counter) -> None:
        """Raises InputError for a deadline that is not above 0, or above an hour."""
        if not 0.0 < ms <= _MAX_MS:
            raise InputError(f"--deadline-ms is above 0 and up to {_MAX_MS:g}, got {ms:g}")
        self.ms = ms
        self._clock = clock
        self._fine = FineTimes()
        # From the end of the fine stage to the results.
        self._after = RunningEstimate()
        self._started = 0.0
        self._ran = 0.0
        self._starved = 0

    def warm_up(self, scope: Scope, batch: int) -> None:
        """Seeds the estimates with refined batches of noise: of one image, and of `batch` where that is more.

        Raises:
            InputError: a plain ViM, which has no stage to leave out.
        """
        if scope.config.arch == "vim":
            raise InputError("--deadline-ms has no meaning for a plain ViM bundle, which has one stage: leave it out")
        shape = (scope.config.channels, scope.config.height, scope.config.width)
        rng = np.random.default_rng(0)
        for count in sorted({1, batch}):
            tensor = rng.standard_normal((count, *shape), np.float32)
            for run in range(_WARMUP_RUNS):
                outcome = scope.run(tensor, refine_all=True)
                before = self._clock()
                scope.results(outcome, ["warm-up"] * count, [0.0] * count)
                if run:
                    self._fine.add(count, outcome.stage_ms["fine"])
                    self._after.add((self._clock() - before) * 1e3)

    def start(self, already_ms: float = 0.0) -> None:
        """The work on a batch begins: its first image is about to be read, or came `already_ms` ago."""
        self._started = self._clock() - already_ms / 1e3

    def may_refine(self, confidence: Floats, wanted: Bools) -> Bools:
        """Which of the wanted images (B,) there is time for; for `Scope.run`."""
        left = self.ms - self._elapsed_ms() - (self._after.ms or 0.0)
        count = int(wanted.sum())
        while count and self._fine.ms(count) > left:
            count -= 1
        self._starved = 0 if count else self._starved + 1
        if self._starved == _PROBE_EVERY:
            self._starved = 0
            count = int(self._fine.best_one_ms <= left)
        allowed = np.zeros_like(wanted)
        least_sure_first = np.argsort(np.where(wanted, confidence, np.inf), kind="stable")
        allowed[least_sure_first[:count]] = True
        return allowed

    def ran(self, outcome: Outcome) -> None:
        """The stages are done: learns what the fine one took."""
        self._ran = self._clock()
        refined = outcome.stages.count("fine")
        if refined:
            self._fine.add(refined, outcome.stage_ms["fine"])

    def finish(self, results: list[Result]) -> list[Result]:
        """The results of the batch with what the deadline did to each."""
        self._after.add((self._clock() - self._ran) * 1e3)
        elapsed = self._elapsed_ms()
        return [
            replace(result, deadline=DeadlineOutcome(self.ms, elapsed, elapsed <= self.ms, _skipped_fine(result)))
            for result in results
        ]

    def _elapsed_ms(self) -> float:
        return (self._clock() - self._started) * 1e3


def _skipped_fine(result: Result) -> bool:
    """Whether eta asked for the fine stage and the coarse one answered."""
    if result.stage != "coarse" or result.coarse_confidence is None or result.eta is None:
        return False
    return not bool(exits_early(np.array(result.coarse_confidence, np.float32), result.eta))
