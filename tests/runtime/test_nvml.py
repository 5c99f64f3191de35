"""NVML behind a stand-in for pynvml: no card is needed."""

from __future__ import annotations

from typing import Any

import pytest

from mscope.runtime.profiling import nvml
from mscope.runtime.profiling.nvml import Nvml
from mscope.runtime.profiling.sensors import SensorError


class FakeLibrary:
    """The slice of pynvml that is used, over invented cards."""

    class NVMLError(Exception):
        pass

    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_GRAPHICS = 0
    NVML_CLOCK_MEM = 2

    def __init__(self, cards: int = 1, *, counter: bool = True, fails_after: int | None = None) -> None:
        self.cards, self.counter, self.fails_after = cards, counter, fails_after
        self.calls = 0
        self.open = 0

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return self.cards

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return int(uuid.removeprefix("GPU-"))

    def nvmlDeviceGetName(self, card: int) -> bytes:
        return f"Card {card}".encode()

    def _tick(self) -> int:
        self.calls += 1
        if self.fails_after is not None and self.calls > self.fails_after:
            raise self.NVMLError("GPU is lost")
        return self.calls

    def nvmlDeviceGetTotalEnergyConsumption(self, card: int) -> int:
        if not self.counter:
            raise self.NVMLError("Not Supported")
        return 1000 * self._tick()

    def nvmlDeviceGetPowerUsage(self, card: int) -> int:
        self._tick()
        return 70_500

    def nvmlDeviceGetTemperature(self, card: int, which: int) -> int:
        return 61

    def nvmlDeviceGetClockInfo(self, card: int, which: int) -> int:
        if which == self.NVML_CLOCK_MEM:
            raise self.NVMLError("Not Supported")
        return 1755

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, card: int) -> int:
        return 0x20 | 0x1  # temperature; idle, which is no throttling


def traced(library: Any, **options: Any):  # type: ignore[no-untyped-def]
    sensor = Nvml(library, period_s=60.0, **options)
    sensor.start()
    return sensor.stop()


def test_the_energy_counter() -> None:
    library = FakeLibrary()
    trace = traced(library)
    assert trace.kind == "joules"
    assert [reading.rails["Card 0"] for reading in trace.readings] == [2.0, 3.0]  # the first call only asked for it
    reading = trace.readings[0]
    assert reading.temperature_c == {"GPU": 61.0}
    assert reading.clocks_mhz == {"graphics": 1755.0}, "what is not supported is absent"
    assert reading.throttled == ("temperature",)
    assert library.open == 0


def test_power_where_there_is_no_counter() -> None:
    trace = traced(FakeLibrary(counter=False))
    assert trace.kind == "watts"
    assert trace.readings[0].rails == {"Card 0": 70.5}


def test_the_card_that_cuda_sees_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    assert traced(FakeLibrary(cards=3)).total == ("Card 2",)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1")
    assert traced(FakeLibrary(cards=3)).total == ("Card 1",)
    assert traced(FakeLibrary(cards=3), index=0).total == ("Card 0",)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(SensorError, match="no card 7"):
        traced(FakeLibrary(cards=3))


def test_a_card_that_goes_away_is_told_of() -> None:
    trace = traced(FakeLibrary(fails_after=2))
    assert trace.lost is not None
    assert "GPU is lost" in trace.lost
    assert len(trace.readings) == 1


def test_no_card_and_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary(cards=0)
    with pytest.raises(SensorError, match="no NVIDIA card"):
        traced(library)
    assert library.open == 0

    def fails() -> None:
        raise FakeLibrary.NVMLError("Driver Not Loaded")

    monkeypatch.setattr(library, "nvmlInit", fails)
    with pytest.raises(SensorError, match="Driver Not Loaded"):
        traced(library)


def test_the_package_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    with pytest.raises(SensorError, match="pip install nvidia-ml-py"):
        nvml._imported()
