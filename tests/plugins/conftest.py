"""What several tests of the plugins need."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

import cuda_host
from mscope.plugins import build, build_cuda, find


@pytest.fixture(scope="session")
def cuda_library() -> Path:
    """libmscope_cuda for all targets, whatever MSCOPE_CUDA_ARCHS says. Built once for its sources."""
    try:
        build_cuda.find_nvcc()
    except build.BuildError as error:
        pytest.skip(str(error))
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.delenv(build_cuda.ARCHS, raising=False)
        context.delenv(find.PLUGIN_DIR, raising=False)
        return build_cuda.build_cuda()


@pytest.fixture(scope="session")
def over_fake_cudart(cuda_library: Path, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """libmscope_cuda's objects, linked with fake_cudart.cpp in the CUDA runtime's place."""
    if cuda_host.compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    path = tmp_path_factory.mktemp("fake") / "libover_fake.so"
    command = [str(cuda_host.compiler()), "-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden"]
    command += [str(Path(__file__).with_name("fake_cudart.cpp")), "-Wl,--whole-archive"]
    command += [str(build_cuda.archive_path(cuda_library)), "-Wl,--no-whole-archive,--no-undefined", "-o", str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr[-3000:]
    loaded = ctypes.CDLL(str(path))
    loaded.fake_launches.restype = loaded.fake_kernels.restype = ctypes.c_char_p
    return loaded
