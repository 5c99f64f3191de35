"""The overlay picture: what the network looked at closely, and what it said before and after."""

from __future__ import annotations

from bisect import bisect
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mscope.core.errors import InputError
from mscope.core.geometry import Grid
from mscope.core.text import readable
from mscope.runtime.result import Guess, Result

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

_PANEL = 360  # longer side of a panel, pixels
_GAP = 16
_HEADER = 34
_CAPTION = 96
_BACKGROUND, _CARD = (17, 19, 24), (27, 30, 38)
_TEXT, _MUTED = (236, 239, 244), (146, 153, 168)
_EXIT, _FINE, _WARN = (82, 196, 137), (255, 176, 59), (255, 110, 100)
_DIM = 0.42  # brightness left to what is not refined
# Stops of the heat map from least to most important, dark violet to pale yellow; brightness rises throughout.
_HEAT = np.array([(22, 11, 57), (94, 23, 110), (176, 45, 90), (236, 105, 37), (251, 180, 26), (252, 250, 170)], float)


def overlay(view: Image.Image, result: Result, grid: Grid, vim: str = "plain ViM") -> Image.Image:
    """Draws input, importance and refined regions side by side above the coarse and the final answer.

    Args:
        view: what the network saw (`Prepared.view`), of any size; it is enlarged or reduced to the panels.
        result: the answer to draw.
        grid: the coarse grid, whose regions `result` speaks of.
        vim: what a ViM is called (`mscope.core.geometry.vim_name`).

    Returns:
        An RGB picture: three panels for a coarse-to-fine result, one for a ViM.
    """
    from PIL import Image, ImageDraw

    picture = _enlarged(view, grid)
    panels = [("input", picture)]
    if result.importance is not None:
        if result.importance.shape != (grid.count,):
            raise InputError(f"{result.importance.shape} scores do not fit a {grid.rows} x {grid.cols} grid")
        panels.append(("importance", _heat_panel(picture, result.importance, grid)))
        if result.selected is None:
            panels.append(("left early: nothing refined", _exit_panel(picture)))
        else:
            share = f"{len(result.selected)} of {grid.count}"
            panels.append((f"refined: {share} regions", _refined_panel(picture, result.selected, grid)))
    width, height = picture.size
    canvas_width = max(len(panels) * (width + _GAP) + _GAP, 480)
    canvas = Image.new("RGB", (canvas_width, _HEADER + height + _GAP + _CAPTION), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    left = (canvas_width - len(panels) * (width + _GAP) + _GAP) // 2
    for number, (title, panel) in enumerate(panels):
        x = left + number * (width + _GAP)
        exited = number == 2 and result.selected is None
        draw.text(
            (x, _HEADER - 9),
            _fitted(draw, title, 14, width),
            fill=_EXIT if exited else _MUTED,
            font=_font(14),
            anchor="ls",
        )
        canvas.paste(panel, (x, _HEADER))
    if result.importance is not None:
        _colour_bar(draw, left + 2 * width + _GAP, _HEADER - 20)
    _caption(draw, result, _HEADER + height + _GAP, canvas_width, vim)
    return canvas


def _enlarged(view: Image.Image, grid: Grid) -> Image.Image:
    from PIL import Image

    # The panel is a whole number of cells, so that outlines fall on pixels.
    cell = max(2, _PANEL // max(grid.rows, grid.cols))
    size = grid.cols * cell, grid.rows * cell
    scale = min(size[0] / view.width, size[1] / view.height)
    # Smoothing a thumbnail of 64 pixels hides what the network really gets.
    sharp = scale >= 3
    return view.convert("RGB").resize(size, Image.Resampling.NEAREST if sharp else Image.Resampling.BICUBIC)


def _cells(values: npt.NDArray[np.generic], size: tuple[int, int]) -> npt.NDArray[np.generic]:
    rows, cols = values.shape
    return values.repeat(size[1] // rows, axis=0).repeat(size[0] // cols, axis=1)


def _heat_colours(levels: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """(..., 3) colours of levels in [0, 1]."""
    stops = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(levels, stops, _HEAT[:, channel]) for channel in range(3)], axis=-1)


def _heat_panel(picture: Image.Image, importance: npt.NDArray[np.float32], grid: Grid) -> Image.Image:
    from PIL import Image

    scores = importance.astype(float).reshape(grid.rows, grid.cols)
    spread = scores.max() - scores.min()
    levels = (scores - scores.min()) / spread if spread > 0 else np.zeros_like(scores)
    heat = _heat_colours(_cells(levels, picture.size).astype(float))
    grey = np.asarray(picture.convert("L"), float)[..., None]
    # The picture's shading stays readable through the colours.
    mixed = heat * (0.62 + 0.38 * grey / 255) * 0.85 + grey * 0.15
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def _refined_panel(picture: Image.Image, selected: tuple[int, ...], grid: Grid) -> Image.Image:
    from PIL import Image, ImageDraw

    chosen = np.isin(np.arange(grid.count), selected).reshape(grid.rows, grid.cols)
    pixels = np.asarray(picture, float)
    grey = np.asarray(picture.convert("L"), float)[..., None]
    dimmed = (0.35 * pixels + 0.65 * grey) * _DIM
    mask = _cells(chosen, picture.size)[..., None]
    width, height = picture.width // grid.cols, picture.height // grid.rows
    # Thin lines show the four patches of each region, thick ones the border between refined and not.
    across = np.isin(np.arange(picture.width) % width, (0, width // 2))
    down = np.isin(np.arange(picture.height) % height, (0, height // 2))
    lines = (across[None, :] | down[:, None])[..., None]
    pixels = np.where(lines, 0.5 * pixels + 0.5 * np.array(_FINE, float), pixels)
    panel = Image.fromarray(np.where(mask, pixels, dimmed).astype(np.uint8))
    draw = ImageDraw.Draw(panel)
    edge = np.pad(chosen, 1)
    for row, col in np.argwhere(chosen):
        x, y = int(col) * width, int(row) * height
        right, bottom = x + width - 1, y + height - 1
        for outside, box in (
            (not edge[row, col + 1], (x, y, right, y + 2)),
            (not edge[row + 2, col + 1], (x, bottom - 2, right, bottom)),
            (not edge[row + 1, col], (x, y, x + 2, bottom)),
            (not edge[row + 1, col + 2], (right - 2, y, right, bottom)),
        ):
            if outside:
                draw.rectangle(box, fill=_FINE)
    return panel


def _exit_panel(picture: Image.Image) -> Image.Image:
    from PIL import Image, ImageDraw

    panel = Image.blend(picture, Image.new("RGB", picture.size, _BACKGROUND), 0.55)
    draw = ImageDraw.Draw(panel)
    draw.rectangle((0, 0, panel.width - 1, panel.height - 1), outline=_EXIT, width=3)
    centre, unit = (panel.width // 2, panel.height // 2), min(panel.size) / 10
    tick = [
        (centre[0] + a * unit, centre[1] - 0.6 * unit + b * unit) for a, b in ((-1.2, 0.0), (-0.3, 0.9), (1.4, -1.0))
    ]
    draw.line(tick, fill=_EXIT, width=max(3, int(unit / 3)), joint="curve")
    text = _fitted(draw, "the coarse answer was sure enough", 15, panel.width - 16)
    draw.text((centre[0], centre[1] + 1.6 * unit), text, fill=_TEXT, font=_font(15), anchor="mm")
    return panel


def _colour_bar(draw: ImageDraw.ImageDraw, right: int, top: int) -> None:
    draw.text((right, top + 11), "high", fill=_MUTED, font=_font(12), anchor="rs")
    left = right - 32 - 56
    for offset, colour in enumerate(_heat_colours(np.linspace(0, 1, 56))):
        red, green, blue = (int(value) for value in colour)
        draw.line([(left + offset, top + 2), (left + offset, top + 11)], fill=(red, green, blue))
    draw.text((left - 5, top + 11), "low", fill=_MUTED, font=_font(12), anchor="rs")


def _caption(draw: ImageDraw.ImageDraw, result: Result, top: int, width: int, vim: str) -> None:
    draw.rectangle((0, top, width, top + _CAPTION), fill=_CARD)
    colour = {"coarse": _EXIT, "fine": _FINE}.get(result.stage, _TEXT)
    column = (width - 3 * _GAP) // 2
    half = _GAP, _GAP * 2 + column
    if result.coarse_answer is not None and result.coarse_confidence is not None:
        against = "<" if result.stage == "fine" else ">="
        note = f"coarse   {result.coarse_confidence:.0%} {against} eta {result.eta:g}"
        _answer(draw, half[0], top, column, note, result.coarse_answer, _TEXT)
        note = "final   after refining" if result.stage == "fine" else "final   left early"
        _answer(draw, half[1], top, column, note, result.answer, colour)
    else:
        _answer(draw, half[0], top, width - 2 * _GAP, vim, result.answer, colour)
    cost = f"{result.gmacs:.3g} GMACs   {result.tokens} tokens   {result.latency_ms['total']:.1f} ms"
    foot = f"{cost}   {readable(result.source)}"
    y = top + _CAPTION - 12
    x = float(_GAP)
    if result.untrained:
        warning = "UNTRAINED weights: the answers mean nothing   "
        draw.text((x, y), warning, fill=_WARN, font=_font(13), anchor="ls")
        x += draw.textlength(warning, font=_font(13))
    draw.text((x, y), _fitted(draw, foot, 13, width - _GAP - x), fill=_MUTED, font=_font(13), anchor="ls")


def _answer(
    draw: ImageDraw.ImageDraw, x: int, top: int, width: int, note: str, guess: Guess, colour: tuple[int, int, int]
) -> None:
    draw.text((x, top + 22), _fitted(draw, note, 13, width), fill=_MUTED, font=_font(13), anchor="ls")
    prob = f"{guess.prob:.0%}"
    draw.text((x, top + 50), prob, fill=colour, font=_font(22), anchor="ls")
    indent = draw.textlength("100% ", font=_font(22))
    draw.text(
        (x + indent, top + 50), _fitted(draw, guess.label, 22, width - indent), fill=colour, font=_font(22), anchor="ls"
    )
    draw.rectangle((x, top + 58, x + width, top + 61), fill=_BACKGROUND)
    draw.rectangle((x, top + 58, x + int(width * guess.prob), top + 61), fill=colour)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _fitted(draw: ImageDraw.ImageDraw, text: str, size: int, width: float) -> str:
    """`text`, its end cut off where it is wider than `width` pixels."""
    font = _font(size)
    # A label or a name may be of any length, and to measure takes time. Hardly a letter is narrower than a pixel.
    short = text[: max(0, int(width))]
    if short == text and draw.textlength(text, font=font) <= width:
        return text
    letters = bisect(range(len(short)), width, key=lambda end: draw.textlength(f"{short[:end]}...", font=font)) - 1
    return f"{short[: max(0, letters)]}..."
