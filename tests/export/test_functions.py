"""The ops' function bodies, run by ONNX Runtime as they stand, against the float64 oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import oracle
from mscope.core.contract import OP_BIDIRECTIONAL_SCAN, OP_CONV, OP_DOMAIN, OP_SCAN, OP_VERSION, OPSET
from mscope.core.errors import MscopeError
from mscope.export.functions import attach_functions, functions_for
from mscope.export.to_onnx import IR_VERSION
from mscope.export.translations import OP_INPUTS

Array = npt.NDArray[Any]
# float32 results, relative to the largest value: a scan adds up to 197 terms, each rounded a few times.
SCAN_TOLERANCE = 2e-6
CONV_TOLERANCE = 1e-6
# float16 inputs and outputs around float32 arithmetic: half a unit in the last place of the output.
HALF_TOLERANCE = 1e-3
F32_INPUTS = {"A", "D", "A_b", "D_b", "delta_bias", "dt_bias", "dt_bias_b"}


def run_op(name: str, inputs: dict[str, Array | None], half: bool = False, **attributes: int) -> Array:
    """One node of the op with its body, on stock ONNX Runtime."""
    kinds = {key: TensorProto.FLOAT16 if half and key not in F32_INPUTS else TensorProto.FLOAT for key in inputs}
    given = {
        key: value.astype(helper.tensor_dtype_to_np_dtype(kinds[key]))
        for key, value in inputs.items()
        if value is not None
    }
    node = helper.make_node(
        name,
        [key if value is not None else "" for key, value in inputs.items()],
        ["out"],
        domain=OP_DOMAIN,
        **attributes,
    )
    graph = helper.make_graph(
        [node],
        "one_op",
        [helper.make_tensor_value_info(key, kinds[key], [None] * value.ndim) for key, value in given.items()],
        [helper.make_tensor_value_info("out", kinds[next(iter(kinds))], [None] * 3)],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(OP_DOMAIN, OP_VERSION)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    attach_functions(model)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: Array = session.run(None, given)[0]
    return result


def assert_close(actual: Array, expected: Array, tolerance: float) -> None:
    assert actual.shape == expected.shape
    if expected.size:
        scale = max(1.0, float(np.abs(expected).max()))
        assert np.isfinite(actual).all()
        assert np.abs(actual - expected).max() <= tolerance * scale


def draw(random: np.random.Generator, *shape: int) -> Array:
    # Through float32, so that oracle and graph get the same numbers.
    return random.standard_normal(shape).astype(np.float32).astype(np.float64)


def conv_inputs(batch: int, length: int, channels: int, width: int, beside: int) -> dict[str, Array]:
    random = np.random.default_rng(length * 31 + channels)
    shapes = [(batch, length, channels + beside), (channels, width), (channels,), (channels, width), (channels,)]
    names = [name.rstrip("?") for name in OP_INPUTS[OP_CONV]]
    return {name: draw(random, *shape) for name, shape in zip(names, shapes, strict=True)}


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize(("length", "channels"), [(1, 7), (2, 16), (5, 1), (50, 33), (197, 8)])
@pytest.mark.parametrize("width", [2, 3, 4])
def test_conv_both_directions(batch: int, length: int, channels: int, width: int) -> None:
    inputs = conv_inputs(batch, length, channels, width, beside=channels + 2)
    both = run_op(OP_CONV, inputs)
    assert both.shape == (2, batch * length, channels)
    forward, backward = both.reshape(2, batch, length, channels)
    x = inputs["xz"][..., :channels]
    assert_close(forward, oracle.causal_conv1d_silu(x, inputs["weight"], inputs["bias"]), CONV_TOLERANCE)
    expected = oracle.causal_conv1d_silu(x, inputs["weight_b"], inputs["bias_b"], reverse=True)
    assert_close(backward, expected, CONV_TOLERANCE)


def test_conv_one_direction_and_nothing_beside_x() -> None:
    inputs = conv_inputs(2, 9, 6, 4, beside=0)
    three = {name: inputs[name] for name in ("xz", "weight", "bias")}
    y = run_op(OP_CONV, three)
    assert_close(y, oracle.causal_conv1d_silu(*three.values()).reshape(1, 18, 6), CONV_TOLERANCE)


def scan_inputs(batch: int, length: int, channels: int, states: int) -> dict[str, Array | None]:
    random = np.random.default_rng(length * 17 + channels)
    inputs: dict[str, Array | None] = {
        "x": draw(random, batch, length, channels),
        "delta": draw(random, batch, length, channels),
        "A": -np.exp(draw(random, channels, states)),
        "B": draw(random, batch, length, states),
        "C": draw(random, batch, length, states),
        "D": draw(random, channels),
        "z": draw(random, batch, length, channels),
        "delta_bias": draw(random, channels),
    }
    return inputs


@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("batch", [0, 3])
@pytest.mark.parametrize(("length", "channels", "states"), [(1, 3, 16), (2, 5, 1), (5, 1, 4), (50, 7, 16), (197, 9, 3)])
def test_selective_scan(batch: int, length: int, channels: int, states: int, reverse: int) -> None:
    inputs = scan_inputs(batch, length, channels, states)
    y = run_op(OP_SCAN, inputs, reverse=reverse)
    assert_close(y, oracle.selective_scan(*inputs.values(), reverse=bool(reverse)), SCAN_TOLERANCE)


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("softplus", [0, 1])
def test_selective_scan_without_its_options(gate: bool, bias: bool, softplus: int) -> None:
    inputs = scan_inputs(2, 6, 5, 4)
    inputs["delta"] = np.abs(inputs["delta"])  # stays a decay without softplus
    inputs["delta_bias"] = np.abs(inputs["delta_bias"]) if bias else None
    inputs["z"] = inputs["z"] if gate else None
    y = run_op(OP_SCAN, inputs, delta_softplus=softplus)
    assert_close(y, oracle.selective_scan(*inputs.values(), delta_softplus=bool(softplus)), SCAN_TOLERANCE)


def bidirectional_inputs(batch: int, length: int, channels: int, states: int, rank: int) -> dict[str, Array]:
    random = np.random.default_rng(length * 13 + channels)
    inputs = {
        "xz": draw(random, batch, length, 2 * channels),
        "x": draw(random, 2, batch * length, channels),
        "dbc": draw(random, 2, batch * length, rank + 2 * states),
    }
    for suffix in ("", "_b"):
        inputs[f"dt_weight{suffix}"] = draw(random, channels, rank)
        inputs[f"dt_bias{suffix}"] = draw(random, channels)
        inputs[f"A{suffix}"] = -np.exp(draw(random, channels, states))
        inputs[f"D{suffix}"] = draw(random, channels)
    return inputs


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize(
    ("length", "channels", "states", "rank"),
    [(1, 5, 16, 3), (2, 1, 1, 1), (5, 8, 4, 2), (50, 13, 16, 7), (197, 6, 3, 2)],
)
def test_bidirectional_scan(batch: int, length: int, channels: int, states: int, rank: int) -> None:
    inputs = bidirectional_inputs(batch, length, channels, states, rank)
    y = run_op(OP_BIDIRECTIONAL_SCAN, inputs)
    assert_close(y, oracle.bidirectional_selective_scan(*inputs.values()), SCAN_TOLERANCE)


@pytest.mark.parametrize("shift", [-1e4, -100.0, -20.0, -7.0, 20.0, 100.0, 1e4])
def test_softplus_is_exact_and_does_not_overflow(shift: float) -> None:
    inputs = scan_inputs(1, 5, 4, 3)
    inputs["delta"] = (inputs["delta"] + shift).astype(np.float32)
    inputs["delta_bias"] = inputs["z"] = None
    # D x and huge states would drown what a tiny delta adds.
    inputs["D"] = np.zeros(4)
    y = run_op(OP_SCAN, inputs)
    expected = oracle.selective_scan(*inputs.values())
    assert np.isfinite(y).all()
    assert np.abs(y - expected).max() <= SCAN_TOLERANCE * np.abs(expected).max() + 1e-38


def test_half_precision_tensors_with_float32_parameters() -> None:
    inputs = {
        key: value if key in F32_INPUTS else value.astype(np.float16).astype(np.float64)
        for key, value in bidirectional_inputs(2, 20, 6, 4, 3).items()
    }
    y = run_op(OP_BIDIRECTIONAL_SCAN, inputs, half=True)
    assert y.dtype == np.float16
    assert_close(y.astype(np.float64), oracle.bidirectional_selective_scan(*inputs.values()), HALF_TOLERANCE)


def test_forms_that_one_body_cannot_serve_are_refused() -> None:
    names = [name.rstrip("?") for name in OP_INPUTS[OP_SCAN]]
    nodes = [
        helper.make_node(OP_SCAN, names, ["y1"], domain=OP_DOMAIN),
        helper.make_node(OP_SCAN, names[:6], ["y2"], domain=OP_DOMAIN),
    ]
    with pytest.raises(MscopeError, match="different optional inputs"):
        functions_for(helper.make_graph(nodes, "two", [], []))
