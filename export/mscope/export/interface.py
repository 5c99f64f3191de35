"""Holds a graph to the contract: the names, dtypes and axes of what goes in and out."""

from __future__ import annotations

import onnx
from onnx import TensorProto

from mscope.core.contract import Graph
from mscope.core.errors import MscopeError

_ELEMENT_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


def check_interface(model: onnx.ModelProto, graph: Graph) -> None:
    """Compares inputs and outputs with the contract: names, then dtypes, then axes. Raises MscopeError."""
    for kind, expected, actual in (
        ("inputs", graph.inputs, model.graph.input),
        ("outputs", graph.outputs, model.graph.output),
    ):
        names = [value.name for value in actual]
        if names != [tensor.name for tensor in expected]:
            raise MscopeError(f"{graph.stage}: {kind} are {names}, the contract says {[t.name for t in expected]}")
        for tensor, value in zip(expected, actual, strict=True):
            element = value.type.tensor_type.elem_type
            if element != _ELEMENT_TYPES[tensor.dtype]:
                got = onnx.helper.tensor_dtype_to_np_dtype(element).name
                raise MscopeError(f"{graph.stage}: {tensor.name} is {got}, the contract says {tensor.dtype}")
            dims = value.type.tensor_type.shape.dim
            axes = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in dims)
            if axes != tensor.axes:
                raise MscopeError(f"{graph.stage}: {tensor.name} has axes {axes}, the contract says {tensor.axes}")
