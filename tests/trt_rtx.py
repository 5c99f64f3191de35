"""Builds engines of one op with TensorRT-RTX and the plugin, in a process of its own.

Reads one JSON request a line from stdin, writes one JSON answer a line to stdout. MSCOPE_PLUGIN_DIR names the library's
folder. With `bare` as an argument nothing is done about TensorRT-RTX's unversioned name.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

import ort_graphs
from mscope.export.functions import attach_functions
from mscope.plugins import trt
from op_cases import Case, Inputs

BATCHES, LENGTHS, CASE = (1, 2, 4), (1, 50, 300), Case(50, channels=32, batch=2)


def model_of(op: str, dtype: str, without: tuple[str, ...], attributes: dict[str, int]) -> Any:
    """One node with dynamic batch and length; in 16 bits its inputs are cast next to it."""
    values = ort_graphs.values_of(op, Inputs(CASE, "float32"), without=without)
    model = ort_graphs.model_of(op, values, dtype=dtype)
    (node,) = (node for node in model.graph.node if node.op_type == op)
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    for entry in model.graph.input:
        shape = ort_graphs.symbolic_shape(entry.name, values)
        entry.CopyFrom(helper.make_tensor_value_info(entry.name, entry.type.tensor_type.elem_type, shape))
    return model


def halve(model: Any, name: str) -> None:
    """Stores a parameter in float16, whatever the op takes."""
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name))


class Builder:
    """TensorRT-RTX with a logger that keeps everything."""

    def __init__(self) -> None:
        import tensorrt_rtx

        self.module, self.said = tensorrt_rtx, []
        said = self.said

        class Log(tensorrt_rtx.ILogger):
            def __init__(self) -> None:
                tensorrt_rtx.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                said.append((int(severity), message))

        self.log = Log()
        self.builder = tensorrt_rtx.Builder(self.log)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Parses and builds; says what the network and the engine are made of."""
        self.said.clear()
        module = self.module
        without, attributes = tuple(request.get("without", ())), request.get("attributes", {})
        model = model_of(request["op"], request["dtype"], without, attributes)
        if "halved" in request:
            halve(model, request["halved"])
        if request.get("functions"):
            attach_functions(model)
        flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = self.builder.create_network(0 if flag is None else 1 << int(flag))
        parser = module.OnnxParser(network, self.log)
        answer: dict[str, Any] = {"parsed": bool(parser.parse(model.SerializeToString())), "plan_bytes": 0}
        if answer["parsed"]:
            layers = [network.get_layer(i) for i in range(network.num_layers)]
            answer["network"] = [[layer.type.name, layer.name] for layer in layers]
            plan = self.builder.build_serialized_network(network, self._config(network, request["capabilities"]))
            answer["plan_bytes"] = 0 if plan is None else plan.nbytes
        answer["engine"] = [message for _, message in self.said if message.startswith("Layers:")]
        answer["plugin"] = [message for _, message in self.said if message.startswith("mambascope")]
        answer["errors"] = [message for severity, message in self.said if severity <= 1]
        return answer

    def _config(self, network: Any, capabilities: list[str]) -> Any:
        config, profile = self.builder.create_builder_config(), self.builder.create_optimization_profile()
        config.profiling_verbosity = self.module.ProfilingVerbosity.DETAILED
        for i in range(network.num_inputs):
            tensor = network.get_input(i)
            sizes = zip(BATCHES, LENGTHS, strict=True)
            if tensor.name in ort_graphs.BOTH_DIRECTIONS:
                sizes = ((2, batch * length) for batch, length in sizes)
            profile.set_shape(tensor.name, *((*size, *tuple(tensor.shape)[2:]) for size in sizes))
        config.add_optimization_profile(profile)
        config.num_compute_capabilities = len(capabilities)
        for i, name in enumerate(capabilities):
            assert config.set_compute_capability(self.module.ComputeCapability.__members__[f"SM{name}"], i)
        return config


def main() -> int:
    if "bare" in sys.argv:
        import tensorrt_rtx

        tensorrt_rtx.get_plugin_registry().load_library(str(trt.library_path()))
    else:
        trt.load("tensorrt-rtx")
    builder = Builder()
    members = builder.module.ComputeCapability.__members__
    print(json.dumps([name.removeprefix("SM") for name in members if name.startswith("SM")]), flush=True)
    for line in sys.stdin:
        print(json.dumps(builder.answer(json.loads(line))), flush=True)
    ctypes.CDLL(None).fflush(None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
