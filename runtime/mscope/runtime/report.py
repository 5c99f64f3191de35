"""Results on a terminal: a table for people, a progress bar while they wait."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from mscope.core.manifest import Manifest
from mscope.runtime.result import Result

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_PIPE_WIDTH = 160


def print_table(results: Sequence[Result], manifest: Manifest) -> None:
    """Prints the results and what they cost on stdout; in a pipe without colours, at a fixed width."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)
    if not manifest.weights.trained:
        console.print(f"[yellow]weights: {escape(manifest.weights.describe())}[/]")
    if len(results) == 1:
        _print_single(console, results[0])
        return
    console.print(_table(results))
    console.print(escape(summary(results, manifest)))


def summary(results: Sequence[Result], manifest: Manifest) -> str:
    """How many left early, and the mean cost, beside plain ViM's, in one line."""
    count = len(results)
    gmacs = sum(result.gmacs for result in results) / count
    ms = sum(result.latency_ms["total"] for result in results) / count
    first = results[0]
    line = f"{count} pictures"
    if first.stage != "full":
        early = sum(result.stage == "coarse" for result in results)
        line += f", {early} left early ({early / count:.0%}) at eta {first.eta:g}"
    line += f"; mean {gmacs:.3g} GMACs"
    if first.stage != "full":
        line += f" (plain ViM {manifest.baseline.gmacs:.3g})"
    return f"{line}, {ms:.1f} ms; {first.backend} {first.precision}, {first.kernel} kernels"


def _table(results: Sequence[Result]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("source", overflow="fold", ratio=None)
    table.add_column("answer", overflow="fold", style="bold")
    for name in ("confidence", "coarse"):
        table.add_column(name, justify="right")
    table.add_column("stage")
    for name in ("GMACs", "tokens", "ms"):
        table.add_column(name, justify="right")
    for result in results:
        coarse = "" if result.coarse_confidence is None else f"{result.coarse_confidence:.1%}"
        table.add_row(
            Text(result.source),
            Text(result.answer.label),
            f"{result.confidence:.1%}",
            coarse,
            Text(result.stage, style={"coarse": "green", "fine": "yellow"}.get(result.stage, "")),
            f"{result.gmacs:.3g}",
            str(result.tokens),
            f"{result.latency_ms['total']:.1f}",
        )
    return table


def _print_single(console: Console, result: Result) -> None:
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    how = {
        "coarse": f"left early: coarse confidence {result.coarse_confidence or 0:.1%} >= eta {result.eta or 0:g}",
        "fine": f"refined {len(result.selected or ())} regions: coarse confidence {result.coarse_confidence or 0:.1%} "
        f"< eta {result.eta or 0:g}",
        "full": "plain ViM",
    }[result.stage]
    console.print(f"[bold]{escape(result.source)}[/]  {escape(how)}")
    table = Table.grid(padding=(0, 2))
    for guess in result.topk:
        table.add_row(f"  {guess.prob:6.1%}", Text(guess.label), f"[dim]{guess.index}[/]")
    console.print(table)
    stages = "  ".join(f"{name} {ms:.1f}" for name, ms in result.latency_ms.items())
    cost = f"{result.gmacs:.3g} GMACs, {result.tokens} tokens; ms: {stages}"
    console.print(f"[dim]{cost}; {result.backend} {result.precision}, {result.kernel} kernels[/]")


@contextlib.contextmanager
def progress(total: int, *, quiet: bool = False) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr if that is a terminal, and not `quiet`; the block calls what it gets once an image."""
    if total < 2 or quiet or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    # Left to itself, Rich sends stdout the way of its own console: to stderr.
    bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
    )
    with bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
