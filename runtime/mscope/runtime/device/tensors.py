"""Tensors of the contract in device memory, with page-locked host memory where the host reads or writes them."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from mscope.core.contract import Tensor
from mscope.runtime.device.cuda import Device, Memory
from mscope.runtime.device.stream import Stream


class DeviceTensor:
    """Room for `rows` rows of one tensor on the device. Filled with zeros, so that padding is never garbage.

    Attributes:
        address: of the first row.
        row_bytes: from one row to the next.
    """

    def __init__(self, memory: Memory, stream: Stream, tensor: Tensor, rows: int) -> None:
        self._describe(tensor, rows)
        self.address = memory.on_device(self._bytes, self._purpose)
        stream.zero(self.address, self._bytes)

    def _describe(self, tensor: Tensor, rows: int) -> None:
        self.rows = rows
        self.shape = tuple(int(axis) for axis in tensor.axes[1:])
        self.dtype = np.dtype(tensor.dtype)
        self.row_bytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        self._bytes = rows * self.row_bytes
        self._purpose = f"'{tensor.name}' of {rows} images"


class StagedTensor(DeviceTensor):
    """A tensor that the host fills or reads: `host` (rows, ...) is page-locked.

    On a GPU that shares the host's memory there is one copy of it, and upload and download do nothing. `host` belongs
    to the GPU from `upload` and `download` until the stream is synchronised.
    """

    def __init__(self, device: Device, memory: Memory, stream: Stream, tensor: Tensor, rows: int) -> None:
        self._describe(tensor, rows)
        self._stream = stream
        self._host_address, mapped = memory.on_host(self._bytes, self._purpose)
        self.host = host_array(self._host_address, self.dtype, (rows, *self.shape))
        self.host[...] = 0
        self._shared = device.integrated
        if self._shared:
            self.address = mapped
        else:
            self.address = memory.on_device(self._bytes, self._purpose)
            stream.zero(self.address, self._bytes)

    def upload(self, rows: int, *, first: int = 0) -> None:
        """Queues the copy of `rows` rows to the device, from row `first` on."""
        if not self._shared:
            start = first * self.row_bytes
            size = rows * self.row_bytes
            self._stream.copy(self.address + start, self._host_address + start, size, "HostToDevice")

    def download(self, rows: int) -> None:
        """Queues the copy of the first rows to the host."""
        if not self._shared:
            self._stream.copy(self._host_address, self.address, rows * self.row_bytes, "DeviceToHost")


def host_array(address: int, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """An array over host memory that somebody else owns."""
    count = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address)).view(dtype).reshape(shape)
