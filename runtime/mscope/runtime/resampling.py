"""Pillow's resampling as tables: which pixels make an output pixel, with which integer weights.

Pillow resamples bytes in two passes, across and down, with weights rounded to 22 fractional bits, and rounds and clips
to bytes after each (libImaging/Resample.c). Whoever does the same integer arithmetic from the same tables gets the same
bytes: `plugins/csrc/cuda/resample_kernel.cuh` on a GPU, `resampled` here. Which pass comes first depends on the version
of Pillow, so that the installed one is asked: `down_first_rule`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mscope.core.errors import BackendError

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.int32]
Doubles = npt.NDArray[np.float64]
Interpolation = Literal["bicubic", "bilinear"]

WEIGHT_BITS = 22
_SUPPORT: dict[Interpolation, float] = {"bicubic": 2.0, "bilinear": 1.0}
# Tables of so many sizes are kept: a camera has one, a folder of pictures as many as it has sizes.
_MOST_TABLES = 16


@dataclass(frozen=True)
class Axis:
    """How one axis is resampled: output i = sum over t < count[i] of weights[t, i] * input[first[i] + t].

    Attributes:
        first, count: (outputs,) int32.
        weights: (taps, outputs) int32, of 22 fractional bits; 0 from count[i] on.
        inputs: length of the part of the axis that is read; `first` counts from its beginning.
        start: where that part begins in the whole axis.
    """

    first: Words
    count: Words
    weights: Words
    inputs: int
    start: int

    @property
    def outputs(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class Plan:
    """How a picture becomes the network's height and width.

    Attributes:
        across, down: its columns and its rows.
        down_first: the rows are resampled first.
    """

    across: Axis
    down: Axis
    down_first: bool

    @property
    def region(self) -> tuple[int, int, int, int]:
        """left, top, right, bottom of the pixels that are read."""
        left, top = self.across.start, self.down.start
        return left, top, left + self.across.inputs, top + self.down.inputs


@dataclass(frozen=True)
class Crop:
    """A part of a picture, still to be resampled.

    Attributes:
        pixels: (rows, columns, channels) uint8, contiguous: the plan's region.
        plan: what becomes of it.
    """

    pixels: Bytes
    plan: Plan


@functools.lru_cache(_MOST_TABLES)
def axis(size: int, low: float, high: float, outputs: int, interpolation: Interpolation) -> Axis:
    """The table that Pillow makes to resample pixels `low` to `high` (a box of float32) of `size` into `outputs`.

    Args:
        size: pixels along the axis.
        low, high: of the box, in pixels, 0 <= low < high <= size.
        outputs: pixels to make.
        interpolation: Pillow's filter.
    """
    # As Pillow's C has it: the box in float32, the rest in float64 and in this order.
    left, right = np.float32(low), np.float32(high)
    scale = float(right - left) / outputs
    stretch = max(scale, 1.0)
    support = _SUPPORT[interpolation] * stretch
    centers = float(left) + (np.arange(outputs) + 0.5) * scale
    first = np.maximum(np.trunc(centers - support + 0.5), 0).astype(np.int64)
    last = np.minimum(np.trunc(centers + support + 0.5), size).astype(np.int64)
    count = last - first
    offsets = np.arange(max(1, int(count.max())))[:, None]
    weights = _weight((offsets + first - centers + 0.5) * (1.0 / stretch), interpolation)
    weights[offsets >= count] = 0.0
    # Summed one after the other, as a loop does; numpy's own sum would add in another order.
    total = np.zeros(outputs)
    for row in weights:
        total += row
    weights /= np.where(total == 0.0, 1.0, total)
    scaled = weights * (1 << WEIGHT_BITS)
    rounded = np.trunc(scaled + np.where(weights < 0, -0.5, 0.5)).astype(np.int32)
    start = int(first.min())
    tables = (first - start).astype(np.int32), count.astype(np.int32), np.ascontiguousarray(rounded)
    for table in tables:
        table.setflags(write=False)
    return Axis(*tables, inputs=int(last.max()) - start, start=start)


def plan(
    size: tuple[int, int], box: tuple[float, float, float, float], shape: tuple[int, int], interpolation: Interpolation
) -> Plan:
    """What Pillow's `resize` makes of a picture's box.

    Args:
        size: height and width of the picture.
        box: left, top, right, bottom, in its pixels.
        shape: height and width to make.
        interpolation: Pillow's filter.

    Raises:
        BackendError: the installed Pillow resamples in a way that is not known here.
    """
    across = axis(size[1], box[0], box[2], shape[1], interpolation)
    down = axis(size[0], box[1], box[3], shape[0], interpolation)
    return Plan(across, down, down_first_rule()(size, shape))


def _never(size: tuple[int, int], shape: tuple[int, int]) -> bool:
    return False


def _hundred_times_as_tall(size: tuple[int, int], shape: tuple[int, int]) -> bool:
    return size[0] > 100 * size[1] and shape[0] < size[0]


def _twice_as_many_rows_go(size: tuple[int, int], shape: tuple[int, int]) -> bool:
    fewer = size[0] - shape[0]
    return fewer > 0 and fewer > 2 * (size[1] - shape[1])


# Whether the rows of a picture of `size` are resampled first: Pillow up to 12.1, 12.2, 13.
_RULES = (_never, _hundred_times_as_tall, _twice_as_many_rows_go)
_PROBES = ((90, 20, (12, 15)), (330, 3, (40, 15)), (20, 90, (15, 12)), (50, 50, (13, 13)), (7, 5, (16, 16)))


@functools.cache
def down_first_rule() -> Callable[[tuple[int, int], tuple[int, int]], bool]:
    """The rule of the installed Pillow, found by what it makes of a few pictures.

    Raises:
        BackendError: none of those known gives the same pixels.
    """
    import PIL
    from PIL import Image

    filters: dict[Interpolation, Image.Resampling] = {
        "bicubic": Image.Resampling.BICUBIC,
        "bilinear": Image.Resampling.BILINEAR,
    }
    draw = np.random.default_rng(0)
    possible = list(_RULES)
    for interpolation, resampling in filters.items():
        for height, width, shape in _PROBES:
            # Black and white, so that both passes clip.
            pixels = (draw.random((height, width, 1)) < 0.5).astype(np.uint8) * np.uint8(255)
            box = (0.3, 0.0, width - 0.7, height - 1.5)
            made = np.asarray(Image.fromarray(pixels[..., 0]).resize(shape[::-1], resampling, box))[..., None]
            across = axis(width, box[0], box[2], shape[1], interpolation)
            down = axis(height, box[1], box[3], shape[0], interpolation)
            part = pixels[down.start :, across.start :]
            for rule in tuple(possible):
                crop = Crop(part, Plan(across, down, rule((height, width), shape)))
                if not np.array_equal(resampled(crop), made):
                    possible.remove(rule)
    if len(possible) != 1:
        raise BackendError(
            f"Pillow {PIL.__version__} resamples pictures in a way that is not known here, so that a GPU would give "
            "other pixels: leave --preprocess device out"
        )
    return possible[0]


def resampled(crop: Crop) -> Bytes:
    """(height, width, channels) uint8: both passes, in numpy. Slow; what Pillow and the kernels are compared with."""
    across, down = crop.plan.across, crop.plan.down
    if crop.plan.down_first:
        return _across(_pass(crop.pixels, down), across)
    return _pass(_across(crop.pixels, across), down)


def _across(pixels: Bytes, axis: Axis) -> Bytes:
    return _pass(pixels.transpose(1, 0, 2), axis).transpose(1, 0, 2)


def _pass(pixels: Bytes, axis: Axis) -> Bytes:
    """Resamples the first axis."""
    out = np.full((axis.outputs, *pixels.shape[1:]), 1 << (WEIGHT_BITS - 1), np.int32)
    for tap, weights in enumerate(axis.weights):
        there = np.minimum(axis.first + tap, len(pixels) - 1)
        out += weights[:, None, None] * pixels[there]
    levels: Bytes = np.clip(out >> WEIGHT_BITS, 0, 255).astype(np.uint8)
    return levels


def _weight(distance: Doubles, interpolation: Interpolation) -> Doubles:
    x = np.abs(distance)
    if interpolation == "bilinear":
        return np.where(x < 1.0, 1.0 - x, 0.0)
    # Keys' cubic with a = -0.5, in Pillow's order of operations.
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
