"""Images that another library already has on the device, read where they are: PyCUDA, CuPy, torch and their like."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mscope.core.errors import InputError
from mscope.runtime.device.cuda import Device
from mscope.runtime.device.stream import LEGACY_STREAM, Stream

_CUDA, _CUDA_MANAGED = 2, 13  # DLDeviceType
_ALIGNMENT = 256  # of a tensor's address, as TensorRT wants it


@dataclass(frozen=True)
class DeviceArray:
    """A dense float32 batch (rows, ...) in device memory, ordered before what our stream does from now on.

    Attributes:
        address: of the first row.
        rows: images.
        row_bytes: from one image to the next.
        owner: keeps the memory alive.
    """

    address: int
    rows: int
    row_bytes: int
    owner: Any

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, rows: slice) -> DeviceArray:
        start, stop, step = rows.indices(self.rows)
        assert step == 1
        return replace(self, address=self.address + start * self.row_bytes, rows=max(0, stop - start))

    @property
    def aligned(self) -> bool:
        return self.address % _ALIGNMENT == 0


def is_device_array(array: Any) -> bool:
    """Whether `array` lies on a CUDA device, by what it says itself; touches no device."""
    if isinstance(array, np.ndarray):
        return False
    # First, for torch's other interface raises RuntimeError where a tensor requires a gradient.
    if hasattr(array, "__dlpack_device__"):
        return int(array.__dlpack_device__()[0]) in (_CUDA, _CUDA_MANAGED)
    return hasattr(array, "__cuda_array_interface__")


def device_array(array: Any, shape: tuple[int, int, int], device: Device, stream: Stream) -> DeviceArray:
    """A view of another library's batch on our device; nothing is copied.

    Args:
        array: has `__dlpack__` or `__cuda_array_interface__`; (B, *shape) float32, dense, on `device`.
        shape: (C, H, W).
        device: ours.
        stream: ours; it is made to wait for what the other library has queued so far to write the array. DLPack's
            producer sees to that itself. The interface's version 3 names the producer's stream. Where it names none
            there should be nothing to wait for, but PyCUDA never names one and queues on the default stream: so
            that is waited for, as it is for earlier versions, which say nothing of streams.

    Raises:
        InputError: another dtype, shape, layout or device.
    """
    if hasattr(array, "__dlpack_device__"):
        # First, for torch gives nothing away that is not on the current device.
        _check_index(int(array.__dlpack_device__()[1]), device)
    view = _described(array, stream)
    if view.dtype != "float32":
        raise InputError(f"tensor: got dtype {view.dtype}, expected float32 (a normalised tensor)")
    if len(view.shape) != 4 or tuple(view.shape[1:]) != shape:
        raise InputError(f"tensor: got shape {tuple(view.shape)}, expected {('B', *shape)}")
    if not _dense(tuple(view.shape), tuple(view.strides)):
        raise InputError("tensor: its rows do not lie side by side on the device: make it contiguous")
    rows = int(view.shape[0])
    if rows:
        _check_place(int(view.pointer), device)
    return DeviceArray(int(view.pointer), rows, 4 * math.prod(shape), view.owner)


def _described(array: Any, stream: Stream) -> Any:
    from mscope.plugins import cuda_arrays

    try:
        if hasattr(array, "__dlpack__"):
            # The capsule goes at once: asking for it is what orders the two streams.
            array.__dlpack__(stream=stream.handle)
        else:
            interface = array.__cuda_array_interface__
            told = interface.get("stream") if int(interface.get("version", 0)) >= 3 else None
            if told == 0:
                raise InputError("tensor: its __cuda_array_interface__ names stream 0, which the protocol forbids")
            stream.wait_for(LEGACY_STREAM if told is None else int(told))
        return cuda_arrays.view(array, "tensor")
    except (BufferError, RuntimeError) as error:
        hint = ": detach it first" if "grad" in str(error) else ""
        raise InputError(f"tensor: it does not give its memory away ({error}){hint}") from None


def _dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected and 0 not in shape:
            return False
        expected *= size
    return True


def _check_place(address: int, device: Device) -> None:
    """The driver's own word on an address: a protocol that names no device is not believed."""
    api = device.api
    attributes = device.call("cudaPointerGetAttributes", address, doing="the given array")
    kinds = api.cudaMemoryType
    if int(attributes.type) not in (int(kinds.cudaMemoryTypeDevice), int(kinds.cudaMemoryTypeManaged)):
        raise InputError("tensor: its address is not device memory")
    _check_index(int(attributes.device), device)
    if not attributes.devicePointer:
        raise InputError(
            "tensor: it belongs to another CUDA context than the device's primary one, which everything else here "
            "uses (PyCUDA: import pycuda.autoprimaryctx in the place of pycuda.autoinit)"
        )


def _check_index(there: int, device: Device) -> None:
    if there != device.index:
        raise InputError(f"tensor: it lies on device {there}, the bundle runs on device {device.index}: move it")
