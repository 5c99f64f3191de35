"""A profile on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mscope.runtime.profiling.layers import grouped
from mscope.runtime.profiling.schema import BatchProfile, LayerTable, PathEnergy, PathProfile, Profile
from mscope.runtime.profiling.words import image_on, table_rows, told_about
from mscope.runtime.report import stdout_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_TOP_NODES = 12


def print_profile(profile: Profile) -> None:
    """Prints a profile on stdout; in a pipe without colours, and no line is broken."""
    from rich.markup import escape

    console = stdout_console()
    for line in _heading(profile):
        console.print(escape(line))
    for batch in profile.batches:
        console.print(_batch_table(profile, batch))
        if batch.expected:
            console.print(_expected_table(profile, batch))
    for line in _other_sections(profile):
        console.print(escape(line))
    for table in profile.layers or ():
        _print_layers(console, table)
    console.print()
    for line in profile.verdict:
        console.print(f"[bold]{escape(line)}[/]")
    for line in profile.warnings:
        console.print(f"[yellow]warning: {escape(line)}[/]")


def _heading(profile: Profile) -> list[str]:
    bundle, machine, runtime = profile.bundle, profile.machine, profile.runtime
    threads = "threads chosen by the backend" if runtime.threads is None else f"{runtime.threads} threads"
    where = f"{machine.cpu}, {machine.cores} cores" + (f", {machine.device}" if machine.device else "")
    mode = f", {machine.power_mode}" if machine.power_mode else ""
    scaled = ", pictures scaled on the device" if runtime.preprocess == "device" else ""
    decided = ", exit decided on the device" if runtime.decide == "device" else ""
    return [
        f"{bundle.name} ({bundle.arch}, {bundle.resolution[0]} x {bundle.resolution[1]}, weights: {bundle.weights})",
        f"{runtime.backend}, {runtime.kernel} kernels, {runtime.precision}, {threads}{scaled}{decided}; {where}{mode}",
        f"milliseconds of a batch, host clock{_other_clock(profile)}",
    ]


def _other_clock(profile: Profile) -> str:
    timed = any(path.device_total is not None for batch in profile.batches for path in batch.paths.values())
    return '; below "device clock" the GPU\'s own' if timed else ""


def _batch_table(profile: Profile, batch: BatchProfile) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title=f"batch {batch.batch}, {batch.rounds} rounds", title_justify="left"
    )
    # A path is a column, not a row: ten figures beside each other are too wide for a terminal of 80.
    columns = [(words, path) for words, _, path in table_rows(profile, batch)]
    table.add_column("")
    for words, _ in columns:
        table.add_column(words, justify="right")
    summaries = [_summary(path) for _, path in columns]
    for name in summaries[0]:
        table.add_row(name, *(summary[name] for summary in summaries), style="bold" if name == "p50" else "")
    for parts in ([_parts(path) for _, path in columns], [_device_parts(path) for _, path in columns]):
        # In the order of the path that has most of them: one that leaves early has no fine stage.
        for name in dict.fromkeys(name for path in sorted(parts, key=len, reverse=True) for name in path):
            table.add_row(name, *(path.get(name, "") for path in parts), style="dim")
    return table


def _summary(path: PathProfile) -> dict[str, str]:
    summary = path.total.summary
    interval = ""
    if summary.p50_low_ms is not None and summary.p50_high_ms is not None:
        interval = f"{_ms(summary.p50_low_ms)} - {_ms(summary.p50_high_ms)}"
    return {
        "p50": _ms(summary.p50_ms),
        "  95 % sure": interval,
        "p90": _ms(summary.p90_ms),
        "p95": _ms(summary.p95_ms),
        "p99": _ms(summary.p99_ms),
        "min": _ms(summary.min_ms),
        "max": _ms(summary.max_ms),
        "mean": _ms(summary.mean_ms),
        "cv": f"{summary.cv:.1%}",
        "images/s": f"{path.images_per_second:.3g}",
    }


def _parts(path: PathProfile) -> dict[str, str]:
    return {f"  {part}": _ms(series.summary.p50_ms) for part, series in path.parts.items()}


def _device_parts(path: PathProfile) -> dict[str, str]:
    if path.device_parts is None or path.device_total is None:
        return {}
    parts = {f"    {part}": _ms(series.summary.p50_ms) for part, series in path.device_parts.items()}
    return {"  device clock": _ms(path.device_total.summary.p50_ms), **parts}


def _expected_table(profile: Profile, batch: BatchProfile) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="expected", title_justify="left")
    for name in ("eta", "leave early", "mean", "p99", "images/s", "saves", "accuracy (curve)"):
        table.add_column(name, justify="right")
    told = {id(expected) for expected in told_about(profile, batch)}
    # A table from confidences has a hundred etas: every tenth will do, and those asked for.
    step = max(1, len(batch.expected) // 10)
    for i, expected in enumerate(batch.expected):
        if i % step and id(expected) not in told:
            continue
        table.add_row(
            "" if expected.eta is None else f"{expected.eta:g}",
            f"{expected.exit_rate:.1%}",
            _ms(expected.mean_ms),
            _ms(expected.p99_ms),
            f"{expected.images_per_second:.3g}",
            "" if expected.saving is None else f"{expected.saving:.0%}",
            "" if expected.accuracy is None else f"{expected.accuracy:.1%}",
            style="bold" if id(expected) in told else "",
        )
    return table


def _other_sections(profile: Profile) -> list[str]:
    lines = []
    if profile.cold_start is not None:
        first = profile.cold_start.runs[0]
        lines.append(
            f"cold start {profile.cold_start.total_p50_ms:.0f} ms to the first answer (median of "
            f"{len(profile.cold_start.runs)} processes; of the first: imports {first.import_ms:.0f}, loading "
            f"{first.load_ms:.0f}, first image {first.first_ms:.1f})"
        )
    memory = profile.memory
    if memory is not None and memory.loaded_bytes is not None and memory.peak_bytes is not None:
        lines.append(
            f"memory {memory.loaded_bytes / 2**20:.0f} MiB when loaded, {memory.peak_bytes / 2**20:.0f} MiB at its "
            f"peak with a refined batch of {memory.batch} (whole process, resident)"
        )
    for gap in profile.idle_gaps or ():
        after = "back to back" if gap.gap_s == 0 else f"after {gap.gap_s:g} s idle"
        lines.append(f"one image {after}: p50 {_ms(gap.total.summary.p50_ms)}, max {_ms(gap.total.summary.max_ms)} ms")
    if profile.power is not None:
        lines += [_energy(path, profile.power.sensor, image_on(profile, path.path)) for path in profile.power.paths]
        lines += profile.power.notes
    return lines


def _energy(path: PathEnergy, sensor: str, image: str) -> str:
    head = f"energy, {image}, batch {path.batch} ({sensor}): "
    if path.joules_per_image is None:
        return f"{head}not measured: {path.reason or 'the sensor gave nothing'}"
    sure = "" if path.uncertainty_joules_per_image is None else f" +- {path.uncertainty_joules_per_image:.2g}"
    net = "" if path.net_joules_per_image is None else f", {path.net_joules_per_image:.3g} J without idle power"
    return f"{head}{path.joules_per_image:.3g}{sure} J an image{net}"


def _print_layers(console: Console, layers: LayerTable) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    total = sum(row.median_ms for row in layers.rows) or 1.0
    kinds = sorted(grouped(layers.rows, "kind").items(), key=lambda item: -item[1])
    blocks = grouped(layers.rows, "block")
    inner = [ms for name, ms in blocks.items() if name.startswith("layers.")]
    for by, sums in (
        ("kind", kinds),
        ("block", [(name, ms) for name, ms in blocks.items() if not name.startswith("layers.")]),
    ):
        shares = ", ".join(f"{name} {ms:.3g} ({ms / total:.0%})" for name, ms in sums)
        if by == "block" and inner:
            each = f"{min(inner):.3g} to {max(inner):.3g}"
            shares = f"{len(inner)} blocks of {each}, together {sum(inner):.3g} ({sum(inner) / total:.0%}), {shares}"
        console.print(f"{layers.stage} by {by}, ms under the profiler: {shares}", highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{layers.stage}: longest nodes", title_justify="left")
    for name in ("node", "kind"):
        table.add_column(name)
    for name in ("median ms", "share"):
        table.add_column(name, justify="right")
    for row in sorted(layers.rows, key=lambda row: -row.median_ms)[:_TOP_NODES]:
        table.add_row(Text(row.name), row.kind, f"{row.median_ms:.3f}", f"{row.share:.1%}")
    console.print(table)
    if layers.truncated:
        console.print(f"the record of {layers.stage} was cut short after {layers.runs} runs")


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.2f}" if value < 100 else f"{value:.1f}"
