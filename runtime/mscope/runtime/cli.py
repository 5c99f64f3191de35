"""mscope-run: answers for pictures, folders, tensors, videos and cameras."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mscope.core.console import EXIT_FAILURE, EXIT_USAGE, echo, print_error, run_app
from mscope.runtime.choices import KernelName, Place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mscope.runtime.result import Result

_EXAMPLE = """Examples:

  mscope-run photo.jpg

  mscope-run photos/ --eta 0.7 --save-vis overlays/

  mscope-run 'photos/**/*.png' batch.npy --json --save-outputs out.npz

  mscope-run clip.mp4 --every 5 --save-vis overlays/

  mscope-run camera:0 --deadline-ms 33 --stats

Exit status: 0 all done, also a camera's run ended with Ctrl-C; 1 a failure, or some sources could not be read (the
others are done); 2 bad usage, or no source could be read; 130 interrupted.
"""

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog=_EXAMPLE)
def run(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Pictures, folders (pictures directly in them), globs, .npy files with normalised float32 tensors, "
            "videos, or cameras: camera:0, /dev/video0, rtsp://host/path (pip install 'mambascope-deploy[video]').",
        ),
    ],
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A folder that mscope-export build wrote; by default the one built last."),
    ] = None,
    eta: Annotated[
        float | None,
        typer.Option(
            metavar="ETA", help="Confidence in [0, 1] that accepts the coarse answer; by default the bundle's."
        ),
    ] = None,
    backend: Annotated[
        str, typer.Option(metavar="NAME", help="auto, tensorrt, tensorrt-rtx, ort-cpu or ort-cuda.")
    ] = "auto",
    kernel: Annotated[
        KernelName,
        typer.Option(
            help="Of the scan: native (this package's library), function (the file's own), or auto: native where it is."
        ),
    ] = KernelName.auto,
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="fp32, fp16, bf16, int8, fp8 or auto, of the files in the bundle.")
    ] = "auto",
    threads: Annotated[int | None, typer.Option(metavar="N", help="Threads; by default one for each core.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=4096, metavar="N", help="Pictures run together.")] = 1,
    topk: Annotated[int, typer.Option(min=1, metavar="N", help="Classes listed for each picture.")] = 5,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout, nothing else.")] = False,
    save_vis: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write an overlay for each picture, and a video of them for each video: what was refined.",
        ),
    ] = None,
    save_outputs: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="Write logits, coarse_logits, importance and selected (-1: exited)."),
    ] = None,
    every: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of videos and cameras, look at each N-th frame only.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of each video or camera, look at N frames at most.")
    ] = None,
    preprocess: Annotated[
        Place,
        typer.Option(help="Where decoded pictures are scaled; device: on the GPU, to the same bits. Not measured yet."),
    ] = Place.host,
    decide: Annotated[
        Place,
        typer.Option(
            help="Where the exit of a single image is decided; device: both stages as one CUDA graph with a "
            "conditional node, to the same answers (--batch 1, engines, CUDA 12.4). Not measured yet."
        ),
    ] = Place.host,
    deadline_ms: Annotated[
        float | None,
        typer.Option(
            metavar="MS", help="Return the coarse answer where the fine stage would not be done in this time."
        ),
    ] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Exit rate and drift over the run, on stderr; with --json as one object.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> int:
    """Classify pictures: easy ones leave early, after the coarse stage; of hard ones the top regions are refined."""
    # Here, so that --help needs none of it.
    from mscope.core.cascade import check_eta
    from mscope.core.errors import InputError
    from mscope.runtime.deadline import Deadline
    from mscope.runtime.outputs import OutputArrays, OverlayFolder
    from mscope.runtime.report import LinePrinter, Totals, print_table, progress
    from mscope.runtime.scope import Scope
    from mscope.runtime.session import RunOptions, check_streams, run_items
    from mscope.runtime.sources import expand_sources
    from mscope.runtime.stats import RunRecord, print_stats
    from mscope.runtime.video.stream import Stream

    if eta is not None:
        check_eta(eta)
    if decide is Place.device and (deadline_ms is not None or batch > 1):
        option = "--deadline-ms" if deadline_ms is not None else f"--batch {batch}"
        raise InputError(f"--decide device is for single images without a deadline: leave it or {option} out")
    deadline = None if deadline_ms is None else Deadline(deadline_ms)
    failures: list[InputError] = []

    def on_problem(problem: InputError) -> None:
        failures.append(problem)
        print_error(problem)

    def on_note(note: str) -> None:
        echo(f"note: {note}", err=True)

    with Scope.load(
        bundle,
        backend=backend,
        threads=threads,
        kernel=kernel.value,
        precision=precision,
        preprocess=preprocess.value,
        decide=decide.value,
    ) as scope:
        for note in scope.notes:
            on_note(note)
        shape = (scope.config.channels, scope.config.height, scope.config.width)
        items = expand_sources(sources, shape)
        streams = [item for item in items if isinstance(item, Stream)]
        options = RunOptions(eta=eta, topk=topk, batch=batch, every=every or 1, frames=frames)
        check_streams(items, options, every_given=every is not None, all_rows=save_outputs is not None)
        untrained = not scope.manifest.weights.trained
        arrays = None if save_outputs is None else OutputArrays(save_outputs, untrained=untrained)
        overlays = None if save_vis is None else OverlayFolder(save_vis)
        if deadline is not None:
            deadline.warm_up(scope, batch)
        record, totals, printer = RunRecord(), Totals(), LinePrinter(scope.manifest)
        # Of a stream nothing is kept; pictures go into one table.
        results: list[Result] = []
        total, quiet = (None if streams else len(items)), sys.stdout.isatty() and (json or bool(streams))
        interrupted: KeyboardInterrupt | None = None
        try:
            with contextlib.ExitStack() as stack:
                on_done = stack.enter_context(progress(total, quiet=quiet))
                if overlays is not None:
                    stack.enter_context(overlays)
                run = run_items(
                    scope,
                    items,
                    options,
                    arrays=arrays,
                    overlays=overlays,
                    deadline=deadline,
                    on_problem=on_problem,
                    on_done=on_done,
                    on_note=on_note,
                )
                for result in stack.enter_context(contextlib.closing(run)):
                    totals.add(result)
                    if stats:
                        record.add(result)
                    if json:
                        print(result.to_json(), flush=True)
                    elif streams:
                        printer.print(result)
                    else:
                        results.append(result)
        except KeyboardInterrupt as error:
            interrupted = error
        # Ctrl-C, or SIGTERM, is how a camera's run ends; elsewhere it cuts a run short, of which no .npz is written.
        cut_short = interrupted is not None and not any(stream.live for stream in streams)
        if arrays is not None and not cut_short:
            arrays.write()
        if results:
            print_table(results, scope.manifest)
        if streams and not json:
            printer.end(totals)
        if stats:
            print_stats(record.stats(), json=json)
        if interrupted is not None and cut_short:
            raise interrupted
        if not failures:
            return 0
        return EXIT_FAILURE if totals.count else EXIT_USAGE


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `mscope-run`; ends the process."""
    status = run_app(app, arguments)
    if any(thread.daemon for thread in threading.enumerate()):
        # A camera's reader that hangs in a read: an orderly end would take FFmpeg from under it, and crash at times.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    main()
