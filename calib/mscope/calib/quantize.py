"""Q/DQ pairs round the chosen products of a graph: 8-bit weights and activations, all else as it was.

Only the product reads the dequantised activation: the scan and the importance go on reading the float32 tensor.
docs/quantisation.md says why ONNX Runtime's and NVIDIA's own quantisers do not do here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from mscope.calib.sites import Site, find_sites
from mscope.core.contract import OP_DOMAIN, OPSET
from mscope.core.errors import InputError

EightBit = Literal["int8", "fp8"]
Floats = npt.NDArray[np.float32]


class _Format(NamedTuple):
    """How a precision is written: element type, largest magnitude, whether weights have a scale for each channel."""

    element: int
    largest: float
    per_channel: bool
    opset: int


_FORMATS: dict[EightBit, _Format] = {
    # -128 is left out, so that the range is symmetric and the zero point 0, which TensorRT requires.
    "int8": _Format(TensorProto.INT8, 127.0, True, OPSET),
    # E4M3 without infinities. The types came with opset 19, which changed nothing else that these graphs use.
    "fp8": _Format(TensorProto.FLOAT8E4M3FN, 448.0, False, 19),
}
_QUANTIZED = ":quantized"


def quantized(
    model: onnx.ModelProto, precision: EightBit, limits: Mapping[str, float], leave_out: Collection[str] = ()
) -> onnx.ModelProto:
    """A copy of an fp32 graph whose products run on 8 bits.

    Args:
        model: the fp32 graph; left alone.
        precision: `int8` (symmetric, a scale for each output channel of the weights, one for each activation) or `fp8`
            (E4M3, one scale for each tensor).
        limits: the magnitude at which each activation is clipped, by its name; 0 for one that is always zero.
        leave_out: groups that stay in float32 (names as `groups_of` gives them).

    Raises:
        InputError: no limit for an activation, or one that is not a finite magnitude.
    """
    form = _FORMATS[precision]
    result = onnx.ModelProto()
    result.CopyFrom(model)
    sites = [site for site in find_sites(result) if site.group not in leave_out]
    chosen = {site.node: site for site in sites}
    weights = {tensor.name: tensor for tensor in result.graph.initializer}
    writer = _Writer(result, form)
    for node in model.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if node.name in chosen:
            site = chosen[node.name]
            scale = scale_for(_check_limit(site.activation, limits), precision)
            source = writer.row(site) if node.op_type == "Gemm" else site.activation
            activation = writer.activation(source, scale)
            weight = writer.weight(site, numpy_helper.to_array(weights[site.weight]))
            writer.product(copy, activation, weight)
        else:
            writer.nodes.append(copy)
    writer.finish()
    return result


def scale_for(limit: float, precision: EightBit) -> float:
    """The scale that spreads 8 bits over [-limit, limit]; 1 for a tensor that is always zero, whose values stay 0."""
    return limit / _FORMATS[precision].largest if limit > 0 else 1.0


class _Writer:
    """The nodes and initializers of the new graph, in order."""

    def __init__(self, model: onnx.ModelProto, form: _Format) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._model = model
        self._form = form
        self._dequantized: dict[str, str] = {}

    def activation(self, name: str, scale: float) -> str:
        """Quantises and dequantises a tensor, once however many products read it; the name of the result."""
        if name not in self._dequantized:
            self._store(f"{name}:scale", np.float32(scale))
            self._model.graph.initializer.append(_eight_bit(f"{name}:zero", np.zeros((), np.float32), self._form))
            parameters = [f"{name}:scale", f"{name}:zero"]
            self._add("QuantizeLinear", [name, *parameters], f"{name}:q")
            self._add("DequantizeLinear", [f"{name}:q", *parameters], f"{name}:dq")
            self._dequantized[name] = f"{name}:dq"
        return self._dequantized[name]

    def weight(self, site: Site, values: Floats) -> str:
        """Stores a matrix (in, out), or a stack of them, in 8 bits and dequantises it; the name of the result."""
        name, matrix = site.weight, values if site.output_axis else values.T
        if name in self._dequantized:
            return self._dequantized[name]
        others = tuple(range(matrix.ndim - 1))
        largest = np.abs(matrix).max(axis=others) if self._form.per_channel else np.abs(matrix).max()
        scale = np.where(largest > 0, largest / self._form.largest, 1.0).astype(np.float32)
        self._model.graph.initializer.append(_eight_bit(f"{name}{_QUANTIZED}", matrix / scale, self._form))
        self._store(f"{name}:scale", scale)
        # No zero point, which is 0 then: ONNX Runtime's product refuses one for each channel of a stack when it runs.
        inputs = [f"{name}{_QUANTIZED}", f"{name}:scale"]
        # The axis of one scale a tensor is ignored.
        self._add("DequantizeLinear", inputs, f"{name}:dq", axis=matrix.ndim - 1)
        self._dequantized[name] = f"{name}:dq"
        return f"{name}:dq"

    def row(self, site: Site) -> str:
        """A Gemm's (B, in) activation as (B, 1, in); the name of the result.

        ONNX Runtime makes a Gemm of a MatMul and an Add on two axes again, and then dequantises its matrix at every
        run; on three axes it fuses the product with its Q/DQ pairs.
        """
        axes, name = f"{site.node}:axes", f"{site.node}:row"
        self._model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), axes))
        self.nodes.append(helper.make_node("Unsqueeze", [site.activation, axes], [name], name=name))
        return name

    def product(self, node: onnx.NodeProto, activation: str, weight: str) -> None:
        """The node on its new inputs; a Gemm as MatMul, Add and Squeeze."""
        if node.op_type == "MatMul":
            node.input[0], node.input[1] = activation, weight
            self.nodes.append(node)
            return
        product, biased = f"{node.name}:product", f"{node.name}:biased"
        self.nodes.append(helper.make_node("MatMul", [activation, weight], [product], name=product))
        self.nodes.append(helper.make_node("Add", [product, node.input[2]], [biased], name=biased))
        squeezed = [biased, f"{node.name}:axes"]
        self.nodes.append(helper.make_node("Squeeze", squeezed, list(node.output), name=node.name))

    def finish(self) -> None:
        """Puts the nodes into the model and drops what nothing reads any more."""
        graph = self._model.graph
        del graph.node[:]
        graph.node.extend(self.nodes)
        used = {name for node in graph.node for name in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        for holder in (self._model, *self._model.functions):
            for imported in holder.opset_import:
                if imported.domain == "" and imported.version < self._form.opset:
                    imported.version = self._form.opset
        assert any(imported.domain == OP_DOMAIN for imported in self._model.opset_import)

    def _add(self, op: str, inputs: list[str], output: str, axis: int | None = None) -> None:
        node = helper.make_node(op, inputs, [output], name=output)
        if axis is not None:
            node.attribute.append(helper.make_attribute("axis", axis))
        self.nodes.append(node)

    def _store(self, name: str, values: npt.NDArray[np.float32] | np.float32) -> None:
        self._model.graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.float32), name))


def _eight_bit(name: str, values: Floats, form: _Format) -> onnx.TensorProto:
    """Values already divided by their scale, rounded to the nearest number of the format."""
    if form.element == TensorProto.INT8:
        return numpy_helper.from_array(np.clip(np.rint(values), -127, 127).astype(np.int8), name)
    clipped = np.clip(values, -form.largest, form.largest).ravel().tolist()
    tensor = helper.make_tensor(name, form.element, values.shape, clipped)
    if tensor.int32_data:
        # As numbers, every second value would take two bytes in the file.
        tensor.raw_data = np.array(tensor.int32_data, np.uint8).tobytes()
        tensor.ClearField("int32_data")
    return tensor


def _check_limit(name: str, limits: Mapping[str, float]) -> float:
    if name not in limits:
        raise InputError(f"no calibrated range for {name}: the ranges belong to another network, calibrate again")
    limit = limits[name]
    if not (np.isfinite(limit) and limit >= 0):
        raise InputError(f"the range of {name} is {limit}: calibrate again")
    return limit
