"""Energy from traces against integrals in closed form; the measurement against sensors and loads of known power."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest

from mscope.runtime.profiling import power_state
from mscope.runtime.profiling.power import measure_power
from mscope.runtime.profiling.power_energy import Energy, energy_between
from mscope.runtime.profiling.power_state import MachineState, clocks_pinned, machine_state, power_mode
from mscope.runtime.profiling.schema import PathName
from mscope.runtime.profiling.sensors import Poller, PowerTrace, Reading, Recorder, SensorDenied, SensorError

Floats = npt.NDArray[np.float64]


def trace_of(
    seconds: Floats, values: Floats, kind: Literal["watts", "joules"] = "watts", lost: str | None = None
) -> PowerTrace:
    readings = tuple(Reading({"A": float(value)}) for value in values)
    return PowerTrace("invented", kind, ("A",), "A", float(seconds[1] - seconds[0]), seconds, readings, lost)


def energy(trace: PowerTrace, start: float, end: float) -> Energy:
    found = energy_between(trace, start, end)
    assert isinstance(found, Energy), found
    return found


def test_the_trapezoid_rule_is_exact_for_straight_lines() -> None:
    seconds = np.sort(np.random.default_rng(0).uniform(0, 10, 200))
    seconds[[0, -1]] = 0.0, 10.0
    trace = trace_of(seconds, 3.0 + 2.0 * seconds)
    for start, end in ((0.0, 10.0), (1.234, 7.89), (2.0, 3.0)):
        exact = 3.0 * (end - start) + end**2 - start**2
        # Sums of a few hundred products in double precision.
        assert energy(trace, start, end).joules == pytest.approx(exact, rel=1e-12)


def test_a_sine_within_the_rule_s_error() -> None:
    step = 0.05
    seconds = np.arange(0.0, 10.0 + step, step)
    trace = trace_of(seconds, 10.0 + np.sin(seconds))
    exact = 10.0 * 7.0 + math.cos(1.5) - math.cos(8.5)
    # |error| <= (b - a) step^2 / 12 max|f''|, and as much again for the interpolated ends.
    assert abs(energy(trace, 1.5, 8.5).joules - exact) <= 2 * 7.0 * step**2 / 12


def test_uncertainty_is_that_of_the_mean() -> None:
    rng = np.random.default_rng(1)
    seconds = np.arange(0.0, 20.0, 0.1)
    missed = 0
    for _ in range(300):
        found = energy(trace_of(seconds, 10.0 + rng.normal(0, 2, seconds.size)), 0.0, 19.9)
        missed += abs(found.joules - 199.0) > found.uncertainty
    # 5 % of 300 would be 15; 99.9 % of binomial (300, 0.05) lies in 5 to 28.
    assert 5 <= missed <= 28


def test_a_counter_is_read_at_both_ends() -> None:
    seconds = np.arange(0.0, 5.01, 0.1)
    trace = trace_of(seconds, 12.5 * seconds, "joules")
    found = energy(trace, 1.03, 4.04)
    assert found.joules == pytest.approx(12.5 * 3.01, rel=1e-12)
    assert found.watts == pytest.approx(12.5)
    assert found.uncertainty == pytest.approx(2 * 12.5 * 0.1)


def test_a_short_window_gives_a_reason_and_no_number() -> None:
    trace = trace_of(np.arange(0.0, 10.0, 0.1), np.full(100, 5.0))
    assert "too few" in str(energy_between(trace, 1.0, 1.25))
    assert energy(trace, 1.0, 1.5).joules == pytest.approx(2.5)
    assert energy_between(trace, 2.0, 2.0) == "the window is empty"


def test_a_sensor_that_was_lost_gives_a_reason() -> None:
    trace = trace_of(np.arange(0.0, 2.0, 0.1), np.full(20, 5.0), lost="unplugged")
    assert "unplugged" in str(energy_between(trace, 0.5, 4.0))
    assert "unplugged" in str(energy_between(trace, 3.0, 4.0))


def test_readings_without_all_rails_of_the_total_are_left_out() -> None:
    readings = tuple(Reading({"A": 1.0, "B": 2.0} if i % 2 else {"A": 1.0}) for i in range(40))
    trace = PowerTrace("invented", "watts", ("A", "B"), "A + B", 0.1, np.arange(40) * 0.1, readings)
    assert energy(trace, 0.1, 3.9).joules == pytest.approx(3.0 * 3.8)


class Machine:
    """A machine whose time moves only when it is used, and whose power is known at every moment."""

    def __init__(self, idle: float = 4.0) -> None:
        self.now = 0.0
        self.idle = idle
        self.watts = idle
        self.sensors: list[SteppedSensor] = []

    def clock(self) -> float:
        return self.now

    def pass_time(self, seconds: float, watts: float | None = None) -> None:
        self.watts = self.idle if watts is None else watts
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now = min(end, self.now + 0.01)
            for sensor in self.sensors:
                sensor.tick()
        self.watts = self.idle

    def load(self, seconds: float, watts: float, images: int) -> Callable[[], int]:
        def call() -> int:
            self.pass_time(seconds, watts)
            return images

        return call


class SteppedSensor:
    """Reads the machine at every step of its time."""

    def __init__(self, machine: Machine, share: float = 1.0, name: str = "invented", dies_at: float = math.inf) -> None:
        self.machine, self.share, self.name, self.dies_at = machine, share, name, dies_at
        self.recorder = Recorder(machine.clock)
        self.stopped = False

    def start(self) -> None:
        self.machine.sensors.append(self)

    def tick(self) -> None:
        if self.machine.now >= self.dies_at:
            self.recorder.lost = "unplugged"
        if self.recorder.lost is None:
            self.recorder.add(
                Reading({f"{self.name} rail": self.share * self.machine.watts}, {"chip": 50 + self.machine.now})
            )

    def stop(self) -> PowerTrace:
        self.stopped = True
        rail = f"{self.name} rail"
        return self.recorder.trace(self.name, "watts", (rail,), rail, 0.01)


class Absent:
    name = "absent"

    def __init__(self, error: SensorError) -> None:
        self.error = error

    def start(self) -> None:
        raise self.error

    def stop(self) -> PowerTrace:
        raise AssertionError("never started")


def loads_of(machine: Machine) -> dict[tuple[PathName, int], Callable[[], int]]:
    return {("exit", 1): machine.load(0.02, 9.0, 1), ("refine", 8): machine.load(0.1, 14.0, 8)}


def test_joules_an_image_of_each_path_with_idle_subtracted() -> None:
    machine = Machine()
    sensor = SteppedSensor(machine)
    power, lines = measure_power(loads_of(machine), 4.0, sensors=[sensor], clock=machine.clock, sleep=machine.pass_time)
    assert lines == ()
    assert power is not None
    assert power.idle_watts == pytest.approx(4.0)
    leave, refine = power.paths
    assert (leave.path, leave.batch, refine.path, refine.batch) == ("exit", 1, "refine", 8)
    # One step of 10 ms of idle power may be mixed into each end of a window of 4 s.
    assert leave.joules_per_image == pytest.approx(0.02 * 9.0, rel=0.005)
    assert leave.net_joules_per_image == pytest.approx(0.02 * 5.0, rel=0.01)
    assert refine.joules_per_image == pytest.approx(0.1 * 14.0 / 8, rel=0.005)
    assert refine.net_joules_per_image == pytest.approx(0.1 * 10.0 / 8, rel=0.01)
    assert power.rails["invented rail"] == pytest.approx((9 + 14) / 2, rel=0.1)
    assert power.temperature_c == {"chip": pytest.approx(50 + machine.now)}
    assert sensor.stopped


def test_two_sensors_add_up() -> None:
    machine = Machine()
    sensors = [SteppedSensor(machine, 0.75, "nvml"), SteppedSensor(machine, 0.25, "rapl")]
    power, _ = measure_power(loads_of(machine), 4.0, sensors=sensors, clock=machine.clock, sleep=machine.pass_time)
    assert power is not None
    assert power.sensor == "nvml+rapl"
    assert power.idle_watts == pytest.approx(4.0)
    assert power.paths[0].watts == pytest.approx(9.0, rel=0.005)
    assert set(power.rails) == {"nvml rail", "rapl rail"}


def test_a_sensor_that_vanishes_leaves_the_later_paths_without_a_number() -> None:
    machine = Machine()
    # Idle ends at 5 s, the first path at 10 s.
    sensor = SteppedSensor(machine, dies_at=11.0)
    power, lines = measure_power(loads_of(machine), 4.0, sensors=[sensor], clock=machine.clock, sleep=machine.pass_time)
    assert power is not None
    assert power.paths[0].joules_per_image is not None
    assert power.paths[1].joules_per_image is None
    assert "unplugged" in str(power.paths[1].reason)
    assert any("went away" in line and "unplugged" in line for line in lines)
    assert any("stopped early" in note for note in power.notes)


def test_no_sensor_is_no_figure() -> None:
    machine = Machine()
    absent = [Absent(SensorError("no such thing")), Absent(SensorDenied("run as root"))]
    power, lines = measure_power(loads_of(machine), 1.0, sensors=absent, clock=machine.clock, sleep=machine.pass_time)
    assert power is None
    assert lines == ("no power was measured: absent: no such thing; absent: run as root",)
    assert machine.now == 0.0, "nothing is run for nothing"


def test_a_sensor_that_lacks_only_rights_is_told_of_beside_one_that_works() -> None:
    machine = Machine()
    sensors = [Absent(SensorError("no card")), SteppedSensor(machine), Absent(SensorDenied("run as root"))]
    power, lines = measure_power(loads_of(machine), 1.0, sensors=sensors, clock=machine.clock, sleep=machine.pass_time)
    assert power is not None
    assert lines == ("absent: run as root",)


def test_sensors_are_stopped_when_a_load_fails() -> None:
    machine = Machine()
    sensor = SteppedSensor(machine)

    def fails() -> int:
        raise RuntimeError("the load")

    with pytest.raises(RuntimeError, match="the load"):
        measure_power({("exit", 1): fails}, 1.0, sensors=[sensor], clock=machine.clock, sleep=machine.pass_time)
    assert sensor.stopped


def test_the_poller_reads_until_the_sensor_fails() -> None:
    count = 0

    def read() -> Reading:
        nonlocal count
        count += 1
        if count > 3:
            raise SensorError("unplugged")
        return Reading({"A": 1.0})

    poller = Poller(read, 0.001)
    poller.start()
    poller._thread.join(5.0)
    recorder = poller.stop()
    assert recorder.lost == "unplugged"
    assert len(recorder.readings) == 3


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_the_state_from_sysfs(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
            "sys/class/thermal/thermal_zone0/temp": "45500",
            "sys/class/thermal/thermal_zone1/type": "cv0-thermal",
            "sys/class/thermal/thermal_zone1/temp": "-256000",
            "sys/class/thermal/cooling_device0/type": "cpu-throttle-alert",
            "sys/class/thermal/cooling_device0/cur_state": "1",
            "sys/class/thermal/cooling_device1/type": "pwm-fan",
            "sys/class/thermal/cooling_device1/cur_state": "3",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "500000",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil",
            "sys/class/devfreq/17000000.gpu/cur_freq": "612000000",
            "sys/class/hwmon/hwmon3/oc1_event_cnt": "7",
            "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "2",
            "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "3",
        },
    )
    state = machine_state(root)
    assert state.temperature_c == {"cpu-thermal": 45.5}
    assert state.clocks_mhz == {"CPU": 1000.0, "17000000.gpu": 612.0}
    assert state.events == {"over-current oc1": 7, "processor too hot": 5}
    assert state.cooling == {"cpu-throttle-alert"}
    assert power_mode(root, lambda command: None) == "governor schedutil"
    empty = machine_state(tmp_path / "nothing")
    assert (empty.temperature_c, empty.clocks_mhz, empty.events) == ({}, {}, {})


def test_throttling_is_what_rose_meanwhile() -> None:
    def state(events: dict[str, int], *cooling: str) -> MachineState:
        return MachineState({}, {}, events, frozenset(cooling))

    between = power_state.throttled_between
    assert between(state({}), state({})) is None, "nothing would tell"
    assert between(state({"oc1": 7}), state({"oc1": 7})) == ()
    assert between(state({"oc1": 7}), state({"oc1": 9})) == ("oc1: 2 times",)
    assert between(state({}), state({}, "cpu-throttle")) == ("cpu-throttle active",)


@pytest.mark.parametrize(
    "shown, mode",
    [("NV Power Mode: MAXN\n0\n", "MAXN"), ("NVPM WARN: fan\nNV Power Mode: MODE_30W\n2", "MODE_30W"), ("what?", None)],
)
def test_nvpmodel(tmp_path: Path, shown: str, mode: str | None) -> None:
    assert power_mode(tmp_path, lambda command: shown if command[0] == "nvpmodel" else None) == mode


def test_jetson_clocks() -> None:
    free = "cpu0: Online=1 Governor=schedutil MinFreq=729600 MaxFreq=2201600 CurrentFreq=729600 IdleStates: WFI=1"
    held = "GPU MinFreq=1300500000 MaxFreq=1300500000 CurrentFreq=1300500000"
    assert clocks_pinned(lambda command: free) is False
    assert clocks_pinned(lambda command: f"{held}\n{free}") is False
    assert clocks_pinned(lambda command: held) is True
    assert clocks_pinned(lambda command: None) is None
