"""Cluttered digits: real handwritten digits at a random place and scale on a 64 x 64 canvas, among fragments of others.

Picture `index` of a split is a pure function of (seed, split, index): the same whatever the batch, the order or the
process. The handwriting is scikit-learn's digits (1,797 images of 8 x 8, 16 grey levels), split once and for all by
source image, fragments included, so that no stroke of a test picture was ever trained on.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from mscope.core.errors import InputError
from mscope.core.manifest import Preprocessing
from mscope.model.training.clutter import CANVAS, FRAGMENT_DRAWS, add_digit, add_fragment, warp

Split = Literal["train", "validation", "test"]

CLASSES = 10
# Mean and standard deviation of the training pictures' pixels, on the scale [0, 1].
MEAN, STD = 0.173, 0.185
LABELS = tuple(str(digit) for digit in range(CLASSES))
# How a picture becomes the network's input; written into the bundles of these weights.
PREPROCESSING = Preprocessing(mode="L", resize=CANVAS, mean=(MEAN,), std=(STD,))

# Source images of each split, as a share of a fixed shuffle of all of them.
_SOURCES: dict[Split, tuple[int, int]] = {"train": (0, 1247), "validation": (1247, 1397), "test": (1397, 1797)}
_SHUFFLE_SEED = 20251200
_SPLIT_CODE: dict[Split, int] = {"train": 1, "validation": 2, "test": 3}

_SIZE_MIN, _SIZE_MAX = 16.0, 44.0  # side of the digit's box on the canvas, pixels, log-uniform
_EASY_SIZE = 30.0  # the smallest digit of the first training picture, where the easy ones come first
_MAX_ANGLE, _MAX_SHEAR = math.radians(12.0), 0.15  # in training only
_FRAGMENTS_MIN, _FRAGMENTS_MAX = 2, 8
_CONTRAST = (0.45, 1.0)
_BACKGROUND = (0.0, 0.2)
_NOISE = (0.02, 0.08)
# What write_samples calls easy and hard: sides of the digit's box, pixels.
_EASY_FROM, _HARD_BELOW = 30.0, 19.0
_DRAWS = 9 + _FRAGMENTS_MAX * FRAGMENT_DRAWS


class Batch(NamedTuple):
    """n consecutive pictures."""

    images: npt.NDArray[np.uint8]  # (n, 64, 64) grey
    labels: npt.NDArray[np.int64]  # (n,) 0 .. 9
    sizes: npt.NDArray[np.float32]  # (n,) side of the digit's box before rotation, pixels, 16 .. 44
    boxes: npt.NDArray[np.float32]  # (n, 4) x0, y0, x1, y1 of the digit, rotation included, pixels


class _Picture(NamedTuple):
    image: npt.NDArray[np.uint8]
    label: int
    size: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Digits:
    """One split of the data set, endless: any index >= 0 is a picture of its own.

    The training split turns and shears the digits a little; validation and test show them upright. Its first
    `easy_first` pictures go from large digits without clutter to the full task: from random weights the full task
    alone leaves chance late, or never.
    """

    split: Split
    seed: int = 0
    easy_first: int = 0
    smallest: float = _SIZE_MIN  # training split only: the smallest digit's side, pixels

    def __post_init__(self) -> None:
        if self.split not in _SOURCES:
            raise InputError(f"unknown split '{self.split}': choose one of {', '.join(_SOURCES)}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"the seed is a number from 0 to {2**32 - 1}, got {self.seed}")

    @property
    def source_ids(self) -> npt.NDArray[np.int64]:
        """Indices into scikit-learn's digits that this split draws digits and fragments from."""
        start, stop = _SOURCES[self.split]
        return _shuffled_ids()[start:stop]

    def batch(self, start: int, count: int) -> Batch:
        """Pictures start .. start + count - 1."""
        pictures = [self._picture(index) for index in range(start, start + count)]
        return Batch(
            images=np.stack([picture.image for picture in pictures]),
            labels=np.array([picture.label for picture in pictures], dtype=np.int64),
            sizes=np.array([picture.size for picture in pictures], dtype=np.float32),
            boxes=np.array([picture.box for picture in pictures], dtype=np.float32),
        )

    def _picture(self, index: int) -> _Picture:
        rng = np.random.Generator(np.random.Philox(key=[_SPLIT_CODE[self.split] << 32 | self.seed, index]))
        draws = rng.random(_DRAWS).tolist()
        sources, labels = _sources(self.split)
        which = int(draws[0] * len(sources))
        ease = max(0.0, 1.0 - index / self.easy_first) if self.easy_first else 0.0
        smallest = self.smallest if self.split == "train" else _SIZE_MIN
        smallest = smallest * (_EASY_SIZE / smallest) ** ease
        size = smallest * (_SIZE_MAX / smallest) ** draws[1]
        angle = shear = 0.0
        if self.split == "train":
            angle, shear = (2 * draws[2] - 1) * _MAX_ANGLE, (2 * draws[3] - 1) * _MAX_SHEAR
        matrix, extent = warp(size, angle, shear)
        half_width, half_height = extent
        x = half_width + draws[4] * (CANVAS - 2 * half_width)
        y = half_height + draws[5] * (CANVAS - 2 * half_height)
        box = (x - half_width, y - half_height, x + half_width, y + half_height)

        canvas = Image.new("L", (CANVAS, CANVAS))
        count = _FRAGMENTS_MIN + int(draws[6] * (_FRAGMENTS_MAX - _FRAGMENTS_MIN + 1))
        count = round(count * (1.0 - ease))
        for first in range(9, 9 + count * FRAGMENT_DRAWS, FRAGMENT_DRAWS):
            add_fragment(canvas, sources, draws[first : first + FRAGMENT_DRAWS], box)
        add_digit(canvas, sources[which], matrix, (x, y), extent)

        background = _between(_BACKGROUND, draws[7])
        contrast = _between(_CONTRAST, draws[8]) * (1.0 - background)
        noise = rng.standard_normal((CANVAS, CANVAS), dtype=np.float32)
        noise *= np.float32(255.0 * _between(_NOISE, float(rng.random())))
        noise += np.float32(255.0 * background + 0.5)
        noise += np.asarray(canvas) * np.float32(contrast)
        return _Picture(np.clip(noise, 0, 255).astype(np.uint8), labels[which], size, box)


def _between(limits: tuple[float, float], draw: float) -> float:
    return limits[0] + draw * (limits[1] - limits[0])


@functools.cache
def _shuffled_ids() -> npt.NDArray[np.int64]:
    total = _SOURCES["test"][1]
    return np.random.Generator(np.random.Philox(_SHUFFLE_SEED)).permutation(total).astype(np.int64)


@functools.cache
def _sources(split: Split) -> tuple[list[Image.Image], list[int]]:
    """The split's handwriting, each image with an empty border of one pixel, and its labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError("the digits data set needs scikit-learn: pip install 'mambascope-deploy[calib]'") from None
    bunch = load_digits()
    start, stop = _SOURCES[split]
    ids = _shuffled_ids()[start:stop]
    grey = np.rint(bunch.images[ids] * (255.0 / 16.0)).astype(np.uint8)
    bordered = np.pad(grey, ((0, 0), (1, 1), (1, 1)))
    return [Image.fromarray(image) for image in bordered], [int(label) for label in bunch.target[ids]]


def write_samples(folder: Path, count: int, *, seed: int = 0) -> list[Path]:
    """Writes `count` test pictures as PNG files, half of them easy (large digits) and half hard (small ones).

    Each name holds the kind, a number and the label: easy-00-label7.png. Existing files of those names are replaced.

    Returns:
        The files in order of name, easy ones first.

    Raises:
        InputError: the folder cannot be written.
    """
    data = Digits("test", seed)
    wanted = {"easy": (count + 1) // 2, "hard": count // 2}
    found: dict[str, list[tuple[npt.NDArray[np.uint8], int]]] = {"easy": [], "hard": []}
    index = 0
    while any(len(found[kind]) < number for kind, number in wanted.items()):
        picture = data.batch(index, 1)
        index += 1
        kind = "easy" if picture.sizes[0] >= _EASY_FROM else "hard" if picture.sizes[0] < _HARD_BELOW else None
        # Every label in turn, as far as the number reaches.
        if kind and len(found[kind]) < wanted[kind] and picture.labels[0] == len(found[kind]) % CLASSES:
            found[kind].append((picture.images[0], int(picture.labels[0])))
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind, pictures in found.items():
            for number, (image, label) in enumerate(pictures):
                paths.append(folder / f"{kind}-{number:02d}-label{label}.png")
                Image.fromarray(image).save(paths[-1])
    except OSError as error:
        raise InputError(f"cannot write pictures into {folder}: {error.strerror or error}") from None
    return paths
