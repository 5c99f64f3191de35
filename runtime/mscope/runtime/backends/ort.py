"""ONNX Runtime on the CPU, with the project's own kernels where their library is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mscope.core.contract import Graph
from mscope.core.errors import BackendError, BundleError
from mscope.core.onnx_file import check_self_contained
from mscope.runtime.backends.base import Array, Arrays, Declared, Kernel, Runner
from mscope.runtime.backends.ort_ops import NativeOps, first_line

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

        check_self_contained(self.path)
        ops = NativeOps("ort", self._wanted)
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
        ops.register(options, ort.__version__)
        self._configure(options)
        try:
            self._session = ort.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            refused = f"ONNX Runtime {ort.__version__} cannot load {self.path} ({first_line(error)})"
            if _is_this_machines(error):
                raise BackendError(refused) from None
            raise BundleError(f"{refused}: build the bundle again") from None
        self._kernel = "native" if ops.taken(self.path.name) else "function"

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


def declared_nodes(nodes: Any) -> list[Declared]:
    """Inputs or outputs of a session as the contract is compared with."""
    return [Declared(node.name, _DTYPES.get(node.type, node.type), tuple(node.shape)) for node in nodes]


def _is_this_machines(error: Exception) -> bool:
    """Whether a kernel, memory or an instruction set is not here, so that the file may be as it should."""
    kind, text = type(error).__name__, str(error)
    return kind == "NotImplemented" or (kind == "RuntimeException" and ("alloc" in text or "MSCOPE_ISA" in text))
