"""Power sensors: what they all give, a trace of named rails, and the thread that reads them beside the loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
# Seconds, rising, never set back: the clock that the measured loop uses too.
Clock = Callable[[], float]

# A run of a day at ten readings a second stays below it; what comes after is not kept, and the trace says so.
MAX_READINGS = 1_000_000
# How long stopping waits for the reading thread.
_STOP_SECONDS = 5.0


class SensorError(Exception):
    """A sensor that is not here, may not be read, or went away; the message says which and what to do."""


class SensorDenied(SensorError):
    """A sensor that is here but may not be read; the message says what would allow it."""


@dataclass(frozen=True)
class Reading:
    """What a sensor says at one moment.

    Attributes:
        rails: by the sensor's own names: watts, or joules since some moment for a counter. Absent rails are absent.
        temperature_c, clocks_mhz: by the sensor's own names.
        throttled: why the device holds itself back; empty when it does not, None when the sensor does not tell.
    """

    rails: Mapping[str, float]
    temperature_c: Mapping[str, float] = field(default_factory=dict)
    clocks_mhz: Mapping[str, float] = field(default_factory=dict)
    throttled: tuple[str, ...] | None = None


@dataclass(frozen=True)
class PowerTrace:
    """What a sensor said over a run.

    Attributes:
        sensor: "tegrastats", "nvml", "rapl".
        kind: "watts" (power at each moment) or "joules" (a counter that only rises).
        total: the rails whose sum is the device's total.
        total_words: that definition in words.
        period_s: between readings, as asked.
        seconds: (n,), rising, on the clock that the sensor was made with.
        readings: n.
        lost: why the sensor stopped before it was told to; None when it did not.
        notes: what to know about the figures.
    """

    sensor: str
    kind: Literal["watts", "joules"]
    total: tuple[str, ...]
    total_words: str
    period_s: float
    seconds: Floats
    readings: tuple[Reading, ...]
    lost: str | None = None
    notes: tuple[str, ...] = ()

    def values(self, rails: tuple[str, ...]) -> tuple[Floats, Floats]:
        """(m,) seconds and (m,) sums of some rails, of those readings that have all of them."""
        kept = [i for i, reading in enumerate(self.readings) if all(rail in reading.rails for rail in rails)]
        sums = [sum(self.readings[i].rails[rail] for rail in rails) for i in kept]
        return self.seconds[kept], np.asarray(sums, np.float64)

    def rail_names(self) -> tuple[str, ...]:
        """Every rail that was ever seen, in the order of its first appearance."""
        return tuple(dict.fromkeys(name for reading in self.readings for name in reading.rails))


class Sensor(Protocol):
    """One source of power readings. `start` once, `stop` once; `stop` gives what was read between them."""

    @property
    def name(self) -> str: ...

    def start(self) -> None:
        """Begins to read. Raises SensorError when there is nothing to read."""

    def stop(self) -> PowerTrace:
        """Ends reading. Never raises: a sensor that went away is told of in `lost`."""


@dataclass
class Recorder:
    """Readings with their times, filled by one thread and read by another after it ended."""

    clock: Clock
    seconds: list[float] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    lost: str | None = None

    def add(self, reading: Reading) -> None:
        if len(self.readings) >= MAX_READINGS:
            self.lost = f"stopped after {MAX_READINGS} readings"
            return
        self.seconds.append(self.clock())
        self.readings.append(reading)

    def trace(
        self,
        sensor: str,
        kind: Literal["watts", "joules"],
        total: tuple[str, ...],
        total_words: str,
        period_s: float,
        notes: tuple[str, ...] = (),
    ) -> PowerTrace:
        """What was recorded, as a trace."""
        return PowerTrace(
            sensor, kind, total, total_words, period_s, np.asarray(self.seconds, np.float64), tuple(self.readings),
            self.lost, notes,
        )  # fmt: skip


class Poller:
    """Calls `read` every `period_s` seconds in a thread, until stopped or until it raises SensorError."""

    def __init__(self, read: Callable[[], Reading], period_s: float, clock: Clock = time.perf_counter) -> None:
        self.recorder = Recorder(clock)
        self._read = read
        self._period_s = period_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mscope-power", daemon=True)

    def start(self) -> None:
        """Reads once here, so that a sensor that cannot be read is told of at once, then in the thread."""
        self.recorder.add(self._read())
        self._thread.start()

    def stop(self) -> Recorder:
        """Ends the thread, reads a last time, and gives everything."""
        self._ended.set()
        self._thread.join(_STOP_SECONDS)
        if self._thread.is_alive():
            self.recorder.lost = "the sensor does not answer"
        elif self.recorder.lost is None:
            self._once()
        return self.recorder

    def _run(self) -> None:
        due = time.monotonic()
        while self.recorder.lost is None:
            due += self._period_s
            # A reading that came late does not make the later ones hurry.
            wait = due - time.monotonic()
            if wait < 0.0:
                due = time.monotonic()
            if self._ended.wait(max(wait, 0.0)):
                return
            self._once()

    def _once(self) -> None:
        try:
            self.recorder.add(self._read())
        except SensorError as error:
            self.recorder.lost = str(error)
