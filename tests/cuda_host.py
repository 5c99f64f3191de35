"""The CUDA kernels compiled for the host (csrc/cuda/host_run.cpp), and a stand-in for the library that runs them."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

CSRC = Path(__file__).parents[1] / "plugins" / "csrc"

_folder: tempfile.TemporaryDirectory[str] | None = None

#: A device faults on a misaligned vector access; the host's compiler can check for one, where it has its library.
CHECKED = ("-fsanitize=alignment,signed-integer-overflow,shift", "-fno-sanitize-recover=all")


class Machine(ctypes.Structure):
    """MscopeMachine."""

    _fields_ = tuple(
        (name, ctypes.c_int32) for name in ("multiprocessors", "shared_per_multiprocessor", "shared_per_block")
    )


# An H100 takes small cases in the wide layout and one chunk; one multiprocessor alone takes the dense layout and
# chunks; a machine far too large cuts long sequences into segments.
H100, SINGLE, VAST = (
    Machine(132, 228 << 10, 227 << 10),
    Machine(1, 64 << 10, 64 << 10),
    Machine(4096, 64 << 10, 64 << 10),
)


def compiler() -> str | None:
    """A C++ compiler of this machine."""
    return shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")


@functools.cache
def library() -> ctypes.CDLL:
    """Compiled once a process. Raises RuntimeError with what the compiler said."""
    global _folder
    _folder = tempfile.TemporaryDirectory(prefix="mscope-host-")
    path = Path(_folder.name) / "libhost_run.so"
    command = [compiler() or "c++", "-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", f"-I{CSRC}"]
    command += [str(CSRC / "cuda" / "host_run.cpp"), "-o", str(path)]
    for attempt in ([*command, *CHECKED], command):
        result = subprocess.run(attempt, capture_output=True, text=True, check=False)
        if result.returncode == 0:
            loaded = ctypes.CDLL(str(path))
            loaded.host_struct_bytes.restype = ctypes.c_int64
            return loaded
    raise RuntimeError(result.stderr[-3000:])


class HostLibrary:
    """In place of libmscope_cuda: what mscope.plugins.cuda calls, run on the host for an H100's plan."""

    def mscope_cuda_scan_workspace(self, params: Any, dtype: int, device: int, found: Any) -> int:
        numbers = (ctypes.c_int64 * 13)()
        status = int(library().host_plan(params, dtype, ctypes.byref(H100), numbers))
        found._obj.value = numbers[12]
        return status

    def mscope_cuda_scan(self, params: Any, dtype: int, device: int, stream: int) -> int:
        return int(library().host_scan(params, dtype, ctypes.byref(H100), 0))

    def mscope_cuda_conv_silu(self, params: Any, dtype: int, device: int, stream: int) -> int:
        return int(library().host_conv(params, dtype, 0))

    def mscope_cuda_resample(self, params: Any, device: int, stream: Any) -> int:
        return int(library().host_resample(params, 0))

    def mscope_cuda_select(self, params: Any, device: int, stream: Any) -> int:
        return int(library().host_select(params, 0))

    def mscope_cuda_struct_bytes(self, which: int) -> int:
        return int(library().host_struct_bytes(which))

    def mscope_cuda_message(self, status: int) -> bytes:
        return f"status {status}".encode()
