"""What TensorRT is handed, held to what the oldest parser in use takes: that of TensorRT 10.3, which JetPack 6.2 has.

TAKEN is copied row by row from docs/operators.md of onnx/onnx-tensorrt 10.1, whose importers were read for each form
that the graphs hold; by its changelog 10.2 and 10.3 take no operator or type back. A row is added here when that
document has it, and never because a graph needs it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mscope.core.config import ModelConfig
from mscope.core.contract import OP_DOMAIN, OPSET, Stage
from mscope.export.engine.network import strip_functions
from mscope.export.passes.edit import value_types
from mscope.export.passes.mixers import split_mixers
from mscope.export.precision.typed import typed_graph
from mscope.export.to_onnx import onnx_from_model
from mscope.model.checkpoint import model_from_seed

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}
NUMBERS = FLOATS | {TensorProto.INT32, TensorProto.INT64}
ALL = NUMBERS | {TensorProto.BOOL}

#: Operator -> types of the data that it works on.
TAKEN: dict[str, set[int]] = {
    **dict.fromkeys(("AveragePool", "Clip", "Erf", "Exp", "Floor", "Gemm", "LayerNormalization", "Log"), FLOATS),
    **dict.fromkeys(("MatMul", "Pow", "Sigmoid", "Softplus", "Sqrt"), FLOATS),
    **dict.fromkeys(("Abs", "Add", "ArgMax", "Div", "Equal", "Less", "Max", "Mul", "Neg", "Pad", "Range"), NUMBERS),
    **dict.fromkeys(("ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Sign", "Sub", "TopK"), NUMBERS),
    **dict.fromkeys(("Cast", "CastLike", "Concat", "Constant", "ConstantOfShape", "Expand", "Gather", "If"), ALL),
    **dict.fromkeys(("Identity", "Reshape", "Scan", "Shape", "Slice", "Split", "Squeeze", "Transpose"), ALL),
    **dict.fromkeys(("Unsqueeze", "Where"), ALL),
    "QuantizeLinear": FLOATS,
    "DequantizeLinear": {TensorProto.INT8, TensorProto.FLOAT8E4M3FN},
}  # fmt: skip
#: Inputs that must be initializers, by position.
CONSTANT = {
    "Clip": (1,), "Pad": (1,), "ReduceL2": (1,), "ReduceMax": (1,), "ReduceMean": (1,), "ReduceSum": (1,),
    "Slice": (3,), "Squeeze": (1,), "Unsqueeze": (1,),
}  # fmt: skip
LARGEST_K = 3839
OPSETS = range(9, 21)

REDUCED = {"arch": "vim", "keep": 0.7, "reduce_after": (1,)}
#: Choices of the model that bring operators of their own, and the stage in which they do.
CHOICES: tuple[tuple[Stage, dict[str, Any]], ...] = (
    ("coarse", {"metric": "topk"}),
    ("coarse", {"metric": "l1", "ema_start": "first", "gated_importance": False}),
    ("fine", {"fine_order": "raster", "order": "class-after-important", "reuse_class_token": True}),
    ("full", REDUCED | {"reduce": "prune", "prune_alignment": "zero"}),
    ("full", REDUCED | {"reduce": "merge", "merge_features": "residual"}),
)


def nodes_of(nodes: Any) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph or function and of the bodies in it."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from nodes_of(attribute.g.node)


def refused(model: onnx.ModelProto) -> list[str]:
    """What TensorRT 10.3's parser would not take of a graph as it is handed over, a line each."""
    handed = split_mixers(copy.deepcopy(model))
    bodies = {node.op_type for body in handed.functions for node in nodes_of(body.node)} - TAKEN.keys()
    found = [f"{op} in a function body" for op in sorted(bodies)]
    strip_functions(handed)
    found += [f"opset {o.version}" for o in handed.opset_import if not o.domain and o.version not in OPSETS]
    inferred = onnx.shape_inference.infer_shapes(handed)
    constants = {tensor.name: tensor for tensor in handed.graph.initializer}
    types = {name: kind.elem_type for name, kind in value_types(inferred.graph).items()}
    types |= {name: tensor.data_type for name, tensor in constants.items()}
    for node in nodes_of(handed.graph.node):
        if node.domain == OP_DOMAIN:
            # Its inputs are given to the last one: an input that is left out before that is refused.
            found += [f"{node.op_type} leaves out input {i}" for i, name in enumerate(node.input) if not name]
            continue
        data = node.input[1 if node.op_type == "Where" else 0]
        kind = types.get(data)
        if kind not in TAKEN.get(node.op_type, ()):
            found.append(f"{node.op_type} of {TensorProto.DataType.Name(kind) if kind else 'unknown type'}")
        found += [
            f"{node.op_type} computes its input {i}"
            for i in CONSTANT.get(node.op_type, ())
            if len(node.input) > i and node.input[i] not in constants
        ]
        if node.op_type == "TopK" and node.input[1] in constants:
            k = int(numpy_helper.to_array(constants[node.input[1]]).item())
            chosen = {attribute.name: attribute.i for attribute in node.attribute}
            if k > LARGEST_K or not chosen.get("sorted", 1):
                found.append(f"TopK of {k}, sorted {chosen.get('sorted', 1)}")
        if node.op_type == "LayerNormalization" and len(node.output) > 1:
            found.append("LayerNormalization with its statistics")
    return found


def in_every_type(model: onnx.ModelProto) -> dict[str, onnx.ModelProto]:
    return {"fp32": model} | {precision: typed_graph(model, precision) for precision in ("fp16", "bf16")}


@pytest.mark.parametrize("stage", ["coarse", "fine"])
def test_the_default_graphs_are_taken(written: dict[Stage, onnx.ModelProto], stage: Stage) -> None:
    for precision, model in in_every_type(written[stage]).items():
        assert refused(model) == [], precision


@pytest.mark.parametrize(
    ("stage", "changes"), CHOICES, ids=["-".join(map(str, changes.values())) for _, changes in CHOICES]
)
def test_what_other_choices_bring_is_taken(
    small: Callable[..., ModelConfig], stage: Stage, changes: dict[str, Any]
) -> None:
    model = onnx_from_model(model_from_seed(small(**changes), 1).model, stage)
    for precision, typed in in_every_type(model).items():
        assert refused(typed) == [], precision


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "said"),
    [
        ("SplitToSequence", ("x", "halves"), {}, "SplitToSequence of FLOAT"),
        ("Exp", ("n",), {}, "Exp of INT64"),
        ("ReduceMean", ("x", "n"), {}, "ReduceMean computes its input 1"),
        ("TopK", ("x", "many"), {}, "TopK of 4000, sorted 1"),
        ("TopK", ("x", "one"), {"sorted": 0}, "TopK of 1, sorted 0"),
    ],
)
def test_what_is_not_taken_is_noticed(op: str, inputs: tuple[str, ...], attributes: dict[str, int], said: str) -> None:
    outputs = ["y", "indices"] if op == "TopK" else ["y"]
    graph = helper.make_graph(
        [helper.make_node(op, inputs, outputs, **attributes)],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 8000]),
            helper.make_tensor_value_info("n", TensorProto.INT64, [1]),
        ],
        [],
        [
            helper.make_tensor(name, TensorProto.INT64, [1], [k])
            for name, k in (("halves", 4000), ("many", 4000), ("one", 1))
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    assert refused(model) == [said]
    model.opset_import[0].version = 21
    assert refused(model)[0] == "opset 21"
