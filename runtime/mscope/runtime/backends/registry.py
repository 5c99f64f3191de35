"""The table of backends: what each needs, whether it is here, and its runner, each loaded on demand."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mscope.core.contract import Graph
from mscope.core.errors import BackendError, InputError
from mscope.core.manifest import Backend as Format
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
    """One backend: the format of the files it runs, a probe that imports nothing heavy, and the way to a runner."""

    name: str
    format: Format
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
    "ort-cpu": Entry("ort-cpu", "onnx", _probe_ort_cpu, _ort_cpu),
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
