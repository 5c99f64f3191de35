"""What is skipped here says why; `make test-gpu` sets MSCOPE_REQUIRE_GPU, and then nothing is."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def _absent(reason: str) -> NoReturn:
    if os.environ.get("MSCOPE_REQUIRE_GPU"):
        pytest.fail(f"MSCOPE_REQUIRE_GPU is set and {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def device() -> str:
    """The first CUDA device, on which the kernels run."""
    try:
        import torch
    except ImportError:
        _absent("torch is not installed")
    if not torch.cuda.is_available():
        _absent("there is no CUDA device")
    from mscope.plugins import cuda

    if reason := cuda.why_missing(0):
        _absent(reason)
    return "cuda:0"
