"""The resampling kernels' own source, compiled for the host, against Pillow: the same bits, nothing written beside."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

import cuda_host
from cuda_calls import FILTERS, ResampleCall, by_pillow, check_resample
from mscope.core.errors import BackendError
from mscope.plugins import cuda, cuda_resample
from mscope.plugins.cuda_resample import ResampleAxis, ResampleParams
from mscope.runtime.resampling import plan


@pytest.fixture(scope="module")
def host() -> ctypes.CDLL:
    if cuda_host.compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    return cuda_host.library()


@pytest.mark.parametrize("interpolation", FILTERS)
def test_random_sizes(host: ctypes.CDLL, interpolation: str) -> None:
    draw = np.random.default_rng(0)
    for turn in range(40):
        height, width = np.exp(draw.uniform(0, np.log(400), 2)).astype(int)
        shape = tuple(int(v) for v in np.exp(draw.uniform(0, np.log(90), 2)))
        pixels = draw.integers(0, 256, (height, width, (1, 3)[turn % 2]), dtype=np.uint8)
        if turn % 3 == 0:
            pixels = (pixels > 127).astype(np.uint8) * np.uint8(255)
        box = (0.0, 0.0, float(width), float(height))
        if turn % 4:
            (left, right), (top, bottom) = np.sort(draw.uniform(0, width, 2)), np.sort(draw.uniform(0, height, 2))
            box = (float(left), float(top), float(right), float(bottom))
        check_resample(host, pixels, box, shape, interpolation, turn % 3)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(
    ("size", "box", "shape"),
    [
        ((1, 1), (0, 0, 1, 1), (24, 20)),
        ((1, 900), (200, 0, 201, 1), (32, 32)),
        ((900, 1), (0, 449.5, 1, 450.5), (32, 32)),
        ((4000, 3), (0, 0, 3, 4000), (30, 48)),
        ((48, 64), (0, 0, 64, 48), (48, 64)),
        ((256, 341), (58, 16, 282, 240), (224, 224)),
        ((2400, 4300), (950, 0, 3350, 2400), (16, 16)),
        ((5, 7), (0, 0, 7, 5), (1, 1)),
    ],
)
def test_hard_sizes(host: ctypes.CDLL, size: Any, box: Any, shape: tuple[int, int], interpolation: str) -> None:
    check_resample(
        host, np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8), box, shape, interpolation
    )


def test_sizes_and_pointers_that_cannot_be_are_refused(host: ctypes.CDLL) -> None:
    pixels = np.zeros((9, 9, 3), np.uint8)
    how = plan((9, 9), (0, 0, 9, 9), (4, 4), "bicubic")

    def status(**changes: Any) -> int:
        call = ResampleCall(pixels, how, np.zeros((3, 256)))
        for name, value in changes.items():
            setattr(call.params, name, value)
        return int(host.host_resample(ctypes.byref(call.params), 0))

    assert status() == 0
    for changes in (
        {"rows": 0}, {"columns": -1}, {"channels": 2}, {"channels": 4}, {"out_rows": 0}, {"row_bytes": 26},
        {"rows": 1 << 31}, {"rows": 1 << 29, "out_columns": 4},
    ):  # fmt: skip
        assert status(**changes) == -1, changes
    for name in ("pixels", "scratch", "levels", "out"):
        assert status(**{name: 0}) == -3, name
    assert status(across=ResampleAxis(3, 0, 0, 0)) == -3


def test_tables_that_point_outside_read_nothing_there(host: ctypes.CDLL) -> None:
    """What the driver would answer with a lost context, should a table ever be wrong."""
    pixels = np.full((9, 9, 1), 255, np.uint8)
    call = ResampleCall(pixels, plan((9, 9), (0, 0, 9, 9), (4, 4), "bilinear"), np.arange(256)[None])
    first, count = np.array([-5, 8, 1 << 30, 0], np.int32), np.array([3, 1 << 30, 2, 1 << 30], np.int32)
    weights = np.full((5, 4), 1 << 20, np.int32)
    call.params.across = ResampleAxis(5, first.ctypes.data, count.ctypes.data, weights.ctypes.data)
    assert host.host_resample(ctypes.byref(call.params), 0) == 0
    made = call.checked()
    assert (made[:, :, [0, 2]] == 0).all()
    assert (made[:, :, 1] == 64).all()
    assert (made[:, :, 3] == 255).all()


def test_the_binding(monkeypatch: pytest.MonkeyPatch, host: ctypes.CDLL) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    call = ResampleCall(pixels, plan((9, 9), (0, 0, 9, 9), (4, 4), "bicubic"), np.tile(np.arange(256), (3, 1)))
    monkeypatch.setattr(cuda, "load", cuda_host.HostLibrary)
    cuda_resample.resample(call.params)
    np.testing.assert_array_equal(call.checked(), by_pillow(pixels, (0, 0, 9, 9), (4, 4), "bicubic"))
    call.params.rows = 0
    with pytest.raises(BackendError, match=r"was not launched \(-1\)"):
        cuda_resample.resample(call.params)


def test_a_library_of_another_build_is_refused(monkeypatch: pytest.MonkeyPatch, host: ctypes.CDLL) -> None:
    class Older(cuda_host.HostLibrary):
        def mscope_cuda_struct_bytes(self, which: int) -> int:
            return 0

    monkeypatch.setattr(cuda, "load", Older)
    with pytest.raises(BackendError, match=r"ResampleParams has 0 bytes, this package's \d+: rebuild it with"):
        cuda_resample.resample(ResampleParams())
