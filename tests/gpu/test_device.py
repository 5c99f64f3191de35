"""Scaling pictures, deciding, branching and timing on a real GPU: device_checks.py at full size."""

from __future__ import annotations

import pytest

pytest.importorskip("pydantic")
pytest.importorskip("PIL")
pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed: pip install 'cuda-python>=12.6.2'")

import device_checks
from mscope.runtime.device.branch import why_no_branches
from mscope.runtime.device.cuda import Device

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pictures(mode: str, interpolation: str) -> None:
    device_checks.check_pictures(mode, interpolation, sizes=(*device_checks.SIZES, (2160, 3840), (6000, 9000)))


@pytest.mark.parametrize("classes", [2, 10, 1000, 21841])
@pytest.mark.parametrize("regions", [1, 49, 1024, 4096])
def test_selection(classes: int, regions: int) -> None:
    device_checks.check_selection(classes, regions)


def test_branches() -> None:
    if reason := why_no_branches(Device()):
        pytest.skip(reason)
    device_checks.check_branch()


def test_the_clock() -> None:
    device_checks.check_clock()
