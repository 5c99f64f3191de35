"""Drawing of the cluttered digits: a digit under an affine map, and fragments of others around it."""

from __future__ import annotations

import math

from PIL import Image, ImageChops

CANVAS = 64  # side of a picture, pixels
SOURCE_SIDE = 8  # side of a source image, without the border of one pixel that it comes with
_WINDOW = 4  # a fragment is a 4 x 4 window of a source image ...
_FRAGMENT_MIN, _FRAGMENT_MAX = 6.0, 14.0  # ... drawn at this side, pixels, log-uniform
_PLACES = 4  # places tried for a fragment before it may overlap the digit
# Uniform draws that add_fragment takes.
FRAGMENT_DRAWS = 4 + 2 * _PLACES


def warp(size: float, angle: float, shear: float) -> tuple[tuple[float, float, float, float], tuple[float, float]]:
    """Canvas-to-source matrix (a, b, d, e) of a digit of `size` pixels, and half its width and height on the canvas."""
    scale = size / SOURCE_SIDE
    cos, sin = math.cos(angle), math.sin(angle)
    # Source to canvas: scale * rotation * shear.
    forward = (scale * cos, scale * (cos * shear - sin), scale * sin, scale * (sin * shear + cos))
    determinant = forward[0] * forward[3] - forward[1] * forward[2]
    inverse = tuple(v / determinant for v in (forward[3], -forward[1], -forward[2], forward[0]))
    half = SOURCE_SIDE / 2
    extent = (half * (abs(forward[0]) + abs(forward[1])), half * (abs(forward[2]) + abs(forward[3])))
    return (inverse[0], inverse[1], inverse[2], inverse[3]), extent


def add_digit(
    canvas: Image.Image,
    source: Image.Image,
    matrix: tuple[float, float, float, float],
    centre: tuple[float, float],
    extent: tuple[float, float],
) -> None:
    """Draws the digit into the canvas, brightest wins."""
    a, b, d, e = matrix
    margin = 1.0 / max(abs(a), abs(e))  # the source's border of one pixel, on the canvas
    left, top = (max(0, math.floor(c - h - margin)) for c, h in zip(centre, extent, strict=True))
    right, bottom = (min(CANVAS, math.ceil(c + h + margin)) for c, h in zip(centre, extent, strict=True))
    middle = SOURCE_SIDE / 2 + 1
    dx, dy = left - centre[0], top - centre[1]
    coefficients = (a, b, a * dx + b * dy + middle, d, e, d * dx + e * dy + middle)
    drawn = source.transform(
        (right - left, bottom - top), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC
    )
    _lighten(canvas, drawn, left, top)


def add_fragment(
    canvas: Image.Image,
    sources: list[Image.Image],
    draws: list[float],
    box: tuple[float, float, float, float],
) -> None:
    """Draws a window of another digit, beside the digit's box where one of the places tried allows it."""
    source = sources[int(draws[0] * len(sources))]
    side = round(_FRAGMENT_MIN * (_FRAGMENT_MAX / _FRAGMENT_MIN) ** draws[1])
    u, v = (1 + int(draw * (SOURCE_SIDE - _WINDOW + 1)) for draw in draws[2:4])
    drawn = source.resize((side, side), Image.Resampling.BICUBIC, box=(u, v, u + _WINDOW, v + _WINDOW))
    x = y = 0
    for place in range(4, 4 + 2 * _PLACES, 2):
        x, y = (int(draw * (CANVAS - side + 1)) for draw in draws[place : place + 2])
        if x >= box[2] or y >= box[3] or x + side <= box[0] or y + side <= box[1]:
            break
    _lighten(canvas, drawn, x, y)


def _lighten(canvas: Image.Image, tile: Image.Image, x: int, y: int) -> None:
    """Draws `tile` with its corner at (x, y): the brighter pixel wins."""
    below = canvas.crop((x, y, x + tile.width, y + tile.height))
    canvas.paste(ImageChops.lighter(below, tile), (x, y))
