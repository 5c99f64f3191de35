"""The report's figures: each a chart, what it shows in a sentence, and its numbers as a table."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mscope.runtime.profiling.schema import BatchProfile, Expected, LayerTable, PathEnergy, PathName, Profile
from mscope.runtime.profiling.svg import Bar, Line, Mark, Span, bar_chart, flame_chart, line_chart
from mscope.runtime.profiling.words import path_words

_PATH_COLOURS = {"exit": 0, "refine": 1, "plain": 2}
_KIND_COLOURS = {"projection": 0, "scan": 1, "mixer": 5, "conv": 3, "norm": 4, "other": 2}
_PART_COLOURS = {
    "preprocess": 4, "check": 6, "upload": 5, "coarse": 0, "select": 3, "decision": 3, "fine": 1, "full": 2,
    "cascade": 2, "download": 6, "postprocess": 7,
}  # fmt: skip
# Quantiles of the distribution curves; the last of a long tail would squeeze everything else.
_SHARES = np.concatenate([np.linspace(0.0, 0.99, 199), [0.995]])
_MAX_BATCHES = 4
_MAX_BLOCKS = 64
_MAX_NODES = 12


@dataclass(frozen=True)
class Figure:
    """A chart, and its figures: `head` and `rows` of text."""

    title: str
    caption: str
    svg: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def figures(profile: Profile) -> list[Figure]:
    """Every figure that the profile has data for."""
    found: list[Figure] = []
    for batch in profile.batches[:_MAX_BATCHES]:
        many = f", batch {batch.batch}" if len(profile.batches) > 1 else ""
        words = path_words(profile)
        on_device = _device_split(batch, words, many)
        found += [_distribution(batch, words, many), _split(batch, words, many)]
        found += [] if on_device is None else [on_device]
        expected = _expected(batch, many)
        accuracy = _accuracy(batch, many)
        energy = _energy(profile, batch, many)
        found += [figure for figure in (expected, accuracy, energy) if figure is not None]
    for number, table in enumerate(profile.layers or ()):
        if table.rows:
            found += [_flame(table, number), _blocks(table, number)]
    memory = _memory(profile)
    return found if memory is None else [*found, memory]


def _distribution(batch: BatchProfile, words: Mapping[PathName, str], many: str) -> Figure:
    lines, rows = [], []
    for name, path in batch.paths.items():
        quantiles = np.quantile(np.asarray(path.total.samples_ms), _SHARES)
        lines.append(Line(words[name], _PATH_COLOURS[name], quantiles.tolist(), _SHARES.tolist()))
        s = path.total.summary
        values = (s.min_ms, s.p50_ms, s.p90_ms, s.p95_ms, s.p99_ms, s.max_ms)
        rows.append(
            (words[name], *(f"{value:.2f}" for value in values), f"{s.cv:.1%}", f"{path.images_per_second:.1f}")
        )
    svg = line_chart(
        f"cdf{batch.batch}", f"Latency by path{many}", "Share of runs within a time, a curve a path.", lines,
        x_label="milliseconds a batch" if batch.batch > 1 else "milliseconds", y_label="share of runs within",
        y_range=(0.0, 1.0), percent_y=True,
    )  # fmt: skip
    head = ("ms", "min", "p50", "p90", "p95", "p99", "max", "spread", "images/s")
    return Figure(
        f"Latency by path{many}", "Share of runs within a time. Steep is steady; a tail to the right is what p99 sees.",
        svg, head, tuple(rows),
    )  # fmt: skip


def _split(batch: BatchProfile, words: Mapping[PathName, str], many: str) -> Figure:
    seen = dict.fromkeys(part for path in batch.paths.values() for part in path.parts)
    # In the order of a run; parts that a backend adds come last.
    names = [name for name in _PART_COLOURS if name in seen] + [name for name in seen if name not in _PART_COLOURS]
    series = [(name, _PART_COLOURS.get(name, 6)) for name in names]
    bars, rows = [], []
    for name, path in batch.paths.items():
        values = [path.parts[part].summary.p50_ms if part in path.parts else 0.0 for part in names]
        bars.append(Bar(words[name], values, f"{path.total.summary.p50_ms:.2f} ms"))
        rows.append((words[name], *(f"{value:.3f}" if value else "" for value in values)))
    svg = bar_chart(
        f"split{batch.batch}",
        f"Where the time goes{many}",
        "Median milliseconds of each part of each path.",
        series,
        bars,
    )
    return Figure(
        f"Where the time goes{many}",
        "Medians of the parts of each path by the host's clock; at the bars' ends the median of the whole.",
        svg,
        ("median ms", *names),
        tuple(rows),
    )


def _device_split(batch: BatchProfile, words: Mapping[PathName, str], many: str) -> Figure | None:
    timed = {
        name: (path.device_parts, path.device_total)
        for name, path in batch.paths.items()
        if path.device_parts is not None and path.device_total is not None
    }
    if not timed:
        return None
    names = list(dict.fromkeys(part for parts, _ in timed.values() for part in parts))
    bars, rows = [], []
    for name, (parts, total) in timed.items():
        values = [parts[part].summary.p50_ms if part in parts else 0.0 for part in names]
        bars.append(Bar(words[name], values, f"{total.summary.p50_ms:.2f} ms"))
        rows.append((words[name], *(f"{value:.3f}" if value else "" for value in values)))
    title = f"Where the GPU's time goes{many}"
    series = [(name, _PART_COLOURS.get(name, 6)) for name in names]
    svg = bar_chart(f"device{batch.batch}", title, "Median milliseconds of each part, device clock.", series, bars)
    caption = (
        "Medians by the device's own clock, from the first copy to the last. In 'decision' the GPU waits for the host, "
        "or moves the images that go on."
    )
    return Figure(title, caption, svg, ("median ms, device clock", *names), tuple(rows))


def _expected(batch: BatchProfile, many: str) -> Figure | None:
    by_eta = [point for point in batch.expected if point.eta is not None]
    points: Sequence[Expected] = by_eta if len(by_eta) > 1 else batch.expected_by_exit_rate
    if len(points) < 2:
        return None
    over = "eta" if points is by_eta else "exit rate"
    xs = [point.eta if points is by_eta and point.eta is not None else point.exit_rate for point in points]
    lines = [
        Line("adaptive, mean", 0, xs, [point.mean_ms for point in points], points=len(points) <= 30),
        Line("adaptive, p99", 1, xs, [point.p99_ms for point in points]),
    ]
    marks = []
    if "plain" in batch.paths:
        marks.append(Mark(batch.paths["plain"].total.summary.mean_ms, "plain ViM, mean", upright=False, colour=2))
    even = batch.break_even_eta if points is by_eta else batch.break_even_exit_rate
    crosses = even is not None and min(xs) <= even <= max(xs)
    if even is not None and crosses:
        told = f"{even:.3g}" if points is by_eta else f"{even:.0%}"
        marks.append(Mark(even, f"break-even {told}", upright=True))
    svg = line_chart(
        f"expected{batch.batch}", f"Expected latency over {over}{many}",
        f"Mean and 99th percentile of the adaptive network as {over} varies, beside plain ViM.", lines, x_label=over,
        y_label="milliseconds", marks=marks,
    )  # fmt: skip
    head = ("eta", "exit rate", "mean ms", "p50", "p99", "images/s", "saves")
    rows = tuple(
        (
            "" if point.eta is None else f"{point.eta:.3g}", f"{point.exit_rate:.1%}", f"{point.mean_ms:.2f}",
            f"{point.p50_ms:.2f}", f"{point.p99_ms:.2f}", f"{point.images_per_second:.1f}",
            "" if point.saving is None else f"{point.saving:+.1%}",
        )
        for point in points
    )  # fmt: skip
    caption = "Mixed from the measured paths."
    if crosses:
        side = "Left" if points is by_eta else "Right"
        caption += f" {side} of the break-even the adaptive network is faster than plain ViM."
    return Figure(f"Expected latency over {over}{many}", caption, svg, head, rows)


def _accuracy(batch: BatchProfile, many: str) -> Figure | None:
    points = [(point.mean_ms, point.accuracy, point) for point in batch.expected if point.accuracy is not None]
    if len(points) < 2:
        return None
    points.sort(key=lambda entry: entry[0])
    lines = [
        Line(
            "adaptive, as eta varies", 0, [x for x, _, _ in points], [y for _, y, _ in points], points=len(points) <= 30
        )
    ]
    marks = []
    if "plain" in batch.paths:
        marks.append(Mark(batch.paths["plain"].total.summary.mean_ms, "plain ViM's latency", upright=True, colour=2))
    svg = line_chart(
        f"accuracy{batch.batch}", f"Accuracy over latency{many}", "Accuracy over the expected mean latency.",
        lines, x_label="expected mean, milliseconds", y_label="accuracy", marks=marks, percent_y=True,
    )  # fmt: skip
    rows = tuple((f"{p.eta:.3g}" if p.eta is not None else "", f"{x:.2f}", f"{y:.2%}") for x, y, p in points)
    return Figure(
        f"Accuracy over latency{many}", "Accuracy as calibrated with the bundle, latency as measured here.", svg,
        ("eta", "mean ms", "accuracy"), rows,
    )  # fmt: skip


def _energy(profile: Profile, batch: BatchProfile, many: str) -> Figure | None:
    if profile.power is None:
        return None
    joules = {entry.path: _joules(entry) for entry in profile.power.paths if entry.batch == batch.batch}
    leave, refine, plain = joules.get("exit"), joules.get("refine"), joules.get("plain")
    points = [point for point in batch.expected if point.eta is not None]
    if leave is None or refine is None or len(points) < 2:
        return None
    xs = [point.eta or 0.0 for point in points]
    ys = [point.exit_rate * leave + (1.0 - point.exit_rate) * refine for point in points]
    marks = [] if plain is None else [Mark(plain, "plain ViM", upright=False, colour=2)]
    svg = line_chart(
        f"energy{batch.batch}", f"Expected energy over eta{many}", "Joules an image as eta varies.",
        [Line("adaptive", 3, xs, ys, points=True)], x_label="eta", y_label="joules an image", marks=marks,
    )  # fmt: skip
    rows = tuple((f"{x:.3g}", f"{y:.4g}") for x, y in zip(xs, ys, strict=True))
    return Figure(
        f"Expected energy over eta{many}", "Mixed from the measured paths, idle power subtracted where known.", svg,
        ("eta", "joules an image"), rows,
    )  # fmt: skip


def _joules(entry: PathEnergy) -> float | None:
    return entry.joules_per_image if entry.net_joules_per_image is None else entry.net_joules_per_image


def _flame(table: LayerTable, number: int) -> Figure:
    """The stage, its blocks and their nodes in the order in which they ran, as wide as the time they took."""
    total = sum(row.median_ms for row in table.rows)
    blocks = [(name, list(rows)) for name, rows in itertools.groupby(table.rows, key=lambda row: row.block)]
    shades = ("shade0", "shade1")
    levels = [
        [Span(f"{table.stage}, {total:.3g} ms", total, "shade0")],
        [
            Span(name.removeprefix("layers."), sum(row.median_ms for row in rows), shades[place % 2])
            for place, (name, rows) in enumerate(blocks)
        ],
        [Span(row.name, row.median_ms, f"fill{_KIND_COLOURS[row.kind]}") for _, rows in blocks for row in rows],
    ]
    title = f"Every node of {table.stage}, batch {table.batch}"
    svg = flame_chart(
        f"flame{number}", title, "The stage, its blocks and their nodes as they run; width is time.",
        list(_KIND_COLOURS.items()), levels,
    )  # fmt: skip
    dearest = sorted(table.rows, key=lambda row: -row.median_ms)[:_MAX_NODES]
    rows = tuple((row.name, row.kind, f"{row.median_ms:.4f}", f"{100 * row.share:.1f} %") for row in dearest)
    caption = "From left to right as they run; width is time. The middle row is the blocks, the lowest their nodes."
    return Figure(title, caption, svg, ("longest nodes", "kind", "ms", "share"), rows)


def _blocks(table: LayerTable, number: int) -> Figure:
    kinds = list(_KIND_COLOURS)
    blocks: dict[str, dict[str, float]] = {}
    for row in table.rows:
        kept = row.block if row.block in blocks or len(blocks) < _MAX_BLOCKS else "others"
        kind = blocks.setdefault(kept, dict.fromkeys(kinds, 0.0))
        kind[row.kind] += row.median_ms
    bars = [
        Bar(name, [values[kind] for kind in kinds], f"{sum(values.values()):.3f}") for name, values in blocks.items()
    ]
    title = f"Time by block: {table.stage}, batch {table.batch}"
    svg = bar_chart(
        f"blocks{number}", title, "Median milliseconds of each block, by kind of operation.",
        list(_KIND_COLOURS.items()), bars,
    )  # fmt: skip
    rows = tuple((name, *(f"{values[kind]:.3f}" for kind in kinds)) for name, values in blocks.items())
    caption = (
        f"Milliseconds of one run, by {table.source}'s profiler, which itself costs time: read the shares, not the sum."
    )
    return Figure(title, caption, svg, ("block, ms", *kinds), rows)


def _memory(profile: Profile) -> Figure | None:
    memory = profile.memory
    if memory is None:
        return None
    values = [("loaded", memory.loaded_bytes), (f"peak, batch {memory.batch}", memory.peak_bytes)]
    known = [(name, value / 2**20) for name, value in values if value is not None]
    if not known:
        return None
    bars = [Bar(name, [value], f"{value:.0f} MiB") for name, value in known]
    svg = bar_chart("memory", "Memory", "Resident memory of a fresh process.", [("MiB", 0)], bars)
    caption = "A fresh process, everything counted: Python, ONNX Runtime, weights, activations. A GPU's memory is not."
    return Figure("Memory", caption, svg, ("", "MiB"), tuple((name, f"{value:.1f}") for name, value in known))
