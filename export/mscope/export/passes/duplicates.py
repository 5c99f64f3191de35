"""Lets equal computations be one node: the fine stage gathers three times by the same row numbers."""

from __future__ import annotations

import onnx

from mscope.export.passes.edit import drop_nodes


def merge_duplicates(model: onnx.ModelProto) -> onnx.ModelProto:
    """Merges standard nodes of one operator with the same inputs and attributes; a graph's own outputs stay apart."""
    graph = model.graph
    outputs = {output.name for output in graph.output}
    seen: dict[tuple[str, tuple[str, ...], tuple[bytes, ...]], str] = {}
    renamed: dict[str, str] = {}
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        if node.domain or len(node.output) != 1 or node.output[0] in outputs:
            continue
        attributes = tuple(sorted(entry.SerializeToString(deterministic=True) for entry in node.attribute))
        first = seen.setdefault((node.op_type, tuple(node.input), attributes), node.output[0])
        if first != node.output[0]:
            renamed[node.output[0]] = first
    drop_nodes(graph, set(renamed))
    return model
