"""Probes of the packages: ONNX Runtime and its providers, native kernels, the packages that export needs."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace

from mscope.core.console import OLDEST_POLYGRAPHY
from mscope.core.errors import BackendError
from mscope.runtime.doctor.finding import Finding
from mscope.runtime.doctor.host import Host, numbers_of

_NUMPY_2 = (1, 19)  # the first ONNX Runtime that takes numpy 2


def probe_onnxruntime(host: Host) -> Finding:
    """ONNX Runtime, its providers, and two packages of one module."""
    name = "ONNX Runtime"
    cpu, gpu = host.version("onnxruntime"), host.version("onnxruntime-gpu")
    if cpu is None and gpu is None:
        return Finding(name, "broken", "not installed", "pip install onnxruntime")
    try:
        import onnxruntime

        version = str(onnxruntime.__version__)
        providers = [str(provider) for provider in onnxruntime.get_available_providers()]
    except Exception as error:
        # An extension module fails in whatever way its libraries fail.
        return Finding(
            name, "broken", f"cannot be imported ({_line(error)})", "pip install --force-reinstall onnxruntime"
        )
    detail = f"{version}, {', '.join(provider.removesuffix('ExecutionProvider') for provider in providers)}"
    if cpu is not None and gpu is not None:
        return Finding(
            name,
            "warning",
            f"{detail}; onnxruntime {cpu} and onnxruntime-gpu {gpu} are both installed and share one module",
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu",
        )
    numpy = host.version("numpy") or ""
    if numpy.startswith("2.") and numbers_of(version)[:2] < _NUMPY_2:
        return Finding(
            name, "warning", f"{detail}; made for numpy 1, numpy {numpy} is installed", "pip install -U onnxruntime"
        )
    if gpu is not None and "CUDAExecutionProvider" not in providers:
        return Finding(
            name, "warning", f"{detail}; the GPU package is here without its CUDA provider", "see 'CUDA driver'"
        )
    return Finding(name, "ok", detail)


def probe_native_ops(host: Host) -> Finding:
    """The project's kernels for ONNX Runtime, their ABI, and the instruction set that they take here."""
    name = "native ops"
    with warnings.catch_warnings():
        # What would be warned of is in the finding.
        warnings.simplefilter("ignore")
        try:
            from mscope.plugins import build, find, ort

            path = find.library("ort")
            if path is None:
                return _unusable(name, find.why_missing("ort"))
            isa = ort.instruction_set()
        except (ImportError, OSError, BackendError, AttributeError) as error:
            return Finding(name, "broken", _line(error), "python -m mscope.plugins.build --force")
    detail = f"ABI {build.ABI_VERSION}, {isa} ({path})"
    if isa == "scalar":
        return Finding(name, "warning", f"{detail}: no vector instructions are used", "unset MSCOPE_ISA, or build here")
    return Finding(name, "ok", detail)


def probe_library(host: Host, name: str, library: str, use: str) -> Finding:
    """A native library of the plugins part that no install builds: "cuda" or "trt"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from mscope.plugins import build, find

            path = find.library(library)
            why = find.why_missing(library) if path is None else ""
        except (ImportError, OSError, ValueError) as error:
            return Finding(name, "missing", _line(error), "reinstall mambascope-deploy")
    if path is None:
        found = _unusable(name, why)
        return replace(found, detail=f"{found.detail}; {use}") if found.level == "missing" else found
    return Finding(name, "ok", f"ABI {build.ABI_VERSION} ({path})")


def probe_export(host: Host) -> Finding:
    """PyTorch and ONNX, which build bundles and do not run them."""
    versions = {package: host.version(package) for package in ("torch", "onnx", "onnxscript", "safetensors")}
    missing = [package for package, version in versions.items() if version is None]
    if missing:
        return Finding(
            "export",
            "missing",
            f"{', '.join(missing)} not installed: bundles can be run, not built",
            "pip install 'mambascope-deploy[export]'",
        )
    return Finding("export", "ok", ", ".join(f"{package} {version}" for package, version in versions.items()))


def probe_polygraphy(host: Host) -> Finding:
    """Polygraphy, which compares variants where they are verified or built, also on a device without PyTorch."""
    version = host.version("polygraphy")
    mend = f"pip install 'polygraphy>={OLDEST_POLYGRAPHY}'"
    if version is None:
        return Finding("Polygraphy", "missing", "not installed: variants can be built, not compared", mend)
    if numbers_of(version) < numbers_of(OLDEST_POLYGRAPHY):
        return Finding("Polygraphy", "broken", f"{version} is too old to compare variants", mend)
    return Finding("Polygraphy", "ok", version)


def probe_video(host: Host) -> Finding:
    """PyAV, which videos and cameras need, and this machine's cameras."""
    version = host.version("av")
    cameras = [f"camera:{path.name.removeprefix('video')}" for path in host.files("/dev", "video[0-9]*")]
    told = f"cameras: {', '.join(cameras)}" if cameras else "no camera here"
    if version is None:
        return Finding("video", "missing", f"PyAV is not installed; {told}", "pip install 'mambascope-deploy[video]'")
    return Finding("video", "ok", f"PyAV {version}; {told}")


def _unusable(name: str, why: str) -> Finding:
    """From the loader's sentence, whose last quoted words are the command that mends it."""
    commands = re.findall(r"'([^']+)'", why)
    absent = " is not built" in why or " does not exist" in why
    return Finding(name, "missing" if absent else "broken", why.split(": ")[0], commands[-1] if commands else "")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:240] or type(error).__name__
