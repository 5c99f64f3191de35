"""tests/gpu's own functions (device_checks.py) on a fake device that runs the kernels' source on the host, smaller."""

from __future__ import annotations

import pytest

import device_checks
import fake_gpu
import fakes
from fake_cuda import FakeCuda


@pytest.fixture(autouse=True, params=[False, True], ids=["discrete", "integrated"])
def cuda(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, network: fakes.FakeNetwork, layer: str
) -> FakeCuda:
    cuda = FakeCuda(host_addresses=True, integrated=request.param)
    fake_gpu.install(monkeypatch, network, cuda)
    fake_gpu.install_kernels(monkeypatch, cuda)
    return cuda


@pytest.mark.parametrize("mode, interpolation", [("RGB", "bicubic"), ("L", "bilinear")])
def test_pictures(cuda: FakeCuda, mode: str, interpolation: str) -> None:
    sizes = ((1, 1), (1, 90), (300, 2), (48, 64), (140, 30), (32, 32))
    device_checks.check_pictures(mode, interpolation, side=32, sizes=sizes)
    assert cuda.live == 0


@pytest.mark.parametrize("classes, regions", [(2, 1), (10, 49), (1000, 12)])
def test_selection(cuda: FakeCuda, classes: int, regions: int) -> None:
    device_checks.check_selection(classes, regions, batch=2)
    assert cuda.live == 0


def test_branches(cuda: FakeCuda) -> None:
    device_checks.check_branch()
    assert cuda.live == 0


def test_the_clock(cuda: FakeCuda) -> None:
    cuda.costs = {"HostToDevice": 0.5, "DeviceToHost": 0.25}
    device_checks.check_clock()
    assert cuda.live == 0
