"""The table of backends: what each needs, whether it is here, and its runner, each loaded on demand."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from mscope.core.contract import Graph, Stage
from mscope.core.errors import BackendError, InputError
from mscope.core.manifest import Backend as Format
from mscope.core.manifest import Manifest, Precision, Variant
from mscope.runtime.backends.base import Kernel, Runner

AUTO = "auto"


@dataclass(frozen=True)
class RunnerOptions:
    """What a run asks of a backend: threads (None: the backend's choice) and the kernel of the custom ops."""

    threads: int | None = None
    kernel: Kernel = "auto"


@dataclass(frozen=True)
class Availability:
    """Whether a backend can be had here. `missing` says what is lacking and how to get it; empty when available."""

    name: str
    package: str
    library: str
    device: str
    version: str | None
    missing: str = ""

    @property
    def available(self) -> bool:
        return not self.missing


@dataclass(frozen=True)
class Entry:
    """One backend.

    Attributes:
        name: as `--backend` takes it.
        format: of the files that it runs.
        precisions: those it runs, in the order in which "auto" looks for them.
        probe: whether it can be had here; imports nothing heavy.
        runner: a runner of one graph's file.
    """

    name: str
    format: Format
    precisions: tuple[Precision, ...]
    probe: Callable[[], Availability]
    runner: Callable[[Graph, Path, RunnerOptions], Runner]


def _probe_ort_cpu() -> Availability:
    version = None
    # One module, several distributions.
    for distribution in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(distribution)
    found = importlib.util.find_spec("onnxruntime") is not None
    missing = "" if found else "the package onnxruntime is not installed: pip install onnxruntime"
    return Availability("ort-cpu", "onnxruntime", "onnxruntime", f"cpu ({platform.machine()})", version, missing)


def _ort_cpu(graph: Graph, path: Path, options: RunnerOptions) -> Runner:
    from mscope.runtime.backends.ort import OrtRunner

    return OrtRunner(graph, path, threads=options.threads, kernel=options.kernel)


# In the order in which `auto` tries them.
BACKENDS: dict[str, Entry] = {
    "ort-cpu": Entry("ort-cpu", "onnx", ("fp32", "int8", "fp16", "bf16"), _probe_ort_cpu, _ort_cpu),
}


def available_backends() -> list[Availability]:
    """Every backend of the table with what it lacks here, for a `doctor` to print."""
    return [entry.probe() for entry in BACKENDS.values()]


def choose_backend(name: str) -> Entry:
    """The backend of that name, or with "auto" the first that is available.

    Raises:
        InputError: no such backend.
        BackendError: it, or with "auto" every one, is unavailable; says what is missing and how to get it.
    """
    if name == AUTO:
        reasons = []
        for entry in BACKENDS.values():
            found = entry.probe()
            if found.available:
                return entry
            reasons.append(f"{entry.name}: {found.missing}")
        raise BackendError(f"no backend is available here: {'; '.join(reasons)}")
    if name not in BACKENDS:
        raise InputError(f"unknown backend '{name}': choose {AUTO} or one of {', '.join(BACKENDS)}")
    found = BACKENDS[name].probe()
    if not found.available:
        raise BackendError(f"backend {name} is not available: {found.missing}")
    return BACKENDS[name]


def choose_variants(manifest: Manifest, entry: Entry, precision: str = AUTO) -> tuple[Precision, dict[Stage, Variant]]:
    """The file of each stage that a backend is to run, all of one precision.

    Args:
        manifest: the bundle's.
        entry: the backend.
        precision: a precision of the backend, or "auto" for the first of its order that every stage has.

    Raises:
        InputError: a precision that no backend has.
        BackendError: the bundle lacks such files for a stage, or the backend does not run that precision.
    """
    if precision != AUTO and precision not in get_args(Precision):
        raise InputError(f"unknown precision '{precision}': choose {AUTO} or one of {', '.join(get_args(Precision))}")
    if precision not in (AUTO, *entry.precisions):
        raise BackendError(f"backend {entry.name} does not run {precision}: it takes {', '.join(entry.precisions)}")
    for candidate in entry.precisions:
        if precision in (AUTO, candidate):
            found = {
                stage: variant
                for stage, record in manifest.stages.items()
                for variant in record.variants
                if (variant.backend, variant.precision) == (entry.format, candidate)
            }
            if len(found) == len(manifest.stages):
                return candidate, found
    wanted = f"{entry.format} {'' if precision == AUTO else precision + ' '}files".replace("  ", " ")
    stages = manifest.stages.items()
    there = {f"{variant.backend} {variant.precision}" for _, record in stages for variant in record.variants}
    raise BackendError(
        f"backend {entry.name} needs {wanted} for every stage, the bundle has {', '.join(sorted(there))}: "
        "build them with 'mscope-export build'"
    )
