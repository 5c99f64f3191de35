"""Models of one op and the ways to run them: the native kernels of an instruction set, the function body, PyTorch."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from mscope.core.contract import OP_BIDIRECTIONAL_SCAN, OP_CONV, OP_DOMAIN, OP_MIXER, OP_SCAN, OP_VERSION, OPSET
from mscope.plugins import build, find, ort
from op_cases import Inputs

FLOAT32 = "float32"
ELEMENT_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
PARAMETERS = {"weight", "bias", "A", "D", "dt_weight", "dt_bias", "delta_bias", "x_proj_weight"}
#: Inputs of each op by their names in op_cases.Inputs, and which of them are float32 whatever the storage type is.
OP_INPUTS = {
    OP_CONV: ("xz", "weight", "bias", "weight_b", "bias_b"),
    OP_SCAN: ("x", "delta", "A", "B", "C", "D", "z", "dt_bias"),
    OP_BIDIRECTIONAL_SCAN: (
        "xz", "x_both", "dbc", "dt_weight", "dt_bias", "A", "D", "dt_weight_b", "dt_bias_b", "A_b", "D_b",
    ),
    OP_MIXER: (
        "xz", "weight", "bias", "weight_b", "bias_b", "x_proj_weight",
        "dt_weight", "dt_bias", "A", "D", "dt_weight_b", "dt_bias_b", "A_b", "D_b",
    ),
}  # fmt: skip
ALWAYS_FLOAT32 = {"A", "A_b", "D", "D_b", "dt_bias", "dt_bias_b"}
#: Of OP_INPUTS, those of (2, B L, any).
BOTH_DIRECTIONS = {"x_both", "dbc"}
Values = dict[str, np.ndarray | None]

LIBRARY = find.library("ort")
WHY_MISSING = f"no native library: {find.why_missing('ort')}"


def is_parameter(name: str) -> bool:
    return name.removesuffix("_b") in PARAMETERS


def usable_isas() -> list[str]:
    """Instruction sets that the library has and this machine runs, best first."""
    if LIBRARY is None:
        return []
    found = []
    for isa in build.instruction_sets():
        with contextlib.suppress(ValueError):
            ort.force_instruction_set(isa)
            found.append(isa)
    ort.force_instruction_set()
    return found


def symbolic_shape(name: str, values: Values) -> list[int | str]:
    """Of an input whose batch and length are dynamic."""
    array = values[name]
    assert array is not None
    if array.ndim != 3:
        return list(array.shape)
    leading = [2, "rows"] if name in BOTH_DIRECTIONS else ["batch", "length"]
    return [*leading, array.shape[2]]


def model_of(
    op: str, values: Values, *, dtype: str = FLOAT32, constants: bool = True, **attributes: int
) -> onnx.ModelProto:
    """One node; its inputs and outputs are float32, cast to and from the storage type next to it."""
    nodes, inputs, initializers, names = [], [], [], []
    for name, value in values.items():
        if value is None:
            names.append("")
            continue
        wanted = FLOAT32 if name in ALWAYS_FLOAT32 else dtype
        if constants and is_parameter(name):
            initializers.append(helper.make_tensor(name, ELEMENT_TYPES[wanted], value.shape, value.astype(np.float32)))
            names.append(name)
            continue
        source = helper.np_dtype_to_tensor_dtype(value.dtype)
        inputs.append(helper.make_tensor_value_info(name, source, [None] * value.ndim))
        if wanted != FLOAT32 and source == TensorProto.FLOAT:
            nodes.append(helper.make_node("Cast", [name], [f"{name}_stored"], to=ELEMENT_TYPES[wanted]))
            names.append(f"{name}_stored")
        else:
            names.append(name)
    while names and not names[-1]:
        names.pop()
    result = "y"
    nodes.append(helper.make_node(op, names, [result], name="node", domain=OP_DOMAIN, **attributes))
    if dtype != FLOAT32:
        nodes.append(helper.make_node("Cast", [result], ["y_wide"], to=TensorProto.FLOAT))
        result = "y_wide"
    info = helper.make_tensor_value_info(result, TensorProto.FLOAT, [None] * 3)
    graph = helper.make_graph(nodes, "graph", inputs, [info], initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(OP_DOMAIN, OP_VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def session_of(
    model: onnx.ModelProto, *, library: bool | Path = True, threads: int = 2
) -> onnxruntime.InferenceSession:
    """On the CPU provider; with the library of its native ops, another one, or none."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if library:
        options.register_custom_ops_library(str(LIBRARY if library is True else library))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(implementation: str, op: str, values: Values, *, threads: int = 2, **options: Any) -> np.ndarray:
    """An op's output, by one implementation."""
    if implementation == "torch":
        return run_torch(op, values, **options)
    model = model_of(op, values, **options)
    library = implementation != "function"
    if library:
        ort.force_instruction_set(implementation.removeprefix("native-"))
    else:
        from mscope.export.functions import attach_functions

        attach_functions(model)
    session = session_of(model, library=library, threads=threads)
    if library:
        ort.force_instruction_set()
    return session.run(None, {i.name: values[i.name] for i in session.get_inputs()})[0]


def run_torch(op: str, values: Values, *, reverse: int = 0, constants: bool = True) -> np.ndarray:
    import torch

    from mscope.model import scan

    tensors = {k: None if v is None else torch.from_numpy(np.ascontiguousarray(v)) for k, v in values.items()}
    with scan.implementation("reference"):
        if op == OP_CONV:
            result = scan.bidirectional_conv1d_silu(*tensors.values())
        elif op == OP_SCAN:
            result = scan.selective_scan(*tensors.values(), reverse=bool(reverse))
        elif op == OP_MIXER:
            xz, *parameters = tensors.values()
            x = scan.bidirectional_conv1d_silu(xz, *parameters[:4])
            result = scan.bidirectional_selective_scan(xz, x, x @ parameters[4], *parameters[5:])
        else:
            result = scan.bidirectional_selective_scan(*tensors.values())
    return result.numpy()


def values_of(op: str, inputs: Inputs, *, without: tuple[str, ...] = ()) -> Values:
    """The op's arrays, float32, by name; None for those left out."""
    return {
        name: None if name in without else np.ascontiguousarray(inputs.wide(name).astype(np.float32))
        for name in OP_INPUTS[op]
    }
