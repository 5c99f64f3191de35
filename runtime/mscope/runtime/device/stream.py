"""Streams and CUDA graphs."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

from mscope.core.errors import BackendError
from mscope.runtime.device.cuda import Device

LEGACY_STREAM = 1  # cudaStreamLegacy: waits for every stream that was not made non-blocking


class Stream:
    """A queue of work on the device, apart from the default stream. `handle` is what other libraries take."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.handle = int(device.call("cudaStreamCreateWithFlags", device.api.cudaStreamNonBlocking))
        self._closed = False

    def synchronize(self) -> None:
        """Waits until all that was queued is done. Raises BackendError where some of it failed."""
        self._device.call("cudaStreamSynchronize", self.handle)

    def copy(self, target: int, source: int, nbytes: int, kind: str) -> None:
        """Queues a copy of `nbytes` between addresses; kind is "HostToDevice", "DeviceToHost" or "DeviceToDevice"."""
        if nbytes:
            # Of two addresses for an integrated GPU either may be of mapped host memory, and a direction that is not
            # that of the memory is undefined: CUDA finds it out by itself.
            within = kind == "DeviceToDevice" and self._device.integrated
            direction = getattr(self._device.api.cudaMemcpyKind, f"cudaMemcpy{'Default' if within else kind}")
            self._device.call("cudaMemcpyAsync", target, source, nbytes, direction, self.handle)

    def zero(self, address: int, nbytes: int) -> None:
        """Queues filling device memory with zeros."""
        if nbytes:
            self._device.call("cudaMemsetAsync", address, 0, nbytes, self.handle)

    def wait_for(self, stream: int) -> None:
        """What is queued here from now on runs after what is queued on another library's stream (its handle) so far."""
        device = self._device
        event = device.call("cudaEventCreateWithFlags", device.api.cudaEventDisableTiming)
        try:
            device.call("cudaEventRecord", event, stream)
            device.call("cudaStreamWaitEvent", self.handle, event, 0)
        finally:
            # CUDA keeps what it needs of a recorded event until the wait is over.
            device.call("cudaEventDestroy", event)

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Records what `enqueue` queues on this stream, without running it.

        Raises:
            BackendError: something in it cannot be captured. The stream is usable again.
        """
        device, api = self._device, self._device.api
        # Of this thread only: another one may allocate memory meanwhile.
        device.call("cudaStreamBeginCapture", self.handle, api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            with _nothing_collected():
                enqueue()
        except BaseException:
            status, graph = self._device.api.cudaStreamEndCapture(self.handle)
            if not int(status):
                api.cudaGraphDestroy(graph)
            api.cudaGetLastError()  # clears what the refused call left behind
            raise
        try:
            graph = device.call("cudaStreamEndCapture", self.handle)
        except BackendError:
            api.cudaGetLastError()
            raise
        try:
            return Graph(device, device.call("cudaGraphInstantiate", graph, 0))
        finally:
            device.call("cudaGraphDestroy", graph)

    def close(self) -> None:
        """Waits for the work and gives the stream back; further calls do nothing."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(BackendError):
                self.synchronize()
            with contextlib.suppress(BackendError):
                self._device.call("cudaStreamDestroy", self.handle)


@contextlib.contextmanager
def _nothing_collected() -> Iterator[None]:
    """No garbage is collected meanwhile: what it gives back to CUDA in this thread would end a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Graph:
    """Captured work, launched as one."""

    def __init__(self, device: Device, executable: Any) -> None:
        self._device = device
        self._executable = executable

    def launch(self, stream: Stream) -> None:
        """Queues it; it reads and writes the addresses that it was captured with."""
        self._device.call("cudaGraphLaunch", self._executable, stream.handle)

    def close(self) -> None:
        """Gives it back; it must not be running. Further calls do nothing."""
        if self._executable is not None:
            executable, self._executable = self._executable, None
            with contextlib.suppress(BackendError):
                self._device.call("cudaGraphExecDestroy", executable)
