"""The CUDA kernels (libmscope_cuda): the ops of docs/ops.md for inference, called on any library's device arrays.

Every function takes arrays as `cuda_arrays.view` does, writes into arrays that the caller made, and queues its work on
the stream given as an integer (torch: `torch.cuda.current_stream().cuda_stream`; 0 is the default stream). Nothing is
copied, nothing waits. docs/cuda.md says how the kernels work.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from typing import Any

from mscope.core.errors import BackendError, InputError
from mscope.plugins import cuda_arguments as arguments
from mscope.plugins import find
from mscope.plugins.cuda_arguments import Array, Call
from mscope.plugins.cuda_arrays import view

_library: ctypes.CDLL | None = None
_lock = threading.Lock()


def why_missing(device: int = 0) -> str:
    """Why the kernels cannot run on the device, and what to do about it; "" where they can."""
    try:
        library = load()
    except BackendError as error:
        return str(error)
    return _why_unsupported(library, device)


@functools.cache
def available(device: int = 0) -> bool:
    """Whether the library is built, fits this package and has code for the device."""
    return why_missing(device) == ""


def load() -> ctypes.CDLL:
    """The library, loaded by the first call. Raises BackendError: not built, or built for another version."""
    global _library
    with _lock:
        if _library is None:
            _library = _load()
        return _library


def load_with(which: int, mirror: type[ctypes.Structure]) -> ctypes.CDLL:
    """The library, once its struct `which` (of mscope_cuda_struct_bytes) is known to be the mirror. As `load`."""
    library = load()
    _check_struct(library, which, mirror)
    return library


def check(library: ctypes.CDLL, status: int) -> None:
    """Raises BackendError where a launch gave a status that is not 0."""
    if status != 0:
        raise BackendError(f"the CUDA kernel was not launched ({status}): {_message(library, status)}")


def targets() -> str:
    """What the library holds code for, as "75 80 ... ptx120"."""
    text: bytes = load().mscope_cuda_targets()
    return text.decode()


def causal_conv1d_silu(
    xz: Any,
    weight: Any = None,
    bias: Any = None,
    weight_b: Any = None,
    bias_b: Any = None,
    *,
    out: Any,
    stream: int = 0,
) -> None:
    """Op `CausalConv1dSiLU`: both directions, or the one whose weight is given, on the first C channels of xz.

    Args:
        xz: (B, L, C + any) T.
        weight: (C, W) T, W from 2 to 4; bias: (C,) T; `weight_b`, `bias_b` likewise, for the backward direction.
        out: (K, B * L, C) T, written: the K directions that are given, forward first. Shares no memory with an input.
        stream: a cudaStream_t.

    Raises:
        InputError: arrays that do not fit each other.
        BackendError: the library is missing, or the launch failed.
    """
    call = arguments.causal_conv1d_silu(
        view(xz, "xz"), _maybe(weight, "weight"), _maybe(bias, "bias"), _maybe(weight_b, "weight_b"),
        _maybe(bias_b, "bias_b"), view(out, "out"),
    )  # fmt: skip
    library = load()
    check(library, library.mscope_cuda_conv_silu(ctypes.byref(call.params), call.dtype, _device(call), stream))


def selective_scan(
    x: Any,
    delta: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any,
    z: Any = None,
    delta_bias: Any = None,
    *,
    out: Any,
    reverse: bool = False,
    delta_softplus: bool = True,
    stream: int = 0,
    allocate: Callable[[int], Any] | None = None,
) -> None:
    """Op `SelectiveScan`; shapes and dtypes as in docs/ops.md.

    Args:
        out: (B, L, C) T, written. Shares no memory with an input.
        stream: a cudaStream_t.
        allocate: makes scratch memory of so many bytes on the device, as an array; called for long sequences.

    Raises:
        InputError: arrays that do not fit each other.
        BackendError: the library is missing, or the launch failed.
    """
    call = arguments.selective_scan(
        view(out, "out"), view(x, "x"), view(delta, "delta"), view(A, "A"), view(B, "B"), view(C, "C"), view(D, "D"),
        _maybe(z, "z"), _maybe(delta_bias, "delta_bias"), reverse=reverse, delta_softplus=delta_softplus,
    )  # fmt: skip
    _scan(call, stream, allocate)


def bidirectional_selective_scan(
    xz: Any,
    x: Any,
    dbc: Any,
    dt_weight: Any,
    dt_bias: Any,
    A: Any,
    D: Any,
    dt_weight_b: Any,
    dt_bias_b: Any,
    A_b: Any,
    D_b: Any,
    *,
    out: Any,
    stream: int = 0,
    allocate: Callable[[int], Any] | None = None,
) -> None:
    """Op `BidirectionalSelectiveScan`; shapes and dtypes as in docs/ops.md, `out`, `stream` and `allocate` as above."""
    arrays = {
        "xz": xz, "x": x, "dbc": dbc, "dt_weight": dt_weight, "dt_bias": dt_bias, "A": A, "D": D,
        "dt_weight_b": dt_weight_b, "dt_bias_b": dt_bias_b, "A_b": A_b, "D_b": D_b,
    }  # fmt: skip
    views = (view(array, name) for name, array in arrays.items())
    _scan(arguments.bidirectional_selective_scan(view(out, "out"), *views), stream, allocate)


def _scan(call: Call, stream: int, allocate: Callable[[int], Any] | None) -> None:
    library, device = load(), _device(call)
    params, needed = call.params, ctypes.c_int64()
    assert isinstance(params, arguments.ScanParams)
    pointer = ctypes.byref(params)
    check(library, library.mscope_cuda_scan_workspace(pointer, call.dtype, device, ctypes.byref(needed)))
    scratch = None
    if needed.value:
        if allocate is None:
            raise InputError(f"this scan needs {needed.value} bytes of scratch memory: pass `allocate`")
        # Held until the launch is queued; allocators that follow the stream's order may have it back then.
        scratch = allocate(needed.value)
        params.workspace, params.workspace_bytes = _address(scratch), needed.value
    check(library, library.mscope_cuda_scan(pointer, call.dtype, device, stream))
    del scratch


def _address(scratch: Any) -> int:
    if hasattr(scratch, "data_ptr"):
        return int(scratch.data_ptr())
    return int(scratch.__cuda_array_interface__["data"][0])


def _maybe(array: Any, name: str) -> Array | None:
    return None if array is None else view(array, name)


def _device(call: Call) -> int:
    kind, _, index = call.device.partition(":")
    if kind != "cuda":
        raise InputError(f"the arrays are on {call.device}: the CUDA kernels take arrays on a CUDA device")
    return int(index or 0)


def _load() -> ctypes.CDLL:
    library = ctypes.CDLL(str(find.require("cuda")))
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "mscope_cuda_struct_bytes": (ctypes.c_int64, [integer]),
        "mscope_cuda_targets": (ctypes.c_char_p, []),
        "mscope_cuda_device_count": (integer, [pointer]),
        "mscope_cuda_supports": (integer, [integer]),
        "mscope_cuda_scan_workspace": (integer, [pointer, integer, integer, pointer]),
        "mscope_cuda_scan": (integer, [pointer, integer, integer, pointer]),
        "mscope_cuda_conv_silu": (integer, [pointer, integer, integer, pointer]),
        "mscope_cuda_message": (ctypes.c_char_p, [integer]),
    }
    for name, (result, takes) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, takes
    for which, mirror in enumerate((arguments.ScanParams, arguments.ConvParams)):
        _check_struct(library, which, mirror)
    return library


@functools.cache
def _check_struct(library: ctypes.CDLL, which: int, mirror: type[ctypes.Structure]) -> None:
    found = library.mscope_cuda_struct_bytes(which)
    if found != ctypes.sizeof(mirror):
        raise BackendError(
            f"the CUDA library's {mirror.__name__} has {found} bytes, this package's {ctypes.sizeof(mirror)}: "
            "rebuild it with 'python -m mscope.plugins.build_cuda --force'"
        )


def _why_unsupported(library: ctypes.CDLL, device: int) -> str:
    count = ctypes.c_int()
    status = library.mscope_cuda_device_count(ctypes.byref(count))
    if status != 0:
        return f"CUDA finds no device: {_message(library, status)}"
    if device >= count.value:
        return f"there is no CUDA device {device}: {count.value} found"
    status = library.mscope_cuda_supports(device)
    if status != 0:
        return f"the CUDA kernels ({targets()}) do not run on device {device}: {_message(library, status)}"
    return ""


def _message(library: ctypes.CDLL, status: int) -> str:
    text: bytes = library.mscope_cuda_message(status)
    return text.decode()
