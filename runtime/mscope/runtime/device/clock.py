"""The device's own clock: events on a stream between the parts of a batch."""

from __future__ import annotations

import contextlib
from typing import Any

from mscope.core.errors import BackendError
from mscope.runtime.device.cuda import Device
from mscope.runtime.device.stream import Stream
from mscope.runtime.result import DeviceTimes


class EventClock:
    """Times the parts of a batch, where `on`; otherwise it does nothing and owns nothing.

    An event's time is taken when the device comes to it, so that a part in which the host thinks counts as well: the
    device waits. The resolution is half a microsecond.
    """

    def __init__(self, device: Device, stream: Stream) -> None:
        self._device, self._stream = device, stream
        self._events: list[Any] = []
        self._parts: list[str] = []
        self.on = False

    def start(self) -> None:
        """A batch begins."""
        self._parts = []
        if self.on:
            self._record(0)

    def mark(self, part: str) -> None:
        """What was queued since the last mark belongs to `part`; several stretches of one name are added up."""
        if self.on:
            self._parts.append(part)
            self._record(len(self._parts))

    def times(self) -> DeviceTimes | None:
        """Of the batch since `start`; the stream must be synchronised. None while it is off, or without parts."""
        if not self._parts:
            return None
        parts: dict[str, float] = {}
        for place, part in enumerate(self._parts):
            parts[part] = parts.get(part, 0.0) + self._between(place, place + 1)
        return DeviceTimes(parts, self._between(0, len(self._parts)))

    def close(self) -> None:
        """Gives the events back; further calls do nothing."""
        while self._events:
            with contextlib.suppress(BackendError):
                self._device.call("cudaEventDestroy", self._events.pop())

    def _record(self, place: int) -> None:
        if place == len(self._events):
            default = self._device.api.cudaEventDefault
            self._events.append(self._device.call("cudaEventCreateWithFlags", default, doing="timing"))
        self._device.call("cudaEventRecord", self._events[place], self._stream.handle)

    def _between(self, first: int, second: int) -> float:
        return float(self._device.call("cudaEventElapsedTime", self._events[first], self._events[second]))
