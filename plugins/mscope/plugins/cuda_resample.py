"""The resampling kernel of libmscope_cuda: a picture of bytes in device memory to the float32 tensor of a network."""

from __future__ import annotations

import ctypes

from mscope.plugins import cuda


class ResampleAxis(ctypes.Structure):
    """MscopeResampleAxis."""

    _fields_ = (("taps", ctypes.c_int64), *((name, ctypes.c_void_p) for name in ("first", "count", "weights")))


class ResampleParams(ctypes.Structure):
    """MscopeResampleParams."""

    _fields_ = (
        ("pixels", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "row_bytes", "channels", "out_rows", "out_columns")),
        ("across", ResampleAxis),
        ("down", ResampleAxis),
        ("down_first", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("scratch", "levels", "out")),
    )


def resample(params: ResampleParams, device: int = 0, stream: int = 0) -> None:
    """Queues both passes on the stream (a cudaStream_t). Nothing waits, nothing is allocated.

    Args:
        params: as csrc/cuda/resample.h has them; addresses of device memory.
        device: its number.
        stream: where.

    Raises:
        BackendError: the library is missing or of another build, or the launch failed.
    """
    library = cuda.load_with(2, ResampleParams)
    cuda.check(library, library.mscope_cuda_resample(ctypes.byref(params), device, ctypes.c_void_p(stream)))
