"""Reading and rewiring a GraphProto: what the passes share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

Array = npt.NDArray[np.generic]
# Of parameters' names in a traced graph: the attribute that mscope.export.graphs.StageModule holds the network in.
PREFIX = "model."
_NAMED_ELEMENTS = 8


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """The node that computes each value."""
    return {name: node for node in graph.node for name in node.output if name}


def use_counts(graph: onnx.GraphProto) -> Counter[str]:
    """How often each value is read; an output of the graph counts as one use."""
    counts = Counter(name for node in graph.node for name in node.input if name)
    counts.update(output.name for output in graph.output)
    return counts


def constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Initializers by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def small_constant(tensors: Mapping[str, onnx.TensorProto], name: str) -> Array | None:
    """The value of an initializer of at most 64 elements, None for anything else."""
    tensor = tensors.get(name)
    if tensor is None or np.prod(tensor.dims, dtype=np.int64) > 64:
        return None
    return numpy_helper.to_array(tensor)


def number_name(value: Array, otherwise: str) -> str:
    """`int64(-1,49,192)`, `float32[](1e-05)`: the name of a number by its value; a long one is called `otherwise`."""
    if value.size > _NAMED_ELEMENTS:
        return f"{value.dtype}({otherwise})"
    text = ",".join(str(element) for element in value.reshape(-1))
    return f"{value.dtype}({text})" if value.ndim == 1 else f"{value.dtype}{list(value.shape)}({text})"


def add_initializer(graph: onnx.GraphProto, name: str, value: Array) -> None:
    """Adds a tensor unless there is one of that name."""
    if all(tensor.name != name for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(value, name))


def value_types(graph: onnx.GraphProto) -> dict[str, onnx.TypeProto.Tensor]:
    """Element type and shape of every value of which they are known."""
    infos = [*graph.value_info, *graph.input, *graph.output]
    types = {info.name: info.type.tensor_type for info in infos if info.type.HasField("tensor_type")}
    for tensor in graph.initializer:
        types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims).tensor_type
    return types


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute."""
    for entry in node.attribute:
        if entry.name == name:
            return int(entry.i)
    return default


def replace_uses(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    """Lets every reader of an old value read the new one, chains of replacements followed."""
    for node in graph.node:
        for i, name in enumerate(node.input):
            while name in renamed:
                name = renamed[name]
            node.input[i] = name


def drop_nodes(graph: onnx.GraphProto, outputs: set[str]) -> None:
    """Removes the nodes of which the first output is named."""
    kept = [node for node in graph.node if node.output[0] not in outputs]
    del graph.node[:]
    graph.node.extend(kept)


def drop_initializers(graph: onnx.GraphProto, names: set[str]) -> None:
    """Removes initializers by name."""
    kept = [tensor for tensor in graph.initializer if tensor.name not in names]
    del graph.initializer[:]
    graph.initializer.extend(kept)
