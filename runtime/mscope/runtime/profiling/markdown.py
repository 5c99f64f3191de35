"""A profile as Markdown for a README: the plain words and one compact table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mscope.core.files import write_text_atomically
from mscope.runtime.profiling.facts import headline
from mscope.runtime.profiling.schema import PathEnergy, Profile
from mscope.runtime.profiling.words import path_words, table_rows


def write_markdown(profile: Profile, path: Path) -> None:
    """Writes the text, whole or not at all."""
    write_text_atomically(path, to_markdown(profile))


def to_markdown(profile: Profile) -> str:
    """Heading, words, a table of the paths, a table over eta, and where it was measured; names cannot break out."""
    machine, runtime = profile.machine, profile.runtime
    lines = [f"### {plain(headline(profile))}", ""]
    lines += [f"**{plain(line)}**  " for line in profile.verdict]
    if profile.verdict:
        lines.append("")
    doubts = list(profile.warnings)
    lines += ["> Doubtful:", ">", *(f"> - {plain(line)}" for line in doubts)] if doubts else []
    if doubts:
        lines.append("")
    lines += [*_paths(profile), "", *_device_clock(profile), *_expected(profile)]
    where = machine.device or f"{machine.cpu}, {machine.cores} cores"
    threads = "" if runtime.threads is None else f", {runtime.threads} threads"
    versions = ", ".join(f"{name} {version}" for name, version in profile.versions.items())
    lines.append(
        f"Measured on {plain(where)}: {plain(runtime.backend)}, {plain(runtime.precision)}, "
        f"{plain(runtime.kernel)} kernels{threads}; {profile.settings.duration_s:g} s; host clock; "
        f"{plain(profile.created)}; {plain(versions)}."
    )
    return "\n".join(lines) + "\n"


def plain(text: object) -> str:
    """Text that means nothing to Markdown or HTML: one line, its special characters escaped."""
    line = " ".join(str(text).split())
    line = re.sub(r"([\\`*_{}\[\]<>#|~!])", r"\\\1", line)
    return line.replace("&", "&amp;")


def _paths(profile: Profile) -> list[str]:
    joules = {(e.path, e.batch): e for e in profile.power.paths} if profile.power else {}
    head = ["an image that", "batch", "p50 ms", "p90", "p99", "spread", "images/s"] + (["J an image"] if joules else [])
    rows = []
    for batch in profile.batches:
        for words, name, path in table_rows(profile, batch):
            s = path.total.summary
            row = [
                words, str(batch.batch), f"{s.p50_ms:.2f}", f"{s.p90_ms:.2f}", f"{s.p99_ms:.2f}", f"{s.cv:.0%}",
                f"{path.images_per_second:.1f}",
            ]  # fmt: skip
            joule = None if name is None else joules.get((name, batch.batch))
            rows.append([*row, _energy(joule)] if joules else row)
    return _table(head, rows)


def _device_clock(profile: Profile) -> list[str]:
    timed = [
        (batch.batch, name, path.device_parts, path.device_total)
        for batch in profile.batches
        for name, path in batch.paths.items()
        if path.device_parts is not None and path.device_total is not None
    ]
    if not timed:
        return []
    names, words = list(dict.fromkeys(part for _, _, parts, _ in timed for part in parts)), path_words(profile)
    rows = [
        [
            words[name], str(batch), f"{total.summary.p50_ms:.3f}",
            *(f"{parts[part].summary.p50_ms:.3f}" if part in parts else "" for part in names),
        ]
        for batch, name, parts, total in timed
    ]  # fmt: skip
    return [*_table(["device clock, p50 ms", "batch", "in all", *names], rows), ""]


def _energy(entry: PathEnergy | None) -> str:
    if entry is None or entry.joules_per_image is None:
        return "not measured"
    if entry.net_joules_per_image is None:
        return f"{entry.joules_per_image:.3g}, idle included"
    return f"{entry.net_joules_per_image:.3g}"


def _expected(profile: Profile) -> list[str]:
    batch = min(profile.batches, key=lambda entry: entry.batch)
    wanted = [point for point in batch.expected if point.eta in profile.settings.etas] or list(batch.expected)
    if not wanted:
        return []
    step = max(1, -(-len(wanted) // 8))
    rows = [
        [
            "" if point.eta is None else f"{point.eta:g}", f"{point.exit_rate:.0%}", f"{point.mean_ms:.2f}",
            f"{point.p99_ms:.2f}", "" if point.saving is None else f"{point.saving:+.0%}",
            "" if point.accuracy is None else f"{point.accuracy:.1%}",
        ]
        for point in wanted[::step]
    ]  # fmt: skip
    head = ["eta", "exit early", "expected mean ms", "p99", "saves against plain ViM", "accuracy"]
    used = [i for i in range(len(head)) if any(row[i] for row in rows)]
    return [*_table([head[i] for i in used], [[row[i] for i in used] for row in rows]), ""]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    align = ["---", *("---:" for _ in head[1:])]
    return ["| " + " | ".join(cells) + " |" for cells in (head, align, *rows)]
