"""One run over many sources: in batches, past the broken ones, each result handed on as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mscope.core.errors import InputError
from mscope.core.geometry import coarse_grid, vim_name
from mscope.runtime.deadline import Deadline
from mscope.runtime.outputs import OutputArrays, OverlayFolder
from mscope.runtime.preprocess import Prepared, Unscaled
from mscope.runtime.result import FrameStamp, Result
from mscope.runtime.scope import Scope
from mscope.runtime.sources import Item
from mscope.runtime.video.frames import frames_of
from mscope.runtime.video.stream import Stream


@dataclass(frozen=True)
class RunOptions:
    """How to run.

    Attributes:
        eta: None takes the bundle's default.
        topk: classes listed.
        batch: images run together at most; 1 for live streams, whose frames do not wait.
        every: of a video or a live stream, each n-th frame only.
        frames: of each video or live stream, that many at most; None: to its end.
    """

    eta: float | None = None
    topk: int = 5
    batch: int = 1
    every: int = 1
    frames: int | None = None


@dataclass(frozen=True)
class _Image:
    """What `load` returns, `Scope` takes. `spent_ms` went into it already, and it lay ready for `waited_ms`."""

    source: str
    name: str
    load: Callable[[], Any]
    stamp: FrameStamp | None = None
    spent_ms: float = 0.0
    waited_ms: float = 0.0


@dataclass(frozen=True)
class _Ready:
    image: _Image
    prepared: Prepared | Unscaled
    preprocess_ms: float


def check_streams(items: Sequence[Item | Stream], options: RunOptions, *, every_given: bool, all_rows: bool) -> None:
    """Raises InputError for options that do not go with the streams of a run, or need one where there is none.

    Args:
        items: the run's; may be without a stream.
        options: its options.
        every_given: `options.every` was asked for.
        all_rows: the outputs of every image are kept until the end.
    """
    streams = [item for item in items if isinstance(item, Stream)]
    unknown = any(isinstance(item, Item) and item.problem is not None for item in items)
    if not streams and not unknown and (every_given or options.frames is not None):
        option = "--every" if every_given else "--frames"
        raise InputError(f"{option} is for videos and cameras, and no SOURCE is one: leave it out")
    live = next((stream for stream in streams if stream.live), None)
    if live is not None and options.batch > 1:
        raise InputError(f"{live.source}: frames of a camera do not wait for a batch: leave --batch out")
    if streams and all_rows and options.frames is None:
        raise InputError(
            f"{streams[0].source}: --save-outputs keeps every row in memory, and a video may have any number: "
            "say how many frames with --frames"
        )


def run_items(
    scope: Scope,
    items: Sequence[Item | Stream],
    options: RunOptions,
    *,
    arrays: OutputArrays | None = None,
    overlays: OverlayFolder | None = None,
    deadline: Deadline | None = None,
    on_problem: Callable[[InputError], None],
    on_done: Callable[[], None] = lambda: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Generator[Result, None, None]:
    """Runs the items in their order, `options.batch` at a time, and yields their results.

    Args:
        scope: the loaded bundle.
        items: what to run. The frames of a stream are taken one by one, as the run gets to them.
        options: how.
        arrays: collects the raw outputs of what was run; the caller writes it at the end.
        overlays: gets one picture for each result.
        deadline: for each batch, from reading its first image, of a live stream from its arrival; warmed up by the
            caller.
        on_problem: called with the reason for each item that cannot be run; the others are done all the same.
        on_done: called once for each image, run or not.
        on_note: called with what a person should know of a stream that is over.
    """
    waiting: list[_Ready] = []
    for image in _images(items, options, on_problem, on_note):
        start = time.perf_counter()
        if deadline is not None and not waiting:
            deadline.start(image.spent_ms + image.waited_ms)
        try:
            prepared = scope.prepare(image.load(), image.name, keep_view=overlays is not None)
        except InputError as problem:
            on_problem(problem)
            on_done()
            continue
        waiting.append(_Ready(image, prepared, image.spent_ms + (time.perf_counter() - start) * 1e3))
        if len(waiting) == options.batch:
            yield from _run_batch(scope, waiting, options, arrays, overlays, deadline, on_done)
            waiting = []
    if waiting:
        yield from _run_batch(scope, waiting, options, arrays, overlays, deadline, on_done)


def _images(
    items: Sequence[Item | Stream],
    options: RunOptions,
    on_problem: Callable[[InputError], None],
    on_note: Callable[[str], None],
) -> Iterator[_Image]:
    for item in items:
        if isinstance(item, Item):
            yield _Image(item.source, item.source, item.load)
            continue
        try:
            for frame in frames_of(item, options.every, options.frames, on_note=on_note):
                waited = frame.stamp.age_ms or 0.0
                yield _Image(item.source, frame.name, frame.pixels, frame.stamp, frame.read_ms, waited)
        except InputError as problem:
            on_problem(problem)


def _run_batch(
    scope: Scope,
    batch: Sequence[_Ready],
    options: RunOptions,
    arrays: OutputArrays | None,
    overlays: OverlayFolder | None,
    deadline: Deadline | None,
    on_done: Callable[[], None],
) -> Generator[Result, None, None]:
    tensor = scope.stack([ready.prepared for ready in batch])
    outcome = scope.run(tensor, options.eta, may_refine=None if deadline is None else deadline.may_refine)
    if deadline is not None:
        deadline.ran(outcome)
    sources = [ready.image.source for ready in batch]
    stamps = [ready.image.stamp for ready in batch]
    times = [ready.preprocess_ms for ready in batch]
    results = [
        replace(result, frame=stamp)
        for result, stamp in zip(
            scope.results(outcome, sources, times, eta=options.eta, topk=options.topk), stamps, strict=True
        )
    ]
    if deadline is not None:
        results = deadline.finish(results)
    if arrays is not None:
        arrays.add(outcome, sources, [-1 if stamp is None else stamp.index for stamp in stamps])
    for ready, result in zip(batch, results, strict=True):
        if overlays is not None and ready.prepared.view is not None:
            from mscope.runtime.visualize import overlay

            picture = overlay(ready.prepared.view, result, coarse_grid(scope.config), vim_name(scope.config))
            overlays.write(result, picture)
        on_done()
        yield result
