"""Locates the native libraries and refuses those that were built for another version of this package."""

from __future__ import annotations

import ctypes
import functools
import os
import warnings
from pathlib import Path

from mscope.core.errors import BackendError
from mscope.plugins import build

#: Environment variable: the only folder to look in, instead of the package's own.
PLUGIN_DIR = "MSCOPE_PLUGIN_DIR"
#: The libraries of build_cuda.py (two) and build_trt.py, which no install builds.
CUDA, ORT_CUDA, TRT = "cuda", "ort_cuda", "trt"


def library(name: str) -> Path | None:
    """The named library ("train", "ort"), checked; None where there is none that fits, and `why_missing` says why.

    A library of another ABI version is never returned, and a warning tells of it once.
    """
    path = _expected(name)
    if not path.is_file():
        return None
    reason = _refusal(path, path.stat().st_mtime_ns)
    if reason:
        warnings.warn(reason, RuntimeWarning, stacklevel=2)
        return None
    return path


def require(name: str) -> Path:
    """Like `library`, for a caller that cannot do without. Raises BackendError with the reason."""
    path = library(name)
    if path is None:
        raise BackendError(why_missing(name))
    return path


def why_missing(name: str) -> str:
    """Why `library` returned None and what to do about it; "" where it did not."""
    path = _expected(name)
    if path.is_file():
        return _refusal(path, path.stat().st_mtime_ns) or ""
    if os.environ.get(PLUGIN_DIR):
        return f"{PLUGIN_DIR} is set and {path} does not exist: unset it, or build the library into that folder"
    needed = "nvcc" if name in (CUDA, ORT_CUDA, TRT) else "a C++ compiler"
    return f"the native library {path} is not built: install {needed} and run '{builder(name)}'"


def builder(name: str) -> str:
    """The command that builds the named library."""
    if name == TRT:
        return "mscope-export plugins build"
    return f"python -m mscope.plugins.{'build_cuda' if name in (CUDA, ORT_CUDA) else 'build'}"


def _expected(name: str) -> Path:
    if name not in (*build.LIBRARIES, CUDA, ORT_CUDA, TRT):
        raise ValueError(f"unknown native library {name!r}: one of {', '.join(build.LIBRARIES)}")
    folder = os.environ.get(PLUGIN_DIR)
    # A bare file name would be looked for in the system's folders alone.
    return build.library_path(name, Path(folder).absolute() if folder else build.OUTPUT)


@functools.cache
def _refusal(path: Path, modified_ns: int) -> str | None:
    """Why the library must not be used, None where it may. `modified_ns` makes the cache see a rebuilt file."""
    # --force: to the build a file that came from these sources is whole.
    rebuild = f"rebuild it with '{builder(path.stem.removeprefix('libmscope_'))} --force'"
    try:
        loaded = ctypes.CDLL(str(path.resolve()))
    except OSError as error:
        return f"{path} cannot be loaded ({error}): {rebuild}"
    try:
        function = loaded.mscope_abi_version
    except AttributeError:
        return f"{path} is not a library of mambascope-deploy (no mscope_abi_version): {rebuild}"
    function.restype, function.argtypes = ctypes.c_int, []
    found = int(function())
    if found != build.ABI_VERSION:
        return f"{path} has ABI version {found}, this package needs {build.ABI_VERSION}: {rebuild}"
    return None
