"""What the commands that run bundles on labelled pictures share: options, the progress bar, bad pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from mscope.core.console import echo
from mscope.runtime.choices import KernelName

if TYPE_CHECKING:
    from mscope.core.errors import InputError

_SHOWN_PROBLEMS = 10


DataArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Folder with one folder of pictures for each class, .csv list of 'path,class', or digits[:validation].",
    ),
]
LimitOption = Annotated[
    int | None, typer.Option(metavar="N", help="Only N pictures, spread over the classes.", show_default=False)
]
SeedOption = Annotated[int, typer.Option(min=0, help="Of the draw of --limit and of the resampling.")]
BatchOption = Annotated[int, typer.Option(min=1, max=4096, metavar="N", help="Pictures run together.")]
LevelOption = Annotated[float, typer.Option(metavar="LEVEL", help="Confidence level of the intervals.")]
LatencyImagesOption = Annotated[
    int, typer.Option(min=0, metavar="N", help="Pictures to measure latency on, at batch 1; 0: not measured.")
]
BackendOption = Annotated[str, typer.Option(metavar="NAME", help="auto, or a backend, as for mscope-run.")]
KernelOption = Annotated[KernelName, typer.Option(help="Implementation of the scan, as for mscope-run.")]
PrecisionOption = Annotated[
    str, typer.Option(metavar="NAME", help="fp32, fp16, bf16, int8, fp8 or auto, of the files in the bundle.")
]
ThreadsOption = Annotated[
    int | None, typer.Option(metavar="N", help="Threads; by default one for each core.", show_default=False)
]


@contextlib.contextmanager
def images_progress(total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr if that is a terminal; the block calls what it gets with how many are done."""
    from mscope.runtime.report import progress

    with progress(total) as on_done:

        def advance(count: int) -> None:
            for _ in range(count):
                on_done()

        yield advance


@contextlib.contextmanager
def telling() -> Iterator[Callable[[InputError], None]]:
    """A function that prints a warning for a picture that cannot be read: the first ten, then how many there were.

    When the block is interrupted it says that what is done is kept.
    """
    count = 0

    def tell(problem: InputError) -> None:
        nonlocal count
        count += 1
        if count <= _SHOWN_PROBLEMS:
            echo(f"warning: left out: {problem}", err=True)

    try:
        yield tell
    except KeyboardInterrupt:
        echo("what is done is kept: the same command goes on from there", err=True)
        raise
    if count > _SHOWN_PROBLEMS:
        echo(f"warning: {count - _SHOWN_PROBLEMS} more pictures left out", err=True)
