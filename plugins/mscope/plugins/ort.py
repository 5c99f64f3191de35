"""What the ONNX Runtime library reports of itself: which instruction set it uses, and whether a session uses it at all.

A session has the native kernels where `kernels_created()` rose while it was made: ONNX Runtime creates a kernel for
every node that it gives to the library, before anything runs. Registering the library alone proves nothing: a file
without the ops, or with types that the kernels do not take, loads all the same and runs by its function bodies.
"""

from __future__ import annotations

import ctypes
import functools

from mscope.core.errors import BackendError
from mscope.plugins import find


def kernels_created() -> int:
    """Native kernels that sessions of this process created so far. Raises BackendError where there is no library."""
    return int(_library().mscope_ort_kernels())


def calls() -> int:
    """Runs of native kernels in this process so far."""
    return int(_library().mscope_ort_calls())


def instruction_set() -> str:
    """The instruction set of kernels created from now on: avx512, avx2, neon or scalar. MSCOPE_ISA chooses another."""
    return bytes(_library().mscope_ort_isa()).decode()


def force_instruction_set(name: str = "") -> None:
    """Has kernels created from now on use the named instruction set; "" the best again. Raises ValueError."""
    if _library().mscope_ort_force_isa(name.encode()) != 0:
        raise ValueError(f"this machine, or the library, has no instruction set {name!r}: avx512, avx2, neon or scalar")


def _library() -> ctypes.CDLL:
    # Loaded anew only for another path: what is loaded twice from one path is the same, with the same counters.
    return _load(str(find.require("ort").resolve()))


@functools.cache
def _load(path: str) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise BackendError(f"{path} cannot be loaded ({error}): run 'python -m mscope.plugins.build'") from error
    library.mscope_ort_kernels.restype = library.mscope_ort_calls.restype = ctypes.c_uint64
    library.mscope_ort_isa.restype = ctypes.c_char_p
    library.mscope_ort_force_isa.restype, library.mscope_ort_force_isa.argtypes = ctypes.c_int, [ctypes.c_char_p]
    return library
