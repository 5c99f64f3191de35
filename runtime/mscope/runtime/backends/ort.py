"""ONNX Runtime on the CPU, with the project's own kernels where their library is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mscope.core.contract import Graph
from mscope.core.errors import BackendError
from mscope.runtime.backends.base import Array, Arrays, Declared, Kernel, Runner

_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}


class OrtRunner(Runner):
    """Runs one .onnx on ONNX Runtime's CPU provider.

    Args:
        graph: its part of the contract.
        path: the .onnx file.
        threads: threads of an operator; None lets ONNX Runtime take one for each physical core.
        kernel: "native" insists on the custom-op library, "function" leaves it out, so that the ops run as the
            standard operators in the file, and "auto" takes the library where it is.
    """

    def __init__(self, graph: Graph, path: Path, *, threads: int | None = None, kernel: Kernel = "auto") -> None:
        super().__init__(graph, path)
        self._threads = threads
        self._wanted = kernel
        self._kernel = "function"
        self._session: Any = None

    @property
    def kernel(self) -> str:
        return self._kernel

    def _open(self) -> None:
        import onnxruntime as ort

        library = None if self._wanted == "function" else _native_library(required=self._wanted == "native")
        options = ort.SessionOptions()
        # Errors become exceptions; ONNX Runtime's own log lines would mix with ours on stderr.
        options.log_severity_level = 4
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.inter_op_num_threads = 1
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        # Waiting threads that sleep cost 5 to 23 % here.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        # ... but the coarse graph's must not keep the cores from the fine graph's, which follows at once.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if library is not None:
            try:
                options.register_custom_ops_library(str(library))
            except Exception as error:
                raise BackendError(
                    f"ONNX Runtime {ort.__version__} refuses {library} ({first_line(error)}): "
                    "build it again with 'python -m mscope.plugins.build', or use --kernel function"
                ) from None
        self._configure(options)
        before = _native_kernels(library)
        try:
            self._session = ort.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise BackendError(
                f"ONNX Runtime {ort.__version__} cannot load {self.path} ({first_line(error)}): build the bundle again"
            ) from None
        # A registered library proves nothing; kernels that ONNX Runtime made for this session's nodes do.
        taken = _native_kernels(library) > before
        if self._wanted == "native" and not taken:
            self._session = None
            raise BackendError(f"{self.path.name}: ONNX Runtime took none of the native kernels: use --kernel function")
        self._kernel = "native" if taken else "function"

    def _declared(self) -> tuple[Sequence[Declared], Sequence[Declared]]:
        return declared_nodes(self._session.get_inputs()), declared_nodes(self._session.get_outputs())

    def _execute(self, feeds: Mapping[str, Array]) -> Arrays:
        names = list(self.graph.output_names)
        try:
            return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        except Exception as error:
            # ONNX Runtime's exceptions have no common base beside Exception.
            raise BackendError(f"ONNX Runtime failed in {self.path.name} ({first_line(error)})") from None

    def _release(self) -> None:
        self._session = None

    def _configure(self, options: Any) -> None:
        """A hook for subclasses: changes the session's options before it is made."""
        return


def _native_library(*, required: bool) -> Path | None:
    """The custom-op library, or None where it was not built and is not required. Raises BackendError."""
    try:
        from mscope.plugins import find
    except ImportError as error:
        if required:
            raise BackendError(f"the native kernels are not installed ({error}): use --kernel function") from None
        return None
    library = find.library("ort")
    if library is None and required:
        raise BackendError(f"native kernels for ONNX Runtime: {find.why_missing('ort')}")
    return library


def _native_kernels(library: Path | None) -> int:
    """Native kernels that this process has created so far; 0 without the library."""
    if library is None:
        return 0
    from mscope.plugins import ort

    return ort.kernels_created()


def declared_nodes(nodes: Any) -> list[Declared]:
    """Inputs or outputs of a session as the contract is compared with."""
    return [Declared(node.name, _DTYPES.get(node.type, node.type), tuple(node.shape)) for node in nodes]


def first_line(error: Exception) -> str:
    """The first line of what ONNX Runtime says, bounded."""
    lines = str(error).strip().splitlines()
    return lines[0][:240] if lines else type(error).__name__
