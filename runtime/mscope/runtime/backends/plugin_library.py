"""The TensorRT plugin library of the plugins part, as the backends need it. It comes from the package or from
MSCOPE_PLUGIN_DIR, never from a bundle: a bundle holds no code."""

from __future__ import annotations

from mscope.core.bundle import sha256_of
from mscope.core.engine import Flavour
from mscope.core.errors import BackendError


def why_missing() -> str:
    """Why there is no plugin library and how to get it; "" where it is there."""
    try:
        from mscope.plugins import trt
    except ImportError as error:
        return f"the plugins part is not installed ({error}): reinstall mambascope-deploy"
    return trt.why_missing()


def path() -> str:
    """Where it lies. Raises BackendError where there is none."""
    from mscope.plugins import trt

    return str(trt.library_path())


def sha256() -> str:
    """Of the library's file."""
    from mscope.plugins import trt

    return sha256_of(trt.library_path())


def load(flavour: Flavour) -> None:
    """Loads it into the process and registers its plugins with TensorRT. Raises BackendError."""
    if reason := why_missing():
        raise BackendError(reason)
    from mscope.plugins import trt

    trt.load(flavour)


def describe() -> str:
    """Its path, or why there is none: without it, only engines that were made of the graphs' function bodies run."""
    reason = why_missing()
    return f"plugin library: {reason or path()}"
