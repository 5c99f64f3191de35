"""The libraries of native ops for ONNX Runtime, as the backends use them: "ort" is for its CPU provider, "ort_cuda" for
its CUDA provider."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from mscope.core.errors import BackendError
from mscope.runtime.backends.base import Kernel

Library = Literal["ort", "ort_cuda"]
_PROVIDERS: dict[Library, str] = {"ort": "ONNX Runtime", "ort_cuda": "ONNX Runtime's CUDA provider"}


class NativeOps:
    """The native ops of one session: registered before it is made, counted afterwards.

    Args:
        name: the library.
        wanted: "native" insists on it, "function" leaves it out, so that the ops run as the standard operators in the
            file, and "auto" takes it where it is.

    Attributes:
        library: its file; None where it is left out, or is not there and not insisted on.
        why_missing: why it is not there, though "auto" would have taken it; "".

    Raises:
        BackendError: insisted on and not there, or not fit.
    """

    def __init__(self, name: Library, wanted: Kernel) -> None:
        self._name = name
        self._wanted = wanted
        self.library: Path | None = None
        self.why_missing = ""
        if wanted != "function":
            self.library, self.why_missing = find(name)
        if wanted == "native" and self.library is None:
            raise BackendError(f"native kernels for {_PROVIDERS[name]}: {self.why_missing}")
        self._before = 0

    def register(self, options: Any, version: str) -> None:
        """Adds the ops to a session's options; `version` is ONNX Runtime's, for the message of BackendError."""
        if self.library is None:
            return
        try:
            options.register_custom_ops_library(str(self.library))
        except Exception as error:
            # ONNX Runtime's exceptions have no common base beside Exception.
            raise BackendError(
                f"ONNX Runtime {version} refuses {self.library} ({first_line(error)}): "
                f"build it again with '{_builder(self._name)}', or use --kernel function"
            ) from None
        self._before = self._created()

    def taken(self, file: str) -> bool:
        """Whether the session of `file`, made since, has native kernels. Raises BackendError where it must and has not.

        A registered library proves nothing; kernels that ONNX Runtime made for this session's nodes do.
        """
        if self.library is not None and self._created() > self._before:
            return True
        if self._wanted == "native":
            raise BackendError(f"{file}: ONNX Runtime took none of the native kernels: use --kernel function")
        return False

    def _created(self) -> int:
        from mscope.plugins import ort

        return ort.kernels_created(self._name)


def find(name: Library) -> tuple[Path | None, str]:
    """A library's file, or why there is none and what to do about it."""
    try:
        from mscope.plugins import find as plugins
    except ImportError as error:
        return None, f"the native kernels are not installed ({error}): reinstall mambascope-deploy"
    library = plugins.library(name)
    return library, "" if library is not None else plugins.why_missing(name)


def describe(name: Library) -> str:
    """A library's path, or why there is none, for people."""
    library, why = find(name)
    return f"native ops: {library or why}"


def _builder(name: Library) -> str:
    from mscope.plugins import find as plugins

    return plugins.builder(name)


def first_line(error: Exception) -> str:
    """The first line of what ONNX Runtime says, bounded."""
    lines = str(error).strip().splitlines()
    return lines[0][:240] if lines else type(error).__name__
