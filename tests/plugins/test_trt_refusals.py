"""What the TensorRT plugin refuses, where, and in which words: both sides named, nothing written, no crash."""

from __future__ import annotations

import ctypes
import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import cuda_host
import op_cases as cases
import trt_driver
from mscope.core.contract import OP_BIDIRECTIONAL_SCAN, OP_CONV, OP_SCAN
from op_cases import Case, Inputs
from trt_driver import OP_INPUTS, RUNTIME, Driver, Given, Refused, all_given, given
from trt_runs import outputs_for, stored

CASE = Case(10, channels=6, batch=2)


@pytest.fixture(scope="module")
def library() -> Driver:
    if cuda_host.compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    driver = Driver(trt_driver.host_plugin())
    driver.exported("host_stream").restype = ctypes.c_void_p
    return driver


@pytest.fixture(params=[10, 11], ids=["logger10", "logger11"])
def driver(library: Driver, request: pytest.FixtureRequest) -> Driver:
    """Every refusal reaches the logger of either TensorRT."""
    library.set_logger(request.param)
    library.messages()
    return library


def tensors(op: str, dtype: str = "float32", **changes: Any) -> tuple[list[Given], list[Given]]:
    """The op's inputs and outputs; `changes` by input's name: a Given, or a shape."""
    inputs = Inputs(CASE, dtype)
    names = OP_INPUTS[op]
    arrays = dict(zip(names, (given(array, dynamic=False) for array in stored(inputs, op)), strict=True))
    for name, change in changes.items():
        kept = arrays[name]
        arrays[name] = change if isinstance(change, Given) else replace(kept, shape=change)
    return list(arrays.values()), [given(array, dynamic=False) for array in outputs_for(op, inputs)]


def refused(driver: Driver, op: str, step: str, message: str, /, dtype: str = "float32", **changes: Any) -> None:
    """Refused in the build phase and, for shapes, when they are announced at run time."""
    wrong, outputs = tensors(op, dtype, **changes)
    plugin = driver.create(op)
    with pytest.raises(Refused) as caught:
        driver.build(plugin, wrong, outputs)
    driver.destroy(plugin)
    assert caught.value.step == step
    assert f"[1] mambascope {op}" in caught.value.log
    assert message in caught.value.log

    right, outputs = tensors(op, dtype)
    plugin = driver.create(op)
    driver.build(plugin, right, outputs)
    plugin = driver.reload(op, plugin)
    with pytest.raises(Refused) as caught:
        driver.run(plugin, wrong, outputs)
    driver.destroy(plugin)
    assert caught.value.step == "onShapeChange"
    assert message in caught.value.log


@pytest.mark.parametrize(
    "name, shape, message",
    [
        (
            "x_both",
            (2, 19, 6),
            "x has shape (2, 19, 6): its axis 1 of 2 BL C must be 20, B = 2 from xz (2, 10, 12), L = 10 from xz",
        ),
        ("x_both", (1, 20, 6), "x has shape (1, 20, 6): its axis 0 of 2 BL C must be 2\n"),
        ("dbc", (2, 20, 43), "its axis 2 of 2 BL R+2N must be 44, N = 16 from A (6, 16), R = 12 from dt_weight"),
        ("A_b", (6, 15), "A_b has shape (6, 15): its axis 1 of C N must be 16, N = 16 from A (6, 16)"),
        ("A", (5, 16), "A has shape (5, 16): its axis 0 of C N must be 6, C = 6 from x (2, 20, 6)"),
        ("D", (6, 1), "D has 2 axes, (6, 1): expected 1, C"),
        ("xz", (2, 10, 13), "xz has shape (2, 10, 13): its axis 2 of B L 2C must be 12, C = 6 from x"),
    ],
)
def test_shapes_of_the_scan(driver: Driver, name: str, shape: tuple[int, ...], message: str) -> None:
    refused(driver, OP_BIDIRECTIONAL_SCAN, "getOutputShapes", message, **{name: shape})


def test_profiles_that_do_not_fit_each_other(driver: Driver) -> None:
    """Sizes that are settled at run time are seen when the profile's are."""
    inputs, outputs = tensors(OP_BIDIRECTIONAL_SCAN)
    both = [replace(t, dynamic=(0, 1) if len(t.shape) == 3 else ()) for t in inputs]
    both[1] = replace(both[1], shape=(2, 19, 6), dynamic=(1,), most=(2, 5 * 21, 6))
    both[2] = replace(both[2], dynamic=(1,), most=(2, 5 * 21, 44))
    plugin = driver.create(OP_BIDIRECTIONAL_SCAN)
    with pytest.raises(
        Refused, match=r"configurePlugin: x has shape \(2, 19, 6\): its axis 1 .* must be 20, .* L = 10 from xz"
    ):
        driver.build(plugin, both, [replace(t, dynamic=(0, 1)) for t in outputs])
    driver.destroy(plugin)


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("weight", (6, 5), "weight has shape (6, 5): W of its axes C W must be from 2 to 4"),
        ("weight_b", (6, 3), "weight_b has shape (6, 3): its axis 1 of C W must be 4, W = 4 from weight (6, 4)"),
        ("xz", (2, 10, 5), "xz has shape (2, 10, 5): its axis 2 of B L C+ must be 6 or more, C = 6 from weight (6, 4)"),
        ("xz", (20, 12), "xz has 2 axes, (20, 12): expected 3, B L C+"),
    ],
)
def test_shapes_of_the_convolution(driver: Driver, name: str, shape: tuple[int, ...], message: str) -> None:
    refused(driver, OP_CONV, "getOutputShapes", message, **{name: shape})


#: Sizes that no test means well with.
WILD = (0, 1, 2, 3, 5, 2**30, 2**30 + 1, 2**31, 2**32, 2**40, 2**59, 2**62, 2**63 - 1)


def extent(axis: str, sizes: dict[str, int]) -> int:
    """What the table's words say an axis is, read by other code, in numbers without an end."""
    parts = (re.fullmatch(r"(\d*)([A-Z]*)", part) for part in axis.rstrip("+").split("+"))
    return sum(int(p[1] or 1) * math.prod(sizes[letter] for letter in p[2]) for p in parts if p)


def fits(axes: list[list[str]], shapes: list[list[int]]) -> bool:
    if any(len(names) != len(shape) for names, shape in zip(axes, shapes, strict=True)):
        return False
    pairs = [pair for names, shape in zip(axes, shapes, strict=True) for pair in zip(names, shape, strict=True)]
    sizes: dict[str, int] = {}
    for name, size in pairs:
        if name in set("BLCNRW"):
            sizes.setdefault(name, size)
    if any(not {"B": 0, "W": 2}.get(k, 1) <= v <= {"W": 4}.get(k, 2**30) for k, v in sizes.items()):
        return False
    return all(
        size >= extent(name, sizes) if name.endswith("+") else size == extent(name, sizes) for name, size in pairs
    )


@pytest.mark.parametrize("op", OP_INPUTS)
def test_any_shapes(driver: Driver, op: str) -> None:
    """What fits is taken and what does not is refused, at whatever size: nothing overflows on the way."""
    describe = driver.exported("mscope_trt_describe")
    describe.restype = ctypes.c_char_p
    (row,) = (row for row in json.loads(describe())["ops"] if row["name"] == op)
    axes = [tensor["shape"].split() for tensor in row["inputs"]]
    inputs, outputs = tensors(op)
    draw, taken = np.random.default_rng(1), 0
    for _ in range(2000):
        sizes = {"B": 2, "L": 10, "C": 6, "N": 16, "R": 12, "W": 4}
        if draw.random() < 0.5:
            sizes[str(draw.choice(list(sizes)))] = int(draw.choice(WILD))
        shapes = [[min(extent(axis, sizes), 2**63 - 1) for axis in names] for names in axes]
        for _ in range(draw.integers(0, 3)):
            shape = shapes[draw.integers(len(shapes))]
            if draw.random() < 0.1:
                shape[:] = [int(draw.choice(WILD)) for _ in range(draw.integers(1, 9))]
            else:
                shape[draw.integers(len(shape))] = int(draw.choice(WILD))
        plugin = driver.create(op)
        try:
            changed = [replace(tensor, shape=tuple(shape)) for tensor, shape in zip(inputs, shapes, strict=True)]
            driver.build(plugin, changed, outputs)
            accepted = True
        except Refused as refusal:  # by the plugin, not for the driver's outputs, which are of other sizes
            accepted = f"{refusal.step}: " not in refusal.log
        driver.destroy(plugin)
        assert accepted == fits(axes, shapes), shapes
        taken += accepted
    assert 400 < taken < 1600


def test_a_size_that_is_unknown_when_the_op_runs(driver: Driver) -> None:
    """It would have been compared with nothing, and the kernels read as many as the others say."""
    inputs, outputs = tensors(OP_CONV)
    plugin = driver.create(OP_CONV)
    driver.build(plugin, inputs, outputs)
    plugin = driver.reload(OP_CONV, plugin)
    inputs[2] = replace(inputs[2], shape=(-1,))
    with pytest.raises(Refused, match=r"enqueue: bias has shape \(\?\): a size is still unknown when the op is to run"):
        driver.run(plugin, inputs, outputs, stream=driver.exported("host_stream")())
    driver.destroy(plugin)


def test_an_empty_sequence_is_refused(driver: Driver) -> None:
    x = Given((2, 0, 6), "float32")
    inputs, outputs = tensors(OP_SCAN, x=x)
    plugin = driver.create(OP_SCAN)
    with pytest.raises(Refused, match=r"x has shape \(2, 0, 6\): L of its axes B L C must be from 1 to 1073741824"):
        driver.build(plugin, inputs, outputs)
    driver.destroy(plugin)


@pytest.mark.parametrize(
    "op, name, dtype, message",
    [
        (OP_SCAN, "A", "float16", "A is float16: expected float32, whatever x is"),
        (OP_SCAN, "delta", "float32", "delta is float32: expected float16, as x is"),
        (OP_SCAN, "z", "float32", "z is float32: expected float16, as x is"),
        (OP_BIDIRECTIONAL_SCAN, "dt_weight_b", "bfloat16", "dt_weight_b is bfloat16: expected float16, as xz is"),
        (OP_BIDIRECTIONAL_SCAN, "dt_bias", "float16", "dt_bias is float16: expected float32, whatever xz is"),
        (OP_CONV, "bias", "int32", "bias is int32: expected float16, as xz is"),
    ],
)
def test_types(driver: Driver, op: str, name: str, dtype: str, message: str) -> None:
    inputs, outputs = tensors(op, "float16")
    index = OP_INPUTS[op].index(name)
    wrong = [replace(t, dtype=dtype) if i == index else t for i, t in enumerate(inputs)]
    plugin = driver.create(op)
    with pytest.raises(Refused) as caught:
        driver.build(plugin, wrong, outputs)
    if name == "z":  # it could be left out, and its type would say nothing: the builder hears of it when it asks
        assert caught.value.step == "supportsFormatCombination"
        assert f"[4] mambascope {op} 'layer' does not take z as {dtype} where x is float16" in caught.value.log
    else:
        assert caught.value.step == "getOutputDataTypes"
        assert f"[1] mambascope {op} 'layer', getOutputDataTypes: {message}" in caught.value.log
    driver.build(plugin, inputs, outputs)
    plugin = driver.reload(op, plugin)
    with pytest.raises(Refused, match="onShapeChange") as caught:
        driver.run(plugin, wrong, outputs)
    assert message in caught.value.log
    driver.destroy(plugin)


def test_the_first_input_decides_the_type(driver: Driver) -> None:
    inputs, outputs = tensors(OP_SCAN)
    plugin = driver.create(OP_SCAN)
    with pytest.raises(Refused, match="getOutputDataTypes: x is int32: expected float32, float16 or bfloat16"):
        driver.build(plugin, [replace(inputs[0], dtype="int32"), *inputs[1:]], outputs)
    driver.destroy(plugin)


def test_counts(driver: Driver) -> None:
    inputs, outputs = tensors(OP_SCAN)
    plugin = driver.create(OP_SCAN)
    with pytest.raises(Refused, match="input D is missing"):
        driver.build(plugin, inputs[:5], outputs)
    with pytest.raises(Refused, match="there are 9 inputs: expected at most 8"):
        driver.build(plugin, [*inputs, inputs[-1]], outputs)
    with pytest.raises(Refused, match="getNbOutputs"):
        driver.build(plugin, inputs, outputs * 2)
    driver.destroy(plugin)
    inputs, outputs = tensors(OP_CONV)
    plugin = driver.create(OP_CONV)
    with pytest.raises(Refused, match="weight_b and bias_b come together"):
        driver.build(plugin, inputs[:4], outputs)
    driver.destroy(plugin)


@pytest.mark.parametrize(
    "attributes, message",
    [
        ({"reverse": 2}, "attribute reverse is 2: expected a value from 0 to 1"),
        ({"reverse": np.int64(-1)}, "attribute reverse is -1: expected a value from 0 to 1"),
        ({"delta_softplus": 1.0}, "attribute delta_softplus has type 1 and 1 values: expected one integer"),
        ({"reverse": [0, 1]}, "attribute reverse has type 5 and 2 values: expected one integer"),
        ({"direction": "forward"}, "there is no attribute direction"),
        ({"inputs": 63}, "there is no attribute inputs"),
    ],
)
def test_attributes(driver: Driver, attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused) as caught:
        driver.create(OP_SCAN, attributes)
    assert f"[1] mambascope SelectiveScan 'layer', createPlugin: {message}" in caught.value.log


def test_what_an_engine_holds_is_checked(driver: Driver) -> None:
    """As of another version of the plugin, or damaged."""
    with pytest.raises(Refused, match="input x is missing"):
        driver.create(OP_SCAN, {"reverse": 0, "delta_softplus": 1}, phase=RUNTIME)
    with pytest.raises(Refused, match="there are more inputs than the 8 that the op has"):
        driver.create(OP_SCAN, {"inputs": 0xFFF}, phase=RUNTIME)
    with pytest.raises(Refused, match="there is no attribute scale: the engine is of another version of this plugin"):
        driver.create(OP_SCAN, {"inputs": 63, "scale": 1}, phase=RUNTIME)


def test_engines_of_the_first_contract_are_refused(driver: Driver) -> None:
    """An output, an x and a dbc for each direction: version 1 of docs/ops.md."""
    with pytest.raises(Refused, match=r"there is no attribute outputs: .* build it again"):
        driver.create(OP_CONV, {"outputs": 2, "inputs": 31}, phase=RUNTIME)
    with pytest.raises(Refused, match="there are more inputs than the 11 that the op has"):
        driver.create(OP_BIDIRECTIONAL_SCAN, {"inputs": 8191}, phase=RUNTIME)


def test_attributes_of_64_bits(driver: Driver) -> None:
    plugin = driver.create(OP_SCAN, {"reverse": np.int64(1), "delta_softplus": np.int64(0)})
    assert driver.serialized(plugin) == "reverse=1 delta_softplus=0 inputs=0"
    twin = driver.clone(plugin)
    driver.destroy(plugin)
    assert driver.serialized(twin) == "reverse=1 delta_softplus=0 inputs=0"
    identity = '::SelectiveScan/1 {"op": "SelectiveScan", "version": "1", "reverse": 1, "delta_softplus": 0}'
    assert driver.identity(twin) == identity
    driver.destroy(twin)


def test_no_device(driver: Driver) -> None:
    """The build phase asks for none, and running without one says so."""
    inputs, outputs = tensors(OP_SCAN)
    driver.exported("host_set_device")(0)
    try:
        plugin = driver.create(OP_SCAN)
        driver.build(plugin, inputs, outputs)
        plugin = driver.reload(OP_SCAN, plugin)
        with pytest.raises(Refused, match=r"enqueue: .*there is no CUDA device"):
            driver.run(plugin, inputs, outputs)
        driver.destroy(plugin)
    finally:
        driver.exported("host_set_device")(1)


def test_no_workspace(driver: Driver) -> None:
    """An engine that set aside none, where some is needed: refused, not written through a null pointer."""
    driver.exported("host_set_machine")(ctypes.byref(cuda_host.SINGLE))
    inputs = Inputs(Case(300, channels=6), "float32")
    results = outputs_for(OP_BIDIRECTIONAL_SCAN, inputs)
    arrays, outs = all_given(OP_BIDIRECTIONAL_SCAN, stored(inputs, OP_BIDIRECTIONAL_SCAN), results)
    plugin = driver.create(OP_BIDIRECTIONAL_SCAN)
    assert driver.build(plugin, arrays, outs) > 0
    plugin = driver.reload(OP_BIDIRECTIONAL_SCAN, plugin)
    with pytest.raises(Refused, match="the scan's launch failed: status -5"):
        driver.run(plugin, arrays, outs, stream=driver.exported("host_stream")())
    driver.destroy(plugin)
    assert np.all(np.isnan(cases.to_float(results[0])))


@pytest.mark.parametrize("version", [0, 1], ids=["none", "unknown"])
def test_without_a_logger_that_is_known_errors_go_to_stderr(
    library: Driver, version: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """A finder of an unknown kind is never called: that one would end the process."""
    library.set_logger(version)
    with pytest.raises(Refused):
        library.create(OP_SCAN, {"reverse": 7})
    assert "mambascope SelectiveScan 'layer', createPlugin: attribute reverse is 7" in capfd.readouterr().err
    assert library.messages() == ""
