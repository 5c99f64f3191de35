"""The table of backends: what each needs, whether it is here, and its runner, each loaded on demand."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from mscope.core.contract import Graph, Stage
from mscope.core.engine import Flavour
from mscope.core.errors import BackendError, InputError
from mscope.core.manifest import Backend as Format
from mscope.core.manifest import Manifest, Precision, Variant
from mscope.runtime.backends.availability import Availability
from mscope.runtime.backends.base import Kernel, Runner
from mscope.runtime.device.driver import find_gpu

if TYPE_CHECKING:
    from mscope.runtime.backends.cascade import Cascade
    from mscope.runtime.backends.device_runner import DeviceRunner

__all__ = [
    "AUTO",
    "BACKENDS",
    "PLACES",
    "Availability",
    "Choice",
    "Entry",
    "Place",
    "RunnerOptions",
    "available_backends",
    "choose",
    "choose_backend",
    "choose_variants",
]

AUTO = "auto"
Place = Literal["host", "device"]
PLACES: tuple[Place, ...] = ("host", "device")


@dataclass(frozen=True)
class RunnerOptions:
    """What a run asks of a backend.

    Attributes:
        threads: None: the backend's choice.
        kernel: of the custom ops.
        preprocess: where decoded pictures are scaled and normalised.
        decide: where the exit of a single image is decided.
    """

    threads: int | None = None
    kernel: Kernel = "auto"
    preprocess: Place = "host"
    decide: Place = "host"

    @property
    def needs_device(self) -> str:
        """The option that only a backend on a GPU can fulfil; "" where there is none."""
        if self.preprocess == "device":
            return "--preprocess device"
        return "--decide device" if self.decide == "device" else ""


def _any_file(path: Path, variant: Variant, kernel: Kernel) -> str:
    return ""


def _host_cascade(manifest: Manifest, runners: Mapping[Stage, Runner], options: RunnerOptions) -> Cascade:
    from mscope.runtime.backends.cascade import HostCascade

    return HostCascade(manifest, runners)


@dataclass(frozen=True)
class Entry:
    """One backend.

    Attributes:
        name: as `--backend` takes it.
        format: of the files that it runs.
        precisions: those it runs, in the order in which "auto" looks for them.
        probe: whether it can be had here; imports nothing heavy.
        runner: a runner of one graph's file.
        mismatch: why a file of its format is not for this machine (path, its variant, the kernel asked for); "".
        cascade: runs the stages over a batch.
        on_device: it runs on a GPU, takes arrays that lie there, and has no threads to choose.
    """

    name: str
    format: Format
    precisions: tuple[Precision, ...]
    probe: Callable[[], Availability]
    runner: Callable[[Graph, Path, RunnerOptions], Runner]
    mismatch: Callable[[Path, Variant, Kernel], str] = _any_file
    cascade: Callable[[Manifest, Mapping[Stage, Runner], RunnerOptions], Cascade] = _host_cascade
    on_device: bool = False


@dataclass(frozen=True)
class Choice:
    """The backend that runs a bundle, its files, and what is to be said of those that were passed over."""

    entry: Entry
    precision: Precision
    variants: dict[Stage, Variant]
    notes: tuple[str, ...] = ()


def _onnxruntime_version() -> str | None:
    # One module, several distributions.
    for distribution in ("onnxruntime-gpu", "onnxruntime"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(distribution)
    return None


def _probe_ort_cpu() -> Availability:
    found = importlib.util.find_spec("onnxruntime") is not None
    missing = "" if found else "the package onnxruntime is not installed: pip install onnxruntime"
    device = f"cpu ({platform.machine()})"
    return Availability("ort-cpu", "onnxruntime", "onnxruntime", device, _onnxruntime_version(), missing)


def _ort_cpu(graph: Graph, path: Path, options: RunnerOptions) -> Runner:
    from mscope.runtime.backends.ort import OrtRunner

    return OrtRunner(graph, path, threads=options.threads, kernel=options.kernel)


def _probe_ort_cuda() -> Availability:
    from mscope.runtime.backends.ort_cuda import probe

    return probe(_onnxruntime_version())


def _ort_cuda(graph: Graph, path: Path, options: RunnerOptions) -> Runner:
    from mscope.runtime.backends.ort_cuda import OrtCudaRunner

    return OrtCudaRunner(graph, path, kernel=options.kernel)


def _device_cascade(manifest: Manifest, runners: Mapping[Stage, Runner], options: RunnerOptions) -> Cascade:
    from mscope.runtime.device.cascade import DeviceCascade

    scales, decides = options.preprocess == "device", options.decide == "device"
    return DeviceCascade(manifest, cast("Mapping[Stage, DeviceRunner]", runners), scales=scales, decides=decides)


def _engines(flavour: Flavour) -> Entry:
    def probe() -> Availability:
        from mscope.runtime.backends.tensorrt_library import probe as probe_flavour

        return probe_flavour(flavour)

    def runner(graph: Graph, path: Path, options: RunnerOptions) -> Runner:
        from mscope.runtime.backends.tensorrt import EngineRunner

        return EngineRunner(graph, path, flavour)

    def mismatch(path: Path, variant: Variant, kernel: Kernel) -> str:
        from mscope.runtime.backends.engine_match import engine_mismatch

        return engine_mismatch(flavour, path, variant, kernel)

    precisions: tuple[Precision, ...] = ("fp16", "bf16", "fp32", "int8", "fp8")
    return Entry(flavour, flavour, precisions, probe, runner, mismatch, _device_cascade, on_device=True)


# In the order in which `auto` tries them. ONNX Runtime on the GPU is last, behind one that is always there: without the
# native kernels it launches the scan's function body token by token, and with them nobody has measured it yet.
BACKENDS: dict[str, Entry] = {
    "tensorrt": _engines("tensorrt"),
    "tensorrt-rtx": _engines("tensorrt-rtx"),
    "ort-cpu": Entry("ort-cpu", "onnx", ("fp32", "int8", "fp16"), _probe_ort_cpu, _ort_cpu),
    "ort-cuda": Entry(
        "ort-cuda",
        "onnx",
        ("fp32", "fp16"),
        _probe_ort_cuda,
        _ort_cuda,
        cascade=_device_cascade,
        on_device=True,
    ),
}


def available_backends() -> list[Availability]:
    """Every backend of the table with what it lacks here, for a `doctor` to print."""
    return [entry.probe() for entry in BACKENDS.values()]


def choose_backend(name: str) -> Entry:
    """The backend of that name, or with "auto" the first that is available. `choose` looks at the bundle too.

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


def choose(manifest: Manifest, folder: Path, backend: str, precision: str, options: RunnerOptions) -> Choice:
    """The backend and files that run a bundle.

    Args:
        manifest: the bundle's.
        folder: where its files are.
        backend: a name, which is what runs or an error; or "auto": the first that is available and has files for this
            machine. Where a GPU is, engines of the bundle that do not run on it are noted, and why.
        precision: as for `choose_variants`.
        options: what else is asked.

    Raises:
        InputError: an unknown backend or precision, threads for a backend on a GPU, or a GPU's work for one on the CPU.
        BackendError: not available, or the bundle has no files for it; says what is missing and how to get it.
    """
    if backend != AUTO:
        entry = choose_backend(backend)
        if entry.on_device and options.threads is not None:
            raise InputError(f"threads are for backends on the CPU: leave --threads out with --backend {backend}")
        if options.needs_device and not entry.on_device:
            raise InputError(f"{options.needs_device} is for backends on a GPU: leave it out with --backend {backend}")
        if entry.format == "onnx":
            _check_there(manifest, folder, precision)
        return Choice(entry, *choose_variants(manifest, entry, precision, folder, options.kernel))
    _check_there(manifest, folder, precision)
    reasons: list[tuple[str, str]] = []
    notes: list[str] = []
    absent: list[str] = []
    for entry in BACKENDS.values():
        found = entry.probe()
        engines = any(variant.backend == entry.format != "onnx" for variant in _variants(manifest))
        if not found.available or (entry.on_device and options.threads is not None):
            reasons.append((entry.name, found.missing or "it has no threads to choose"))
            if engines and not found.available:
                absent.append(f"not {entry.name}: {found.missing}")
            continue
        if options.needs_device and not entry.on_device:
            reasons.append((entry.name, f"it has no GPU for {options.needs_device}"))
            continue
        try:
            chosen, variants = choose_variants(manifest, entry, precision, folder, options.kernel)
        except BackendError as error:
            reasons.append((entry.name, str(error)))
            if engines:
                notes.append(f"not {entry.name}: {error}")
            continue
        if not entry.on_device and find_gpu()[0] is not None:
            notes = absent + notes  # not a quiet fall to the CPU
        return Choice(entry, chosen, variants, tuple(notes))
    raise BackendError(f"no backend runs this bundle here: {_each_told_once(reasons)}")


def _each_told_once(reasons: Sequence[tuple[str, str]]) -> str:
    """What each backend lacks; what several lack is said once, and of which."""
    lacking: dict[str, list[str]] = {}
    for name, text in reasons:
        for part in text.split("; "):
            lacking.setdefault(part, []).append(name)
    return "; ".join(f"{', '.join(names)}: {part}" for part, names in lacking.items())


def choose_variants(
    manifest: Manifest, entry: Entry, precision: str = AUTO, folder: Path | None = None, kernel: Kernel = "auto"
) -> tuple[Precision, dict[Stage, Variant]]:
    """The file of each stage that a backend is to run, all of one precision.

    Args:
        manifest: the bundle's.
        entry: the backend.
        precision: a precision of the backend, or "auto" for the first of its order that every stage has.
        folder: the bundle's; None skips the question whether a file is for this machine.
        kernel: of the custom ops, which a file may have compiled in.

    Raises:
        InputError: a precision that no backend has.
        BackendError: the bundle lacks such files for a stage or for this machine, or the backend does not run that
            precision.
    """
    _check_precision(precision)
    if precision not in (AUTO, *entry.precisions):
        raise BackendError(f"backend {entry.name} does not run {precision}: it takes {', '.join(entry.precisions)}")
    refused: list[str] = []
    for candidate in entry.precisions:
        if precision not in (AUTO, candidate):
            continue
        found: dict[Stage, Variant] = {}
        for stage, record in manifest.stages.items():
            for variant in record.variants:
                if (variant.backend, variant.precision) != (entry.format, candidate):
                    continue
                reason = "" if folder is None else entry.mismatch(folder / variant.file, variant, kernel)
                if not reason:
                    found.setdefault(stage, variant)
                else:
                    refused.append(reason)
        if len(found) == len(manifest.stages):
            return candidate, found
    if refused:
        others = f" (and {len(refused) - 1} more of its files)" if len(refused) > 1 else ""
        raise BackendError(refused[0] + others)
    wanted = f"{entry.format} {'' if precision == AUTO else precision + ' '}files".replace("  ", " ")
    there = {f"{variant.backend} {variant.precision}" for variant in _variants(manifest)}
    raise BackendError(
        f"backend {entry.name} needs {wanted} for every stage, the bundle has {', '.join(sorted(there))}: "
        f"build them with '{_build_command(entry, folder)}'"
    )


def _check_precision(precision: str) -> None:
    if precision != AUTO and precision not in get_args(Precision):
        raise InputError(f"unknown precision '{precision}': choose {AUTO} or one of {', '.join(get_args(Precision))}")


def _check_there(manifest: Manifest, folder: Path, precision: str) -> None:
    """Of what no backend could have, the backends' own reasons say nothing."""
    _check_precision(precision)
    there = {variant.precision for variant in _variants(manifest)}
    if precision not in (AUTO, *there):
        pictures = " --calib-data PICTURES" if precision in ("int8", "fp8") else ""
        raise BackendError(
            f"the bundle has no {precision} files, it has {', '.join(sorted(there))}: build them with "
            f"'mscope-export build --from {folder} --{precision}{pictures}'"
        )


def _build_command(entry: Entry, folder: Path | None) -> str:
    target = {"tensorrt": "trt", "tensorrt-rtx": "trt-rtx"}.get(entry.name)
    return (
        "mscope-export build"
        if target is None
        else f"mscope-export build --from {folder or 'BUNDLE'} --target {target}"
    )


def _variants(manifest: Manifest) -> list[Variant]:
    return [variant for record in manifest.stages.values() for variant in record.variants]
