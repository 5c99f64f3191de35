"""Gives every Reshape a constant target where only the batch is unknown, so that no shape is computed at run time."""

from __future__ import annotations

import numpy as np
import onnx

from mscope.export.passes.edit import add_initializer, constants, number_name, producers, value_types


def make_reshapes_static(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replaces a computed target shape by one with -1 in the place of its only unknown size."""
    graph = model.graph
    tensors, types, made_by = constants(graph), value_types(graph), producers(graph)
    for node in graph.node:
        if node.op_type != "Reshape" or node.domain or node.input[1] in tensors or node.input[1] not in made_by:
            continue
        result = types.get(node.output[0])
        if result is None or not result.HasField("shape"):
            continue
        sizes = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in result.shape.dim]
        # A size of 0 means "copy" to Reshape, and makes -1 ambiguous.
        if sizes.count(-1) != 1 or 0 in sizes:
            continue
        target = np.array(sizes, dtype=np.int64)
        name = number_name(target, node.output[0])
        add_initializer(graph, name, target)
        node.input[1] = name
    return model
