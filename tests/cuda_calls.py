"""Launches of the kernels around the networks, with all that their parameters point to, run by whoever has
`host_select` and `host_resample`: the kernels' host run (cuda_host.py), or the PTX machine (ptx_library.py)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from mscope.plugins.cuda_resample import ResampleAxis, ResampleParams
from mscope.plugins.cuda_select import SelectParams
from mscope.runtime.resampling import Axis, Plan, plan

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
GUARD = 64
UNWRITTEN = -7


class SelectCall:
    """One launch of the selection with all that its parameters point to."""

    def __init__(
        self, logits: Any, importance: Any, count: int, threshold: float, temperature: float = 1.0, condition: int = 0
    ) -> None:
        self.logits = np.ascontiguousarray(logits, np.float32)
        self.importance = np.ascontiguousarray(importance, np.float32)
        (batch, classes), regions = self.logits.shape, self.importance.shape[1]
        self.threshold = np.array([threshold], np.float32)
        self.selected = np.full((batch, count), UNWRITTEN, np.int64)
        self.remaining = np.full((batch, regions - count), UNWRITTEN, np.int64)
        self.report = np.full((batch, 1 + count), UNWRITTEN, np.int64)
        read = (self.logits.ctypes.data, self.importance.ctypes.data)
        written = (array.ctypes.data for array in (self.threshold, self.selected, self.remaining, self.report))
        self.params = SelectParams(batch, classes, regions, count, *read, temperature, *written, condition)

    def run(self, host: Any, order: int = 0) -> None:
        assert host.host_select(ctypes.byref(self.params), order) == 0
        np.testing.assert_array_equal(self.report[:, 1:], self.selected)

    @property
    def reads(self) -> dict[str, Any]:
        return {"logits": self.logits, "importance": self.importance, "threshold": self.threshold}

    @property
    def writes(self) -> dict[str, Any]:
        return {"selected": self.selected, "remaining": self.remaining, "report": self.report}

    @property
    def goes_on(self) -> Any:
        return self.report[:, 0]


def guarded(count: int, dtype: Any) -> Any:
    """`count` numbers with GUARD known ones behind them."""
    block = np.full(count + GUARD, 77, dtype)
    return block, block[:count]


class ResampleCall:
    """Parameters of one resampling, with all that they point to."""

    def __init__(self, pixels: Any, how: Plan, levels: Any, *, spare: int = 0) -> None:
        left, top, right, bottom = how.region
        part = pixels[top:bottom, left:right]
        rows, columns, channels = part.shape
        # Rows may lie further apart than they are long.
        self.pixels = np.full((rows, columns * channels + spare), 201, np.uint8)
        self.pixels[:, : columns * channels] = part.reshape(rows, -1)
        self.levels = np.ascontiguousarray(levels, np.float32)
        out_rows, out_columns = how.down.outputs, how.across.outputs
        between = out_rows * columns if how.down_first else rows * out_columns
        self.scratch_block, scratch = guarded(between * channels, np.uint8)
        self.out_block, out = guarded(channels * out_rows * out_columns, np.float32)
        self.out = out.reshape(channels, out_rows, out_columns)
        self.scratch = scratch
        self.how = how
        self.params = ResampleParams(
            self.pixels.ctypes.data, rows, columns, self.pixels.strides[0], channels, out_rows, out_columns,
            self.axis(how.across), self.axis(how.down), int(how.down_first),
            scratch.ctypes.data, self.levels.ctypes.data, out.ctypes.data,
        )  # fmt: skip

    @property
    def reads(self) -> dict[str, Any]:
        tables = {f"{name} of {axis}": getattr(getattr(self.how, axis), name)
                  for axis in ("across", "down") for name in ("first", "count", "weights")}  # fmt: skip
        return {"pixels": self.pixels, "levels": self.levels, **tables}

    @property
    def writes(self) -> dict[str, Any]:
        return {"scratch": self.scratch, "out": self.out}

    @staticmethod
    def axis(axis: Axis) -> ResampleAxis:
        tables = (axis.first, axis.count, axis.weights)
        return ResampleAxis(len(axis.weights), *(table.ctypes.data for table in tables))

    def checked(self) -> Any:
        for block in (self.scratch_block, self.out_block):
            assert (block[-GUARD:] == 77).all(), "written past the end"
        return self.out


def by_pillow(pixels: Any, box: Any, shape: tuple[int, int], interpolation: str) -> Any:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return np.asarray(image.resize(shape[::-1], FILTERS[interpolation], box)).reshape(*shape, -1).transpose(2, 0, 1)


def check_resample(
    host: Any,
    pixels: Any,
    box: Any,
    shape: tuple[int, int],
    interpolation: Any,
    order: int = 0,
    prepare: Callable[[ResampleCall], None] = lambda call: None,
) -> None:
    """Holds one picture to Pillow, bit for bit. `prepare` sees the launch before it runs."""
    levels = np.random.default_rng(3).normal(size=(pixels.shape[2], 256)).astype(np.float32)
    call = ResampleCall(pixels, plan(pixels.shape[:2], box, shape, interpolation), levels, spare=order)
    prepare(call)
    assert host.host_resample(ctypes.byref(call.params), order) == 0
    expected = np.stack(
        [row[channel] for row, channel in zip(levels, by_pillow(pixels, box, shape, interpolation), strict=True)]
    )
    np.testing.assert_array_equal(call.checked().view(np.uint32), expected.view(np.uint32))
