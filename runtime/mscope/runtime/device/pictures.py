"""Decoded pictures to the network's input on the device: one upload of bytes each, scaled and normalised there."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mscope.core.contract import Tensor
from mscope.core.errors import BackendError
from mscope.runtime.device.cuda import Device, Memory
from mscope.runtime.device.stream import Stream
from mscope.runtime.device.tensors import StagedTensor, host_array
from mscope.runtime.resampling import Axis, Crop, down_first_rule
from mscope.runtime.result import Floats

_ALIGNMENT = 256
# Pictures of a batch share so much memory in turn; one that needs more gets more, which goes back afterwards.
_SHARED = 32 << 20
_KEPT = 64 << 20


class Pictures:
    """A batch of pictures still to be scaled; tensors (C, H, W) float32 that need no scaling may be among them."""

    def __init__(self, items: Sequence[Crop | Floats]) -> None:
        self.items = tuple(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, rows: slice) -> Pictures:
        return Pictures(self.items[rows])


@dataclass(frozen=True)
class _Block:
    """Where a crop's pixels and tables lie, in bytes from the block's beginning."""

    crop: Crop
    across: tuple[int, int, int]
    down: tuple[int, int, int]
    size: int

    def arrays(self) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        """What is uploaded, as bytes, and where it goes."""
        yield 0, self.crop.pixels.reshape(-1)
        plan = self.crop.plan
        for places, axis in ((self.across, plan.across), (self.down, plan.down)):
            for place, table in zip(places, (axis.first, axis.count, axis.weights), strict=True):
                yield place, table.reshape(-1).view(np.uint8)

    @property
    def scratch(self) -> int:
        """Bytes between the two passes."""
        rows, columns, channels = (int(size) for size in self.crop.pixels.shape)
        plan = self.crop.plan
        return channels * (plan.down.outputs * columns if plan.down_first else rows * plan.across.outputs)


class PictureStage:
    """Page-locked memory for pictures on their way, the same on the device, and the kernels that scale them.

    Not for several threads at once; the stream must be idle when `place` is called.

    Args:
        device, stream: where.
        shape: (C, H, W) of the network's input.
        levels: (C, 256) float32, what each byte becomes.

    Raises:
        BackendError: no CUDA kernels for this device, no memory, or a Pillow that scales in an unknown way.
    """

    def __init__(self, device: Device, stream: Stream, shape: tuple[int, int, int], levels: Floats) -> None:
        from mscope.plugins import cuda

        if reason := cuda.why_missing(device.index):
            raise BackendError(f"--preprocess device needs the CUDA kernels: {reason}")
        down_first_rule()  # asked now, so that the first picture's time is its own
        self._device, self._stream, self._shape = device, stream, shape
        self._fixed, self._lent = Memory(device), Memory(device)
        self._capacity = self._scratch_size = 0
        self._closed = False
        try:
            table = Tensor("levels", "float32", ("channels", 256))
            self._levels = StagedTensor(device, self._fixed, stream, table, shape[0])
            self._levels.host[:] = levels
            self._levels.upload(shape[0])
            stream.synchronize()
        except BaseException:
            self.close()
            raise

    def place(self, crops: Sequence[Crop], addresses: Sequence[int]) -> None:
        """Queues the upload of each picture and its scaling to (C, H, W) float32 at an address.

        Raises:
            BackendError: no memory for them, or a launch failed.
        """
        blocks = [_block(crop) for crop in crops]
        self._reserve(blocks)
        used = 0
        for block, address in zip(blocks, addresses, strict=True):
            if used + block.size > self._capacity:
                # What is queued still reads the memory that this one is to be written to.
                self._stream.synchronize()
                used = 0
            for place, array in block.arrays():
                self._host[used + place : used + place + array.size] = array
            if not self._device.integrated:
                start = self._host_address + used
                self._stream.copy(self._address + used, start, block.size, "HostToDevice")
            self._scale(block, self._address + used, address)
            used += block.size

    def close(self) -> None:
        """Waits for the work and gives the memory back; further calls do nothing."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(BackendError):
            self._stream.synchronize()
        self._lent.release()
        self._fixed.release()

    def _reserve(self, blocks: Sequence[_Block]) -> None:
        largest = max(block.size for block in blocks)
        needed = max(largest, min(sum(block.size for block in blocks), _SHARED))
        scratch = max(block.scratch for block in blocks)
        held = self._capacity + self._scratch_size
        if needed <= self._capacity and scratch <= self._scratch_size and held <= max(_KEPT, 2 * needed):
            return
        self._stream.synchronize()
        self._lent.release()
        self._capacity = self._scratch_size = 0
        self._host_address, mapped = self._lent.on_host(needed, "decoded pictures")
        self._address = mapped if self._device.integrated else self._lent.on_device(needed, "decoded pictures")
        self._scratch = self._lent.on_device(scratch, "half-scaled pictures")
        self._host = host_array(self._host_address, np.uint8, (needed,))
        self._capacity, self._scratch_size = needed, scratch

    def _scale(self, block: _Block, at: int, target: int) -> None:
        from mscope.plugins.cuda_resample import ResampleParams, resample

        rows, columns, channels = block.crop.pixels.shape
        plan = block.crop.plan
        params = ResampleParams(
            at, rows, columns, columns * channels, channels, plan.down.outputs, plan.across.outputs,
            _table(plan.across, block.across, at), _table(plan.down, block.down, at), int(plan.down_first),
            self._scratch, self._levels.address, target,
        )  # fmt: skip
        resample(params, self._device.index, self._stream.handle)


def _block(crop: Crop) -> _Block:
    places, end = [], _aligned(crop.pixels.size)
    for axis in (crop.plan.across, crop.plan.down):
        for table in (axis.first, axis.count, axis.weights):
            places.append(end)
            end += _aligned(table.nbytes)
    first, second, third, *rest = places
    return _Block(crop, (first, second, third), (rest[0], rest[1], rest[2]), end)


def _table(axis: Axis, places: tuple[int, int, int], at: int) -> ctypes.Structure:
    from mscope.plugins.cuda_resample import ResampleAxis

    return ResampleAxis(len(axis.weights), *(at + place for place in places))


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
