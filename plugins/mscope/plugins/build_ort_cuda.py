"""Builds the ops for ONNX Runtime's CUDA provider, libmscope_ort_cuda: part of `python -m mscope.plugins.build_cuda`.

It holds the CUDA kernels of build_cuda.py, the ops of csrc/ort and csrc/ort/cuda and the CUDA runtime, and nothing of
ONNX Runtime: one file serves onnxruntime-gpu from 1.17 on.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mscope.plugins import build, build_cuda
from mscope.plugins.build import BuildError
from mscope.plugins.build_over_cuda import Recipe, build_kernels

NAME = "ort_cuda"


def recipe(root: Path) -> Recipe:
    """What the library is made of. Raises BuildError where there are no sources."""
    parts = [sorted((root / folder).glob("*.cpp")) for folder in ("ort", "ort/cuda")]
    if not all(parts):
        raise BuildError(f"no sources of the ops for ONNX Runtime in {root / 'ort'}")
    named = os.environ.get(build.ONNXRUNTIME_INCLUDE_DIR)
    include = Path(named) if named else None
    headers = [*(root / "ort").rglob("*.h"), root / "abi" / "ops.h", *(root / "abi").glob("onnxruntime*")]
    headers += include.glob("onnxruntime_c_api.h") if include else []
    return Recipe(
        sources=tuple(path for part in parts for path in part),
        headers=tuple(headers),
        exports=root / "ort" / "cuda" / "exports.map",
        options=("-isystem", str(include)) if include else (),
    )


def build_ort_cuda(output: Path | None = None, *, force: bool = False, only: Sequence[str] = ()) -> Path:
    """Builds the library if its sources, flags, headers or compiler changed since the last time; returns its path.

    The CUDA library of the same sources is built first, beside it, where it is not there yet. Arguments are those of
    `build_cuda.build_cuda`.

    Raises:
        BuildError: no nvcc, no sources, or the compiler failed. An older library, if any, stays in place.
    """
    root, nvcc, folder = build.sources_dir(), build_cuda.find_nvcc(), output or build.OUTPUT
    library, parts = build.library_path(NAME, folder), recipe(root)
    stamp, expected = library.with_name(library.name + ".stamp"), parts.identity(nvcc, root, only)
    if not force and library.is_file() and stamp.is_file() and stamp.read_text(encoding="utf-8") == expected:
        return library
    kernels = build_kernels(folder, only)
    try:
        with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as scratch:
            linked = parts.link(nvcc, root, kernels, Path(scratch))
            fresh = Path(scratch) / "stamp"
            fresh.write_text(expected, encoding="utf-8")
            os.replace(linked, library)
            os.replace(fresh, stamp)
    except OSError as error:
        raise BuildError(f"cannot write {library}: {error}") from error
    return library
