"""mscope-profile: what a bundle costs on this machine, and when adaptivity pays."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from mscope.core.console import run_app
from mscope.runtime.choices import KernelName, Place
from mscope.runtime.profiling.diff_cli import EPILOG, diff
from mscope.runtime.profiling.roofline_cli import EPILOG as PREDICT_EPILOG
from mscope.runtime.profiling.roofline_cli import predict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_EXAMPLE = """Examples:

  mscope-profile --bundle bundles/ti --compare bundles/ti-vim

  mscope-profile --bundle bundles/ti --data photos/ --eta 0.6,0.8 --batch 1,8 --json profile.json --html profile.html

  mscope-profile --exit-rate 0.6 --duration 30 --layers

Exit status: 0 measured; 1 a failure; 2 bad usage or input; 130 interrupted.
"""

_REFRESH_S = 0.5
_CLEAR_LINE = "\r\x1b[2K"
Number = TypeVar("Number", int, float)

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.callback(invoke_without_command=True, epilog=_EXAMPLE)
def profile(
    context: typer.Context,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A folder that mscope-export build wrote; by default the one built last."),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A plain ViM bundle, measured in turn with it: where adaptivity pays."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Pictures to measure on; their confidences say how many leave early."),
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", help="Pictures of --data to look at.")] = 1000,
    exit_rate: Annotated[
        float | None, typer.Option(metavar="R", help="Share of images that leave early, where it is known otherwise.")
    ] = None,
    eta: Annotated[
        str | None, typer.Option(metavar="ETA,...", help="Thresholds to tell about; by default the bundle's.")
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N,...", help="Batch sizes.")] = "1",
    duration: Annotated[
        float, typer.Option(metavar="SECONDS", help="Measuring time for each batch size, all paths together.")
    ] = 10.0,
    backend: Annotated[
        str, typer.Option(metavar="NAME", help="auto, tensorrt, tensorrt-rtx, ort-cpu or ort-cuda.")
    ] = "auto",
    kernel: Annotated[KernelName, typer.Option(help="Of the scan, as for mscope-run.")] = KernelName.auto,
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="fp32, fp16, bf16, int8, fp8 or auto, of the files in the bundle.")
    ] = "auto",
    threads: Annotated[int | None, typer.Option(metavar="N", help="Threads; by default the backend's choice.")] = None,
    preprocess: Annotated[
        Place, typer.Option(help="Where decoded pictures are scaled, as for mscope-run.")
    ] = Place.host,
    decide: Annotated[
        Place,
        typer.Option(
            help="Where the exit of a single image is decided, as for mscope-run; device: both places are measured in "
            "turn (--batch 1)."
        ),
    ] = Place.host,
    idle: Annotated[
        str, typer.Option(metavar="SECONDS,...", help="Pauses after which one image is timed; none: leave it out.")
    ] = "0.1,1",
    cold_starts: Annotated[
        int, typer.Option(metavar="N", help="Fresh processes for cold start and memory; 0: leave it out.")
    ] = 3,
    layers: Annotated[bool, typer.Option("--layers", help="Take the graphs apart by node.")] = False,
    save_layers: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="--layers, as the layer and profile JSON that NVIDIA's tools read."),
    ] = None,
    power: Annotated[bool, typer.Option("--power", help="Measure energy, where the machine has a sensor.")] = False,
    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the profile as JSON; - prints it, and nothing else.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a report as one HTML page.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a report as Markdown.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Measure what a bundle costs on this machine: by stage and path, over eta, and beside plain ViM.

    diff and predict are commands of their own; without one it measures.
    """
    if context.invoked_subcommand is not None:
        return
    # Here, so that --help needs none of it.
    from mscope.core.files import write_text_atomically
    from mscope.runtime.profiling.destination import check_destination
    from mscope.runtime.profiling.layer_files import write_layer_files
    from mscope.runtime.profiling.options import ProfileOptions
    from mscope.runtime.profiling.run import profile_bundle
    from mscope.runtime.profiling.text import print_profile

    options = ProfileOptions(
        bundle=bundle,
        compare=compare,
        data=data,
        limit=limit,
        exit_rate=exit_rate,
        etas=_numbers(eta, float, "--eta"),
        batches=_numbers(batch, int, "--batch"),
        duration_s=duration,
        backend=backend,
        kernel=kernel.value,
        precision=precision,
        threads=threads,
        preprocess=preprocess.value,
        decide=decide.value,
        idle_gaps_s=() if idle.strip() == "none" else _numbers(idle, float, "--idle"),
        cold_starts=cold_starts,
        layers=layers or save_layers is not None,
        power=power,
    )
    options.check()
    json_file = None if json in (None, "-") else Path(str(json))
    for option, path in (("--json", json_file), ("--html", html), ("--markdown", markdown)):
        # Before measuring: what cannot be written is known now.
        check_destination(option, path)
    with _progress(quiet=json == "-" and sys.stdout.isatty()) as on_progress:
        result = profile_bundle(options, on_progress)
    # First: a file that cannot be written after all must not take the measurement with it.
    if json == "-":
        print(result.to_json())
    else:
        print_profile(result)
    if json_file is not None:
        write_text_atomically(json_file, result.to_json() + "\n")
    if html is not None:
        from mscope.runtime.profiling.html import write_html

        write_html(result, html)
    if markdown is not None:
        from mscope.runtime.profiling.markdown import write_markdown

        write_markdown(result, markdown)
    if save_layers is not None and result.layers is not None:
        write_layer_files(result.layers, save_layers)


app.command(short_help="Compares two profiles; can gate CI.", epilog=EPILOG)(diff)
app.command(short_help="Predicts latency on a device that is not here.", epilog=PREDICT_EPILOG)(predict)


def _numbers(text: str | None, kind: Callable[[str], Number], option: str) -> tuple[Number, ...]:
    """The numbers of "1,8"; none of None. Raises InputError."""
    from mscope.core.errors import InputError

    try:
        return () if text is None else tuple(kind(piece) for piece in text.split(","))
    except ValueError:
        raise InputError(f"{option} takes numbers with commas between them, got '{text}'") from None


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """Shows on stderr what is being done, if that is a terminal; the block calls what it gets.

    From the measuring thread, between its rounds and seldom: a spinner's own thread would run beside what is measured.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda text, share: None
        return
    shown_at = 0.0

    def show(text: str, share: float) -> None:
        nonlocal shown_at
        if time.monotonic() - shown_at >= _REFRESH_S:
            shown_at = time.monotonic()
            print(f"{_CLEAR_LINE}{text} {share:.0%}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        print(_CLEAR_LINE, end="", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `mscope-profile`; ends the process."""
    sys.exit(run_app(app, arguments))


if __name__ == "__main__":
    main()
