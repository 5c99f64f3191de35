"""A machine with a GPU, made of the fakes: driver, CUDA runtime and TensorRT in the places where the runtime looks."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.machinery
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import abi_cuda
import cuda_host
import fakes
from fake_cuda import FakeCuda, Misuse
from fake_tensorrt import FakeTensorRT, run_rows
from mscope.core.contract import Graph
from mscope.runtime.backends import ort_cuda, registry, tensorrt_library
from mscope.runtime.backends.availability import Availability
from mscope.runtime.backends.base import Array, Arrays, Declared, Runner
from mscope.runtime.device import driver

Floats = fakes.Floats


class FakeDriver:
    """libcuda.so.1, as far as it is asked: `status` is what cuInit gives, `name_status` what cuDeviceGetName does."""

    def __init__(
        self,
        *,
        count: int = 1,
        capability: tuple[int, int] = (9, 0),
        status: int = 0,
        name_status: int = 0,
        version: int = 13000,
    ) -> None:
        self.count, self.capability, self.version = count, capability, version
        self.status, self.name_status = status, name_status

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = b"NVIDIA Fake"
        return self.name_status

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = self.capability[attribute - 75]
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = self.version
        return 0


def install(
    monkeypatch: pytest.MonkeyPatch,
    network: fakes.FakeNetwork,
    cuda: FakeCuda | None = None,
    flavours: Sequence[str] = ("tensorrt",),
    driver_library: FakeDriver | None = None,
) -> dict[str, FakeTensorRT]:
    """Puts a GPU into this process until the test ends; returns the TensorRT modules by flavour."""
    cuda = cuda or FakeCuda()
    install_cuda(monkeypatch, cuda)
    monkeypatch.setattr("mscope.runtime.device.cuda.why_no_bindings", lambda: "")
    monkeypatch.setattr("mscope.runtime.backends.availability.why_no_bindings", lambda: "")
    set_driver(monkeypatch, driver_library or FakeDriver())
    modules = {}
    for flavour in ("tensorrt", "tensorrt-rtx"):
        name = tensorrt_library.FLAVOURS[flavour].module  # type: ignore[index]
        if flavour not in flavours:
            monkeypatch.setitem(sys.modules, name, None)
            continue
        modules[flavour] = FakeTensorRT(cuda, network, flavour)
        module = as_tensorrt(modules[flavour])
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    return modules


def install_cuda(monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda) -> None:
    """What the runtime imports as cuda-python: the stand-in itself, or the real package over it."""
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", _as_module(cuda))


def through_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here until the test ends, every stand-in is installed below the real package."""
    monkeypatch.setattr(sys.modules[__name__], "_as_module", abi_cuda.Bindings)


def _as_module(cuda: FakeCuda) -> Any:
    return cuda


def as_tensorrt(module: FakeTensorRT) -> Any:
    """What the runtime imports as TensorRT; tests/trt_bindings.py has another."""
    return module


def set_driver(monkeypatch: pytest.MonkeyPatch, library: FakeDriver | None) -> None:
    """The driver library that the runtime finds; None: it finds none."""

    def open_library(name: str) -> Any:
        if library is None:
            raise OSError(f"{name}: cannot open shared object file")
        return library

    monkeypatch.setattr(driver, "_open", open_library)
    # Not cleared afterwards by monkeypatch: a fresh cache each time is.
    import functools

    monkeypatch.setattr(driver, "find_gpu", functools.cache(driver.find_gpu.__wrapped__))
    for user in ("engine_match", "availability", "registry"):
        monkeypatch.setattr(f"mscope.runtime.backends.{user}.find_gpu", driver.find_gpu)


def put_ort_cuda_on_the_cpu(monkeypatch: pytest.MonkeyPatch, largest: int) -> None:
    """The backend ort-cuda with ONNX Runtime's CPU provider in CUDA's place, over a FakeCuda of host addresses."""
    monkeypatch.setattr(ort_cuda, "_PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(ort_cuda, "_MEMORY", "cpu")
    monkeypatch.setattr(ort_cuda, "_options_of", lambda device, version: {})
    monkeypatch.setattr(ort_cuda, "_LARGEST", largest)
    there = Availability("ort-cuda", "onnxruntime-gpu", "", "", None)
    entry = dataclasses.replace(registry.BACKENDS["ort-cuda"], probe=lambda: there)
    monkeypatch.setitem(registry.BACKENDS, "ort-cuda", entry)


class StreamLibrary(cuda_host.HostLibrary):
    """libmscope_cuda's kernels, compiled for the host, as work on the fake device's streams. Code is loaded lazily."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self._loaded: set[str] = set()

    def mscope_cuda_resample(self, params: Any, device: int, stream: Any) -> int:
        given = type(params._obj).from_buffer_copy(params._obj)
        self._check(given.pixels, given.rows * given.row_bytes)
        self._check(given.out, 4 * given.channels * given.out_rows * given.out_columns)
        between = given.out_rows * given.columns if given.down_first else given.rows * given.out_columns
        self._check(given.scratch, between * given.channels)
        for axis, outputs in ((given.across, given.out_columns), (given.down, given.out_rows)):
            self._check(axis.first, 4 * outputs)
            self._check(axis.count, 4 * outputs)
            self._check(axis.weights, 4 * outputs * axis.taps)
        return self._launch(stream, "resample", lambda: cuda_host.library().host_resample(ctypes.byref(given), 0))

    def mscope_cuda_select(self, params: Any, device: int, stream: Any) -> int:
        given = type(params._obj).from_buffer_copy(params._obj)
        for address, count in (
            (given.logits, 4 * given.classes), (given.importance, 4 * given.regions),
            (given.selected, 8 * given.selected_regions),
            (given.remaining, 8 * (given.regions - given.selected_regions)),
            (given.report, 8 * (1 + given.selected_regions)),
        ):  # fmt: skip
            self._check(address, given.batch * count)
        self._check(given.threshold, 4)
        return self._launch(stream, "select", lambda: cuda_host.library().host_select(ctypes.byref(given), 0))

    def _check(self, address: int, nbytes: int) -> None:
        self._cuda.memory(address, nbytes)

    def _launch(self, stream: Any, name: str, run: Callable[[], int]) -> int:
        def op() -> None:
            assert run() == 0

        if self._cuda.capturing(int(stream.value)) and name not in self._loaded:
            raise Misuse(f"{name} is launched in a capture first: its code would be loaded there")
        self._loaded.add(name)
        self._cuda.enqueue(int(stream.value), name, op)
        return 0


def install_kernels(monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda) -> None:
    """The CUDA kernels, on a fake device that has `host_addresses`."""
    if cuda_host.compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    library = StreamLibrary(cuda)
    monkeypatch.setattr("mscope.plugins.cuda.load", lambda: library)
    monkeypatch.setattr("mscope.plugins.cuda.why_missing", lambda device=0: "")


def install_with_kernels(monkeypatch: pytest.MonkeyPatch, network: fakes.FakeNetwork, **machine: Any) -> FakeCuda:
    """A GPU and the CUDA kernels on it; `machine` as FakeCuda takes it."""
    cuda = FakeCuda(host_addresses=True, **machine)
    install(monkeypatch, network, cuda)
    install_kernels(monkeypatch, cuda)
    return cuda


class RowRunner(Runner):
    """The network on the host, image by image: the bits that the fake engines give."""

    def __init__(self, graph: Graph, path: Path, network: fakes.FakeNetwork) -> None:
        super().__init__(graph, path)
        self._network = network

    @property
    def kernel(self) -> str:
        return "function"

    def _open(self) -> None:
        return

    def _declared(self) -> tuple[Sequence[Declared], Sequence[Declared]]:
        def declared(tensors: Any) -> list[Declared]:
            return [Declared(tensor.name, tensor.dtype, tensor.axes) for tensor in tensors]

        return declared(self.graph.inputs), declared(self.graph.outputs)

    def _execute(self, feeds: Mapping[str, Array]) -> Arrays:
        return run_rows(self._network, self.graph.stage, dict(feeds))

    def _release(self) -> None:
        return


class InterfaceArray:
    """A batch on the fake device, as PyCUDA and CuPy show theirs."""

    def __init__(self, cuda: FakeCuda, array: Floats, *, offset: int = 0, **interface: Any) -> None:
        self.address = cuda.put(array, offset=offset)
        self.__cuda_array_interface__ = {
            "shape": array.shape, "typestr": array.dtype.str, "data": (self.address, False), "version": 3,
            "strides": None, "stream": None,
        } | interface  # fmt: skip


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )  # fmt: skip


class DlpackArray:
    """A batch on the fake device through DLPack alone. `streams` is what the consumer's streams were."""

    def __init__(self, cuda: FakeCuda, array: Floats, *, device_type: int = 2, detached: bool = True) -> None:
        self.address, self.streams, self._detached = cuda.put(array), [], detached  # type: ignore[var-annotated]
        shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        bits = array.dtype.itemsize * 8
        self._tensor = _DLTensor(self.address, device_type, 0, array.ndim, 2, bits, 1, shape, None, 0)
        self._kept, self._device_type = shape, device_type

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device_type, 0

    def __dlpack__(self, stream: int | None = None) -> Any:
        if not self._detached:
            raise BufferError("Can't export tensors that require gradient")
        self.streams.append(stream)
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self._tensor), b"dltensor", None)


def random_batch(network: fakes.FakeNetwork, count: int, seed: int = 1) -> Floats:
    return np.ascontiguousarray(fakes.random_images(network.config, count, seed))
