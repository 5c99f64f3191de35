"""Removes nodes that hand their input on: Identity, Cast to the same type, Slice of everything, Concat of one."""

from __future__ import annotations

import onnx

from mscope.export.passes.edit import (
    attribute,
    constants,
    drop_nodes,
    replace_uses,
    small_constant,
    use_counts,
    value_types,
)

_EVERYTHING = 1 << 62


def remove_identities(model: onnx.ModelProto) -> onnx.ModelProto:
    """Lets the readers of a node that changes nothing read its input; a graph's own output keeps its node."""
    graph = model.graph
    tensors, types = constants(graph), value_types(graph)
    kept = {output.name for output in graph.output}
    renamed: dict[str, str] = {}
    for node in graph.node:
        if len(node.output) == 1 and node.output[0] not in kept and _changes_nothing(node, tensors, types):
            renamed[node.output[0]] = node.input[0]
    replace_uses(graph, renamed)
    drop_nodes(graph, set(renamed) - set(use_counts(graph)))
    return model


def _changes_nothing(
    node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto], types: dict[str, onnx.TypeProto.Tensor]
) -> bool:
    if node.domain:
        return False
    if node.op_type == "Identity" or (node.op_type == "Concat" and len(node.input) == 1):
        return True
    source = types.get(node.input[0]) if node.input else None
    if source is None:
        return False
    if node.op_type == "Cast":
        return attribute(node, "to", 0) == source.elem_type
    if node.op_type == "CastLike":
        like = types.get(node.input[1])
        return like is not None and like.elem_type == source.elem_type
    return node.op_type == "Slice" and _takes_everything(node, tensors, source)


def _takes_everything(
    node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto], source: onnx.TypeProto.Tensor
) -> bool:
    values = [small_constant(tensors, name) for name in node.input[1:]]
    if len(values) < 3 or any(value is None or value.size != 1 for value in values):
        return False
    start, end, axis, *step = (int(value.reshape(-1)[0]) for value in values if value is not None)
    if start != 0 or step not in ([], [1]):
        return False
    if end >= _EVERYTHING:
        return True
    size = source.shape.dim[axis] if source.HasField("shape") else None
    return size is not None and size.HasField("dim_value") and end >= size.dim_value
