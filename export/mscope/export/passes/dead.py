"""Removes nodes, initializers and value infos that nothing reads."""

from __future__ import annotations

import onnx

from mscope.export.passes.edit import drop_initializers, use_counts


def remove_dead(model: onnx.ModelProto) -> onnx.ModelProto:
    """Keeps what leads to an output of the graph; inputs stay, read or not: they are the interface."""
    graph = model.graph
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(name for name in node.input if name)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    used = use_counts(graph)
    drop_initializers(graph, {tensor.name for tensor in graph.initializer if not used[tensor.name]})
    computed = {name for node in graph.node for name in node.output}
    infos = [info for info in graph.value_info if info.name in computed]
    del graph.value_info[:]
    graph.value_info.extend(infos)
    return model
