"""Options that several commands have, and progress on a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")]
WeightsOption = Annotated[
    Path | None, typer.Option(help="Checkpoint: .pth (bare or under 'model') or .safetensors.", show_default=False)
]
ArchOption = Annotated[str, typer.Option(help="mambascope, or vim: the plain network, the baseline.")]
AlphaOption = Annotated[
    float | None,
    typer.Option(help="Refined fraction of the regions, in (0, 1].  [default: 0.5; digits: 0.75]", show_default=False),
]
ReduceOption = Annotated[
    str | None,
    typer.Option(help="With --arch vim: thin out its tokens, prune or merge; needs --keep.", show_default=False),
]
KeepOption = Annotated[
    float | None,
    typer.Option(help="With --reduce: fraction of the patch tokens left at the end, in (0, 1].", show_default=False),
]
ReduceAfterOption = Annotated[
    str | None,
    typer.Option(
        help="With --reduce: blocks (from 1) after which tokens go: 5,10,15.  [default: by method]", show_default=False
    ),
]
ResolutionOption = Annotated[
    str | None, typer.Option(help="H or HxW, pixels.  [default: 224; digits: 64]", show_default=False)
]


@contextlib.contextmanager
def progress_on_terminal() -> Iterator[Callable[[str], None]]:
    """Gives a function that shows the current step with a spinner on stderr; in a pipe it shows nothing."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status("starting") as status:
        yield lambda text: status.update(text)
