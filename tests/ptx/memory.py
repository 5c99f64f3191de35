"""Memory as the machine sees it: allocations with bounds, and who touched what since the last barrier."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ptx.program import PtxError

Ints = npt.NDArray[np.int64]
_NOBODY, _MANY = -1, -2


@dataclass(frozen=True)
class Clock:
    """What orders accesses: barriers that a lane's block has passed, and its warp."""

    lanes: Ints
    blocks: Ints
    warps: Ints
    block_times: Ints
    warp_times: Ints

    def of(self, rows: Ints) -> Clock:
        """Some of the lanes."""
        return Clock(
            self.lanes[rows], self.blocks[rows], self.warps[rows], self.block_times[rows], self.warp_times[rows]
        )


class Shadow:
    """The last writer and the readers of each cell, so that an access that no barrier orders is found.

    Args:
        cells: how many.
        threads: of a block.
        what: named in errors.
    """

    def __init__(self, cells: int, threads: int, what: str) -> None:
        self._threads, self._what = threads, what
        self._writer, self._reader = (np.full(cells, _NOBODY, np.int32) for _ in range(2))
        self._reader_warp, self._reader_block = (np.full(cells, _NOBODY, np.int32) for _ in range(2))
        self._write_block_time, self._write_warp_time, self._read_block_time, self._read_warp_time = (
            np.zeros(cells, np.int32) for _ in range(4)
        )

    def read(self, cells: Ints, clock: Clock) -> None:
        self._check_writers(cells, clock, "read what")
        before = self._reader[cells]
        # What a barrier lies behind need not be remembered.
        old = (before == _NOBODY) | self._ordered(
            self._reader_block[cells], self._reader_warp[cells], self._read_block_time[cells],
            self._read_warp_time[cells], clock,
        )  # fmt: skip
        for kept, mine in (
            (self._reader, clock.lanes), (self._reader_warp, clock.warps), (self._reader_block, clock.blocks),
        ):  # fmt: skip
            earlier = kept[cells]
            kept[cells] = mine
            # Several lanes may read a cell at once: the last one stands there now, and the others see that.
            kept[cells[(kept[cells] != mine) | (~old & (earlier != mine))]] = _MANY
        self._read_block_time[cells], self._read_warp_time[cells] = clock.block_times, clock.warp_times

    def write(self, cells: Ints, clock: Clock) -> None:
        self._check_writers(cells, clock, "wrote over what")
        reader = self._reader[cells]
        ordered = self._ordered(
            self._reader_block[cells], self._reader_warp[cells], self._read_block_time[cells],
            self._read_warp_time[cells], clock,
        )  # fmt: skip
        self._check((reader == _NOBODY) | (reader == clock.lanes) | ordered, reader, clock, "wrote over what", "read")
        self._writer[cells] = clock.lanes
        if np.any(self._writer[cells] != clock.lanes):
            raise PtxError(f"race: two threads write one place of {self._what} at once")
        self._write_block_time[cells], self._write_warp_time[cells] = clock.block_times, clock.warp_times

    @staticmethod
    def _ordered(block: Any, warp: Any, block_time: Any, warp_time: Any, clock: Clock) -> Any:
        """Whether a barrier of the block or the warp lies between what was done then and now."""
        return (block == clock.blocks) & (block_time < clock.block_times) | (warp == clock.warps) & (
            warp_time < clock.warp_times
        )

    def _check_writers(self, cells: Ints, clock: Clock, did: str) -> None:
        writer = self._writer[cells]
        ordered = self._ordered(
            writer // self._threads, writer // 32, self._write_block_time[cells], self._write_warp_time[cells], clock
        )
        self._check((writer == _NOBODY) | (writer == clock.lanes) | ordered, writer, clock, did, "wrote")

    def _check(self, fine: Any, other: Any, clock: Clock, did: str, before: str) -> None:
        if not np.all(fine):
            i = int(np.flatnonzero(~fine)[0])
            who = f"thread {other[i]}" if other[i] >= 0 else "other threads"
            raise PtxError(f"race: thread {clock.lanes[i]} {did} {who} {before} in {self._what}, no barrier between")


class Allocation:
    """Memory of the host's that plays the device's."""

    def __init__(self, name: str, address: int, nbytes: int, *, writable: bool) -> None:
        self.name, self.address, self.nbytes, self.writable = name, address, nbytes, writable
        self.shadow: Shadow | None = None
        self._views: dict[int, npt.NDArray[Any]] = {}

    def words(self, size: int) -> tuple[npt.NDArray[Any], int]:
        """Its memory as words of `size` bytes, and the address of the first, which may lie before it."""
        first = self.address // size * size
        if size not in self._views:
            count = -(-(self.address + self.nbytes - first) // size)
            raw = (ctypes.c_uint8 * (count * size)).from_address(first)
            self._views[size] = np.frombuffer(raw, np.dtype(f"u{size}"))
        return self._views[size], first


class Global:
    """The device's memory: what was allocated, and nothing else."""

    def __init__(self) -> None:
        self._allocations: list[Allocation] = []

    def allow(self, name: str, address: int, nbytes: int, *, writable: bool = False) -> None:
        """`nbytes` at `address` may be read, and written if `writable`; what was there before is gone."""
        self._allocations = [
            other
            for other in self._allocations
            if other.address + other.nbytes <= address or address + nbytes <= other.address
        ]
        self._allocations.append(Allocation(name, address, nbytes, writable=writable))

    def begin_launch(self, threads: int) -> None:
        """What earlier launches did is done."""
        for allocation in self._allocations:
            allocation.shadow = Shadow(allocation.nbytes, threads, allocation.name) if allocation.writable else None

    def load(self, addresses: Ints, size: int, count: int, clock: Clock) -> list[npt.NDArray[Any]]:
        parts = [np.zeros(addresses.size, np.dtype(f"u{size}")) for _ in range(count)]
        for allocation, rows in self._owners(addresses, size, count, write=False):
            words, first = allocation.words(size)
            at = (addresses[rows] - first) // size
            for i in range(count):
                parts[i][rows] = words[at + i]
            self._note(allocation, addresses[rows], size * count, clock, rows, write=False)
        return parts

    def store(self, addresses: Ints, values: list[npt.NDArray[Any]], size: int, clock: Clock) -> None:
        for allocation, rows in self._owners(addresses, size, len(values), write=True):
            words, first = allocation.words(size)
            self._note(allocation, addresses[rows], size * len(values), clock, rows, write=True)
            at = (addresses[rows] - first) // size
            for i, value in enumerate(values):
                words[at + i] = value[rows]

    def _owners(self, addresses: Ints, size: int, count: int, *, write: bool) -> list[tuple[Allocation, Ints]]:
        check_alignment(addresses, size * count, "global")
        left, found = np.arange(addresses.size), []
        for allocation in self._allocations:
            if not left.size:
                break
            offset = addresses[left] - allocation.address
            inside = (offset >= 0) & (offset + size * count <= allocation.nbytes)
            if inside.any():
                if write and not allocation.writable:
                    raise PtxError(f"writes to {allocation.name}, which is an input")
                found.append((allocation, left[inside]))
                left = left[~inside]
        if left.size:
            verb = "writes" if write else "reads"
            raise PtxError(f"{verb} {size * count} bytes at {addresses[left[0]]:#x}, which no allocation holds")
        return found

    @staticmethod
    def _note(allocation: Allocation, addresses: Ints, nbytes: int, clock: Clock, rows: Ints, *, write: bool) -> None:
        if allocation.shadow is None:
            return
        mine = clock if rows.size == clock.lanes.size else clock.of(rows)
        for i in range(nbytes):
            (allocation.shadow.write if write else allocation.shadow.read)(addresses - allocation.address + i, mine)


class Shared:
    """Shared memory of several blocks, each of `nbytes` dynamic bytes behind what the system keeps for itself."""

    FIRST = 1024  # bytes of a block that the system keeps, on compute capability 8 and later

    def __init__(self, blocks: int, nbytes: int, threads: int) -> None:
        self._nbytes, self._stride = nbytes, -(-nbytes // 16) * 16
        self._memory = np.full(max(blocks * self._stride, 16), 0xFF, np.uint8)  # NaN until it is written
        self._shadow = Shadow(max(blocks * self._stride, 16) // 4, threads, "shared memory")

    def load(self, addresses: Ints, blocks: Ints, size: int, count: int, clock: Clock) -> list[npt.NDArray[Any]]:
        at = self._places(addresses, blocks, size, count)
        for i in range(max(1, size * count // 4)):
            self._shadow.read(at * size // 4 + i, clock)
        words = self._memory.view(np.dtype(f"u{size}"))
        return [words[at + i] for i in range(count)]

    def store(self, addresses: Ints, blocks: Ints, values: list[npt.NDArray[Any]], size: int, clock: Clock) -> None:
        at = self._places(addresses, blocks, size, len(values))
        for i in range(max(1, size * len(values) // 4)):
            self._shadow.write(at * size // 4 + i, clock)
        words = self._memory.view(np.dtype(f"u{size}"))
        for i, value in enumerate(values):
            words[at + i] = value

    def _places(self, addresses: Ints, blocks: Ints, size: int, count: int) -> Ints:
        if size not in (4, 8):
            raise PtxError(f"shared memory is touched in pieces of {size} bytes: races are watched in words of four")
        check_alignment(addresses, size * count, "shared")
        offset = addresses - self.FIRST
        if np.any((offset < 0) | (offset + size * count > self._nbytes)):
            worst = int(addresses[(offset < 0) | (offset + size * count > self._nbytes)][0]) - self.FIRST
            raise PtxError(f"shared memory of {self._nbytes} bytes is touched at {worst}")
        return (blocks * self._stride + offset) // size


def check_alignment(addresses: Ints, nbytes: int, where: str) -> None:
    """Raises PtxError where an access does not begin at a multiple of its size."""
    if np.any(addresses % nbytes):
        bad = int(addresses[addresses % nbytes != 0][0])
        raise PtxError(f"misaligned: {nbytes} bytes of {where} memory at {bad:#x}")
