"""libmscope_cuda as nvcc compiled it, over a runtime that runs nothing (fake_cudart.cpp): every launch is one that a
device takes, and what it says is of that launch alone."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from mscope.plugins.cuda_arguments import DTYPES, ConvParams, Rows, ScanDirection, ScanParams
from mscope.plugins.cuda_resample import ResampleAxis, ResampleParams
from mscope.plugins.cuda_select import SelectParams

pytestmark = pytest.mark.slow  # the library is compiled where it is not there yet

H100, ORIN, T4 = range(3)
STREAM = 0x5000
MEMORY = 0x10000  # nothing reads it
INVALID_DEVICE = 101
UNASKED = 48 << 10  # bytes of shared memory that every block may have
NO_CONTEXT, NOT_PRIMARY = -1, -2  # of fake_context


@dataclass(frozen=True)
class Launch:
    kernel: str
    device: int
    blocks: int
    threads: int
    shared: int
    stream: int


@pytest.fixture
def library(over_fake_cudart: ctypes.CDLL) -> ctypes.CDLL:
    return over_fake_cudart


@pytest.fixture(autouse=True)
def fresh(library: ctypes.CDLL) -> None:
    library.fake_launches()
    library.cudaGetLastError()
    library.fake_no_context()


def launches(library: ctypes.CDLL) -> list[Launch]:
    lines = (line.split() for line in library.fake_launches().decode().splitlines())
    return [Launch(kernel, *map(int, numbers)) for kernel, *numbers in lines]


def scan_params(batch: int, length: int, channels: int, rank: int, states: int = 16, directions: int = 2) -> ScanParams:
    """No memory behind these. dt, B and C as rows of dbc, or B and C alone where there is no rank."""
    params = ScanParams(batch, length, channels, states, rank, directions, 1)

    def rows(size: int) -> Rows:
        return Rows(MEMORY, size, size * length)

    width = rank + 2 * states
    for i in range(directions):
        params.direction[i] = ScanDirection(
            rows(channels), rows(width) if rank else rows(channels), rows(width), rows(width),
            MEMORY if rank else None, MEMORY, MEMORY, MEMORY, i,
        )  # fmt: skip
    params.z = params.y = rows(channels)
    return params


def scan(library: ctypes.CDLL, params: ScanParams, dtype: int, device: int) -> int:
    needed = ctypes.c_int64(-1)
    status = library.mscope_cuda_scan_workspace(ctypes.byref(params), dtype, device, ctypes.byref(needed))
    assert status == 0
    params.workspace, params.workspace_bytes = (MEMORY if needed.value else None), needed.value
    return int(library.mscope_cuda_scan(ctypes.byref(params), dtype, device, ctypes.c_void_p(STREAM)))


def conv(library: ctypes.CDLL, dtype: int, device: int) -> int:
    rows = Rows(MEMORY, 768, 768 * 50)
    params = ConvParams(2, 50, 384, 4, rows, MEMORY, MEMORY, MEMORY, MEMORY, rows, rows)
    return int(library.mscope_cuda_conv_silu(ctypes.byref(params), dtype, device, ctypes.c_void_p(STREAM)))


def select(library: ctypes.CDLL, device: int) -> int:
    params = SelectParams(1, 1000, 4096, 100, MEMORY, MEMORY, 1.0, MEMORY, MEMORY, MEMORY, MEMORY, 0)
    return int(library.mscope_cuda_select(ctypes.byref(params), device, ctypes.c_void_p(STREAM)))


def resample(library: ctypes.CDLL, channels: int, device: int) -> int:
    axis = ResampleAxis(8, MEMORY, MEMORY, MEMORY)
    picture = (MEMORY, 1080, 1920, 1920 * channels, channels, 224, 224, axis, axis, 0, MEMORY, MEMORY, MEMORY)
    params = ResampleParams(*picture)
    return int(library.mscope_cuda_resample(ctypes.byref(params), device, ctypes.c_void_p(STREAM)))


CALLS: dict[str, Callable[[ctypes.CDLL, int], int]] = {
    "scan": lambda library, device: scan(library, scan_params(1, 50, 384, 12), 1, device),
    "conv": lambda library, device: conv(library, 1, device),
    "select": select,
    "resample": lambda library, device: resample(library, 3, device),
    "supports": lambda library, device: int(library.mscope_cuda_supports(device)),
}


def threads_allowed(kernel: str) -> int:
    """Its launch bounds: a block with more threads is refused."""
    return 512 if "scan_kernel" in kernel and "Li16ELi1E" in kernel else 256


@pytest.mark.parametrize("device", [H100, ORIN, T4])
def test_every_launch_is_one_that_a_device_takes(library: ctypes.CDLL, device: int) -> None:
    """The models at every batch, long sequences, few states: whatever is planned, the device's rules hold."""
    sizes = [
        (batch, length, channels, rank, states)
        for channels, rank in ((384, 12), (768, 24), (1536, 48))
        for batch in (1, 8, 64, 4096)
        for length in (50, 125, 197, 1024, 16384)
        for states in (8, 16)
    ]
    for size in sizes:
        for dtype in range(len(DTYPES)):
            for directions, rank in ((2, size[3]), (1, 0)):
                params = scan_params(*size[:3], rank, size[4], directions)
                assert scan(library, params, dtype, device) == 0, (size, dtype, directions)
    seen = launches(library)
    assert len(seen) >= 2 * len(DTYPES) * len(sizes)
    for launch in seen:
        assert launch.threads <= threads_allowed(launch.kernel)
        assert (launch.device, launch.stream) == (device, STREAM)
    # A T4 has no more than that for a multiprocessor's blocks together.
    assert device == T4 or any(launch.shared > UNASKED for launch in seen)


def test_every_kernel_can_be_launched(library: ctypes.CDLL) -> None:
    for dtype in range(len(DTYPES)):
        for states in (16, 8):
            for batch, length in ((1, 197), (64, 197), (1, 16384)):
                assert scan(library, scan_params(batch, length, 384, 12, states), dtype, H100) == 0
        assert conv(library, dtype, H100) == 0
    assert select(library, H100) == 0
    for channels in (1, 3):
        assert resample(library, channels, H100) == 0
    known = {name for name in library.fake_kernels().decode().split() if "mscope" in name}
    assert {launch.kernel for launch in launches(library)} == known


def test_an_earlier_failure_is_not_told_again(library: ctypes.CDLL) -> None:
    """A launch that was queued is a success, whatever failed in this thread before."""
    assert library.mscope_cuda_supports(7) == INVALID_DEVICE
    assert scan(library, scan_params(1, 197, 384, 12), 1, H100) == 0
    assert scan(library, scan_params(1, 197, 384, 12), 1, H100) == 0
    assert len(launches(library)) == 2


def test_a_refused_launch_is_told_once(library: ctypes.CDLL) -> None:
    params = scan_params(1, 197, 384, 12)
    assert library.mscope_cuda_scan(ctypes.byref(params), 1, 7, ctypes.c_void_p(STREAM)) == INVALID_DEVICE
    # A block with more shared memory than the device has: what is asked for is refused, and the error is taken back.
    refusing = ctypes.CFUNCTYPE(None)(lambda: library.cudaSetDevice(T4))
    assert scan(library, scan_params(1, 197, 768, 24), 1, H100) == 0
    library.fake_before_next_launch(refusing)
    try:
        assert scan(library, scan_params(1, 197, 768, 24), 1, H100) == 1
        assert library.cudaGetLastError() == 0
    finally:
        library.cudaSetDevice(H100)
    assert scan(library, scan_params(1, 197, 768, 24), 1, H100) == 0


def test_two_threads_do_not_take_each_others_shared_memory(library: ctypes.CDLL) -> None:
    """One kernel, two sizes at once: the smaller one's request must not make the larger one's launch fail."""
    large, small = scan_params(1, 197, 384, 12), scan_params(1, 125, 384, 12)
    statuses: list[Any] = []
    other = ctypes.CFUNCTYPE(None)(lambda: statuses.append(scan(library, small, 1, H100)))
    assert scan(library, small, 1, H100) == 0
    library.fake_before_next_launch(other)
    statuses.append(scan(library, large, 1, H100))
    assert statuses == [0, 0]
    first, second, third = launches(library)
    assert first.kernel == second.kernel == third.kernel
    assert UNASKED < first.shared == second.shared < third.shared


def test_the_callers_device_stays_current(library: ctypes.CDLL) -> None:
    library.cudaSetDevice(H100)
    assert scan(library, scan_params(1, 50, 384, 12), 1, ORIN) == 0
    device = ctypes.c_int(-1)
    library.cudaGetDevice(ctypes.byref(device))
    assert device.value == H100
    assert [launch.device for launch in launches(library)] == [ORIN]


@pytest.mark.parametrize("device", [H100, ORIN])
@pytest.mark.parametrize("call", CALLS)
def test_a_thread_without_a_context_is_left_without_one(library: ctypes.CDLL, call: str, device: int) -> None:
    """A process that uses one device alone must not get a context on the first, as cudaSetDevice(0) makes it."""
    library.fake_contexts_made()
    for asked in (device, device, T4):  # whatever this copy of the runtime was told last
        assert CALLS[call](library, asked) == 0
        assert {launch.device for launch in launches(library)} <= {asked}
        assert library.fake_context() == NO_CONTEXT
        assert library.fake_contexts_made() == 1 << asked


def test_a_context_that_is_not_primary_is_put_back(library: ctypes.CDLL) -> None:
    """As pycuda and GStreamer make them. On its own device it is used as it is."""
    library.fake_other_context()
    try:
        device = ctypes.c_int(-1)
        library.cudaGetDevice(ctypes.byref(device))
        library.fake_contexts_made()
        assert scan(library, scan_params(1, 50, 384, 12), 1, device.value) == 0
        assert library.fake_contexts_made() == 0
        assert library.fake_context() == NOT_PRIMARY
        assert scan(library, scan_params(1, 50, 384, 12), 1, ORIN) == 0
        assert library.fake_context() == NOT_PRIMARY
        assert [launch.device for launch in launches(library)] == [device.value, ORIN]
    finally:
        library.fake_no_context()
