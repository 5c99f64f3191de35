"""Energy of each path: idle first, then one path after the other, with every power sensor of the machine running."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mscope.runtime.profiling.nvml import Nvml
from mscope.runtime.profiling.power_energy import Energy, energy_between
from mscope.runtime.profiling.power_state import (
    MachineState,
    clocks_pinned,
    machine_state,
    power_mode,
    throttled_between,
)
from mscope.runtime.profiling.rapl import Rapl
from mscope.runtime.profiling.schema import PathEnergy, PathName, Power
from mscope.runtime.profiling.sensors import Clock, PowerTrace, Sensor, SensorDenied, SensorError
from mscope.runtime.profiling.tegrastats import Tegrastats

Load = Callable[[], int]
# Runs before a window opens: sensors that average (some over a second) are then past the change.
_LEAD_SECONDS = 1.0
_MAX_NAMES = 64


@dataclass(frozen=True)
class _Window:
    """Between two moments, seconds, on the sensors' clock; `images` is 0 for the idle one."""

    start: float
    end: float
    images: int = 0


def measure_power(
    loads: Mapping[tuple[PathName, int], Load],
    seconds: float,
    *,
    sensors: Sequence[Sensor] | None = None,
    clock: Clock = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> tuple[Power | None, tuple[str, ...]]:
    """Energy of each load by every sensor there is, idle power subtracted.

    Args:
        loads: by path and batch size: runs one batch and returns its number of images.
        seconds: how long the machine idles, and how long each load runs.
        sensors: by default tegrastats on a Jetson; elsewhere the NVIDIA card's and the processor's, which add up.
        clock: the one that the sensors stamp their readings with.

    Returns:
        The figures, and lines for the user: why a sensor is not used, what went away meanwhile. None for the figures
        where there is no sensor at all.
    """
    started, reasons = _start(_found(clock) if sensors is None else sensors)
    if not started:
        return None, ("no power was measured: " + "; ".join(reasons),)
    lead = min(_LEAD_SECONDS, seconds / 4)
    before = machine_state()
    windows: dict[tuple[PathName, int], _Window] = {}
    traces: list[PowerTrace] = []
    try:
        sleep(lead)
        opened = clock()
        sleep(seconds)
        idle = _Window(opened, clock())
        for key, load in loads.items():
            _run(load, lead, clock)
            windows[key] = _run(load, seconds, clock)
    finally:
        # Also when a load fails: no process and no thread of a sensor stays behind.
        traces = [sensor.stop() for sensor in started]
    power = _report(traces, idle, windows, before, machine_state())
    lost = tuple(
        f"the power sensor {trace.sensor} went away during the run: {trace.lost}" for trace in traces if trace.lost
    )
    hot = ("the device throttled while power was measured: its figures are those of a slowed device",)
    return power, reasons + lost + (hot if power.throttled else ())


def _found(clock: Clock) -> list[Sensor]:
    tegra: list[Sensor] = [Tegrastats(clock=clock)]
    return [*tegra, Nvml(clock=clock), Rapl(clock=clock)]


def _start(sensors: Sequence[Sensor]) -> tuple[list[Sensor], tuple[str, ...]]:
    """Those that run. A Jetson's tegrastats has everything in it: with it, no other is asked."""
    running: list[Sensor] = []
    reasons: list[SensorError] = []
    for sensor in sensors:
        if any(other.name == "tegrastats" for other in running):
            break
        try:
            sensor.start()
        except SensorError as error:
            reasons.append(type(error)(f"{sensor.name}: {error}"))
        except BaseException:
            for other in running:
                with contextlib.suppress(SensorError):
                    other.stop()
            raise
        else:
            running.append(sensor)
    # With one sensor running, the absence of the others is no news, except of one that only wants rights.
    return running, tuple(str(reason) for reason in reasons if not running or isinstance(reason, SensorDenied))


def _run(load: Load, seconds: float, clock: Clock) -> _Window:
    start, images = clock(), 0
    while True:
        images += load()
        now = clock()
        if now - start >= seconds:
            return _Window(start, now, images)


def _report(
    traces: Sequence[PowerTrace],
    idle: _Window,
    windows: Mapping[tuple[PathName, int], _Window],
    before: MachineState,
    after: MachineState,
) -> Power:
    rest = _total(traces, idle)
    busy = _Window(
        min((w.start for w in windows.values()), default=idle.start), max(w.end for w in (idle, *windows.values()))
    )
    reasons = throttled_between(before, after)
    told = [reading.throttled for trace in traces for reading in trace.readings if reading.throttled is not None]
    held = tuple(dict.fromkeys(word for words in told for word in words))
    known = reasons is not None or bool(told)
    notes = [note for trace in traces for note in trace.notes]
    notes += [f"{trace.sensor} stopped early: {trace.lost}" for trace in traces if trace.lost]
    notes += [f"throttled: {words}" for words in (*(reasons or ()), *held)]
    if isinstance(rest, str):
        notes.append(f"idle power unknown: {rest}")
    return Power(
        sensor="+".join(trace.sensor for trace in traces),
        total="; ".join(trace.total_words for trace in traces),
        idle_watts=None if isinstance(rest, str) else rest.watts,
        rails=_rails(traces, busy),
        paths=tuple(
            _path(path, batch, window, _total(traces, window), rest) for (path, batch), window in windows.items()
        ),
        temperature_c=_highest(traces) or dict(list(after.temperature_c.items())[:_MAX_NAMES]),
        clocks_mhz=_mean_clocks(traces, busy) or dict(list(after.clocks_mhz.items())[:_MAX_NAMES]),
        throttled=bool(reasons or held) if known else None,
        mode=power_mode(),
        clocks_pinned=clocks_pinned(),
        notes=tuple(notes),
    )


def _total(traces: Sequence[PowerTrace], window: _Window) -> Energy | str:
    """Energies of all sensors added up; uncertainties as independent ones."""
    parts = [energy_between(trace, window.start, window.end) for trace in traces]
    for part in parts:
        if isinstance(part, str):
            return part
    good = [part for part in parts if isinstance(part, Energy)]
    return Energy(
        joules=sum(part.joules for part in good),
        uncertainty=float(np.hypot.reduce([part.uncertainty for part in good])),
        seconds=window.end - window.start,
        readings=min(part.readings for part in good),
    )


def _path(path: PathName, batch: int, window: _Window, energy: Energy | str, idle: Energy | str) -> PathEnergy:
    seconds = window.end - window.start
    if isinstance(energy, str):
        return PathEnergy(path=path, batch=batch, images=window.images, seconds=seconds, reason=energy)
    net, error = None, energy.uncertainty
    if not isinstance(idle, str):
        net = (energy.joules - idle.watts * seconds) / window.images
        error = float(np.hypot(error, idle.uncertainty / idle.seconds * seconds))
    return PathEnergy(
        path=path,
        batch=batch,
        images=window.images,
        seconds=seconds,
        readings=energy.readings,
        watts=energy.watts,
        joules_per_image=energy.joules / window.images,
        net_joules_per_image=net,
        uncertainty_joules_per_image=error / window.images,
    )


def _rails(traces: Sequence[PowerTrace], window: _Window) -> dict[str, float]:
    """Mean watts of every rail under load."""
    found = {}
    for trace in traces:
        for rail in trace.rail_names()[:_MAX_NAMES]:
            energy = energy_between(trace, window.start, window.end, (rail,))
            if isinstance(energy, Energy):
                found[rail] = energy.watts
    return found


def _highest(traces: Sequence[PowerTrace]) -> dict[str, float]:
    found: dict[str, float] = {}
    for trace in traces:
        for reading in trace.readings:
            for name, value in reading.temperature_c.items():
                if name in found or len(found) < _MAX_NAMES:
                    found[name] = max(value, found.get(name, value))
    return found


def _mean_clocks(traces: Sequence[PowerTrace], window: _Window) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for trace in traces:
        for moment, reading in zip(trace.seconds, trace.readings, strict=True):
            if window.start <= moment <= window.end:
                for name, value in reading.clocks_mhz.items():
                    found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in list(found.items())[:_MAX_NAMES]}
