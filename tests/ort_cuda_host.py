"""The ops for ONNX Runtime's CUDA provider, compiled for the host: registered for the CPU provider, over the kernels'
host run. All but the device's own part is what ships: the same sources, in the real ONNX Runtime.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from cuda_host import CSRC
from mscope.plugins import build
from trt_driver import KEPT, compile_checked

#: Where library() puts it, under the name that find.py looks for.
FOLDER = KEPT.parent / "test-ort-cuda"


@functools.cache
def library() -> Path:
    """Compiled once for its sources, by the name of the library that ships. Needs a C++ compiler."""
    compiled = compiled_for("CPUExecutionProvider", "ort_cuda.so")
    FOLDER.mkdir(parents=True, exist_ok=True)
    named = build.library_path("ort_cuda", FOLDER)
    if not named.exists() or not named.samefile(compiled):
        fresh = named.with_name(f"{named.name}.{os.getpid()}")
        fresh.symlink_to(compiled)
        os.replace(fresh, named)
    return named


def compiled_for(provider: str, name: str) -> Path:
    """The library for an execution provider."""
    sources = [*sorted((CSRC / "ort").glob("*.cpp")), *sorted((CSRC / "ort" / "cuda").glob("*.cpp"))]
    sources += [CSRC / "cuda" / "host_run.cpp", CSRC / "cuda" / "host_api.cpp", CSRC / "abi" / "version.cpp"]
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", f"-DMSCOPE_ABI_VERSION={build.ABI_VERSION}", "-DMSCOPE_CUDA_BUILD"]
    flags += [f'-DMSCOPE_ORT_PROVIDER="{provider}"']
    if os.environ.get(build.ONNXRUNTIME_INCLUDE_DIR):
        flags.append(f"-I{os.environ[build.ONNXRUNTIME_INCLUDE_DIR]}")
    return compile_checked(name, sources, flags)
