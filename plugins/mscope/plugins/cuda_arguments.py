"""The structs of csrc/cuda/params.h, filled in from checked arrays. Knows no framework and no device.

Shapes are those of docs/ops.md. Arrays may be views: only the last axis of x, z, dbc and the like must be contiguous.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass

from mscope.core.errors import InputError

# In the order of MscopeDtype.
DTYPES = ("float32", "float16", "bfloat16")
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Array:
    """A strided block of memory: address of its first element, strides in elements, device as "cuda:0" or "cpu"."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    device: str
    # Keeps the memory alive while the view is.
    owner: object = None

    def last(self, start: int, stop: int) -> Array:
        """Elements [start, stop) of the last axis, whose stride must be 1."""
        offset = start * ITEM_BYTES[self.dtype]
        shape = (*self.shape[:-1], stop - start)
        return Array(self.pointer + offset, shape, self.strides, self.dtype, self.device, self.owner)

    def span(self) -> tuple[int, int]:
        """The bytes from its lowest element to its highest, as addresses: rows may run backwards. It has elements."""
        reach = [(size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True)]
        low, high = sum(r for r in reach if r < 0), sum(r for r in reach if r > 0)
        item = ITEM_BYTES[self.dtype]
        return self.pointer + low * item, self.pointer + (high + 1) * item

    def dense(self) -> bool:
        """Whether the span holds its elements and nothing else."""
        first, end = self.span()
        return end - first == math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def direction(self, index: int, batch: int, length: int) -> Array:
        """Entry `index` of (K, B * L, C) as (B, L, C)."""
        first, row, column = self.strides
        offset = index * first * ITEM_BYTES[self.dtype]
        shape, strides = (batch, length, self.shape[2]), (row * length, row, column)
        return Array(self.pointer + offset, shape, strides, self.dtype, self.device, self.owner)


class Rows(ctypes.Structure):
    """MscopeRows."""

    _fields_ = (("data", ctypes.c_void_p), ("row", ctypes.c_int64), ("batch", ctypes.c_int64))


class ScanDirection(ctypes.Structure):
    """MscopeScanDirection."""

    _fields_ = (
        *((name, Rows) for name in ("x", "delta", "B", "C")),
        *((name, ctypes.c_void_p) for name in ("dt_weight", "dt_bias", "A", "D")),
        ("reverse", ctypes.c_int64),
    )


class ScanParams(ctypes.Structure):
    """MscopeScanParams."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "length", "channels", "states", "rank")),
        *((name, ctypes.c_int64) for name in ("directions", "delta_softplus")),
        ("direction", ScanDirection * 2),
        ("z", Rows),
        ("y", Rows),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_int64),
    )


class ConvParams(ctypes.Structure):
    """MscopeConvParams."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "length", "channels", "width")),
        ("x", Rows),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "weight_b", "bias_b")),
        ("y", Rows),
        ("y_b", Rows),
    )


@dataclass(frozen=True)
class Call:
    """Checked parameters of one launch, and where it runs."""

    params: ScanParams | ConvParams
    dtype: int
    device: str


def selective_scan(
    y: Array, x: Array, delta: Array, A: Array, B: Array, C: Array, D: Array, z: Array | None, delta_bias: Array | None,
    *, reverse: bool, delta_softplus: bool,
) -> Call:  # fmt: skip
    """Op `SelectiveScan`. Raises InputError for arrays that do not fit each other."""
    check = _Checker("x", x)
    batch, length, channels = check.sizes3()
    states = check.second_size("A", A, channels)
    tokens = (batch, length)
    params = ScanParams(batch, length, channels, states, 0, 1, int(delta_softplus))
    params.direction[0] = ScanDirection(
        check.rows("x", x, (*tokens, channels)),
        check.rows("delta", delta, (*tokens, channels)),
        check.rows("B", B, (*tokens, states)),
        check.rows("C", C, (*tokens, states)),
        None,
        check.optional("delta_bias", delta_bias, (channels,), "float32"),
        check.dense("A", A, (channels, states), "float32"),
        check.dense("D", D, (channels,), "float32"),
        int(reverse),
    )
    if z is not None:
        params.z = check.rows("z", z, (*tokens, channels))
    params.y = check.written("y", y, (*tokens, channels))
    return Call(params, check.dtype, x.device)


def bidirectional_selective_scan(
    y: Array, xz: Array, x: Array, dbc: Array,
    dt_weight: Array, dt_bias: Array, A: Array, D: Array,
    dt_weight_b: Array, dt_bias_b: Array, A_b: Array, D_b: Array,
) -> Call:  # fmt: skip
    """Op `BidirectionalSelectiveScan`. Raises InputError for arrays that do not fit each other."""
    check = _Checker("xz", xz)
    batch, length, wide = check.sizes3()
    channels = wide // 2
    if wide % 2 or not channels:
        raise InputError(f"xz has shape {xz.shape}: its last axis must be even, the channels of x and of z")
    rank = check.second_size("dt_weight", dt_weight, channels)
    states = check.second_size("A", A, channels)
    tokens = (batch, length)
    params = ScanParams(batch, length, channels, states, rank, 2, 1)
    check.rows("x", x, (2, batch * length, channels))
    check.rows("dbc", dbc, (2, batch * length, rank + 2 * states))
    parameters = (("", dt_weight, dt_bias, A, D), ("_b", dt_weight_b, dt_bias_b, A_b, D_b))
    for i, (suffix, weight, bias, decay, skip) in enumerate(parameters):
        part = dbc.direction(i, batch, length)
        params.direction[i] = ScanDirection(
            check.rows("x", x.direction(i, batch, length), (*tokens, channels)),
            check.rows("dbc", part.last(0, rank), (*tokens, rank)),
            check.rows("dbc", part.last(rank, rank + states), (*tokens, states)),
            check.rows("dbc", part.last(rank + states, rank + 2 * states), (*tokens, states)),
            check.dense(f"dt_weight{suffix}", weight, (channels, rank)),
            check.dense(f"dt_bias{suffix}", bias, (channels,), "float32"),
            check.dense(f"A{suffix}", decay, (channels, states), "float32"),
            check.dense(f"D{suffix}", skip, (channels,), "float32"),
            i,
        )
    params.z = check.rows("xz", xz.last(channels, 2 * channels), (*tokens, channels))
    params.y = check.written("y", y, (*tokens, channels))
    return Call(params, check.dtype, xz.device)


def causal_conv1d_silu(
    xz: Array, weight: Array | None, bias: Array | None, weight_b: Array | None, bias_b: Array | None, y: Array
) -> Call:
    """Op `CausalConv1dSiLU`; here either direction may be left out. Raises InputError for what does not fit."""
    first = weight if weight is not None else weight_b
    if first is None:
        raise InputError("the convolution got neither weight nor weight_b: give at least one direction")
    check = _Checker("xz", xz)
    batch, length, wide = check.sizes3()
    if len(first.shape) != 2:
        raise InputError(f"weight has shape {first.shape}: expected (C, W)")
    channels, width = first.shape
    if width not in (2, 3, 4):
        raise InputError(f"weight has shape {first.shape}: a width of 2, 3 or 4 is expected, got {width}")
    if wide < channels:
        raise InputError(
            f"xz has shape {xz.shape}: its last axis must hold the {channels} channels of weight {first.shape}"
        )
    tokens = (batch, length)
    params = ConvParams(batch, length, channels, width, check.rows("xz", xz.last(0, channels), (*tokens, channels)))
    directions = [("", weight, bias), ("_b", weight_b, bias_b)]
    for suffix, taps, offset in directions:
        if (taps is None) != (offset is None):
            raise InputError(f"weight{suffix} and bias{suffix} come together: one is given and the other is not")
    given = [(suffix, taps, offset) for suffix, taps, offset in directions if taps is not None and offset is not None]
    check.written("y", y, (len(given), batch * length, channels))
    for i, (suffix, taps, offset) in enumerate(given):
        setattr(params, f"weight{suffix}", check.dense(f"weight{suffix}", taps, (channels, width)))
        setattr(params, f"bias{suffix}", check.dense(f"bias{suffix}", offset, (channels,)))
        setattr(params, f"y{suffix}", check.rows("y", y.direction(i, batch, length), (*tokens, channels)))
    return Call(params, check.dtype, xz.device)


class _Checker:
    """Holds every array to the dtype and device of the first one, and says both sides where one differs."""

    def __init__(self, name: str, first: Array) -> None:
        if first.dtype not in DTYPES:
            raise InputError(f"{name} is {first.dtype}: expected one of {', '.join(DTYPES)}")
        self.name, self.first = name, first
        self._read: list[tuple[str, Array]] = []
        self.dtype = DTYPES.index(first.dtype)

    def sizes3(self) -> tuple[int, int, int]:
        if len(self.first.shape) != 3:
            raise InputError(f"{self.name} has shape {self.first.shape}: expected three axes (B, L, C)")
        batch, length, channels = self.first.shape
        if length < 1 or channels < 1:
            raise InputError(f"{self.name} has shape {self.first.shape}: at least one token and one channel are needed")
        return batch, length, channels

    def second_size(self, name: str, array: Array, channels: int) -> int:
        if len(array.shape) != 2 or array.shape[0] != channels or array.shape[1] < 1:
            raise InputError(
                f"{name} has shape {array.shape}: expected two axes, the first of size {channels} as in "
                f"{self.name} {self.first.shape}"
            )
        return array.shape[1]

    def rows(self, name: str, array: Array, shape: Sequence[int]) -> Rows:
        self._same(name, array, shape, self.first.dtype)
        if 0 not in array.shape and array.shape[-1] > 1 and array.strides[-1] != 1:
            raise InputError(f"{name} has strides {array.strides}: its last axis must be contiguous (stride 1)")
        self._read.append((name, array))
        return Rows(array.pointer, array.strides[1], array.strides[0])

    def written(self, name: str, array: Array, shape: Sequence[int]) -> Rows:
        """As `rows`, for what is written, after all that is read: inputs go through a cache that sees no writes."""
        read, self._read = self._read, []
        rows = self.rows(name, array, shape)
        if 0 in shape:
            return rows
        if any(size > 1 and stride == 0 for size, stride in zip(array.shape, array.strides, strict=True)):
            raise InputError(f"{name} has strides {array.strides}: each of its elements needs memory of its own")
        first, end = array.span()
        for other, given in read:
            # Views may lie between each other's rows: two spans that meet say something of dense arrays alone.
            theirs = given.span()
            meets = theirs[0] < end and first < theirs[1]
            if given.pointer == array.pointer or (meets and array.dense() and given.dense()):
                raise InputError(f"{name} shares memory with {other}: give it memory of its own")
        return rows

    def dense(self, name: str, array: Array, shape: Sequence[int], dtype: str | None = None) -> int:
        self._same(name, array, shape, dtype or self.first.dtype)
        expected = 1
        for size, stride in zip(reversed(array.shape), reversed(array.strides), strict=True):
            if size > 1 and stride != expected:
                raise InputError(f"{name} has shape {array.shape} and strides {array.strides}: it must be contiguous")
            expected *= size
        return array.pointer

    def optional(self, name: str, array: Array | None, shape: Sequence[int], dtype: str) -> int | None:
        return None if array is None else self.dense(name, array, shape, dtype)

    def _same(self, name: str, array: Array, shape: Sequence[int], dtype: str) -> None:
        if array.shape != tuple(shape):
            raise InputError(
                f"{name} has shape {array.shape}: expected {tuple(shape)} from {self.name} {self.first.shape} and the "
                "weights' shapes"
            )
        if array.dtype != dtype:
            raise InputError(f"{name} is {array.dtype}: expected {dtype}, as {self.name} is {self.first.dtype}")
        if array.pointer % ITEM_BYTES[dtype]:
            raise InputError(f"{name} begins at address {array.pointer:#x}, between two elements: copy it")
        if array.device != self.first.device:
            raise InputError(f"{name} is on {array.device} and {self.name} on {self.first.device}: move one of them")
