"""Writes x * (1 / sqrt(m)) as x / sqrt(m): the form of RMSNorm that engines recognise and fuse, and one node less."""

from __future__ import annotations

import onnx

from mscope.export.passes.edit import drop_nodes, producers, use_counts


def fold_reciprocal(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turns Mul(x, Reciprocal(r)) into Div(x, r) where nothing else reads the reciprocal."""
    graph = model.graph
    made_by, used = producers(graph), use_counts(graph)
    folded: set[str] = set()
    for node in graph.node:
        if node.op_type != "Mul" or node.domain:
            continue
        for side in (1, 0):
            source = made_by.get(node.input[side])
            if source is not None and source.op_type == "Reciprocal" and used[node.input[side]] == 1:
                node.op_type = "Div"
                node.input[:] = [node.input[1 - side], source.input[0]]
                folded.add(source.output[0])
                break
    drop_nodes(graph, folded)
    return model
