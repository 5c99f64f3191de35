"""Calls under torch as CUDA graphs, timed by the device's own clock: what both GPU benchmarks measure with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

# For so many cycles the device is kept busy while the host queues: half a millisecond at 2 GHz.
SPIN = 1_000_000
# An idle GPU's clocks have risen by then; trtexec takes 0.2 s.
WARM_UP_S = 0.5

Call = Callable[[], Any]


class Recorded:
    """Calls, one after the other, as one CUDA graph; each must have run before.

    It keeps the calls: a graph has the addresses of what they read and keeps none of it alive.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        import torch

        self._calls = tuple(calls)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for call in self._calls:
                call()

    def milliseconds(self) -> float:
        """Of one replay, from events around it.

        The device spins until all is queued: else it would wait within the time for the host to launch the graph.
        """
        import torch

        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(SPIN)
        start.record()
        self._graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


def warm_up(timers: Iterable[Call], rounds: int = 1) -> None:
    """Calls all in turn until the clocks are up, `rounds` times at least."""
    timers, started, turns = list(timers), time.perf_counter(), 0
    while turns < rounds or time.perf_counter() - started < WARM_UP_S:
        for timer in timers:
            timer()
        turns += 1
