"""Builds the TensorRT plugin library, libmscope_trt: `mscope-export plugins build`. Never required; no install does it.

It holds the CUDA kernels of build_cuda.py, the plugins of csrc/trt and the CUDA runtime, and nothing of TensorRT: one
file serves TensorRT 10, 11 and TensorRT-RTX, whichever headers it was compiled against.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from mscope.plugins import build, build_cuda
from mscope.plugins.build import BuildError
from mscope.plugins.build_over_cuda import Recipe, build_kernels, run_nvcc
from mscope.plugins.trt_options import PluginBuild

NAME = "trt"
#: Environment variable: a folder with NvInferRuntime.h, to compile with instead of this project's slice of it.
TENSORRT_INCLUDE_DIR = "TensorRT_INCLUDE_DIR"

#: TensorRT-RTX's library, and the name by which its ONNX parser opens it when it meets a plugin.
RTX_LIBRARY, RTX_OPENED_AS = "libtensorrt_rtx.so.1", "libtensorrt_rtx.so"


def sources(root: Path) -> list[Path]:
    """The plugin's C++ files, sorted. Raises BuildError when there are none."""
    found = sorted(path for path in (root / "trt").glob("*.cpp") if path.name != "host_run.cpp")
    if not found:
        raise BuildError(f"no plugin sources in {root / 'trt'}")
    return found


def include_dir(chosen: Path | None = None) -> Path | None:
    """The folder of TensorRT's official headers: `chosen`, else $TensorRT_INCLUDE_DIR, else None (the minimal header).

    Raises:
        BuildError: the folder that was named has no NvInferRuntime.h.
    """
    named = chosen or os.environ.get(TENSORRT_INCLUDE_DIR)
    if not named:
        return None
    folder = Path(named).resolve()
    if not (folder / "NvInferRuntime.h").is_file():
        source = "--tensorrt-include" if chosen else TENSORRT_INCLUDE_DIR
        raise BuildError(
            f"{source} names {folder}, which has no NvInferRuntime.h: name TensorRT's include folder, or leave it out"
        )
    return folder


def rtx_name_path(library: Path) -> Path:
    """The library that carries TensorRT-RTX's unversioned name, beside the plugin library.

    The wheel has `libtensorrt_rtx.so.1` alone, and its parser ends the process where `libtensorrt_rtx.so` cannot be
    opened. This one is empty, has that name as its SONAME, and needs the real one: once it is loaded, who opens the
    name gets it, and through it the library that is in the process already.
    """
    return library.parent / "rtx" / RTX_OPENED_AS


def recipe(root: Path, include: Path | None) -> Recipe:
    """What the library is made of, against the headers of `include` or the minimal one."""
    headers = [*(root / "trt").glob("*.h"), root / "abi" / "ops.h", *(root / "abi").glob("tensorrt*")]
    headers += include.glob("Nv*.h") if include else []
    return Recipe(tuple(sources(root)), tuple(headers), root / "trt" / "exports.map", tuple(header_flags(include)))


def build_trt(options: PluginBuild | None = None) -> Path:
    """Builds the library if its sources, flags, headers or compiler changed since the last time; returns its path.

    The CUDA library of the same sources is built first, beside it, where it is not there yet.

    Raises:
        BuildError: no nvcc, no sources, no such headers, or the compiler failed. An older library stays in place.
    """
    options = options or PluginBuild()
    root, nvcc, headers = build.sources_dir(), build_cuda.find_nvcc(), include_dir(options.include)
    output, only = options.output or build.OUTPUT, options.only
    library = build.library_path(NAME, output)
    parts = recipe(root, headers)
    stamp, expected = library.with_name(library.name + ".stamp"), parts.identity(nvcc, root, only)
    built = library.is_file() and rtx_name_path(library).is_file() and stamp.is_file()
    if not options.force and built and stamp.read_text(encoding="utf-8") == expected:
        return library
    kernels = build_kernels(output, only)
    try:
        with tempfile.TemporaryDirectory(prefix=".build-", dir=output) as scratch:
            linked = parts.link(nvcc, root, kernels, Path(scratch))
            name = _link_rtx_name(nvcc, Path(scratch))
            fresh = Path(scratch) / "stamp"
            fresh.write_text(expected, encoding="utf-8")
            rtx_name_path(library).parent.mkdir(exist_ok=True)
            os.replace(name, rtx_name_path(library))
            os.replace(linked, library)
            os.replace(fresh, stamp)
    except OSError as error:
        raise BuildError(f"cannot write {library}: {error}") from error
    return library


def header_flags(include: Path | None) -> list[str]:
    """The compiler's options that choose the header."""
    return ["-isystem", str(include)] if include else ["-DMSCOPE_TENSORRT_MINIMAL"]


def _link_rtx_name(nvcc: build.Compiler, scratch: Path) -> Path:
    # Linked to a stand-in for the real one, of which only the SONAME matters.
    folder = scratch / "rtx"
    folder.mkdir()
    (folder / "empty.cpp").write_text("", encoding="utf-8")
    target = folder / RTX_OPENED_AS
    empty = [*nvcc.command, "-shared", "-cudart", "none", "-Xcompiler", "-fPIC,-nostdlib", str(folder / "empty.cpp")]
    stand_in = folder / "stand_in.so"
    run_nvcc([*empty, "-Xlinker", f"-soname={RTX_LIBRARY}", "-o", str(stand_in)])
    # All by -Xlinker: nvcc puts its other inputs in front of these, where the linker still drops what is not needed.
    options = ("--no-as-needed", str(stand_in), f"-soname={RTX_OPENED_AS}")
    run_nvcc([*empty, *(part for option in options for part in ("-Xlinker", option)), "-o", str(target)])
    return target
