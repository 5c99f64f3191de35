import dataclasses
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mscope.core.errors import InputError
from mscope.core.geometry import Grid
from mscope.runtime.result import Guess, Result
from mscope.runtime.visualize import overlay

GRID = Grid(4, 4)
HEADER, PANEL, GAP = 34, 360, 16
BASE = Result(
    source="x.png", stage="fine", confidence=0.98, coarse_confidence=0.52, eta=0.6, topk=(Guess(3, "three", 0.98),),
    coarse_answer=Guess(8, "eight", 0.52), gmacs=0.1, tokens=50, selected=(0, 5, 6),
    importance=np.linspace(0, 1, 16).astype(np.float32), latency_ms={"total": 3.0}, backend="ort-cpu",
    kernel="native", precision="fp32", untrained=False,
)  # fmt: skip
VIEW = Image.new("RGB", (64, 64), (200, 200, 200))


def panel(picture: Image.Image, number: int) -> np.ndarray:
    left = GAP + number * (PANEL + GAP)
    return np.asarray(picture.crop((left, HEADER, left + PANEL, HEADER + PANEL)), float)


def draw(**changes: Any) -> Image.Image:
    return overlay(VIEW, dataclasses.replace(BASE, **changes), GRID)


def cells(pixels: np.ndarray) -> np.ndarray:
    """(4, 4) mean brightness well inside each region's first patch."""
    return np.array(
        [[pixels[90 * r + 8 : 90 * r + 38, 90 * c + 8 : 90 * c + 38].mean() for c in range(4)] for r in range(4)]
    )


def test_three_panels_show_input_importance_and_regions() -> None:
    picture = draw()
    assert picture.size[0] == 3 * PANEL + 4 * GAP
    np.testing.assert_array_equal(panel(picture, 0), 200)
    # Brighter is more important, over all the scale.
    assert (np.diff(cells(panel(picture, 1)).ravel()) > 0).all()
    bright = cells(panel(picture, 2)).ravel() > 150
    assert np.flatnonzero(bright).tolist() == [0, 5, 6]


def test_refined_regions_are_outlined_together() -> None:
    shown = panel(draw(), 2)
    outline = np.array([255, 176, 59])
    for row, col in [(0, 45), (45, 0), (89, 45), (45, 89), (90, 135), (179, 225), (135, 90), (135, 269)]:
        np.testing.assert_array_equal(shown[row, col], outline)
    # 5 and 6 touch: no thick line between them.
    assert not np.array_equal(shown[120, 178], outline)


def test_an_exit_is_shown_as_one() -> None:
    refined, exited = draw(), draw(stage="coarse", selected=None)
    green = np.array([82, 196, 137])
    for row, col in [(0, 0), (0, 200), (359, 359), (200, 0)]:
        np.testing.assert_array_equal(panel(exited, 2)[row, col], green)
    assert not np.array_equal(panel(refined, 2), panel(exited, 2))


def test_the_answer_and_the_warning_are_in_the_caption() -> None:
    def caption(**changes: Any) -> np.ndarray:
        picture = draw(**changes)
        return np.asarray(picture.crop((0, HEADER + PANEL + GAP, *picture.size)), float)

    red = lambda pixels: ((pixels == (255, 110, 100)).all(axis=-1)).sum()  # noqa: E731
    assert red(caption()) == 0
    assert red(caption(untrained=True)) > 50
    assert (caption(topk=(Guess(3, "four", 0.98),)) != caption()).any()
    assert (caption(coarse_answer=Guess(3, "three", 0.52)) != caption()).any()


def test_a_label_and_a_name_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are somebody's, and Pillow measures letter by letter."""
    lengths, drawn = [], []
    measure, write = ImageDraw.ImageDraw.textlength, ImageDraw.ImageDraw.text

    def textlength(self: ImageDraw.ImageDraw, text: str, *args: Any, **options: Any) -> float:
        lengths.append(len(text))
        return measure(self, text, *args, **options)

    def text(self: ImageDraw.ImageDraw, place: Any, text: str, *args: Any, **options: Any) -> None:
        drawn.append((text, *(measure(self, part, options["font"]) for part in (text, "l", "100% "))))
        write(self, place, text, *args, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "textlength", textlength)
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    picture = draw(topk=(Guess(3, "l" * 3000, 0.98),), source="n" * 3000)
    assert sum(lengths) < 30_000
    label, width, letter, indent = next(entry for entry in drawn if entry[0].startswith("lll"))
    column = (picture.width - 3 * GAP) // 2 - indent
    assert label.endswith("l...")
    assert column - letter < width <= column
    assert any(text.endswith("nnn...") for text, *_ in drawn)


def test_plain_vim_has_one_panel() -> None:
    picture = draw(stage="full", selected=None, importance=None, coarse_answer=None, coarse_confidence=None, eta=None)
    assert picture.width == 480


@pytest.mark.parametrize("size", [(1, 1), (7, 512), (64, 64), (512, 512)])
@pytest.mark.parametrize("grid", [Grid(7, 7), Grid(1, 1), Grid(3, 8), Grid(40, 40)])
def test_any_view_and_grid(size: tuple[int, int], grid: Grid) -> None:
    scores = np.zeros(grid.count, np.float32)
    result = dataclasses.replace(
        BASE,
        importance=scores,
        selected=tuple(range(grid.count)),
        source="long/" * 99,
        topk=(Guess(0, "word " * 99, 1.0),),
    )
    picture = overlay(Image.new("RGB", size), result, grid)
    assert picture.height < 700


def test_scores_of_another_grid() -> None:
    with pytest.raises(InputError, match="do not fit a 4 x 4 grid"):
        draw(importance=np.zeros(49, np.float32))
