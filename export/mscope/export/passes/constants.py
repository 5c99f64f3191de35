"""Folds what depends on weights alone into initializers: A = -exp(A_log), transposed projections, rearranged positions.

A folded tensor takes the name of the parameter it was made of, so that a file names its weights as the checkpoint does.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from mscope.export.passes.edit import (
    PREFIX,
    Array,
    add_initializer,
    constants,
    drop_initializers,
    drop_nodes,
    number_name,
    replace_uses,
    use_counts,
)

_JOIN = "+"


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Computes every standard node of which all inputs are constants; names the results after their parameters."""
    graph = model.graph
    values: dict[str, Array] = {}
    tensors = constants(graph)
    parents: dict[str, frozenset[str]] = {name: frozenset([name]) for name in tensors}
    folded: dict[str, Array] = {}
    for node in graph.node:
        if node.domain or not all(name in tensors or name in values for name in node.input if name):
            continue
        inputs = {name: values[name] if name in values else numpy_helper.to_array(tensors[name])
                  for name in node.input if name}  # fmt: skip
        for name, value in zip(node.output, _compute(model, node, inputs), strict=True):
            values[name] = folded[name] = value
            parents[name] = frozenset().union(*(parents[source] for source in inputs)) if inputs else frozenset()
    outputs = {output.name for output in graph.output}
    drop_nodes(graph, set(folded) - outputs)
    used = use_counts(graph)
    folded = {name: value for name, value in folded.items() if used[name] and name not in outputs}
    still_read = {name for name in tensors if used[name]}
    names = _names(folded, {name: parents[name] for name in folded}, still_read)
    replace_uses(graph, names)
    drop_initializers(graph, set(tensors) - still_read)
    for name, value in folded.items():
        add_initializer(graph, names[name], value)
    return model


def _compute(model: onnx.ModelProto, node: onnx.NodeProto, inputs: dict[str, Array]) -> list[Array]:
    infos = [onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
             for name, v in inputs.items()]  # fmt: skip
    results = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output]
    single = onnx.helper.make_model(
        onnx.helper.make_graph([node], "fold", infos, results), opset_imports=model.opset_import
    )
    return [np.asarray(value) for value in ReferenceEvaluator(single).run(None, inputs)]


def _names(folded: dict[str, Array], parents: dict[str, frozenset[str]], taken: set[str]) -> dict[str, str]:
    """A name for each folded tensor: of the parameters in it, or of its value, so that equal numbers become one."""
    names = {}
    for name, value in folded.items():
        sources = sorted(source for source in parents[name] if source.startswith(PREFIX))
        if not sources:
            names[name] = number_name(value, name)
            continue
        base, count = _JOIN.join(sources), 1
        new = base
        while new in taken:
            count += 1
            new = f"{base}.{count}"
        taken = taken | {new}
        names[name] = new
    return names
