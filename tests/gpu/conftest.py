"""What is skipped here says why; with MSCOPE_REQUIRE_GPU, which `make test-gpu` sets, no GPU is one line and an end."""

from __future__ import annotations

import os

import pytest


def _why_no_gpu() -> str:
    """What the kernels lack here, "" where they run."""
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported ({error})"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    from mscope.plugins import cuda

    return cuda.why_missing(0)


def pytest_configure(config: pytest.Config) -> None:
    """Before anything is collected: modules that need torch skip themselves, and nothing would be left to fail."""
    if os.environ.get("MSCOPE_REQUIRE_GPU") and (reason := _why_no_gpu()):
        pytest.exit(f"MSCOPE_REQUIRE_GPU is set and {reason}", returncode=1)


@pytest.fixture(scope="session", autouse=True)
def device() -> str:
    """The first CUDA device, on which the kernels run."""
    if reason := _why_no_gpu():
        pytest.skip(reason)
    return "cuda:0"
