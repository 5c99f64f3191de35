"""The CUDA runtime through cuda-python: calls whose failures are one line, and memory that has an owner.

The runtime API, not the driver API: it shares the device's primary context with TensorRT, ONNX Runtime, torch and CuPy,
so that addresses of theirs are valid here. Some names of graphs changed with CUDA 13 (branch.py); the rest is the same
from cuda-python 12.6.2 on, the first of CUDA 12 that has the module.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

from mscope.core.errors import BackendError
from mscope.runtime.device import driver

_MODULE = "cuda.bindings.runtime"
_OLDEST = 12060  # the CUDA version of the oldest cuda-python
#: The first of CUDA 12's that has the module.
OLDEST_CUDA_PYTHON = "12.6.2"
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
# Errors after which the context is lost, and every later call of the process fails the same way: those of which
# driver_types.h says that the process must be terminated, and that of a context which somebody destroyed (709).
_STICKY = {226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911}
_MIB = 1 << 20


def why_no_bindings() -> str:
    """What is missing of cuda-python and how to get it; "" where it is there. Imports nothing heavy."""
    try:
        found = importlib.util.find_spec(_MODULE) is not None
    except (ImportError, ValueError):
        found = False
    return "" if found else f"cuda-python {OLDEST_CUDA_PYTHON} or newer is not installed: {_install()}"


def _install() -> str:
    gpu, _ = driver.find_gpu()
    return install_cuda_python(int(gpu.driver.split(".")[0]) if gpu else None)


def install_cuda_python(major: int | None) -> str:
    """The command that installs a cuda-python; `major` is of the CUDA version that the driver is for, None where there
    is none. The newest is for the newest CUDA, and does not run on the driver of an older one (JetPack 6: 12.6)."""
    below = "" if major is None else f",<{major + 1}"
    return f"pip install --upgrade 'cuda-python>={OLDEST_CUDA_PYTHON}{below}'"


class Device:
    """The first CUDA device. Opening it makes its context; nothing of it is touched before.

    Attributes:
        api: the module `cuda.bindings.runtime`.
        index: of the device, for `cudaSetDevice`.
        compute_capability: such as "sm_87".
        integrated: it shares the host's memory (Jetson), so that nothing need be copied between them.

    Raises:
        BackendError: no cuda-python or one too old, no driver or no device.
    """

    def __init__(self, index: int = 0) -> None:
        try:
            self.api: Any = importlib.import_module(_MODULE)
        except ImportError as error:
            broken = f"{_MODULE} cannot be imported ({error}): {_install()}"
            raise BackendError(why_no_bindings() or broken) from None
        self.index = index
        bindings = int(self.call("cudaRuntimeGetVersion"))
        if bindings < _OLDEST:
            there = f"the installed cuda-python is for CUDA {cuda_version(bindings)}"
            raise BackendError(f"{there}, {OLDEST_CUDA_PYTHON} or newer is needed: {_install()}")
        with self.current():
            attributes = self.api.cudaDeviceAttr
            major = self._attribute(attributes.cudaDevAttrComputeCapabilityMajor)
            minor = self._attribute(attributes.cudaDevAttrComputeCapabilityMinor)
            self.compute_capability = f"sm_{major}{minor}"
            maps = self._attribute(attributes.cudaDevAttrCanMapHostMemory)
            self.integrated = bool(self._attribute(attributes.cudaDevAttrIntegrated)) and bool(maps)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Makes it the calling thread's device, of which CUDA keeps one for each, and afterwards the caller's again."""
        theirs = int(self.call("cudaGetDevice"))
        self.call("cudaSetDevice", self.index)
        try:
            yield
        finally:
            if theirs != self.index:
                with contextlib.suppress(BackendError):
                    self.call("cudaSetDevice", theirs)

    def call(self, function: str, *arguments: Any, doing: str = "") -> Any:
        """Calls a function of the CUDA runtime and returns what it gives beside its status.

        Args:
            function: its name.
            arguments: its arguments; addresses and handles as integers.
            doing: what it is for, in the error's line.

        Raises:
            BackendError: its status is an error, or cuda-python could not call it.
        """
        try:
            status, *values = getattr(self.api, function)(*arguments)
        except (RuntimeError, KeyError, ValueError) as error:
            # cuda-python's own: no driver, a driver without the function, a status that this version has no name for.
            raise BackendError(f"CUDA: {function} failed within cuda-python: {error}") from None
        if int(status):
            raise BackendError(self._line(function, status, doing))
        return values[0] if len(values) == 1 else tuple(values)

    def _attribute(self, attribute: Any) -> int:
        return int(self.call("cudaDeviceGetAttribute", attribute, self.index))

    def _line(self, function: str, status: Any, doing: str) -> str:
        where = f" for {doing}" if doing else ""
        if int(status) == _OUT_OF_MEMORY:
            return (
                f"the GPU is out of memory{where}{self._memory_left()}: use a smaller batch, or end what else uses it"
            )
        said = self.api.cudaGetErrorString(status)[1]
        text = said.decode() if isinstance(said, bytes) else str(said)
        lost = "; the device's context is lost, start the program again" if int(status) in _STICKY else ""
        return f"CUDA: {function}{where} failed: {text} ({int(status)}){lost}"

    def _memory_left(self) -> str:
        status, *free_and_total = self.api.cudaMemGetInfo()
        if int(status):
            return ""
        free, total = (int(size) // _MIB for size in free_and_total)
        return f" ({free} of {total} MiB are free)"


class Memory:
    """What one user allocates on a device and for it; `release` gives all of it back."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._owned: list[tuple[str, int]] = []

    def on_device(self, nbytes: int, purpose: str) -> int:
        """The address of `nbytes` of device memory, aligned to 256 bytes. Raises BackendError when none is left."""
        address = int(self._device.call("cudaMalloc", max(nbytes, 1), doing=f"{purpose}, {_size(nbytes)}"))
        self._owned.append(("cudaFree", address))
        return address

    def on_host(self, nbytes: int, purpose: str) -> tuple[int, int]:
        """Page-locked host memory: its address, and the address at which an integrated GPU reads it (0 on others)."""
        api, device = self._device.api, self._device
        flags = api.cudaHostAllocMapped if device.integrated else api.cudaHostAllocDefault
        doing = f"{purpose}, {_size(nbytes)} page-locked"
        host = int(device.call("cudaHostAlloc", max(nbytes, 1), flags, doing=doing))
        self._owned.append(("cudaFreeHost", host))
        mapped = int(device.call("cudaHostGetDevicePointer", host, 0, doing=doing)) if device.integrated else 0
        return host, mapped

    def release(self) -> None:
        """Frees everything; further calls do nothing. A lost device is no reason to fail here."""
        while self._owned:
            function, address = self._owned.pop()
            with contextlib.suppress(BackendError):
                self._device.call(function, address)


def cuda_version(number: int) -> str:
    """A version as CUDA counts them, such as 13040, for people: "13.4"."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _size(nbytes: int) -> str:
    return f"{nbytes / _MIB:.1f} MiB" if nbytes >= _MIB // 10 else f"{nbytes} bytes"
