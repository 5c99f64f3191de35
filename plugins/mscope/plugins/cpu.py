"""The training kernels (libmscope_train): forward and backward of two ops of docs/ops.md in float32 on the CPU.

The functions on addresses are what mscope.model.native calls with torch's; those on numpy arrays are for tests and for
use without torch. Both release the GIL while they compute, and their results do not depend on the number of threads.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mscope.core.errors import BackendError
from mscope.plugins import find

Array = npt.NDArray[np.float32]

#: Environment variable: the instruction set to use (avx512, avx2, neon, scalar), instead of the machine's best.
ISA = "MSCOPE_ISA"
INSTRUCTION_SETS = ("avx512", "avx2", "neon", "scalar")

_STATUS = {1: "bad argument: a size, a stride or a missing tensor", 2: "out of memory"}


class Scan(ctypes.Structure):
    """MscopeScan of csrc/cpu/training.h: addresses of float32 tensors, strides in floats between tokens, sizes.

    x, delta, z: (batch, length, channels); A: (channels, states); B, C: (batch, length, states); D, delta_bias:
    (channels,). z and delta_bias may be None. Fields that are not given are zero.
    """

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "delta", "A", "B", "C", "D", "z", "delta_bias")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("x", "delta", "B", "C", "z")),
        *((name, ctypes.c_int64) for name in ("batch", "length", "channels", "states")),
        *((name, ctypes.c_int32) for name in ("reverse", "delta_softplus")),
    ]


class ScanGrads(ctypes.Structure):
    """MscopeScanGrads: y (in), and where to write the gradients of Scan's tensors; all contiguous."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("y", "x", "delta", "A", "B", "C", "D", "z", "delta_bias")]


class Conv(ctypes.Structure):
    """MscopeConv: x (batch, length, channels), weight (channels, width), bias (channels,)."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias")),
        *((name, ctypes.c_int64) for name in ("x_stride", "batch", "length", "channels", "width")),
        *((name, ctypes.c_int32) for name in ("reverse", "unused")),
    ]


class ConvGrads(ctypes.Structure):
    """MscopeConvGrads: y (in), and where to write the gradients of Conv's tensors; all contiguous."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("y", "x", "weight", "bias")]


_library: ctypes.CDLL | None = None


def available() -> bool:
    """Whether the kernels are built and fit this package; `why_missing` says what is the matter where they do not."""
    return _library is not None or find.library("train") is not None


def why_missing() -> str:
    """Why `available` is False and what to do about it; "" where it is True."""
    return find.why_missing("train")


def load() -> ctypes.CDLL:
    """The library, loaded by the first call. Raises BackendError: not built, or MSCOPE_ISA names what is not here."""
    global _library
    if _library is None:
        library = ctypes.CDLL(str(find.require("train")))
        library.mscope_train_isa.restype = ctypes.c_char_p
        library.mscope_train_set_isa.argtypes = [ctypes.c_char_p]
        for name, arguments in (
            ("scan_forward", [ctypes.POINTER(Scan), ctypes.c_void_p, ctypes.c_int32]),
            ("scan_backward", [ctypes.POINTER(Scan), ctypes.POINTER(ScanGrads), ctypes.c_int32]),
            ("conv_forward", [ctypes.POINTER(Conv), ctypes.c_void_p, ctypes.c_int32]),
            ("conv_backward", [ctypes.POINTER(Conv), ctypes.POINTER(ConvGrads), ctypes.c_int32]),
        ):
            getattr(library, f"mscope_train_{name}").argtypes = arguments
        _choose(library, os.environ.get(ISA, ""))
        _library = library
    return _library


def instruction_set() -> str:
    """The instruction set in use: one of INSTRUCTION_SETS."""
    return bytes(load().mscope_train_isa()).decode()


def set_instruction_set(name: str) -> None:
    """Uses the named instruction set from now on, in all threads; "auto" the best. Raises BackendError: not here."""
    _choose(load(), name)


def instruction_sets() -> list[str]:
    """Those that the library holds and this machine runs, best first."""
    library, current = load(), instruction_set()
    usable = [name for name in INSTRUCTION_SETS if library.mscope_train_set_isa(name.encode()) == 0]
    set_instruction_set(current)
    return usable


def _choose(library: ctypes.CDLL, name: str) -> None:
    if library.mscope_train_set_isa(name.encode()) != 0:
        raise BackendError(f"instruction set {name!r}: not one of {', '.join(INSTRUCTION_SETS)} that runs here")


def scan_forward(scan: Scan, y: int, threads: int) -> None:
    """Writes y (batch, length, channels), contiguous float32, at that address. Raises BackendError."""
    _check(load().mscope_train_scan_forward(scan, y, threads))


def scan_backward(scan: Scan, grads: ScanGrads, threads: int) -> None:
    """Writes the gradients at the addresses in `grads`, overwriting what is there. Raises BackendError."""
    _check(load().mscope_train_scan_backward(scan, grads, threads))


def conv_forward(conv: Conv, y: int, threads: int) -> None:
    """Writes y (batch, length, channels), contiguous float32, at that address. Raises BackendError."""
    _check(load().mscope_train_conv_forward(conv, y, threads))


def conv_backward(conv: Conv, grads: ConvGrads, threads: int) -> None:
    """Writes the gradients at the addresses in `grads`, overwriting what is there. Raises BackendError."""
    _check(load().mscope_train_conv_backward(conv, grads, threads))


def _check(status: int) -> None:
    if status != 0:
        raise BackendError(f"the native training kernel failed: {_STATUS.get(status, f'status {status}')}")


@dataclass(frozen=True)
class ScanGradients:
    """Gradients of `selective_scan`'s arguments, in their shapes; None for those that were not given."""

    x: Array
    delta: Array
    A: Array
    B: Array
    C: Array
    D: Array
    z: Array | None
    delta_bias: Array | None


def selective_scan(
    x: Array, delta: Array, A: Array, B: Array, C: Array, D: Array, z: Array | None = None,
    delta_bias: Array | None = None, reverse: bool = False, *, delta_softplus: bool = True, threads: int = 1,
) -> Array:  # fmt: skip
    """Op `SelectiveScan` on numpy arrays. x, delta, z: (B, L, C); A: (C, N); B, C: (B, L, N); D, delta_bias: (C,).

    Returns:
        (B, L, C) float32. Other dtypes are converted; a slice of a wider float32 array along its last axis is read in
        place.
    """
    scan, _keep = _scan_of(x, delta, A, B, C, D, z, delta_bias, reverse, delta_softplus)
    y = np.empty((scan.batch, scan.length, scan.channels), np.float32)
    scan_forward(scan, y.ctypes.data, threads)
    return y


def selective_scan_gradients(
    grad_y: Array, x: Array, delta: Array, A: Array, B: Array, C: Array, D: Array, z: Array | None = None,
    delta_bias: Array | None = None, reverse: bool = False, *, delta_softplus: bool = True, threads: int = 1,
) -> ScanGradients:  # fmt: skip
    """Gradients of sum(grad_y * selective_scan(...)); grad_y (B, L, C), the others as there."""
    scan, _keep = _scan_of(x, delta, A, B, C, D, z, delta_bias, reverse, delta_softplus)
    grad_y = np.ascontiguousarray(grad_y, np.float32)
    _expect("grad_y", grad_y, (scan.batch, scan.length, scan.channels))
    sequence = (scan.batch, scan.length, scan.channels)
    matrix = (scan.batch, scan.length, scan.states)
    result = ScanGradients(
        x=np.empty(sequence, np.float32),
        delta=np.empty(sequence, np.float32),
        A=np.empty((scan.channels, scan.states), np.float32),
        B=np.empty(matrix, np.float32),
        C=np.empty(matrix, np.float32),
        D=np.empty(scan.channels, np.float32),
        z=None if z is None else np.empty(sequence, np.float32),
        delta_bias=None if delta_bias is None else np.empty(scan.channels, np.float32),
    )
    addresses = {name: None if a is None else a.ctypes.data for name, a in vars(result).items()}
    scan_backward(scan, ScanGrads(y=grad_y.ctypes.data, **addresses), threads)
    return result


def causal_conv1d_silu(x: Array, weight: Array, bias: Array, reverse: bool = False, *, threads: int = 1) -> Array:
    """One direction of op `CausalConv1dSiLU` on numpy arrays. x: (B, L, C); weight: (C, W); bias: (C,). (B, L, C)."""
    conv, _keep = _conv_of(x, weight, bias, reverse)
    y = np.empty((conv.batch, conv.length, conv.channels), np.float32)
    conv_forward(conv, y.ctypes.data, threads)
    return y


def causal_conv1d_silu_gradients(
    grad_y: Array, x: Array, weight: Array, bias: Array, reverse: bool = False, *, threads: int = 1
) -> tuple[Array, Array, Array]:
    """Gradients of sum(grad_y * causal_conv1d_silu(...)) for x, weight and bias, in their shapes."""
    conv, _keep = _conv_of(x, weight, bias, reverse)
    grad_y = np.ascontiguousarray(grad_y, np.float32)
    _expect("grad_y", grad_y, (conv.batch, conv.length, conv.channels))
    grad_x = np.empty((conv.batch, conv.length, conv.channels), np.float32)
    grad_weight = np.empty((conv.channels, conv.width), np.float32)
    grad_bias = np.empty(conv.channels, np.float32)
    addresses = [a.ctypes.data for a in (grad_y, grad_x, grad_weight, grad_bias)]
    conv_backward(conv, ConvGrads(*addresses), threads)
    return grad_x, grad_weight, grad_bias


def _scan_of(
    x: Array, delta: Array, A: Array, B: Array, C: Array, D: Array, z: Array | None, delta_bias: Array | None,
    reverse: bool, delta_softplus: bool,
) -> tuple[Scan, list[Any]]:  # fmt: skip
    """The call, and the arrays that it points into, which must outlive it."""
    (batch, length, channels), states = np.shape(x), np.shape(A)[1]
    scan = Scan(
        batch=batch, length=length, channels=channels, states=states,
        reverse=int(reverse), delta_softplus=int(delta_softplus),
    )  # fmt: skip
    keep: list[Any] = []
    sequence, matrix = (batch, length, channels), (batch, length, states)
    for name, rows, shape in (
        ("x", x, sequence), ("delta", delta, sequence), ("B", B, matrix), ("C", C, matrix), ("z", z, sequence),
    ):  # fmt: skip
        if rows is not None:
            array, stride = _rows(rows)
            _expect(name, array, shape)
            setattr(scan, name, array.ctypes.data)
            setattr(scan, f"{name}_stride", stride)
            keep.append(array)
    for name, values, parameter in (
        ("A", A, (channels, states)), ("D", D, (channels,)), ("delta_bias", delta_bias, (channels,)),
    ):  # fmt: skip
        if values is not None:
            array = np.ascontiguousarray(values, np.float32)
            _expect(name, array, parameter)
            setattr(scan, name, array.ctypes.data)
            keep.append(array)
    return scan, keep


def _conv_of(x: Array, weight: Array, bias: Array, reverse: bool) -> tuple[Conv, list[Any]]:
    rows, stride = _rows(x)
    weight, bias = (np.ascontiguousarray(a, np.float32) for a in (weight, bias))
    (batch, length, channels), width = rows.shape, weight.shape[1]
    _expect("weight", weight, (channels, width))
    _expect("bias", bias, (channels,))
    conv = Conv(
        rows.ctypes.data, weight.ctypes.data, bias.ctypes.data, stride, batch, length, channels, width, int(reverse), 0
    )
    return conv, [rows, weight, bias]


def _rows(array: Array) -> tuple[Array, int]:
    """The array or a contiguous float32 copy of it, and its floats from one token to the next."""
    array = np.asarray(array, np.float32)
    stride = row_stride(array.shape, tuple(s // 4 for s in array.strides))
    return (array, stride) if stride is not None else (np.ascontiguousarray(array), array.shape[2])


def row_stride(shape: tuple[int, ...], strides: tuple[int, ...]) -> int | None:
    """Elements from one token to the next of a (B, L, C) tensor, where that one number describes its layout.

    That is: tokens evenly spaced over all sequences, channels side by side. None otherwise: the kernels need a copy.
    """
    batch, length, channels = shape
    # An axis of size 1 may have any stride.
    if channels > 1 and strides[2] != 1:
        return None
    stride = strides[1] if length > 1 else strides[0] if batch > 1 else channels
    even = length == 1 or batch <= 1 or strides[0] == strides[1] * length
    return stride if even and stride >= channels else None


def _expect(name: str, array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
