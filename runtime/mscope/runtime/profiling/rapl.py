"""Energy of x86 processors: the RAPL counters that Linux shows below /sys/class/powercap."""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass, field
from pathlib import Path

from mscope.runtime.profiling.sensors import Clock, Poller, PowerTrace, Reading, SensorDenied, SensorError

_FOLDER = Path("/sys/class/powercap")
# Counters wrap after a minute at the earliest (32 bits of 15 microjoules at 1 kW): often enough to never miss one.
_PERIOD_S = 0.1


@dataclass
class _Zone:
    """One counter: microjoules that rise to `range_uj` and begin again at 0."""

    name: str
    file: Path
    range_uj: int
    last_uj: int | None = None
    gained_uj: int = field(default=0)

    def joules(self) -> float:
        """Joules since the first call, wraps of the counter made good. Raises OSError or ValueError."""
        now = int(self.file.read_text())
        if self.last_uj is not None:
            step = now - self.last_uj
            # The counter counts range_uj + 1 values before it is at 0 again.
            self.gained_uj += step if step >= 0 else step + self.range_uj + 1
        self.last_uj = now
        return self.gained_uj / 1e6


class Rapl:
    """A `Sensor` over the packages' counters, and the memory's where they are counted apart."""

    name = "rapl"

    def __init__(self, folder: Path = _FOLDER, period_s: float = _PERIOD_S, clock: Clock = time.perf_counter) -> None:
        self._folder = folder
        self._period_s = period_s
        self._clock = clock
        self._zones: list[_Zone] = []
        self._poller: Poller | None = None

    def start(self) -> None:
        """Raises SensorError: no counters here, or not readable by this user."""
        self._zones = _zones(self._folder)
        self._poller = Poller(self._reading, self._period_s, self._clock)
        self._poller.start()

    def stop(self) -> PowerTrace:
        assert self._poller is not None, "start comes first"
        names = tuple(zone.name for zone in self._zones)
        words = f"{' + '.join(names)}: processor packages and memory; disks, fans, graphics cards, losses are not in it"
        return self._poller.stop().trace(self.name, "joules", names, words, self._period_s)

    def _reading(self) -> Reading:
        try:
            return Reading({zone.name: zone.joules() for zone in self._zones})
        except (OSError, ValueError) as error:
            raise _explained(self._folder, error) from None


def _zones(folder: Path) -> list[_Zone]:
    """Packages ("intel-rapl:0", on AMD too) and, below them, memory ("intel-rapl:0:0" named dram).

    "core" and "uncore" are parts of the package, and "psys" is the whole board with the package in it: adding any of
    them would count twice. "intel-rapl-mmio" shows the same package again.
    """
    found = []
    try:
        for path in sorted(folder.glob("intel-rapl:*")):
            kind = (path / "name").read_text().strip()
            depth = path.name.count(":")
            if (depth == 1 and kind.startswith("package")) or (depth == 2 and kind == "dram"):
                label = kind if depth == 1 else f"dram-{path.name.split(':')[1]}"
                found.append(_Zone(label, path / "energy_uj", int((path / "max_energy_range_uj").read_text())))
    except (OSError, ValueError) as error:
        raise _explained(folder, error) from None
    if not found:
        raise SensorError(f"no RAPL counters below {folder}: no x86 processor, or a virtual machine")
    return found


def _explained(folder: Path, error: Exception) -> SensorError:
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM):
        return SensorDenied(
            f"RAPL counters below {folder} are for root only: run as root, or 'sudo chmod a+r {folder}/*/energy_uj' "
            "(until the next boot)"
        )
    return SensorError(f"RAPL counters below {folder} cannot be read: {error}")
