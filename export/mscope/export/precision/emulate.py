"""Lets ONNX Runtime's CPU run a bfloat16 graph, which lacks products in that type: same values, other nodes.

Each product becomes a cast to float32, the product, and a cast back: inputs and result rounded to bfloat16, sums in
float32, as tensor cores do it. For measuring only; no bundle holds such a graph.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from mscope.export.precision.rules import PRODUCTS
from mscope.export.precision.typed import float_types


def emulate_bf16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` in which bfloat16 products are written as float32 ones between casts."""
    emulated = onnx.ModelProto()
    emulated.CopyFrom(model)
    types = float_types(onnx.shape_inference.infer_shapes(model))
    nodes: list[onnx.NodeProto] = []
    for node in emulated.graph.node:
        if node.domain or node.op_type not in PRODUCTS or types.get(node.output[0]) != TensorProto.BFLOAT16:
            nodes.append(node)
            continue
        for position, name in enumerate(node.input):
            wide = f"{node.name}/wide{position}"
            nodes.append(helper.make_node("Cast", [name], [wide], name=wide, to=TensorProto.FLOAT))
            node.input[position] = wide
        narrow, node.output[0] = node.output[0], f"{node.name}/wide"
        nodes += [
            node,
            helper.make_node("Cast", [node.output[0]], [narrow], name=f"{node.name}/narrow", to=TensorProto.BFLOAT16),
        ]
    del emulated.graph.node[:]
    emulated.graph.node.extend(nodes)
    return emulated
