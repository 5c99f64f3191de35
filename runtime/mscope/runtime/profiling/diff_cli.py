"""`mscope-profile diff`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mscope.runtime.profiling.diff import ProfileDiff, SeriesDiff

EPILOG = """Examples:

  mscope-profile diff before.json after.json

  mscope-profile diff before.json after.json --fail-if 'p99>+5%' --fail-if 'refine.p50>+3%'

  mscope-profile diff a1.json b.json --again a2.json --again a3.json --again a4.json --fail-if 'p50>+3%'

Exit status: 0 no condition exceeded; 1 one was, significantly; 2 bad usage, or profiles that cannot be compared.
"""


def diff(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="A profile, as --json FILE wrote it.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="The profile to compare with it.")],
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="Exit with 1 if so: [exit.|refine.|plain.]METRIC>+N% or <-N%; METRIC mean, p50, p90, p95, p99, "
            "throughput, memory or energy. May be given several times.",
            show_default=False,
        ),
    ] = None,
    again: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="A2.json",
            help="Further runs of A, two or more, each option one: a change that they show among themselves fails no "
            "condition.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Compare other models, batch sizes or threads all the same.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> int:
    """Compares two profiles: medians and p99 of every path and part, with intervals and a significance test."""
    import json

    from mscope.core.console import EXIT_FAILURE, echo, print_error
    from mscope.runtime.profiling.diff import compare, parse_condition
    from mscope.runtime.profiling.schema import load_profile

    conditions = [parse_condition(text) for text in fail_if or ()]
    runs = [load_profile(path) for path in again or ()]
    found = compare(load_profile(before), load_profile(after), conditions, again=runs, force=force)
    if as_json:
        typer.echo(json.dumps(found.to_json(), allow_nan=False))
    else:
        for line in render(found):
            echo(line)
    for entry in found.exceeded:
        print_error(f"{entry.condition} exceeded: {entry.where} changed by {entry.change:+.1%}")
    return EXIT_FAILURE if found.exceeded else 0


def render(found: ProfileDiff) -> list[str]:
    """The comparison as plain lines of text; a star marks what is significant."""
    lines = [f"differs: {line}" for line in found.differences]
    lines += [f"doubtful: {line}" for line in found.doubts]
    for head in (series for series in found.series if series.part == "total"):
        counts = f"{head.counts[0]} and {head.counts[1]} samples"
        lines += ["", f"{head.path}, batch {head.batch} ({counts})", _HEAD]
        for series in found.series:
            if (series.batch, series.path) == (head.batch, head.path):
                lines += _rows(series)
    if found.peak_memory is not None:
        lines += ["", f"peak memory {found.peak_memory:+.1%}"]
    for (batch, path), change in found.energy.items():
        joules = f"{change.before:.4g} to {change.after:.4g} J an image"
        interval = f"{change.relative:+.1%} ({change.low:+.1%} to {change.high:+.1%})"
        lines.append(f"energy of {path}, batch {batch}: {joules}, {interval}")
    shown = [entry for entry in found.between if entry.metric in ("p50", "p99")]
    if shown:
        lines += ["", f"a further run of A, by {shown[0].runs} of them, lies 19 of 20 times within"]
        lines += [
            f"  {entry.path}, batch {entry.batch}: {entry.metric} {entry.low:+.1%} to {entry.high:+.1%}"
            for entry in shown
        ]
    else:
        lines += [
            "",
            "the intervals are of these two runs: whole runs differ too, by how much say --again and more runs of A",
        ]
    lines += ["", "* the 95 % interval of the change leaves out 0; p: Mann-Whitney's, of no difference at all"]
    return lines if lines[0] else lines[1:]


_HEAD = f"{'':<17}{'ms':>22}{'change':>9} {'95 % interval':>21}{'p':>9}"


def _rows(series: SeriesDiff) -> list[str]:
    """A line for each statistic shown, so that they fit a terminal of 80 columns."""
    rows = []
    for name, p in (("p50", series.p), ("p99", None)):
        change = series.changes.get(name)
        label = f"  {series.part[:11] if name == 'p50' else '':<12}{name}"
        cells = f"{'too few samples':>22}{'':>31}"
        if change is not None:
            mark = "*" if change.significant else " "
            cells = f"{f'{change.before:.3f} > {change.after:.3f}':>22}{f'{change.relative:+.1%}':>9}{mark}"
            cells += f"{f'{change.low:+.1%} to {change.high:+.1%}':>21}"
        rows.append(f"{label}{cells}{'' if p is None else f'{p:.2g}':>9}".rstrip())
    return rows
