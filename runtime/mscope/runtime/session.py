"""One run over many sources: in batches, past the broken ones, each result handed on as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mscope.core.errors import InputError
from mscope.core.geometry import coarse_grid
from mscope.runtime.deadline import Deadline
from mscope.runtime.outputs import OutputArrays, OverlayFolder
from mscope.runtime.preprocess import Prepared
from mscope.runtime.result import Result
from mscope.runtime.scope import Scope
from mscope.runtime.sources import Item


@dataclass(frozen=True)
class RunOptions:
    """How to run: `eta` None takes the bundle's default, `batch` is the largest batch, `topk` the classes listed."""

    eta: float | None = None
    topk: int = 5
    batch: int = 1


@dataclass(frozen=True)
class _Ready:
    item: Item
    prepared: Prepared
    preprocess_ms: float


def run_items(
    scope: Scope,
    items: Sequence[Item],
    options: RunOptions,
    *,
    arrays: OutputArrays | None = None,
    overlays: OverlayFolder | None = None,
    deadline: Deadline | None = None,
    on_problem: Callable[[InputError], None],
    on_done: Callable[[], None] = lambda: None,
) -> Iterator[Result]:
    """Runs the items in their order, `options.batch` at a time, and yields their results.

    Args:
        scope: the loaded bundle.
        items: what to run.
        options: how.
        arrays: collects the raw outputs of what was run; the caller writes it at the end.
        overlays: gets one picture for each result.
        deadline: for each batch, from reading its first image; warmed up by the caller.
        on_problem: called with the reason for each item that cannot be run; the others are done all the same.
        on_done: called once for each item, run or not.
    """
    waiting: list[_Ready] = []
    for item in items:
        start = time.perf_counter()
        if deadline is not None and not waiting:
            deadline.start()
        try:
            prepared = scope.preprocess(item.load(), item.source, keep_view=overlays is not None)
        except InputError as problem:
            on_problem(problem)
            on_done()
            continue
        waiting.append(_Ready(item, prepared, (time.perf_counter() - start) * 1e3))
        if len(waiting) == options.batch:
            yield from _run_batch(scope, waiting, options, arrays, overlays, deadline, on_done)
            waiting = []
    if waiting:
        yield from _run_batch(scope, waiting, options, arrays, overlays, deadline, on_done)


def _run_batch(
    scope: Scope,
    batch: Sequence[_Ready],
    options: RunOptions,
    arrays: OutputArrays | None,
    overlays: OverlayFolder | None,
    deadline: Deadline | None,
    on_done: Callable[[], None],
) -> Iterator[Result]:
    tensor = scope.stack([ready.prepared for ready in batch])
    outcome = scope.run(tensor, options.eta, may_refine=None if deadline is None else deadline.may_refine)
    if deadline is not None:
        deadline.ran(outcome)
    sources = [ready.item.source for ready in batch]
    times = [ready.preprocess_ms for ready in batch]
    results = scope.results(outcome, sources, times, eta=options.eta, topk=options.topk)
    if deadline is not None:
        results = deadline.finish(results)
    if arrays is not None:
        arrays.add(outcome, sources)
    for ready, result in zip(batch, results, strict=True):
        if overlays is not None and ready.prepared.view is not None:
            from mscope.runtime.visualize import overlay

            overlays.write(result.source, overlay(ready.prepared.view, result, coarse_grid(scope.config)))
        on_done()
        yield result
