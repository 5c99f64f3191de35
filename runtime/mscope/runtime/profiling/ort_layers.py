"""The per-node profile of ONNX Runtime's own profiler, on sessions of its own."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mscope.core.contract import Stage, graph_for
from mscope.core.errors import BackendError
from mscope.core.manifest import Manifest, Variant
from mscope.runtime.backends.base import Array, Kernel
from mscope.runtime.backends.ort import OrtRunner
from mscope.runtime.profiling.feeds import fine_feeds
from mscope.runtime.profiling.layers import LayerTimes, NodeEvent, event_from_ort
from mscope.runtime.profiling.schema import LayerTable
from mscope.runtime.result import Floats

# Function bodies make some ten thousand events a run, half a kilobyte each, and ONNX Runtime keeps them all in memory,
# where they take five times as much as in the file.
MAX_FILE_BYTES = 64 << 20
MAX_RUNS = 20
_MAX_LINE = 1 << 20


class ProfiledRunner(OrtRunner):
    """An ONNX Runtime session that records every node into a file below `folder`."""

    def __init__(self, *args: Any, folder: Path, **options: Any) -> None:
        super().__init__(*args, **options)
        self._folder = folder

    def _configure(self, options: Any) -> None:
        options.enable_profiling = True
        options.profile_file_prefix = str(self._folder / "profile")

    def finish(self) -> Path:
        """Stops recording and returns the file."""
        return Path(self._session.end_profiling())


def ort_layer_tables(
    folder: Path,
    manifest: Manifest,
    variants: Mapping[Stage, Variant],
    image: Floats,
    *,
    threads: int | None,
    kernel: Kernel,
    runs: int = MAX_RUNS,
) -> tuple[LayerTable, ...]:
    """A table for each stage of a bundle.

    Args:
        folder, manifest, variants: the bundle, and the .onnx file of each stage.
        image: (B, C, H, W) float32, normalised.
        threads, kernel: as the measured runners have them.
        runs: measured runs of each stage, after one that is not counted; fewer where the record would be too large.

    Raises:
        BackendError: ONNX Runtime fails, or its profiler writes what this program does not understand.
    """
    tables: list[LayerTable] = []
    feeds: dict[str, Array] = {"image": image}
    stages: tuple[Stage, ...] = ("full",) if manifest.config.arch == "vim" else ("coarse", "fine")
    for stage in stages:
        with tempfile.TemporaryDirectory(prefix="mscope-layers-") as scratch:

            def runner(stage: Stage = stage, scratch: str = scratch) -> ProfiledRunner:
                path = folder / variants[stage].file
                graph = graph_for(manifest.config, stage)
                return ProfiledRunner(graph, path, folder=Path(scratch), threads=threads, kernel=kernel)

            # One run tells how large the record of a run is.
            probe = _record(runner(), feeds, 1)
            affordable = MAX_FILE_BYTES // max(1, probe.path.stat().st_size) - 1
            counted = max(1, min(runs, affordable))
            record = _record(runner(), feeds, counted + 1)
            tables.append(_table(record, stage, len(image), counted))
        if stage == "coarse":
            feeds = fine_feeds(manifest, image, record.outputs)
    return tuple(tables)


class _Record:
    """A finished recording: the file, each run's wall time, the last run's outputs."""

    def __init__(self, path: Path, ms: list[float], outputs: dict[str, Array]) -> None:
        self.path, self.ms, self.outputs = path, ms, outputs


def _record(runner: ProfiledRunner, feeds: dict[str, Array], runs: int) -> _Record:
    times, outputs = [], {}
    with runner:
        for _ in range(runs):
            started = time.perf_counter()
            outputs = runner.infer(feeds)
            times.append((time.perf_counter() - started) * 1e3)
        return _Record(runner.finish(), times, outputs)


def _table(record: _Record, stage: Stage, batch: int, runs: int) -> LayerTable:
    times = LayerTimes()
    for number, events in enumerate(runs_from_ort(record.path)):
        # The first run allocates memory and starts threads.
        if number:
            times.add_run(events)
    if not times.runs:
        raise BackendError(f"ONNX Runtime's profiler recorded no run of the {stage} graph")
    return LayerTable(
        source="onnxruntime",
        stage=stage,
        batch=batch,
        runs=times.runs,
        stage_ms=statistics.median(record.ms[1:]),
        rows=times.rows(),
        truncated=times.runs < runs,
    )


def runs_from_ort(path: Path) -> Iterator[list[NodeEvent]]:
    """The node events of each whole run in a file of ONNX Runtime's profiler, read line by line.

    Raises:
        BackendError: a line that is no event. OSError: the file cannot be read.
    """
    events: list[NodeEvent] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        while line := file.readline(_MAX_LINE):
            text = line.strip().rstrip(",")
            if text in ("", "[", "]"):
                continue
            try:
                fields = json.loads(text)
            except ValueError:
                raise BackendError(f"{path.name}: ONNX Runtime's profiler wrote a line that is no JSON") from None
            if not isinstance(fields, dict):
                raise BackendError(f"{path.name}: ONNX Runtime's profiler wrote a line that is no event")
            event = event_from_ort(fields)
            if event is not None:
                events.append(event)
            elif fields.get("cat") == "Session" and fields.get("name") == "model_run":
                yield events
                events = []
