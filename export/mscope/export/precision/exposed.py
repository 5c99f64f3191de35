"""Runs a graph with values on its inside made visible: for ranges and for the first layer that drifts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from mscope.core.errors import BackendError
from mscope.export.precision.emulate import emulate_bf16
from mscope.export.precision.typed import float_types
from mscope.plugins import find

Arrays = dict[str, npt.NDArray[np.float32]]


def run_exposed(model: onnx.ModelProto, names: Sequence[str], feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    """The values called `names`, as float32, for one batch; on ONNX Runtime's CPU with the native kernels if built.

    Raises:
        BackendError: ONNX Runtime cannot run the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    library = find.library("ort")
    if library is not None:
        options.register_custom_ops_library(str(library))
    exposed, outputs = _exposed(model, names)
    try:
        session = onnxruntime.InferenceSession(exposed.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = session.run(outputs, dict(feeds))
    except Exception as error:
        raise BackendError(f"ONNX Runtime cannot run the graph with its insides exposed ({error})") from None
    return dict(zip(names, values, strict=True))


def _exposed(model: onnx.ModelProto, names: Sequence[str]) -> tuple[onnx.ModelProto, list[str]]:
    exposed = emulate_bf16(model)
    types = float_types(onnx.shape_inference.infer_shapes(model))
    outputs = []
    present = {output.name for output in exposed.graph.output}
    for name in names:
        output = name
        if types.get(name) != TensorProto.FLOAT:
            output = f"{name}/exposed"
            exposed.graph.node.append(helper.make_node("Cast", [name], [output], name=output, to=TensorProto.FLOAT))
        if output not in present:
            exposed.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
            present.add(output)
        outputs.append(output)
    return exposed, outputs
