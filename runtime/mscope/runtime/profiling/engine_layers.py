"""The profile of a TensorRT engine layer by layer, by its own IProfiler, on execution contexts of their own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mscope.core.contract import Graph, Stage, graph_for
from mscope.core.engine import Flavour
from mscope.core.errors import BackendError
from mscope.core.manifest import Manifest, Variant
from mscope.runtime.backends.base import Array
from mscope.runtime.backends.tensorrt import EngineRunner
from mscope.runtime.profiling.feeds import fine_feeds
from mscope.runtime.profiling.layers import LayerTimes, events_from_layer_times
from mscope.runtime.profiling.schema import LayerTable
from mscope.runtime.result import Floats

RUNS = 20


class ProfiledEngine(EngineRunner):
    """An engine whose layers are timed: launched kernel by kernel, each run waited for, never replayed as a graph.

    With a profiler attached TensorRT waits for each run and times its layers, so that it takes longer than otherwise.
    """

    _captures = False

    def __init__(self, graph: Graph, path: Path, flavour: Flavour) -> None:
        super().__init__(graph, path, flavour)
        self._times: list[tuple[str, float]] = []

    def take(self) -> list[tuple[str, float]]:
        """Name and milliseconds of every layer since the last call, in the order in which TensorRT reports them."""
        taken, self._times = self._times, []
        return taken

    def _context(self) -> Any:
        context = super()._context()
        context.profiler = _profiler(self._module, self)
        return context

    def record(self, layer: str, ms: float) -> None:
        """Notes one layer's time; called by TensorRT."""
        self._times.append((layer, ms))


def _profiler(module: Any, runner: ProfiledEngine) -> Any:
    """An IProfiler that hands every layer's time to the runner. Its class can be made only where the package is."""

    class Profiler(module.IProfiler):  # type: ignore[misc,name-defined,unused-ignore]
        def __init__(self) -> None:
            module.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            runner.record(layer_name, ms)

    return Profiler()


def engine_layer_tables(
    folder: Path,
    manifest: Manifest,
    variants: Mapping[Stage, Variant],
    image: Floats,
    *,
    flavour: Flavour,
    runs: int = RUNS,
) -> tuple[LayerTable, ...]:
    """A table for each stage of a bundle.

    Args:
        folder, manifest, variants: the bundle, and the engine of each stage.
        image: (B, C, H, W) float32, normalised.
        flavour: whose engines they are.
        runs: measured runs of each stage, after one that is not counted.

    Raises:
        BackendError: an engine does not open or run, takes no batch of that size at once, or reports no layer.
    """
    tables: list[LayerTable] = []
    feeds: dict[str, Array] = {"image": image}
    stages: tuple[Stage, ...] = ("full",) if manifest.config.arch == "vim" else ("coarse", "fine")
    for stage in stages:
        times, walls = LayerTimes(), []
        outputs: dict[str, Array] = {}
        with ProfiledEngine(graph_for(manifest.config, stage), folder / variants[stage].file, flavour) as runner:
            if len(image) > runner.largest:
                raise BackendError(
                    f"{variants[stage].file} takes {runner.largest} images at once, the profile's first batch is "
                    f"{len(image)}: give a smaller one with --batch, or leave --layers out"
                )
            for number in range(runs + 1):
                started = time.perf_counter()
                outputs = runner.infer(feeds)
                wall = (time.perf_counter() - started) * 1e3
                layers = runner.take()
                # The first run allocates, and compiles where TensorRT-RTX does so late.
                if number:
                    walls.append(wall)
                    times.add_run(events_from_layer_times(layers))
        if not times.rows():
            raise BackendError(f"{variants[stage].file}: the engine reported the time of no layer")
        tables.append(
            LayerTable(
                source="tensorrt",
                stage=stage,
                batch=len(image),
                runs=times.runs,
                stage_ms=statistics.median(walls),
                rows=times.rows(),
            )
        )
        if stage == "coarse":
            feeds = fine_feeds(manifest, image, outputs)
    return tuple(tables)
