"""The plugin library for tests: built with nvcc for one architecture, once for its sources, below build/."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mscope.plugins import build, build_cuda, build_trt, find, trt
from mscope.plugins.trt_options import PluginBuild

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


@contextlib.contextmanager
def in_use() -> Iterator[None]:
    """The package finds the installed library, else the one that is built here. Skips the test where there is none."""
    with pytest.MonkeyPatch.context() as patch:
        if trt.why_missing():
            patch.setenv(find.PLUGIN_DIR, str(built()))
        yield
