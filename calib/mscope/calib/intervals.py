"""How sure a figure from n images is: bootstrap intervals, and Wilson's where a bootstrap has nothing to vary."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from mscope.core.errors import InputError

Floats = npt.NDArray[np.float64]
RESAMPLES = 2000
# Below this an interval says little, and every output says so.
FEW_IMAGES = 100


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval, both from the same images."""

    value: float
    low: float
    high: float


def check_level(level: float) -> float:
    """`level` if it is a confidence level in [0.5, 1); raises InputError otherwise."""
    if not 0.5 <= level < 1.0:
        raise InputError(f"a confidence level is from 0.5 to below 1, such as 0.95, got {level:g}")
    return level


def wilson(share: Floats | float, images: int, level: float) -> tuple[Floats, Floats]:
    """Wilson's score interval of a share of `images` independent images (Brown, Cai and DasGupta 2001).

    Unlike a bootstrap it keeps its width where all or none are right.

    Returns:
        Lower and upper ends, as `share`, in [0, 1].
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p = np.asarray(share, np.float64)
    scale = 1.0 + z * z / images
    centre = (p + z * z / (2 * images)) / scale
    half = z / scale * np.sqrt(p * (1 - p) / images + z * z / (4 * images * images))
    # At the ends the formula is exact, and rounding must not leave [0, 1] or the share outside.
    return np.minimum(np.clip(centre - half, 0, 1), p), np.maximum(np.clip(centre + half, 0, 1), p)


def resampled_counts(images: int, resamples: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """For each resample how often each of the images was drawn, (images,) int64, `images` draws with replacement."""
    rng = np.random.Generator(np.random.Philox(seed))
    for _ in range(resamples):
        yield np.bincount(rng.integers(0, images, images), minlength=images)


def percentile_interval(draws: Floats, level: float) -> tuple[Floats, Floats]:
    """Lower and upper ends of the middle `level` of `draws` (resamples, ...), along the first axis."""
    tail = (1.0 - level) / 2
    low, high = np.quantile(draws, [tail, 1.0 - tail], axis=0)
    return low, high


def estimate(
    value: float, draws: Floats, level: float, *, share_of: int | None = None, biased: bool = False
) -> Estimate:
    """A figure with its percentile bootstrap interval.

    Args:
        value: on the images themselves.
        draws: (resamples,) the figure on each resample.
        level: confidence level.
        share_of: for a share of that many images: where all resamples agree, because all or none of the images count,
            the bootstrap would claim certainty; Wilson's interval takes its place.
        biased: the figure is of gaps that chance alone makes positive, as ECE is: resamples add chance to chance and
            lie too high. They are moved down so that their mean is the figure.
    """
    if biased:
        draws = np.maximum(draws - (draws.mean() - value), 0.0)
    low, high = (float(end) for end in percentile_interval(draws, level))
    if share_of is not None and low == high:
        ends = wilson(value, share_of, level)
        low, high = float(ends[0]), float(ends[1])
    return Estimate(value, low, high)


def few_images_warning(images: int, level: float) -> str | None:
    """A line for people when `images` are too few for much of an interval."""
    if images >= FEW_IMAGES:
        return None
    ends = wilson(0.9, images, level)
    width = 100 * float(ends[1] - ends[0])
    count = "one image" if images == 1 else f"{images} images"
    return f"{count}: an accuracy of 90 % would be known to within {math.ceil(width)} points only; use more"
