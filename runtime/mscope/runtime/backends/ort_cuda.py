"""ONNX Runtime's CUDA provider, for the fp32 and fp16 graphs, with the project's own kernels where they are built;
never the CPU in its place."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mscope.core.contract import OP_BIDIRECTIONAL_SCAN, OP_CONV, OP_MIXER, OP_SCAN, Graph, Tensor
from mscope.core.errors import BackendError
from mscope.core.onnx_file import check_self_contained
from mscope.runtime.backends.availability import Availability, gpu_here
from mscope.runtime.backends.base import Declared, Kernel
from mscope.runtime.backends.device_runner import DeviceRunner
from mscope.runtime.backends.ort import declared_nodes
from mscope.runtime.backends.ort_ops import NativeOps, describe, first_line
from mscope.runtime.device.cuda import Device
from mscope.runtime.device.stream import Stream

_PROVIDER = "CUDAExecutionProvider"
_MEMORY = "cuda"
# Where the work is. Arithmetic on shapes belongs on the CPU, and ONNX Runtime puts it there.
_HEAVY = {"Conv", "Gemm", "MatMul", "Scan", OP_CONV, OP_SCAN, OP_BIDIRECTIONAL_SCAN, OP_MIXER}
# Memory is taken for so many images at once; a larger batch goes in several.
_LARGEST = 32
# An option that a version does not know is refused.
_FIRST_WITH_TF32 = (1, 18)


class OrtCudaRunner(DeviceRunner):
    """Runs one .onnx on the GPU. Inputs and outputs are bound by address, so that features stay there.

    Args:
        graph: its part of the contract.
        path: the .onnx file.
        kernel: as of `OrtRunner`, of the library for CUDA. Where "auto" does not find it, a note says what it costs.
    """

    def __init__(self, graph: Graph, path: Path, *, kernel: Kernel = "auto") -> None:
        super().__init__(graph, path)
        self.largest = _LARGEST
        self._wanted = kernel
        self._kernel = "function"
        self._session: Any = None
        self._said = ""

    @property
    def kernel(self) -> str:
        return self._kernel

    def bucket(self, rows: int) -> int:
        return rows

    def enqueue(self, batch: int, addresses: Mapping[str, int], stream: Stream) -> None:
        binding = self._session.io_binding()
        for tensor in self.graph.inputs:
            binding.bind_input(tensor.name, *self._place(tensor, batch), addresses[tensor.name])
        for tensor in self.graph.outputs:
            binding.bind_output(tensor.name, *self._place(tensor, batch), addresses[tensor.name])
        # It runs on a stream of its own, and waits for it before it returns.
        stream.synchronize()
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            # ONNX Runtime's exceptions have no common base beside Exception.
            raise BackendError(f"ONNX Runtime failed in {self.path.name} on the GPU ({first_line(error)})") from None

    def _place(self, tensor: Tensor, batch: int) -> tuple[str, int, type, tuple[int, ...]]:
        shape = (batch, *(int(axis) for axis in tensor.axes[1:]))
        return _MEMORY, self.device.index, np.dtype(tensor.dtype).type, shape

    def _open(self) -> None:
        import onnxruntime as ort

        self._said = preload(ort)
        if _PROVIDER not in ort.get_available_providers():
            raise BackendError(missing_provider())
        check_self_contained(self.path)
        ops = NativeOps("ort_cuda", self._wanted)
        self._opened_device = Device()
        session, refusal = self._try(ops)
        if session is None and ops.library is not None:
            # The library's ops have kernels for CUDA alone: where the provider cannot be had, ONNX Runtime refuses the
            # graph for them. Without the library it takes the CPU, which is then the reason to be told.
            self._try(None)
        if session is None:
            raise BackendError(f"{refusal}: --kernel function does without native kernels" if ops.library else refusal)
        self._kernel = "native" if ops.taken(self.path.name) else "function"
        if self._kernel == "function" and self._wanted == "auto":
            why = ops.why_missing or f"ONNX Runtime took none of those in {ops.library}"
            self.notes.append(f"ort-cuda runs the scan's function body, token by token, without native kernels: {why}")
        self._session = session

    def _try(self, ops: NativeOps | None) -> tuple[Any, str]:
        """A session, or None and why ONNX Runtime refuses. Raises BackendError where it would be on the CPU."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 4
        # Not in every version; where it is, the session tells which nodes went to the CPU.
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if ops is not None:
            ops.register(options, ort.__version__)
        providers = [(_PROVIDER, _options_of(self.device, ort.__version__))]
        try:
            session = ort.InferenceSession(str(self.path), options, providers=providers)
        except Exception as error:
            what = f"ONNX Runtime {ort.__version__} cannot load {self.path.name} on the GPU"
            return None, f"{what} ({first_line(error)})"
        session.disable_fallback()
        check_on_gpu(session, self.path.name, self._said)
        return session, ""

    def _declared(self) -> tuple[Sequence[Declared], Sequence[Declared]]:
        return declared_nodes(self._session.get_inputs()), declared_nodes(self._session.get_outputs())

    def _release(self) -> None:
        self._session = None
        super()._release()


def _options_of(device: Device, version: str) -> dict[str, str]:
    options = {
        "device_id": str(device.index),
        # The search by measuring, the default, runs again for each new batch size; the one convolution is not worth it.
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) >= _FIRST_WITH_TF32:
        # On by default; it rounds factors to fp16's ten bits, and fp32 would not be fp32.
        options["use_tf32"] = "0"
    return options


def probe(version: str | None) -> Availability:
    """Package, provider library, cuda-python, driver and device; imports none of them."""
    lacking, library = [], ""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        lacking.append("the package onnxruntime-gpu is not installed: pip install onnxruntime-gpu")
    else:
        # The provider is a library of its own beside the module, and importing the module to ask is slow.
        found = next(Path(spec.origin).parent.glob("capi/*onnxruntime_providers_cuda*"), None)
        if found is None:
            lacking.append(missing_provider())
        else:
            library = f"{found.name}; {describe('ort_cuda')}"
    device, without = gpu_here()
    return Availability("ort-cuda", "onnxruntime-gpu", library, device, version, "; ".join([*lacking, *without]))


def missing_provider() -> str:
    """Why ONNX Runtime has no CUDA provider, and how to get it."""
    return (
        "the installed ONNX Runtime has no CUDA provider: install onnxruntime-gpu in place of onnxruntime, in an "
        "environment of its own (pip uninstall onnxruntime, then pip install onnxruntime-gpu)"
    )


def preload(ort: Any) -> str:
    """Loads CUDA's libraries from pip's packages of them, where the provider would not find them itself.

    Returns what ONNX Runtime, which does it from 1.21 on, says of those that it did not find; "" of none. It prints
    that, on a stdout that is for answers.
    """
    load = getattr(ort, "preload_dlls", None)
    if load is None:
        return ""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        load()
    return " ".join(said.getvalue().split())[:240]


def check_on_gpu(session: Any, name: str, said: str = "") -> None:
    """Raises BackendError where a session would run on the CPU: its provider was dropped, or heavy nodes went there.

    `said` is of `preload`.
    """
    if session.get_providers()[:1] != [_PROVIDER]:
        reason = f" ({said})" if said else ""
        raise BackendError(
            f"ONNX Runtime opened {name} for {', '.join(session.get_providers())} in place of {_PROVIDER}: its "
            f"CUDA and cuDNN libraries were not found or do not fit the driver{reason}: "
            "pip install 'onnxruntime-gpu[cuda,cudnn]' brings them"
        )
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    if tell is None:
        return
    strayed = {
        node.op_type
        for part in tell()
        if part.ep_name != _PROVIDER
        for node in part.get_nodes()
        if node.op_type in _HEAVY
    }
    if strayed:
        raise BackendError(
            f"ONNX Runtime would run {', '.join(sorted(strayed))} of {name} on the CPU: use --backend ort-cpu"
        )
