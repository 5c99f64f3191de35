"""Views of other libraries' CUDA arrays, without a copy: torch tensors, `__cuda_array_interface__`, DLPack."""

from __future__ import annotations

import ctypes
from typing import Any

from mscope.core.errors import InputError
from mscope.plugins.cuda_arguments import Array

_CUDA, _CUDA_MANAGED = 2, 13  # DLDeviceType
_TYPES = {(2, 32): "float32", (2, 16): "float16", (4, 16): "bfloat16", (2, 64): "float64"}  # (DLDataTypeCode, bits)
_TYPESTR = {"<f4": "float32", "<f2": "float16", "<f8": "float64"}


class _DLTensor(ctypes.Structure):
    """DLTensor of dlpack.h, with which a DLManagedTensor begins."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def view(array: Any, name: str = "an array") -> Array:
    """The memory of a torch tensor, or of anything with `__cuda_array_interface__` or `__dlpack__`.

    Nothing is synchronised: whoever wrote the array did so on the stream that the kernel will run on, or has waited.

    Raises:
        InputError: `array` is none of these, or holds something else than floating-point numbers.
    """
    if hasattr(array, "data_ptr"):  # torch: its two other interfaces cost several microseconds a tensor
        return Array(
            array.data_ptr(), tuple(array.shape), array.stride(), str(array.dtype).removeprefix("torch."),
            str(array.device), array,
        )  # fmt: skip
    if hasattr(array, "__cuda_array_interface__"):
        return _from_interface(array, name)
    if hasattr(array, "__dlpack__"):
        return _from_dlpack(array, name)
    raise InputError(
        f"{name} is a {type(array).__name__}: expected a torch tensor or an array with __cuda_array_interface__ or "
        "__dlpack__"
    )


def _from_interface(array: Any, name: str) -> Array:
    said = array.__cuda_array_interface__
    dtype = _TYPESTR.get(said["typestr"])
    if dtype is None:
        raise InputError(f"{name} has typestr {said['typestr']}: expected one of {', '.join(_TYPESTR)}")
    if said.get("mask") is not None:
        raise InputError(f"{name} has a mask: what it leaves out would be read all the same")
    shape = tuple(said["shape"])
    bytes_each = int(said["typestr"][2:])
    strides = said.get("strides")
    if strides is not None and any(stride % bytes_each for stride in strides):
        raise InputError(f"{name} has strides of {strides} bytes, no multiples of its elements' {bytes_each}: copy it")
    elements = _dense_strides(shape) if strides is None else tuple(stride // bytes_each for stride in strides)
    # The protocol does not name the device; DLPack, which most of its users have as well, does.
    device = int(array.__dlpack_device__()[1]) if hasattr(array, "__dlpack_device__") else 0
    return Array(int(said["data"][0]), shape, elements, dtype, f"cuda:{device}", array)


def _from_dlpack(array: Any, name: str) -> Array:
    kind, _ = array.__dlpack_device__()
    # -1 asks the producer not to synchronise; for host memory no stream may be named.
    capsule = array.__dlpack__(stream=-1) if kind in (_CUDA, _CUDA_MANAGED) else array.__dlpack__()
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = _DLTensor.from_address(pointer_of(capsule, b"dltensor"))
    dtype = _TYPES.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    if dtype is None:
        raise InputError(f"{name} has DLPack type code {tensor.code} of {tensor.bits} bits: expected floating point")
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else _dense_strides(shape)
    device = f"cuda:{tensor.device_id}" if kind in (_CUDA, _CUDA_MANAGED) else "cpu"
    # Never renamed to "used_dltensor", the capsule frees its tensor when it goes: it is the owner.
    return Array((tensor.data or 0) + tensor.byte_offset, shape, strides, dtype, device, capsule)


def _dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))
