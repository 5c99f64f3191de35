"""The plugin library for tests: built with nvcc for one architecture, once for its sources, below build/."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mscope.plugins import build, build_cuda, build_trt, find, trt
from mscope.plugins.trt_options import PluginBuild
from mscope.plugins.trt_source import source_folder, write_source

FOLDER = Path(__file__).parents[1] / "build" / "test-trt" / "library"
#: No GPU runs it in these tests: one architecture is quicker than all. MSCOPE_CUDA_ARCHS chooses another.
ARCHITECTURES = tuple(os.environ.get(build_cuda.ARCHS, "90").split())


@functools.cache
def built() -> Path:
    """The folder that the library lies in. Skips the test where there is no nvcc."""
    try:
        build_cuda.find_nvcc()
    except build.BuildError as error:
        pytest.skip(str(error))
    return build_trt.build_trt(PluginBuild(only=ARCHITECTURES, output=FOLDER)).parent


@functools.cache
def built_by_cmake() -> Path:
    """The folder of the library that cmake makes of the written source, once for its content; the source is beside it,
    below a name with a space. Skips the test where cmake, make or nvcc is missing.
    """
    for program in ("cmake", "make"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} on this machine")
    try:
        nvcc = build_cuda.find_nvcc()
    except build.BuildError as error:
        pytest.skip(str(error))
    version = subprocess.run(["cmake", "--version"], capture_output=True, text=True, check=True).stdout
    # cmake writes down where everything lies.
    digest = hashlib.sha256(f"{FOLDER} {version} {nvcc} {ARCHITECTURES}".encode())
    for name, content in sorted(source_folder().items()):
        digest.update(f"{name} {len(content)}\n".encode() + content)
    folder = FOLDER.parent / "cmake"
    stamp, output = folder / "stamp", folder / "build"
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != digest.hexdigest():
        shutil.rmtree(folder, ignore_errors=True)
        write_source(folder / "the source")
        architectures = ";".join(f"{name}-real" for name in ARCHITECTURES)
        configure(folder / "the source", output, f"-DCMAKE_CUDA_ARCHITECTURES={architectures}")
        made = subprocess.run(["cmake", "--build", str(output)], capture_output=True, text=True, check=False)
        assert made.returncode == 0, (made.stdout + made.stderr)[-3000:]
        assert "warning" not in made.stdout + made.stderr
        stamp.write_text(digest.hexdigest(), encoding="utf-8")
    return output


def configure(source: Path, output: Path, *options: str, fails: bool = False) -> str:
    """cmake on a written source; what it said."""
    command = ["cmake", "-G", "Unix Makefiles", "-S", str(source), "-B", str(output)]
    command += ["-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", *options]
    compiler = build_cuda.find_nvcc().command
    environment = {name: value for name, value in os.environ.items() if name != "CUDAARCHS"}
    done = subprocess.run(
        command, env={**environment, "CUDACXX": shlex.join(compiler)}, capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, said[-3000:]
    return said


@contextlib.contextmanager
def in_use() -> Iterator[None]:
    """The package finds the installed library, else the one that is built here. Skips the test where there is none."""
    with pytest.MonkeyPatch.context() as patch:
        if trt.why_missing():
            patch.setenv(find.PLUGIN_DIR, str(built()))
        yield
