"""The selection kernel of libmscope_cuda: confidence, exit and ranking of the regions, all in device memory."""

from __future__ import annotations

import ctypes

from mscope.plugins import cuda

#: kMostRegions of csrc/cuda/select_kernel.cuh.
MOST_REGIONS = 4096
# kSelectThreads, and the additions that its threads' sums meet on their way to one.
_THREADS, _COMBINED = 256, 5 + 7
_ROUNDING = 2.0**-24


class SelectParams(ctypes.Structure):
    """MscopeSelectParams."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "classes", "regions", "selected_regions")),
        *((name, ctypes.c_void_p) for name in ("logits", "importance")),
        ("temperature", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("threshold", "selected", "remaining", "report")),
        ("condition", ctypes.c_uint64),
    )


def select(params: SelectParams, device: int = 0, stream: int = 0) -> None:
    """Queues the kernel on the stream (a cudaStream_t). Nothing waits, nothing is allocated.

    Args:
        params: as csrc/cuda/select.h has them; addresses of device memory.
        device: its number.
        stream: where.

    Raises:
        BackendError: the library is missing or of another build, or the launch failed.
    """
    library = cuda.load_with(3, SelectParams)
    cuda.check(library, library.mscope_cuda_select(ctypes.byref(params), device, ctypes.c_void_p(stream)))


def confidence_margin(classes: int) -> float:
    """By how much, relatively, the kernel's confidence may differ from `core.cascade.confidence` of the same logits.

    Both divide by the temperature and subtract the largest logit exactly alike, so that they differ in exp and in the
    sum's roundings, u = 2^-24 each: exp is off by up to 2.5 units in the last place (2u) in numpy and 1 on the device;
    numpy adds in blocks of 128 in eight chains (16 + 3 additions) and halves (at most 24 levels), the kernel in a chain
    a thread and a tree; one division each, and the threshold's own rounding. An addition's error is at most u of the
    sum, as all terms are positive.
    """
    exps = 2 * (2.5 + 1.0)
    host, device = 16 + 3 + 24, -(-classes // _THREADS) + _COMBINED
    return (exps + host + device + 3) * _ROUNDING
