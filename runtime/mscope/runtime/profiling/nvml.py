"""Power of NVIDIA cards on desktops and servers: NVML, through the package nvidia-ml-py where it is installed."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any, Literal

from mscope.runtime.profiling.sensors import Clock, Poller, PowerTrace, Reading, SensorError

_PERIOD_S = 0.1
# Bits of nvmlDeviceGetCurrentClocksThrottleReasons that mean less speed than the card could give.
_THROTTLING = {
    0x4: "power limit",
    0x8: "hardware slowdown",
    0x20: "temperature",
    0x40: "hardware, temperature",
    0x80: "hardware, power brake",
}


class Nvml:
    """A `Sensor` over one card: its energy counter (Volta and later), else its power."""

    name = "nvml"

    def __init__(
        self,
        library: Any = None,
        index: int | None = None,
        period_s: float = _PERIOD_S,
        clock: Clock = time.perf_counter,
    ) -> None:
        """`library` stands in for the pynvml module; `index` names the card, by default the first that CUDA sees."""
        self._library = library
        self._index = index
        self._period_s = period_s
        self._clock = clock
        self._card: Any = None
        self._label = ""
        self._kind: Literal["watts", "joules"] = "watts"
        self._poller: Poller | None = None

    def start(self) -> None:
        """Raises SensorError: no nvidia-ml-py, no driver, no card, or a card that tells no power."""
        self._library = self._library or _imported()
        library = self._library
        try:
            library.nvmlInit()
        except library.NVMLError as error:
            raise SensorError(f"NVML: {error}") from None
        try:
            self._choose()
            self._poller = Poller(self._reading, self._period_s, self._clock)
            self._poller.start()
        except (SensorError, library.NVMLError) as error:
            self._shut_down()
            raise SensorError(str(error) if isinstance(error, SensorError) else f"NVML: {error}") from None

    def stop(self) -> PowerTrace:
        assert self._poller is not None, "start comes first"
        recorder = self._poller.stop()
        self._shut_down()
        words = f"{self._label}: the whole card with its memory; the rest of the machine is not in it"
        return recorder.trace(self.name, self._kind, (self._label,), words, self._period_s)

    def _choose(self) -> None:
        library = self._library
        count = library.nvmlDeviceGetCount()
        if not count:
            raise SensorError("NVML: no NVIDIA card")
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
        if self._index is None and visible.startswith("GPU-"):
            self._card = library.nvmlDeviceGetHandleByUUID(visible)
        else:
            index = self._index if self._index is not None else int(visible) if visible.isdecimal() else 0
            if index >= count:
                raise SensorError(f"NVML: no card {index}, there are {count}")
            self._card = library.nvmlDeviceGetHandleByIndex(index)
        name = library.nvmlDeviceGetName(self._card)
        self._label = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
        with contextlib.suppress(library.NVMLError):
            library.nvmlDeviceGetTotalEnergyConsumption(self._card)
            self._kind = "joules"

    def _reading(self) -> Reading:
        library, card = self._library, self._card
        try:
            if self._kind == "joules":
                value = library.nvmlDeviceGetTotalEnergyConsumption(card) / 1e3
            else:
                value = library.nvmlDeviceGetPowerUsage(card) / 1e3
        except library.NVMLError as error:
            raise SensorError(f"NVML: {self._label}: {error}") from None
        temperature = self._optional(lambda: library.nvmlDeviceGetTemperature(card, library.NVML_TEMPERATURE_GPU))
        clocks = {
            "graphics": self._optional(lambda: library.nvmlDeviceGetClockInfo(card, library.NVML_CLOCK_GRAPHICS)),
            "memory": self._optional(lambda: library.nvmlDeviceGetClockInfo(card, library.NVML_CLOCK_MEM)),
        }
        reasons = self._optional(lambda: library.nvmlDeviceGetCurrentClocksThrottleReasons(card))
        return Reading(
            rails={self._label: value},
            temperature_c={} if temperature is None else {"GPU": float(temperature)},
            clocks_mhz={name: float(clock) for name, clock in clocks.items() if clock is not None},
            throttled=None if reasons is None else tuple(words for bit, words in _THROTTLING.items() if reasons & bit),
        )

    def _optional(self, call: Callable[[], int]) -> int | None:
        try:
            return call()
        except self._library.NVMLError:
            return None

    def _shut_down(self) -> None:
        with contextlib.suppress(self._library.NVMLError):
            self._library.nvmlShutdown()


def _imported() -> Any:
    try:
        import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise SensorError("NVML needs the package nvidia-ml-py: pip install nvidia-ml-py") from None
    return pynvml
