"""Results on a terminal: a table of pictures or a line a frame, a summary, a progress bar while people wait."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mscope.core.manifest import Manifest
from mscope.core.text import readable
from mscope.runtime.result import Result

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# A pipe has no width: nothing is broken in it. Tables are as wide as what they hold.
_PIPE_WIDTH = 1 << 20


@dataclass
class Totals:
    """Sums over a run, for its summary; they grow with nothing."""

    count: int = 0
    frames: int = 0
    early: int = 0
    late: int = 0
    gmacs: float = 0.0
    ms: float = 0.0
    last: Result | None = None

    def add(self, result: Result) -> None:
        """The next result."""
        self.count += 1
        self.frames += result.frame is not None
        # What eta let go, and what a deadline held back.
        self.late += _held_back(result)
        self.early += result.stage == "coarse" and not _held_back(result)
        self.gmacs += result.gmacs
        self.ms += result.latency_ms["total"]
        self.last = result

    def summary(self, manifest: Manifest) -> str:
        """How many left early, and the mean cost, beside plain ViM's, in one line; of one result or more."""
        assert self.last is not None
        last, adaptive = self.last, self.last.stage != "full"
        noun = "frame" if self.frames == self.count else "picture"
        line = f"{self.count} {noun}{'' if self.count == 1 else 's'}"
        if adaptive:
            line += f", {self.early} left early ({self.early / self.count:.0%}) at eta {last.eta:g}"
            line += f", {self.late} kept the coarse answer for the deadline" if self.late else ""
        line += f"; mean {self.gmacs / self.count:.3g} GMACs"
        if adaptive:
            line += f" (plain ViM {manifest.baseline.gmacs:.3g})"
        return f"{line}, {self.ms / self.count:.1f} ms; {last.backend} {last.precision}, {last.kernel} kernels"


def _held_back(result: Result) -> bool:
    return result.deadline is not None and result.deadline.skipped_fine


def _stage(result: Result) -> str:
    return "coarse (deadline)" if _held_back(result) else result.stage


class LinePrinter:
    """A line a result on stdout, as it comes: for videos and cameras, whose end may be far away."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._begun = False

    def print(self, result: Result) -> None:
        """Prints one result; before the first one, that the weights are untrained, if they are."""
        if not self._begun:
            self._begun = True
            _print_untrained(stdout_console(), self._manifest)
        stdout_console().out(result_line(result), highlight=False)
        sys.stdout.flush()

    def end(self, totals: Totals) -> None:
        """Prints the summary, if there was any result."""
        if totals.count:
            stdout_console().out(totals.summary(self._manifest), highlight=False)


def result_line(result: Result) -> str:
    """One result in one line: where it is from, the answer, how sure each stage was, how long it took."""
    place = readable(result.source)
    if result.frame is not None:
        time_s = result.frame.time_s
        place += f" #{result.frame.index}" + ("" if time_s is None else f" {time_s:.2f} s")
    sure = f"{result.confidence:.1%}"
    if result.coarse_confidence is not None and result.stage == "fine":
        sure += f" (coarse {result.coarse_confidence:.1%})"
    return f"{place}  {result.answer.label}  {sure}  {_stage(result)}  {result.latency_ms['total']:.1f} ms"


def print_table(results: Sequence[Result], manifest: Manifest) -> None:
    """Prints the results and what they cost on stdout; in a pipe without colours, and no line is broken."""
    from rich.markup import escape

    console = stdout_console()
    _print_untrained(console, manifest)
    if len(results) == 1:
        _print_single(console, results[0], manifest)
        return
    console.print(_table(results))
    totals = Totals()
    for result in results:
        totals.add(result)
    console.print(escape(totals.summary(manifest)))


def stdout_console() -> Console:
    """Rich's on stdout: at the width of the terminal; in a pipe without colours, and no line is broken."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)


def _print_untrained(console: Console, manifest: Manifest) -> None:
    from rich.markup import escape

    if not manifest.weights.trained:
        console.print(f"[yellow]weights: {escape(manifest.weights.describe())}[/]")


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
            Text(readable(result.source)),
            Text(result.answer.label),
            f"{result.confidence:.1%}",
            coarse,
            Text(_stage(result), style={"coarse": "green", "fine": "yellow"}.get(_stage(result), "")),
            f"{result.gmacs:.3g}",
            str(result.tokens),
            f"{result.latency_ms['total']:.1f}",
        )
    return table


def _print_single(console: Console, result: Result, manifest: Manifest) -> None:
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from mscope.core.geometry import vim_name

    how = {
        "coarse": f"left early: coarse confidence {result.coarse_confidence or 0:.1%} >= eta {result.eta or 0:g}",
        "fine": f"refined {len(result.selected or ())} regions: coarse confidence {result.coarse_confidence or 0:.1%} "
        f"< eta {result.eta or 0:g}",
        "full": vim_name(manifest.config),
    }[result.stage]
    if _held_back(result):
        how = (
            f"the deadline left no time to refine: coarse confidence {result.coarse_confidence or 0:.1%} "
            f"< eta {result.eta or 0:g}"
        )
    console.print(f"[bold]{escape(readable(result.source))}[/]  {escape(how)}")
    table = Table.grid(padding=(0, 2))
    for guess in result.topk:
        table.add_row(f"  {guess.prob:6.1%}", Text(guess.label), f"[dim]{guess.index}[/]")
    console.print(table)
    stages = "  ".join(f"{name} {ms:.1f}" for name, ms in result.latency_ms.items())
    cost = f"{result.gmacs:.3g} GMACs, {result.tokens} tokens; ms: {stages}"
    console.print(f"[dim]{cost}; {result.backend} {result.precision}, {result.kernel} kernels[/]")


@contextlib.contextmanager
def progress(total: int | None, *, quiet: bool = False) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr if that is a terminal, and not `quiet`; the block calls what it gets once an image.

    `total` None: nobody knows how many there will be.
    """
    if (total is not None and total < 2) or quiet or not sys.stderr.isatty():
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
