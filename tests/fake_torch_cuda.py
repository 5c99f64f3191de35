"""A stand-in for torch.cuda on the host, strict: the device "cuda" is the CPU, and its streams and graphs have rules.

What a real device would forgive only by luck is an error: a side stream that reads what the current one may still be
writing, a capture in which the host reads a number or sends one, a kernel on another stream than the current one, an
event that is read too early, a graph that is replayed after what it reads was freed. A replay that is launched while
the device is idle takes LAUNCH_MS longer, for which the device waits for the host.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import cuda_host
from mscope.plugins import cuda

REPLAY_MS, LAUNCH_MS = 0.024, 0.009
#: What makes the host wait for the device, or copies from memory that is not page-locked.
_HOST_IN_CAPTURE = ("_local_scalar_dense", "nonzero", "lift_fresh", "is_nonzero")


class Misuse(AssertionError):
    """The program did what a real device would not forgive."""


class _Host(TorchFunctionMode):
    """Makes every "cuda" in a call the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def host(value: Any) -> Any:
            return "cpu" if isinstance(value, str | torch.device) and str(value).startswith("cuda") else value

        return func(*map(host, args), **{name: host(value) for name, value in (kwargs or {}).items()})


class _Capture(TorchDispatchMode):
    """`read` has the memory that was there before and is read; what is made within is the graph's own."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[int, StorageWeakRef] = {}
        self._made: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1]
        if name in _HOST_IN_CAPTURE:
            raise Misuse(f"{name} in a capture: the host waits for the device, or sends memory that is not page-locked")
        self._note(self.read, (args, kwargs))
        given = func(*args, **(kwargs or {}))
        self._note(self._made, given)
        return given

    def _note(self, where: dict[int, StorageWeakRef], values: Any) -> None:
        for tensor in tree_leaves(values):
            if isinstance(tensor, torch.Tensor):
                memory = StorageWeakRef(tensor.untyped_storage())
                if memory.cdata not in self.read and memory.cdata not in self._made:
                    where[memory.cdata] = memory


class Stream:
    _handles = itertools.count(100)

    def __init__(self) -> None:
        self.cuda_stream = next(self._handles)
        self.waited = False

    def wait_stream(self, other: Stream) -> None:
        self.waited = True


class FakeTorchCuda:
    """The names of torch.cuda in use. `replays` counts them; each takes REPLAY_MS of the device's time."""

    def __init__(self) -> None:
        default = Stream()
        default.waited = True
        self.streams, self.capturing, self.replays, self.time_ms = [default], False, 0, 0.0
        self._busy = False
        fake = self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                self.at: float | None = None
                self.known = False

            def record(self) -> None:
                self.at = fake.time_ms

            def synchronize(self) -> None:
                self.known, fake._busy = True, False

            def elapsed_time(self, end: Event) -> float:
                if self.at is None or end.at is None or not end.known:
                    raise Misuse("asks for the time of an event that is not over")
                return end.at - self.at

        class CUDAGraph:
            def __init__(self) -> None:
                self.read: list[StorageWeakRef] = []

            def replay(self) -> None:
                if any(memory.expired() for memory in self.read):
                    raise Misuse("a graph is replayed after memory that it reads was freed")
                fake.replays += 1
                fake.time_ms += REPLAY_MS if fake._busy else REPLAY_MS + LAUNCH_MS

        self.Event, self.CUDAGraph, self.Stream = Event, CUDAGraph, Stream

    def current_stream(self, device: Any = None) -> Stream:
        return self.streams[-1]

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        if not stream.waited:
            raise Misuse("work on a side stream that did not wait for the one that makes its inputs")
        self.streams.append(stream)
        try:
            yield
        finally:
            self.streams.pop()

    @contextlib.contextmanager
    def graph(self, graph: Any) -> Iterator[None]:
        side = Stream()
        side.waited = True  # torch waits for the device before it captures
        with self.stream(side), _Capture() as capture:
            self.capturing = True
            try:
                yield
            finally:
                self.capturing = False
        graph.read = list(capture.read.values())

    def _sleep(self, cycles: int) -> None:
        if self.capturing:
            raise Misuse("the device is kept busy within a capture")
        self._busy = True

    def synchronize(self) -> None:
        if self.capturing:
            raise Misuse("waits for the device in a capture")

    def empty_cache(self) -> None:
        if self.capturing:
            raise Misuse("gives memory back in a capture")

    def is_available(self) -> bool:
        return True

    def get_device_name(self, device: Any = None) -> str:
        return "NVIDIA Fake"

    def get_device_capability(self, device: Any = None) -> tuple[int, int]:
        return 9, 0

    def get_device_properties(self, device: Any = None) -> Any:
        return SimpleNamespace(L2_cache_size=50 << 20, multi_processor_count=132, uuid="5e1f")


class _Library(cuda_host.HostLibrary):
    """The kernels' host run, on the stream that is current or not at all."""

    def __init__(self, fake: FakeTorchCuda) -> None:
        self._fake = fake

    def _check(self, stream: Any) -> None:
        if stream != self._fake.current_stream().cuda_stream:
            raise Misuse("a kernel is queued on another stream than the current one")

    def mscope_cuda_scan(self, params: Any, dtype: int, device: int, stream: int) -> int:
        self._check(stream)
        return super().mscope_cuda_scan(params, dtype, device, stream)

    def mscope_cuda_conv_silu(self, params: Any, dtype: int, device: int, stream: int) -> int:
        self._check(stream)
        return super().mscope_cuda_conv_silu(params, dtype, device, stream)


@contextlib.contextmanager
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTorchCuda]:
    """torch.cuda and the kernels, for this thread, within the block."""
    if cuda_host.compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    fake, real = FakeTorchCuda(), torch.Generator

    class Generator(real):  # type: ignore[misc,valid-type]
        def __new__(cls, device: str = "cpu") -> Any:
            return real("cpu" if device == "cuda" else device)

    for name in (*(n for n in vars(FakeTorchCuda) if not n.startswith("__")), "Event", "CUDAGraph", "Stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    monkeypatch.setattr(torch, "Generator", Generator)
    library = _Library(fake)
    monkeypatch.setattr(cuda, "load", lambda: library)
    monkeypatch.setattr(cuda, "why_missing", lambda device=0: "")
    monkeypatch.setattr(cuda, "targets", lambda: "host")
    monkeypatch.setattr(cuda, "_device", lambda call: 0)
    monkeypatch.setattr("mscope.model.cuda.fits", lambda x: not torch.is_grad_enabled())
    with _Host():
        yield fake
