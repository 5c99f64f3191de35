"""The tables against Pillow itself, bit for bit, on random and hard sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from mscope.core.errors import BackendError
from mscope.runtime import resampling
from mscope.runtime.resampling import Crop, Plan, axis, down_first_rule, plan, resampled

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def by_pillow(pixels: Any, box: Any, shape: tuple[int, int], interpolation: str) -> Any:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    made = np.asarray(image.resize(shape[::-1], FILTERS[interpolation], box))
    return made.reshape(*shape, pixels.shape[2])


def by_tables(pixels: Any, box: Any, shape: tuple[int, int], interpolation: Any) -> Any:
    how = plan(pixels.shape[:2], box, shape, interpolation)
    left, top, right, bottom = how.region
    return resampled(Crop(pixels[top:bottom, left:right], how))


@pytest.mark.parametrize("interpolation", FILTERS)
def test_random_sizes_and_boxes(interpolation: str) -> None:
    draw = np.random.default_rng(0)
    for turn in range(150):
        height, width = np.exp(draw.uniform(0, np.log(700), 2)).astype(int)
        shape = tuple(int(v) for v in np.exp(draw.uniform(0, np.log(200), 2)))
        pixels = draw.integers(0, 256, (height, width, (1, 3)[turn % 2]), dtype=np.uint8)
        if turn % 3 == 0:  # black and white: both passes clip
            pixels = (pixels > 127).astype(np.uint8) * np.uint8(255)
        box = (0.0, 0.0, float(width), float(height))
        if turn % 4:
            (left, right), (top, bottom) = np.sort(draw.uniform(0, width, 2)), np.sort(draw.uniform(0, height, 2))
            box = (float(left), float(top), float(right), float(bottom))
        args = (pixels, box, shape, interpolation)
        np.testing.assert_array_equal(by_tables(*args), by_pillow(*args), err_msg=str((pixels.shape, box, shape)))


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(
    ("size", "box", "shape"),
    [
        ((1, 1), (0, 0, 1, 1), (224, 224)),
        ((1, 900), (200, 0, 201, 1), (224, 224)),
        ((900, 1), (0, 449.5, 1, 450.5), (224, 224)),
        ((4000, 3), (0, 1998.7, 3, 2001.3), (64, 48)),
        ((224, 224), (0, 0, 224, 224), (224, 224)),
        ((256, 341), (58, 16, 282, 240), (224, 224)),
        ((2500, 4700), (1100, 0, 3600, 2500), (32, 32)),
        ((5, 7), (0, 0, 7, 5), (1, 1)),
        ((300, 300), (299.25, 0, 300, 0.5), (50, 60)),
    ],
)
def test_hard_sizes(size: tuple[int, int], box: Any, shape: tuple[int, int], interpolation: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    args = (pixels, box, shape, interpolation)
    np.testing.assert_array_equal(by_tables(*args), by_pillow(*args))


def test_only_what_is_read_is_in_the_region() -> None:
    how = plan((3000, 4000), (1000.0, 500.0, 3000.0, 2500.0), (224, 224), "bicubic")
    left, top, right, bottom = how.region
    assert (980 < left < 1000, 3000 < right < 3020) == (True, True)
    assert (480 < top < 500, 2500 < bottom < 2520) == (True, True)
    for part in (how.across, how.down):
        assert part.first.min() == 0
        assert (part.first + part.count).max() == part.inputs
        assert (part.weights[np.arange(len(part.weights))[:, None] >= part.count] == 0).all()
        # Each weight is rounded by itself.
        assert np.abs(part.weights.sum(axis=0, dtype=np.int64) - (1 << 22)).max() <= len(part.weights)


def test_the_order_of_the_passes_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it does not matter the probe could not find Pillow's rule; and an unknown rule is refused."""
    pixels = np.random.default_rng(2).integers(0, 2, (400, 3, 1), dtype=np.uint8) * np.uint8(255)
    across, down = axis(3, 0, 3, 20, "bicubic"), axis(400, 0, 400, 20, "bicubic")
    one, other = (resampled(Crop(pixels, Plan(across, down, first))) for first in (False, True))
    assert (one != other).any()
    down_first_rule.cache_clear()
    real = Image.Image.resize

    def blurred(image: Image.Image, size: Any, resample: Any, box: Any) -> Image.Image:
        return real(image, size, Image.Resampling.HAMMING, box)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "resize", blurred)
        with pytest.raises(BackendError, match=r"Pillow .* not known here.*leave --preprocess device out"):
            down_first_rule()
    assert down_first_rule() in resampling._RULES


@pytest.mark.parametrize("rule", resampling._RULES)
def test_every_version_of_pillow_is_told_apart(monkeypatch: pytest.MonkeyPatch, rule: Any) -> None:
    """A Pillow with that rule, made of ours by the tables."""

    def resize(image: Image.Image, size: Any, resample: Any, box: Any) -> Image.Image:
        interpolation: Any = next(name for name, value in FILTERS.items() if value == resample)
        pixels = np.asarray(image)[..., None]
        across = axis(image.width, box[0], box[2], size[0], interpolation)
        down = axis(image.height, box[1], box[3], size[1], interpolation)
        how = Plan(across, down, rule((image.height, image.width), size[::-1]))
        return Image.fromarray(resampled(Crop(pixels[down.start :, across.start :], how))[..., 0])

    down_first_rule.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "resize", resize)
        assert down_first_rule() is rule
    down_first_rule.cache_clear()
