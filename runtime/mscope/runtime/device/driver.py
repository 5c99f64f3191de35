"""The GPU that the driver offers, asked of the driver library itself: quick, and needs no package."""

from __future__ import annotations

import ctypes
import functools
import sys
from dataclasses import dataclass

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, ..._MINOR


@dataclass(frozen=True)
class Gpu:
    """The first CUDA device (`CUDA_VISIBLE_DEVICES` chooses which that is).

    Attributes:
        name: such as "NVIDIA H100".
        compute_capability: as engines record it, such as "sm_90".
        driver: the CUDA version that the driver supports, such as "13.0".
    """

    name: str
    compute_capability: str
    driver: str

    def __str__(self) -> str:
        return f"{self.name} ({self.compute_capability})"


def _open(name: str) -> ctypes.CDLL:
    return ctypes.CDLL(name)


@functools.cache
def find_gpu() -> tuple[Gpu | None, str]:
    """The GPU, or None and what is missing and how to get it."""
    try:
        library = _open(_LIBRARY)
    except OSError:
        return None, (
            f"no NVIDIA driver ({_LIBRARY} is not found): install it, or give the container the GPU "
            "(docker run --gpus all)"
        )
    status = int(library.cuInit(0))
    count = ctypes.c_int(0)
    if status == 0:
        status = int(library.cuDeviceGetCount(ctypes.byref(count)))
    if status not in (0, _NO_DEVICE):
        return None, f"the NVIDIA driver does not start (CUDA error {status}): see what nvidia-smi says"
    if count.value == 0:
        return (
            None,
            "the NVIDIA driver sees no GPU: look at nvidia-smi, and whether CUDA_VISIBLE_DEVICES hides it",
        )
    device, version = ctypes.c_int(0), ctypes.c_int(0)
    name = ctypes.create_string_buffer(256)
    major, minor = ctypes.c_int(0), ctypes.c_int(0)
    calls = (
        library.cuDeviceGet(ctypes.byref(device), 0),
        library.cuDeviceGetName(name, len(name), device),
        library.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device),
        library.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device),
        library.cuDriverGetVersion(ctypes.byref(version)),
    )
    if any(calls):
        return None, f"the NVIDIA driver does not describe its GPU (CUDA error {max(calls)}): see what nvidia-smi says"
    return Gpu(
        name=name.value.decode("utf-8", "replace"),
        compute_capability=f"sm_{major.value}{minor.value}",
        driver=f"{version.value // 1000}.{version.value % 1000 // 10}",
    ), ""
