"""Names that people can read: modules' paths for nodes and values, checkpoint names for weights, values for numbers.

Also drops what the exporter notes about itself (stack traces with local paths among it).
"""

from __future__ import annotations

import ast
import re
from collections import Counter

import onnx

from mscope.core.contract import BATCH, OP_DOMAIN
from mscope.export.passes.edit import PREFIX
from mscope.export.translations import OP_OUTPUTS

_SCOPES = "pkg.torch.onnx.name_scopes"
# The file holds A = -exp(A_log), so it does not call it A_log.
_RENAMED = ((re.compile(r"\bA_log$"), "A"), (re.compile(r"\bA_b_log$"), "A_b"))


def clean_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """Renames initializers, nodes and values, calls the dynamic axis `batch`, drops the exporter's metadata."""
    graph = model.graph
    renamed = _initializer_names(graph)
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    kept = {value.name for value in (*graph.input, *graph.output)}
    for node, name in zip(graph.node, _node_names(graph), strict=True):
        node.name = name
        for i, output in enumerate(node.output):
            if output and output not in kept:
                label = f":{OP_OUTPUTS[node.op_type][i].rstrip('?')}" if node.domain == OP_DOMAIN else ""
                renamed[output] = (f"{name}:{i}" if i else name) if not label else name + label
                node.output[i] = renamed[output]
    renamed = {old: new for old, new in renamed.items() if old != new}
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        _forget(node)
    for info in (*graph.input, *graph.output, *graph.value_info):
        info.name = renamed.get(info.name, info.name)
        _name_batch(info)
        _forget(info)
    _forget(graph)
    _forget(model)
    return model


def _initializer_names(graph: onnx.GraphProto) -> dict[str, str]:
    names = {}
    for tensor in graph.initializer:
        name = tensor.name.replace(PREFIX, "")
        for pattern, plain in _RENAMED:
            name = pattern.sub(plain, name)
        names[tensor.name] = name
    assert len(set(names.values())) == len(names), "two initializers of one name"
    return names


def _node_names(graph: onnx.GraphProto) -> list[str]:
    """`layers.0/mixer/in_proj` where a module is one node, `layers.0/norm/Sqrt` where it is several."""
    if not any(entry.key == _SCOPES for node in graph.node for entry in node.metadata_props):
        return [node.name for node in graph.node]
    paths = [_module_path(node) for node in graph.node]
    members = Counter(paths)
    names = []
    for node, path in zip(graph.node, paths, strict=True):
        alone = path and members[path] == 1
        names.append(path if alone else f"{path}/{node.op_type}" if path else node.op_type)
    total, seen = Counter(names), Counter[str]()
    for i, name in enumerate(names):
        if total[name] > 1:
            names[i] = f"{name}_{seen[name]}"
            seen[name] += 1
    return names


def _module_path(node: onnx.NodeProto) -> str:
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            scopes = [scope for scope in ast.literal_eval(entry.value)[:-1] if scope.startswith(PREFIX)]
            path = scopes[-1].removeprefix(PREFIX) if scopes else ""
            return re.sub(r"\.(?!\d)", "/", path)
    return ""


def _name_batch(info: onnx.ValueInfoProto) -> None:
    for dim in info.type.tensor_type.shape.dim:
        if dim.HasField("dim_param"):
            dim.dim_param = re.sub(r"[A-Za-z_]\w*", BATCH, dim.dim_param)  # alone, or as in 50*batch


def _forget(item: onnx.NodeProto | onnx.ValueInfoProto | onnx.GraphProto | onnx.ModelProto) -> None:
    item.ClearField("doc_string")
    del item.metadata_props[:]
