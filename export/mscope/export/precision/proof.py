"""Proves the precision of a written graph: walks its nodes and holds each to the rules, whoever wrote it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from mscope.core.errors import MscopeError
from mscope.export.precision.rules import FLOATS, MOVERS, computes_low, element_type, stays_float32
from mscope.export.precision.typed import float_types

_TYPE_NAMES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}
# Nodes that compute in float32 may read nothing else: norms, residual sums, softplus, importance, GELU.
_FREE = MOVERS | {"Cast", "Shape"}


@dataclass(frozen=True)
class PrecisionProof:
    """What a typed graph computes in.

    Attributes:
        precision: as claimed, and so.
        low: number of nodes that compute in the low type, by operator.
        float32_nodes: nodes that compute in float32 by rule (norms, residual sums, statistics).
        casts: nodes that change the type.
    """

    precision: str
    low: dict[str, int]
    float32_nodes: int
    casts: int

    def describe(self) -> str:
        """One line for people."""
        counts = ", ".join(f"{count} {name}" for name, count in self.low.items())
        return f"{self.precision}: {counts}; {self.float32_nodes} others float32, {self.casts} casts"


def prove_precision(model: onnx.ModelProto, precision: str) -> PrecisionProof:
    """Checks that every product and op computes in the low type and everything else in float32.

    Types come from ONNX's own inference on the graph, not from whoever wrote it.

    Raises:
        MscopeError: names the first node that does not keep to the rules of mscope.export.precision.rules.
    """
    element = element_type(precision)
    types = float_types(onnx.shape_inference.infer_shapes(model, strict_mode=True))
    low: Counter[str] = Counter()
    float32_nodes = casts = 0
    for node in model.graph.node:
        found = {types[name] for name in (*node.input, *node.output) if name in types}
        if computes_low(node):
            _hold_to(node, types, element, precision)
            low[node.op_type] += 1
        elif node.op_type == "Cast":
            casts += bool(found & FLOATS)
        elif node.op_type in _FREE:
            if len(found) > 1:
                raise MscopeError(f"{precision}: {node.name} mixes {_names(found)}: the graph is not strongly typed")
        elif found:
            if found != {TensorProto.FLOAT}:
                raise MscopeError(
                    f"{precision}: {node.op_type} {node.name} computes in {_names(found)}, not in float32"
                )
            float32_nodes += 1
    if not low:
        raise MscopeError(f"{precision}: no node of the graph computes in it")
    return PrecisionProof(precision, dict(low), float32_nodes, casts)


def _hold_to(node: onnx.NodeProto, types: dict[str, int], element: int, precision: str) -> None:
    for position, name in enumerate(node.input):
        if name not in types:
            if name:
                raise MscopeError(f"{precision}: the type of {name}, read by {node.name}, is not known")
            continue
        wanted = TensorProto.FLOAT if stays_float32(node, position) else element
        if types[name] != wanted:
            raise MscopeError(
                f"{precision}: {node.op_type} {node.name} reads {name} as {_TYPE_NAMES[types[name]]}, "
                f"not as {_TYPE_NAMES[wanted]}"
            )
    for name in node.output:
        if name and types.get(name) != element:
            raise MscopeError(f"{precision}: {node.op_type} {node.name} does not write {_TYPE_NAMES[element]}")


def _names(types: set[int]) -> str:
    return " and ".join(sorted(_TYPE_NAMES[kind] for kind in types))
