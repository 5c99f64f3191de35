"""What the libraries of ops for ONNX Runtime report of themselves: whether a session uses one, and what it runs on.

There are two: "ort" for the CPU provider, "ort_cuda" for the CUDA provider. A session has the native kernels where
`kernels_created()` rose while it was made: ONNX Runtime creates a kernel for every node that it gives to the library,
before anything runs. Registering the library alone proves nothing: a file without the ops, or with types that the
kernels do not take, loads all the same and runs by its function bodies.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Literal

from mscope.core.errors import BackendError
from mscope.plugins import find

Name = Literal["ort", "ort_cuda"]


def kernels_created(name: Name = "ort") -> int:
    """Native kernels that sessions of this process created so far. Raises BackendError where there is no library."""
    return int(_library(name).mscope_ort_kernels())


def calls(name: Name = "ort") -> int:
    """Runs of native kernels in this process so far."""
    return int(_library(name).mscope_ort_calls())


def instruction_set() -> str:
    """The instruction set of kernels created from now on: avx512, avx2, neon or scalar. MSCOPE_ISA chooses another."""
    library = _library("ort")
    library.mscope_ort_isa.restype = ctypes.c_char_p
    return bytes(library.mscope_ort_isa()).decode()


def force_instruction_set(name: str = "") -> None:
    """Has kernels created from now on use the named instruction set; "" the best again. Raises ValueError."""
    library = _library("ort")
    library.mscope_ort_force_isa.restype, library.mscope_ort_force_isa.argtypes = ctypes.c_int, [ctypes.c_char_p]
    if library.mscope_ort_force_isa(name.encode()) != 0:
        raise ValueError(f"this machine, or the library, has no instruction set {name!r}: avx512, avx2, neon or scalar")


def targets() -> str:
    """What the library for CUDA holds code for, as "75 80 ... ptx120"."""
    library = _library("ort_cuda")
    library.mscope_ort_targets.restype = ctypes.c_char_p
    return bytes(library.mscope_ort_targets()).decode()


def _library(name: Name) -> ctypes.CDLL:
    # Loaded anew only for another path: what is loaded twice from one path is the same, with the same counters.
    return _load(str(find.require(name).resolve()))


@functools.cache
def _load(path: str) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise BackendError(f"{path} cannot be loaded ({error}): build it again") from error
    library.mscope_ort_kernels.restype = library.mscope_ort_calls.restype = ctypes.c_uint64
    return library
