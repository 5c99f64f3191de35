"""Where a graph is quantised: its products with a constant matrix, by layer, and which norm feeds each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto


@dataclass(frozen=True)
class Norm:
    """The norm whose output a product reads and nothing else does: smoothing folds into its parameters, used once.

    Attributes:
        weight: the initializer that multiplies the normalised value, (D,).
        bias: the one added after it, or None for an RMSNorm.
    """

    weight: str
    bias: str | None


@dataclass(frozen=True)
class Site:
    """One product x @ W of a graph, to be computed on 8-bit x and W.

    Attributes:
        group: layer and role, such as "layers.3.in_proj": what is quantised, or left out, together.
        node: the node's name.
        activation: the tensor x, (..., in).
        weight: the initializer W.
        output_axis: the axis of W that counts its outputs: the last of a MatMul, 0 of a Gemm with transB.
        norm: what smoothing can fold into, or None.
    """

    group: str
    node: str
    activation: str
    weight: str
    output_axis: int
    norm: Norm | None

    @property
    def input_axis(self) -> int:
        """The axis of W that is summed over: the other one of the last two."""
        return self.output_axis - 1 if self.output_axis else 1


def find_sites(model: onnx.ModelProto) -> tuple[Site, ...]:
    """Every MatMul and Gemm of the main graph with a constant float32 matrix, in the graph's order.

    x_proj has a stack of two, one for each direction. The products inside the ops' function bodies (dt_proj, the scan)
    are not among them: they stay in float32.
    """
    matrices = {
        tensor.name: tensor
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) in (2, 3)
    }
    producers = {name: node for node in model.graph.node for name in node.output}
    readers = Counter(name for node in model.graph.node for name in node.input)
    readers.update(value.name for value in model.graph.output)
    found = []
    for node in model.graph.node:
        if node.domain or node.op_type not in ("MatMul", "Gemm") or node.input[1] not in matrices:
            continue
        if node.op_type == "Gemm" and not _plain_gemm(node):
            continue
        activation, weight = node.input[0], node.input[1]
        norm = _norm_of(producers.get(activation), model) if readers[activation] == 1 else None
        # A weight of two products, or a norm of two tensors, would be scaled for each of them.
        if norm is not None and not readers[weight] == readers[norm.weight] == 1:
            norm = None
        axis = 0 if node.op_type == "Gemm" else len(matrices[weight].dims) - 1
        found.append(Site(_group_of(weight), node.name, activation, weight, axis, norm))
    return tuple(found)


def groups_of(sites: tuple[Site, ...]) -> tuple[str, ...]:
    """The groups of the sites, each once, in the graph's order."""
    return tuple(dict.fromkeys(site.group for site in sites))


def input_channel_max(weight: np.ndarray, output_axis: int) -> np.ndarray:
    """The largest magnitude of W for each input channel: (in,)."""
    largest: np.ndarray = np.abs(weight).max(axis=output_axis)
    return largest


def _group_of(weight: str) -> str:
    """layers.3.mixer.out_proj.weight -> layers.3.out_proj; of x_proj, which is stacked of two, the first one's name."""
    name = weight.split("+")[0].removesuffix(".weight").replace(".mixer.", ".")
    return name.removesuffix(".proj")


def _plain_gemm(node: onnx.NodeProto) -> bool:
    """y = x @ W^T + b, what a linear layer exports to."""
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    expected = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
    return len(node.input) == 3 and {**expected, "transB": 0, **attributes} == expected


def _norm_of(producer: onnx.NodeProto | None, model: onnx.ModelProto) -> Norm | None:
    """The parameters of the norm that made a tensor; None where something else made it."""
    if producer is None or producer.domain:
        return None
    vectors = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 1}
    if producer.op_type == "LayerNormalization" and len(producer.input) == 3:
        return Norm(producer.input[1], producer.input[2])
    # An RMSNorm is written out as x / sqrt(mean(x^2) + eps) * weight.
    if producer.op_type == "Mul" and producer.input[1] in vectors and producer.input[1].endswith("norm.weight"):
        return Norm(producer.input[1], None)
    return None
