"""A strict stand-in for `cuda.bindings.runtime`: real bytes behind addresses that the host cannot read.

Work on a stream is done when somebody waits for it and not before. What a real device would answer with garbage or a
crash is an error here: memory read after it was freed or past its end, page-locked memory read before the copy is done
(it holds NaN until then), memory freed while work is queued, calls that a capture forbids, a branch that nobody sets or
that work runs beside. New memory holds NaN.

Time passes by `host_ms`, which tests turn, and by what each kind of work `costs`: work begins when it was queued and
what was queued before is done.

Enumerations are the real package's; tests/runtime/test_device_api.py holds names and parameters to the real ones.
"""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fake_graphs import CapturesStreams, FakeEvent, FakeStream, Misuse, Op

Bytes = npt.NDArray[np.uint8]

_BORROWED = (
    "cudaError_t", "cudaMemcpyKind", "cudaDeviceAttr", "cudaStreamCaptureMode", "cudaMemoryType",
    "cudaHostAllocDefault", "cudaHostAllocMapped", "cudaStreamNonBlocking", "cudaEventDisableTiming",
    "cudaEventDefault", "cudaStreamCaptureStatus", "cudaStreamUpdateCaptureDependenciesFlags",
    "cudaGraphNodeType", "cudaGraphConditionalNodeType", "cudaGraphConditionalHandleFlags", "cudaGraphEdgeData",
)  # fmt: skip
LEGACY = 1


class FakeCuda(CapturesStreams):
    """One device. `calls` counts the calls of each function; `log` names what ran on the device, in order.

    Args:
        integrated: it shares the host's memory.
        limit: bytes of device memory.
        capability: of its architecture.
        host_addresses: addresses are real, so that a library on the CPU can play the device's part.
        driver: the CUDA version that the driver is for, as CUDA counts: 13000.
    """

    def __init__(
        self,
        *,
        integrated: bool = False,
        limit: int = 1 << 30,
        capability: tuple[int, int] = (9, 0),
        host_addresses: bool = False,
        driver: int = 13000,
    ) -> None:
        real = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
        for name in _BORROWED:
            setattr(self, name, getattr(real, name))
        attributes = real.cudaDeviceAttr
        self._attributes = {
            attributes.cudaDevAttrComputeCapabilityMajor: capability[0],
            attributes.cudaDevAttrComputeCapabilityMinor: capability[1],
            attributes.cudaDevAttrIntegrated: int(integrated),
            attributes.cudaDevAttrCanMapHostMemory: 1,
        }
        self._current = threading.local()  # of each thread; there is a second device, for others
        self._limit = limit
        self._host_addresses = host_addresses
        self._driver = driver
        self.runtime = 13000  # the CUDA version whose names are here
        self._executables = self._graphs = self._events = 0
        self.host_ms = self._device_ms = 0.0
        self.costs: dict[str, float] = {}
        self._device: dict[int, Bytes] = {}
        self._host: dict[int, Bytes] = {}
        self._mappable: set[int] = set()
        self._kept: list[Bytes] = []  # page-locked memory that was freed: poisoned, so that late readers see NaN
        self._next = 0x7F00_0000_0000
        self._handles = itertools.count(1000)
        self._streams: dict[int, FakeStream] = {LEGACY: FakeStream()}
        self.calls: dict[str, int] = {}
        self.log: list[str] = []
        self.foreign: set[int] = set()  # addresses of another context's memory

    # What tests and the other fake use

    def memory(self, address: int, nbytes: int) -> Bytes:
        """The bytes behind a device address; Misuse unless they lie in one live allocation."""
        for base, block in self._device.items():
            if base <= address < base + max(block.size, 1):
                if address + nbytes > base + block.size:
                    raise Misuse(
                        f"{nbytes} bytes at {address:#x} reach past an allocation of {block.size} at {base:#x}"
                    )
                return block[address - base : address - base + nbytes]
        raise Misuse(f"{address:#x} is no device memory, or was freed")

    def array(self, address: int, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """An array over device memory."""
        count = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        return self.memory(address, count).view(dtype).reshape(shape)

    def put(self, array: npt.NDArray[Any], *, offset: int = 0) -> int:
        """Device memory that holds `array` at once, as another library left it."""
        address = self._allocate(array.nbytes + offset) + offset
        self.array(address, str(array.dtype), array.shape)[...] = array
        return address

    def enqueue(self, stream: int, name: str, op: Op) -> None:
        """Queues work, or records it while the stream is captured."""
        target = self._stream(stream)
        if target.capture is None:
            queued = self.host_ms
            target.queue.append(lambda: self._work(name, op, queued))
            return
        if target.capture.beside is not None:
            raise Misuse(f"{name} would run beside the branch: the capture does not depend on it")
        if target.capture.is_body and name == "wait":
            target.capture.wrong_kinds.append(name)
        target.capture.ops.append(lambda: self._work(name, op, 0.0))

    def _work(self, name: str, op: Op, queued: float) -> None:
        self._device_ms = max(self._device_ms, queued) + self.costs.get(name, 0.0)
        self.log.append(name)
        op()

    def check_current(self, what: str) -> None:
        if self.cudaGetDevice()[1] != 0:
            raise Misuse(f"{what} while another device is current in this thread")

    def capturing(self, stream: int) -> bool:
        return self._stream(stream).capture is not None

    def refuse_capture(self, stream: int) -> None:
        self._stream(stream).broken = True

    def last_queued(self, stream: int) -> tuple[int, int]:
        """What was queued last on a stream, for `is_over`."""
        return stream, len(self._stream(stream).queue)

    def is_over(self, queued: tuple[int, int]) -> bool:
        """Whether the device has come past it; a stream is idle when it goes."""
        handle, position = queued
        return handle not in self._streams or self._streams[handle].done >= position

    @property
    def live(self) -> int:
        """Allocations of either kind, graphs, executable graphs and events that were not given back."""
        return len(self._device) + len(self._host) + self._graphs + self._executables + self._events

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name.startswith("cuda") and callable(value) and not isinstance(value, type):
            self.calls[name] = self.calls.get(name, 0) + 1
        return value

    # The runtime's functions, with its parameters

    def cudaGetDevice(self) -> tuple[Any, int]:
        return self.cudaError_t.cudaSuccess, getattr(self._current, "device", 0)

    def cudaSetDevice(self, device: int) -> tuple[Any]:
        if device not in (0, 1):
            return (self.cudaError_t.cudaErrorInvalidDevice,)
        self._current.device = device
        return (self.cudaError_t.cudaSuccess,)

    def cudaDeviceGetAttribute(self, attr: Any, device: int) -> tuple[Any, int]:
        return self.cudaError_t.cudaSuccess, self._attributes[attr]

    def cudaGetErrorString(self, error: Any) -> tuple[Any, bytes]:
        return self.cudaError_t.cudaSuccess, error.name.encode()

    def cudaGetLastError(self) -> tuple[Any]:
        return (self.cudaError_t.cudaSuccess,)

    def cudaMemGetInfo(self) -> tuple[Any, int, int]:
        return self.cudaError_t.cudaSuccess, self._limit - self._used(), self._limit

    def cudaMalloc(self, size: int) -> tuple[Any, Any]:
        self.check_current("cudaMalloc")
        if self._break_captures():
            return self.cudaError_t.cudaErrorStreamCaptureUnsupported, None
        if self._used() + size > self._limit:
            return self.cudaError_t.cudaErrorMemoryAllocation, None
        return self.cudaError_t.cudaSuccess, self._allocate(size)

    def cudaFree(self, devPtr: int) -> tuple[Any]:
        if self._break_captures():
            return (self.cudaError_t.cudaErrorStreamCaptureUnsupported,)
        self._check_idle("cudaFree")
        if self._device.pop(devPtr, None) is None:
            raise Misuse(f"cudaFree of {devPtr:#x}, which is not allocated")
        return (self.cudaError_t.cudaSuccess,)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, Any]:
        if self._break_captures():
            return self.cudaError_t.cudaErrorStreamCaptureUnsupported, None
        block = _aligned(size)
        self._kept.append(block)
        self._host[block.ctypes.data] = block
        if flags & self.cudaHostAllocMapped:
            self._mappable.add(block.ctypes.data)
        return self.cudaError_t.cudaSuccess, block.ctypes.data

    def cudaFreeHost(self, ptr: int) -> tuple[Any]:
        if self._break_captures():
            return (self.cudaError_t.cudaErrorStreamCaptureUnsupported,)
        self._check_idle("cudaFreeHost")
        block = self._host.pop(ptr, None)
        if block is None:
            raise Misuse(f"cudaFreeHost of {ptr:#x}, which is not allocated")
        block[:] = 0xFF
        self._device = {base: other for base, other in self._device.items() if other is not block}
        return (self.cudaError_t.cudaSuccess,)

    def cudaHostGetDevicePointer(self, pHost: int, flags: int) -> tuple[Any, int]:
        if pHost not in self._mappable:
            raise Misuse("the device's address of host memory that was not allocated to be mapped")
        block = self._host[pHost]
        address = pHost if self._host_addresses else self._place(block.size)
        self._device[address] = block
        return self.cudaError_t.cudaSuccess, address

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, int]:
        self.check_current("cudaStreamCreateWithFlags")
        handle = next(self._handles)
        self._streams[handle] = FakeStream()
        return self.cudaError_t.cudaSuccess, handle

    def cudaStreamDestroy(self, stream: int) -> tuple[Any]:
        if self._pending(self._stream(stream)):
            raise Misuse("cudaStreamDestroy with work queued")
        del self._streams[stream]
        return (self.cudaError_t.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any]:
        target = self._stream(stream)
        if target.capture is not None:
            target.broken = True
            return (self.cudaError_t.cudaErrorStreamCaptureUnsupported,)
        self._drain(stream, len(target.queue))
        self.host_ms = max(self.host_ms, self._device_ms)
        return (self.cudaError_t.cudaSuccess,)

    def cudaMemsetAsync(self, devPtr: int, value: int, count: int, stream: int) -> tuple[Any]:
        self.memory(devPtr, count)
        self.enqueue(stream, "zero", lambda: self.memory(devPtr, count).fill(value))
        return (self.cudaError_t.cudaSuccess,)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: int) -> tuple[Any]:
        kinds = self.cudaMemcpyKind
        to_host, from_host = kind == kinds.cudaMemcpyDeviceToHost, kind == kinds.cudaMemcpyHostToDevice
        target = self._pinned if to_host else self.memory
        source = self._pinned if from_host else self.memory
        target(dst, count), source(src, count)
        if not to_host and not from_host and abs(dst - src) < count:
            raise Misuse("a copy on the device overlaps itself")
        on_device = [*([] if to_host else [dst]), *([] if from_host else [src])]
        if kind != kinds.cudaMemcpyDefault and any(map(self._mapped, on_device)):
            raise Misuse("a copy's direction is not that of its memory, which is the host's, mapped")
        if to_host:
            self._pinned(dst, count).fill(0xFF)

        def copy() -> None:
            target(dst, count)[:] = source(src, count)

        what = kinds.cudaMemcpyDeviceToDevice if kind == kinds.cudaMemcpyDefault else kind
        self.enqueue(stream, what.name.removeprefix("cudaMemcpy"), copy)
        return (self.cudaError_t.cudaSuccess,)

    def cudaPointerGetAttributes(self, ptr: int) -> tuple[Any, Any]:
        types = self.cudaMemoryType
        known = any(base <= ptr < base + block.size for base, block in self._device.items())

        class Attributes:
            type = types.cudaMemoryTypeDevice if known else types.cudaMemoryTypeUnregistered
            device = 0
            devicePointer = None if ptr in self.foreign else ptr

        return self.cudaError_t.cudaSuccess, Attributes()

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, Any]:
        self.check_current("cudaEventCreateWithFlags")
        self._events += 1
        return self.cudaError_t.cudaSuccess, FakeEvent(timing=not flags & self.cudaEventDisableTiming)

    def cudaEventRecord(self, event: FakeEvent, stream: int) -> tuple[Any]:
        target = self._stream(stream)
        if target.capture is not None:
            raise Misuse("an event is recorded into a capture")
        event.ms = None
        if event.timing:
            queued = self.host_ms

            def reached() -> None:
                self._device_ms = max(self._device_ms, queued)
                event.ms = self._device_ms

            target.queue.append(reached)
        event.stream, event.position = stream, len(target.queue)
        return (self.cudaError_t.cudaSuccess,)

    def cudaEventElapsedTime(self, start: FakeEvent, end: FakeEvent) -> tuple[Any, float]:
        if not (start.timing and end.timing) or start.stream is None or end.stream is None:
            raise Misuse("asks for the time of an event that has none")
        if start.ms is None or end.ms is None:
            return self.cudaError_t.cudaErrorNotReady, 0.0
        # Of half a microsecond, as float32.
        return self.cudaError_t.cudaSuccess, float(np.float32(round((end.ms - start.ms) * 2000) / 2000))

    def cudaStreamWaitEvent(self, stream: int, event: FakeEvent, flags: int) -> tuple[Any]:
        if event.stream is None:
            raise Misuse("waits for an event that was not recorded")
        other, position = event.stream, event.position
        self.enqueue(stream, "wait", lambda: self._drain(other, position))
        return (self.cudaError_t.cudaSuccess,)

    def cudaEventDestroy(self, event: FakeEvent) -> tuple[Any]:
        event.stream = None
        self._events -= 1
        return (self.cudaError_t.cudaSuccess,)

    def cudaDriverGetVersion(self) -> tuple[Any, int]:
        return self.cudaError_t.cudaSuccess, self._driver

    def cudaRuntimeGetVersion(self) -> tuple[Any, int]:
        return self.cudaError_t.cudaSuccess, self.runtime

    # Inside

    def _used(self) -> int:
        hosts = {id(block) for block in self._host.values()}
        return sum(block.size for block in self._device.values() if id(block) not in hosts)

    def _place(self, size: int) -> int:
        address = self._next
        self._next += (size // 256 + 16) * 256  # a gap behind each, so that an overrun meets nothing
        return address

    def _allocate(self, size: int) -> int:
        block = _aligned(size)
        address = block.ctypes.data if self._host_addresses else self._place(size)
        self._device[address] = block
        return address

    def _pinned(self, address: int, nbytes: int) -> Bytes:
        for base, block in self._host.items():
            if base <= address and address + nbytes <= base + block.size:
                return block[address - base : address - base + nbytes]
        raise Misuse(f"{nbytes} bytes at {address:#x} are not page-locked host memory")

    def _mapped(self, address: int) -> bool:
        """Whether a device address is one of page-locked host memory."""
        hosts = {id(block) for block in self._host.values()}
        return any(base <= address < base + b.size and id(b) in hosts for base, b in self._device.items())

    def _stream(self, handle: int) -> FakeStream:
        if handle not in self._streams:
            raise Misuse(f"stream {handle} does not exist, or was destroyed")
        return self._streams[handle]

    def _drain(self, handle: int, position: int) -> None:
        stream = self._stream(handle)
        while stream.done < position:
            stream.done += 1
            stream.queue[stream.done - 1]()

    def _pending(self, stream: FakeStream) -> bool:
        return stream.done < len(stream.queue)

    def _check_idle(self, function: str) -> None:
        if any(self._pending(stream) for handle, stream in self._streams.items() if handle != LEGACY):
            raise Misuse(f"{function} while work is queued")

    def _break_captures(self) -> bool:
        open_ones = [stream for stream in self._streams.values() if stream.capture is not None]
        for stream in open_ones:
            stream.broken = True
        return bool(open_ones)


def _aligned(size: int) -> Bytes:
    """NaN bytes that begin at a multiple of 256."""
    block = np.full(size + 256, 0xFF, np.uint8)
    start = -block.ctypes.data % 256
    return block[start : start + size]
