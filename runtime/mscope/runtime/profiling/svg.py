"""Charts as inline SVG, drawn by hand: lines over axes, stacked bars, and flames.

Colours come from the page's style sheet. A chart is drawn 400 units wide, so that its text can be read on a phone, and
scales with the page. Every chart has a title and a description for those who cannot see it; curves differ in dashes as
well as colour.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH = 400.0
_HEIGHT = 250.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 50.0, 12.0, 26.0, 40.0
# Wider than any usual font's mean, so that what is measured by it fits.
_CHARACTER = 7.2
_BAR, _ROW = 12.0, 19.0
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# A curve with more points than pixels is no clearer.
_MAX_POINTS = 400


@dataclass(frozen=True)
class Line:
    """One curve; `colour` is a number of the style sheet's palette, 0 to 7. With `points`, each one gets a dot."""

    label: str
    colour: int
    x: Sequence[float]
    y: Sequence[float]
    points: bool = False


@dataclass(frozen=True)
class Mark:
    """A straight line across the chart at `at`, with words: upright at an x, or level at a y."""

    at: float
    label: str
    upright: bool
    colour: int = 5


@dataclass(frozen=True)
class Bar:
    """One row of stacked pieces: values by series, in the order of the chart's `series`; `note` stands at its end."""

    label: str
    values: Sequence[float]
    note: str


@dataclass(frozen=True)
class Span:
    """One piece of a flame's level, `length` long; `style` is a class of the style sheet: "fill0", "shade1"."""

    label: str
    length: float
    style: str


def clean(text: object) -> str:
    """Text for HTML and XML: escaped, with U+FFFD for what XML cannot hold (control characters, lone surrogates)."""
    return html.escape(_NOT_XML.sub("\ufffd", str(text)), quote=True)


def line_chart(
    name: str,
    title: str,
    description: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    marks: Sequence[Mark] = (),
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    percent_y: bool = False,
) -> str:
    """Curves over two axes, a legend above. `name` makes the ids of the page unique."""
    xs = [x for line in lines for x in line.x] + [mark.at for mark in marks if mark.upright]
    ys = [y for line in lines for y in line.y] + [mark.at for mark in marks if not mark.upright]
    low_x, high_x = x_range or _padded(xs)
    low_y, high_y = y_range or _padded([*ys, 0.0] if min(ys) < 0.5 * max(ys) else ys)
    legend, top = _legend([(line.label, line.colour) for line in lines], dashed=True)
    height = _HEIGHT + top

    def place_x(x: float) -> float:
        return _LEFT + (min(max(x, low_x), high_x) - low_x) / (high_x - low_x) * (WIDTH - _LEFT - _RIGHT)

    def place_y(y: float) -> float:
        inner = height - top - _TOP - _BOTTOM
        return top + _TOP + (high_y - min(max(y, low_y), high_y)) / (high_y - low_y) * inner

    parts = [legend, *_axes(ticks(low_x, high_x), ticks(low_y, high_y), place_x, place_y, (low_y, high_y), percent_y)]
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="label" x="{middle:.1f}" y="{height - 4:.1f}" text-anchor="middle">{clean(x_label)}</text>'
    )
    parts.append(_text("label", 2.0, top + 12, y_label))
    for line in lines:
        parts.append(_curve(line, place_x, place_y))
    # Last, so that their words stand over the curves.
    parts += [_mark(mark, place_x, place_y, (low_x, high_x), (low_y, high_y)) for mark in marks]
    return _frame(name, title, description, height, parts)


def bar_chart(name: str, title: str, description: str, series: Sequence[tuple[str, int]], bars: Sequence[Bar]) -> str:
    """Rows of stacked pieces from 0 on; `series` gives each piece its label and colour."""
    longest = max((sum(bar.values) for bar in bars), default=0.0) or 1.0
    left = min(150.0, 12.0 + _CHARACTER * max((len(bar.label) for bar in bars), default=0))
    right = 10.0 + _CHARACTER * max((len(bar.note) for bar in bars), default=0)
    scale = (WIDTH - left - right) / longest
    legend, top = _legend(series) if len(series) > 1 else ("", 0.0)
    parts = [legend]
    for row, bar in enumerate(bars):
        y = top + 6.0 + row * _ROW
        parts.append(_text("tick", left - 6, y + 10, bar.label[:19], "end"))
        x = left
        for (label, colour), value in zip(series, bar.values, strict=True):
            if value <= 0.0:
                continue
            hint = f"<title>{clean(f'{bar.label}, {label}: {value:.3g}')}</title>"
            shape = f'x="{x:.1f}" y="{y:.1f}" width="{max(value * scale, 0.3):.1f}" height="{_BAR:g}"'
            parts.append(f'<rect class="fill{colour}" {shape}>{hint}</rect>')
            x += value * scale
        parts.append(_text("tick", x + 5, y + 10, bar.note))
    return _frame(name, title, description, top + 12.0 + _ROW * len(bars), parts)


def flame_chart(
    name: str, title: str, description: str, series: Sequence[tuple[str, int]], levels: Sequence[Sequence[Span]]
) -> str:
    """Levels below each other, each a row of spans side by side from the left, all on one scale; the root comes first.

    A label is written where it fits; every span tells its label and length when pointed at.
    """
    longest = max((sum(span.length for span in level) for level in levels), default=0.0) or 1.0
    scale = (WIDTH - 4.0) / longest
    legend, top = _legend(series)
    parts = [legend]
    for depth, level in enumerate(levels):
        x, y = 2.0, top + 6.0 + depth * _ROW
        for span in level:
            width = span.length * scale
            hint = f"<title>{clean(f'{span.label}: {span.length:.3g}')}</title>"
            # A hair of the card's colour parts neighbours; what is thinner than that is still seen.
            shape = f'x="{x:.2f}" y="{y:.1f}" width="{max(width - 0.3, 0.2):.2f}" height="{_ROW - 1:g}"'
            parts.append(f'<rect class="{span.style}" {shape}>{hint}</rect>')
            if width > _CHARACTER * (len(span.label) + 1):
                parts.append(_text("label", x + width / 2, y + 13, span.label, "middle"))
            x += width
    return _frame(name, title, description, top + 10.0 + _ROW * len(levels), parts)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers within [low, high]."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1.0, 2.0, 2.5, 5.0, 10.0) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (0.0 if low >= 0.0 and low - room < 0.0 else low - room), high + room


def _number(value: float) -> str:
    return f"{round(value, 10):g}"


def _axes(
    along: Sequence[float],
    up: Sequence[float],
    place_x: Callable[[float], float],
    place_y: Callable[[float], float],
    y_range: tuple[float, float],
    percent: bool,
) -> list[str]:
    parts = []
    for y in up:
        at = place_y(y)
        words = f"{round(100 * y, 6):g} %" if percent else _number(y)
        parts.append(_straight("grid", _LEFT, at, WIDTH - _RIGHT, at))
        parts.append(_text("tick", _LEFT - 5, at + 4, words, "end"))
    bottom = place_y(y_range[0])
    for x in along:
        at = place_x(x)
        parts.append(_straight("grid", at, bottom, at, bottom + 4))
        parts.append(_text("tick", at, bottom + 16, _number(x), "middle"))
    parts.append(_straight("axis", _LEFT, bottom, WIDTH - _RIGHT, bottom))
    return parts


def _curve(line: Line, place_x: Callable[[float], float], place_y: Callable[[float], float]) -> str:
    step = max(1, len(line.x) // _MAX_POINTS)
    pairs = list(zip(line.x, line.y, strict=True))
    places = [(place_x(x), place_y(y)) for x, y in [*pairs[:-1:step], *pairs[-1:]]]
    path = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(places))
    dots = [f'<circle class="fill{line.colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places]
    return f'<path class="line{line.colour}" d="{path}"/>{"".join(dots) if line.points else ""}'


def _mark(
    mark: Mark,
    place_x: Callable[[float], float],
    place_y: Callable[[float], float],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
) -> str:
    """A line across, its words inside the chart: beside an upright line low down, below a level one at its left."""
    kind = f"mark{mark.colour}"
    if mark.upright:
        x, bottom = place_x(mark.at), place_y(y_range[0])
        right = x < WIDTH / 2
        words = _text("label", x + (5 if right else -5), bottom - 8, mark.label, "start" if right else "end")
        return _straight(kind, x, place_y(y_range[1]), x, bottom) + words
    y = place_y(mark.at)
    words = _text("label", _LEFT + 4, y + 14, mark.label)
    return _straight(kind, place_x(x_range[0]), y, place_x(x_range[1]), y) + words


def _text(kind: str, x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{clean(words)}</text>'


def _straight(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _legend(series: Sequence[tuple[str, int]], *, dashed: bool = False) -> tuple[str, float]:
    """The legend and its height; entries wrap."""
    parts, x, y = [], 2.0, 11.0
    for label, colour in series:
        width = 26.0 + _CHARACTER * len(label)
        if x + width > WIDTH and x > 2.0:
            x, y = 2.0, y + 16.0
        if dashed:
            parts.append(_straight(f"line{colour}", x, y - 4, x + 18, y - 4))
        else:
            parts.append(f'<rect class="fill{colour}" x="{x + 4:.1f}" y="{y - 10:.1f}" width="11" height="11"/>')
        parts.append(_text("tick", x + 22, y, label))
        x += width + 6.0
    return "".join(parts), y + 6.0


def _frame(name: str, title: str, description: str, height: float, parts: Sequence[str]) -> str:
    ids = clean(name)
    head = f'viewBox="0 0 {WIDTH:g} {height:.0f}" role="img" aria-labelledby="{ids}-title {ids}-desc"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {head}>'
        f'<title id="{ids}-title">{clean(title)}</title><desc id="{ids}-desc">{clean(description)}</desc>'
        f"{''.join(parts)}</svg>"
    )
