"""What several tests of the plugins need."""

from __future__ import annotations

from pathlib import Path

import pytest

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
