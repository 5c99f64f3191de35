"""All probes in their order, none of which can end the examination."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mscope.runtime.doctor.finding import Finding
from mscope.runtime.doctor.host import Host
from mscope.runtime.doctor.nvidia import (
    probe_cuda_python,
    probe_dla_compiler,
    probe_driver,
    probe_jetpack,
    probe_tensorrt,
    probe_tensorrt_rtx,
    probe_toolkit,
)
from mscope.runtime.doctor.software import (
    probe_export,
    probe_library,
    probe_native_ops,
    probe_onnxruntime,
    probe_polygraphy,
    probe_video,
)
from mscope.runtime.doctor.system import probe_bundle, probe_disk, probe_memory, probe_power, probe_python

Probe = Callable[[Host], Finding | None]


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes:
        backends: one finding for each backend of the runtime, by the name that --backend takes.
        components: what they are made of, and the rest of the machine.
    """

    backends: tuple[Finding, ...] = field(default_factory=tuple)
    components: tuple[Finding, ...] = field(default_factory=tuple)

    @property
    def usable(self) -> bool:
        """Whether a bundle can be run: some backend is there."""
        return any(finding.usable for finding in self.backends)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "usable": self.usable,
            "backends": [finding.to_dict() for finding in self.backends],
            "components": [finding.to_dict() for finding in self.components],
        }


def _plugins(host: Host) -> Finding:
    return probe_library(host, "TensorRT plugins", "trt", "without them engines use the function bodies")


def _cuda_kernels(host: Host) -> Finding:
    return probe_library(host, "CUDA kernels", "cuda", "for PyTorch on a GPU only")


def _cuda_ops(host: Host) -> Finding:
    return probe_library(host, "ONNX Runtime CUDA ops", "ort_cuda", "without them ort-cuda runs the function bodies")


PROBES: dict[str, Probe] = {
    "Python": probe_python,
    "ONNX Runtime": probe_onnxruntime,
    "native ops": probe_native_ops,
    "export": probe_export,
    "Polygraphy": probe_polygraphy,
    "video": probe_video,
    "CUDA driver": probe_driver,
    "CUDA toolkit": probe_toolkit,
    "TensorRT": probe_tensorrt,
    "TensorRT-RTX": probe_tensorrt_rtx,
    "TensorRT plugins": _plugins,
    "CUDA kernels": _cuda_kernels,
    "ONNX Runtime CUDA ops": _cuda_ops,
    "cuda-python": probe_cuda_python,
    "JetPack": probe_jetpack,
    "libnvdla_compiler.so": probe_dla_compiler,
    "power mode": probe_power,
    "memory": probe_memory,
    "disk": probe_disk,
    "bundle": probe_bundle,
}


def examine(host: Host | None = None) -> Examination:
    """Runs every probe; one that fails becomes a finding itself."""
    machine = Host() if host is None else host
    components = [found for name, probe in PROBES.items() if (found := _guarded(name, probe, machine)) is not None]
    return Examination(tuple(_backends()), tuple(components))


def _guarded(name: str, probe: Probe, host: Host) -> Finding | None:
    try:
        return probe(host)
    except Exception as error:
        # The one thing that a doctor must never do is to fall ill of what it examines.
        why = " ".join(str(error).split())[:200]
        return Finding(name, "broken", f"looking at it failed: {type(error).__name__}: {why}", "report this line")


def _backends() -> Sequence[Finding]:
    """One line a backend, from the runtime's own table."""
    try:
        from mscope.runtime.backends.registry import BACKENDS
    except Exception as error:
        return [Finding("backends", "broken", f"{type(error).__name__}: {error}", "reinstall mambascope-deploy")]
    findings = []
    for name, entry in BACKENDS.items():
        found = _guarded(name, lambda host, entry=entry: _backend(entry), Host())  # type: ignore[misc]
        assert found is not None
        findings.append(found)
    return findings


def _backend(entry: Any) -> Finding:
    found = entry.probe()
    if found.available:
        return Finding(found.name, "ok", f"{found.package} {found.version or ''}, {found.device}".replace(" ,", ","))
    # The registry's sentences are "why: what to do".
    why, _, mend = found.missing.partition(": ")
    return Finding(found.name, "missing", why, mend)
