"""Writes the low type into a float32 graph: casts at the borders, weights stored in the type they are used in."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mscope.core.errors import MscopeError
from mscope.export.passes.edit import constants, value_types
from mscope.export.passes.mixers import split_mixers
from mscope.export.precision.rules import FLOATS, LARGEST, MOVERS, computes_low, element_type, stays_float32


def typed_graph(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """A strongly typed copy of an fp32 graph; inputs and outputs keep the contract's types.

    Products and ops take and give the low type but for the inputs that docs/ops.md marks f32; everything else computes
    in float32. A mixer is taken apart, so that its product is one too. The functions in the file fit any of the types,
    so they are carried over unchanged.

    Args:
        model: fp32, as `onnx_from_model` makes it; not modified.
        precision: "fp16" or "bf16".

    Raises:
        InputError: another precision. MscopeError: a weight that the type cannot hold.
    """
    element = element_type(precision)
    typed = onnx.ModelProto()
    typed.CopyFrom(model)
    split_mixers(typed)
    _Typist(typed.graph, precision, element).run()
    typed.graph.name = f"{model.graph.name}_{precision}"
    shaped: onnx.ModelProto = onnx.shape_inference.infer_shapes(typed, strict_mode=True)
    onnx.checker.check_model(shaped)
    return shaped


class _Typist:
    """Goes through the nodes in order and knows which values are low by then."""

    def __init__(self, graph: onnx.GraphProto, precision: str, element: int) -> None:
        self.graph = graph
        self.precision = precision
        self.element = element
        self.weights = constants(graph)
        self.floats = {name for name, kind in value_types(graph).items() if kind.elem_type == TensorProto.FLOAT}
        self.low: set[str] = set()
        self.nodes: list[onnx.NodeProto] = []
        self.casts: dict[str, str] = {}
        self.stored: dict[str, onnx.TensorProto] = {}

    def run(self) -> None:
        outputs = {output.name for output in self.graph.output}
        for node in self.graph.node:
            low = computes_low(node) or self._only_moves_low(node)
            for position, name in enumerate(node.input):
                if name in self.floats:
                    node.input[position] = self._as(name, low=low and not stays_float32(node, position))
            self.nodes.append(node)
            for position, name in enumerate(node.output):
                if low and name in self.floats:
                    if name in outputs:
                        node.output[position] = self._low_name(name)
                        self.nodes.append(self._cast(self._low_name(name), name, TensorProto.FLOAT))
                    else:
                        self.low.add(name)
        self._write()

    def _only_moves_low(self, node: onnx.NodeProto) -> bool:
        moved = [name for name in node.input if name in self.floats]
        return not node.domain and node.op_type in MOVERS and bool(moved) and all(name in self.low for name in moved)

    def _as(self, name: str, *, low: bool) -> str:
        """The name of `name`'s value in the wanted type."""
        if low == (name in self.low):
            return name
        if low and name in self.weights:
            return self._weight(name)
        wide = f"{name}:fp32"
        target = self._low_name(name) if low else wide
        if name not in self.casts:
            self.casts[name] = target
            self.nodes.append(self._cast(name, target, self.element if low else TensorProto.FLOAT))
        return self.casts[name]

    def _low_name(self, name: str) -> str:
        return f"{name}:{self.precision}"

    def _cast(self, source: str, target: str, to: int) -> onnx.NodeProto:
        return helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=to)

    def _weight(self, name: str) -> str:
        if name not in self.stored:
            self.stored[name] = low_tensor(self.weights[name], self.precision, self._low_name(name))
        return self.stored[name].name

    def _write(self) -> None:
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        renamed = {}
        for name, tensor in self.stored.items():
            # A weight that is wanted in one type only keeps its name, which is that of the checkpoint.
            if name not in used:
                renamed[tensor.name] = tensor.name = name
            kept.append(tensor)
        originals = {self._low_name(name): name for name in self.stored if name not in used}
        for node in self.graph.node:
            node.input[:] = [originals.get(name, name) for name in node.input]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)
        del self.graph.value_info[:]


def low_tensor(tensor: onnx.TensorProto, precision: str, name: str) -> onnx.TensorProto:
    """A float32 initializer rounded to the low type, to the nearest even. Raises MscopeError where it overflows."""
    value = numpy_helper.to_array(tensor)
    largest = float(np.abs(value).max(initial=0.0))
    if not largest <= LARGEST[precision]:  # also when it is NaN
        raise MscopeError(f"{tensor.name} holds {largest:.3g}, which {precision} cannot: build without --{precision}")
    if precision == "fp16":
        raw = value.astype(np.float16).tobytes()
    else:
        bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
        raw = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()
    return helper.make_tensor(name, element_type(precision), value.shape, raw, raw=True)


def float_types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every float value of a graph, initializers included."""
    return {name: kind.elem_type for name, kind in value_types(model.graph).items() if kind.elem_type in FLOATS}
