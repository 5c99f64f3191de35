"""Inputs that parity is measured on: noise, pictures with edges, gradients and texture, and the extremes of pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mscope.core.config import ModelConfig

_SEED = 20251200647


def probe_images(config: ModelConfig, count: int) -> npt.NDArray[np.float32]:
    """(count, channels, H, W) float32, the same at every call: every second one noise, the others structured."""
    random = np.random.default_rng(_SEED)
    images = [_noise(config, random) if i % 2 == 0 else _picture(config, random) for i in range(count)]
    return np.stack(images).astype(np.float32)


def adversarial_images(config: ModelConfig, mean: Sequence[float], std: Sequence[float]) -> npt.NDArray[np.float32]:
    """(7, channels, H, W) float32: pictures at the ends of what pixels 0 ... 255 become, to provoke the largest values.

    All black, all white, a checkerboard of pixels, stripes as wide as a patch, saturated noise, one white pixel, and
    one half of each.

    Args:
        config: the network.
        mean, std: of the normalisation, one number a channel.
    """
    random = np.random.default_rng(_SEED + 1)
    low, high = ((value - np.array(mean)) / np.array(std) for value in (0.0, 1.0))
    rows, cols = np.mgrid[0 : config.height, 0 : config.width]
    masks = [
        np.zeros_like(rows),
        np.ones_like(rows),
        (rows + cols) % 2,
        (cols // config.patch) % 2,
        random.integers(0, 2, rows.shape),
        (rows == config.height // 2) & (cols == config.width // 2),
        rows < config.height // 2,
    ]
    return np.stack([np.where(mask, high[:, None, None], low[:, None, None]) for mask in masks]).astype(np.float32)


def _noise(config: ModelConfig, random: np.random.Generator) -> npt.NDArray[np.float64]:
    return random.standard_normal((config.channels, config.height, config.width))


def _picture(config: ModelConfig, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """A gradient with filled rectangles and stripes, in about [-2, 2] as normalised pictures are."""
    height, width = config.height, config.width
    rows, cols = np.mgrid[0:height, 0:width] / max(height, width)
    tilt = random.uniform(-1, 1, (config.channels, 2, 1, 1))
    image: npt.NDArray[np.float64] = tilt[:, 0] * rows + tilt[:, 1] * cols
    for _ in range(6):
        top, left = random.integers(height), random.integers(width)
        tall, wide = random.integers(1, height // 2 + 1), random.integers(1, width // 2 + 1)
        image[:, top : top + tall, left : left + wide] = random.uniform(-2, 2, (config.channels, 1, 1))
    stripes = np.sin(random.uniform(20, 120) * cols + random.uniform(0, 6)) * (rows > random.uniform(0.2, 0.8))
    return np.asarray(image + 0.5 * stripes)
