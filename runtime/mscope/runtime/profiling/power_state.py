"""The state that power figures depend on: power mode, pinned clocks, clocks, temperatures, what throttled meanwhile.

Read from files of the system and, on a Jetson, two commands. Each is read by itself; what is not there is left out.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")
_MAX_CHARACTERS = 64 << 10
_SECONDS = 5.0

# Runs a command and gives its output; None when it is not here, fails or hangs.
Run = Callable[[Sequence[str]], str | None]


def run_command(command: Sequence[str]) -> str | None:
    """What a command prints on stdout."""
    path = shutil.which(command[0])
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, *command[1:]], capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout[:_MAX_CHARACTERS] if done.returncode == 0 else None


def power_mode(root: Path = _ROOT, run: Run = run_command) -> str | None:
    """nvpmodel's mode on a Jetson ("MAXN"), elsewhere the governor ("governor performance"); None if unknown."""
    shown = run(["nvpmodel", "-q"])
    # "NV Power Mode: MODE_30W", and its number on the next line. Warnings may stand before it.
    found = re.search(r"NV Power Mode:\s*(\S+)", shown) if shown else None
    if found:
        return found[1][:64]
    governors = {
        text
        for path in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor"))
        if (text := _text(path)) is not None
    }
    return "governor " + ", ".join(sorted(governors)) if governors else None


def clocks_pinned(run: Run = run_command) -> bool | None:
    """Whether jetson_clocks holds processor and GPU at their highest clock; None where it does not tell (no root)."""
    shown = run(["jetson_clocks", "--show"])
    if not shown:
        return None
    limits = re.findall(r"MinFreq=(\d+) MaxFreq=(\d+)", shown)
    return all(low == high for low, high in limits) if limits else None


@dataclass(frozen=True)
class MachineState:
    """Temperatures and clocks at one moment, and counters of throttling since the machine was started."""

    temperature_c: dict[str, float]
    clocks_mhz: dict[str, float]
    events: dict[str, int]
    cooling: frozenset[str]


def machine_state(root: Path = _ROOT) -> MachineState:
    """The state now, from sysfs."""
    return MachineState(_temperatures(root), _clocks(root), _events(root), _cooling(root))


def throttled_between(before: MachineState, after: MachineState) -> tuple[str, ...] | None:
    """What held the machine back between two states, in words; None where nothing would tell."""
    if not before.events and not after.events and not _has_cooling(after, before):
        return None
    counted = tuple(
        f"{name}: {after.events[name] - count} times"
        for name, count in before.events.items()
        if after.events.get(name, count) > count
    )
    return counted + tuple(f"{name} active" for name in sorted(after.cooling | before.cooling))


def _has_cooling(*states: MachineState) -> bool:
    return any(state.cooling for state in states)


def _temperatures(root: Path) -> dict[str, float]:
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        name, value = _text(zone / "type"), _number(zone / "temp")
        # A sensor of a part that is off gives an error, or -256 degrees.
        if name and value is not None and value > -256_000:
            found[name[:64]] = value / 1e3
    return found


def _clocks(root: Path) -> dict[str, float]:
    found = {}
    cores = [
        value
        for path in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
        if (value := _number(path)) is not None
    ]
    if cores:
        found["CPU"] = sum(cores) / len(cores) / 1e3
    for device in sorted((root / "sys/class/devfreq").glob("*")):
        value = _number(device / "cur_freq")
        if value is not None and re.search(r"gpu|ga10b|gv11b|gp10b|gb10b|emc", device.name):
            found[device.name[:64]] = value / 1e6
    return found


def _events(root: Path) -> dict[str, int]:
    """Counters that only rise: over-current on Jetson (oc1_event_cnt), temperature on x86 (summed over the cores)."""
    found = {}
    for path in sorted((root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")):
        value = _number(path)
        if value is not None:
            found[f"over-current {path.name.removesuffix('_event_cnt')}"] = int(value)
    heat = [
        value
        for path in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
        if (value := _number(path)) is not None
    ]
    if heat:
        found["processor too hot"] = int(sum(heat))
    return found


def _cooling(root: Path) -> frozenset[str]:
    """Cooling devices that slow processor or GPU down and are at work; fans are not among them."""
    active = set()
    for device in (root / "sys/class/thermal").glob("cooling_device*"):
        name, state = _text(device / "type"), _number(device / "cur_state")
        if name and state and re.search(r"throttle|hot-surface|^Processor$|cpufreq|devfreq|cpu-|gpu-", name):
            active.add(name[:64])
    return frozenset(active)


def _text(path: Path) -> str | None:
    try:
        with path.open(errors="replace") as file:
            return file.read(4096).strip()
    except OSError:
        return None


def _number(path: Path) -> float | None:
    try:
        return float(_text(path) or "")
    except ValueError:
        return None
