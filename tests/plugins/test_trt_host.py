"""The TensorRT plugin, driven as TensorRT does, over the kernels' host run: every case against float64.

Each case goes the whole way: creation, the build phase with dynamic batch and length, serialisation, creation from what
an engine holds, shapes, enqueue with the workspace that the build phase asked for. What it cannot see: TensorRT itself
(test_trt_rtx.py) and a device (tests/gpu).
"""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest

import cuda_host
import op_cases as cases
import trt_driver
from cuda_host import H100, SINGLE, VAST
from mscope.core.contract import OP_BIDIRECTIONAL_SCAN, OP_CONV, OP_SCAN
from mscope.plugins import cuda_arguments as arguments
from op_cases import ROUNDING, Case, Inputs
from trt_driver import OP_INPUTS, Driver, Given, all_given, given
from trt_runs import outputs_for, run, stored

# As in test_cuda_host.py: roundings of what was summed.
TOLERANCE = 4.0
MACHINES = {"h100": H100, "single": SINGLE, "vast": VAST}
# TensorRT's tensors are dense, so that the cases of padded rows do not arise.
CASES = [case for case in cases.CASES if not case.spare]


@pytest.fixture(scope="module")
def driver() -> Driver:
    if cuda_host.compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    driver = Driver(trt_driver.host_plugin())
    driver.exported("host_stream").restype = ctypes.c_void_p
    driver.set_logger(11)
    return driver


def use(driver: Driver, machine: cuda_host.Machine) -> None:
    driver.exported("host_set_machine")(ctypes.byref(machine))


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bidirectional(driver: Driver, case: Case, dtype: str) -> None:
    if dtype == "float16" and case.delta_scale > 1e3:
        pytest.skip("beyond the largest float16")
    inputs = Inputs(case, dtype)
    (y,) = results = outputs_for(OP_BIDIRECTIONAL_SCAN, inputs)
    use(driver, H100)
    run(driver, OP_BIDIRECTIONAL_SCAN, stored(inputs, OP_BIDIRECTIONAL_SCAN), results)
    assert cases.bidirectional(inputs).worst(y, dtype) < TOLERANCE


@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_direction(driver: Driver, case: Case, reverse: int) -> None:
    inputs = Inputs(case, "float32")
    (y,) = results = outputs_for(OP_SCAN, inputs)
    use(driver, H100)
    run(driver, OP_SCAN, stored(inputs, OP_SCAN), results, space="mambascope", reverse=reverse)
    assert cases.scan(inputs, bool(reverse), gated=True).worst(y, "float32") < TOLERANCE


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_one_direction_of_16_bits(driver: Driver, dtype: str) -> None:
    inputs = Inputs(Case(50, channels=9, batch=2), dtype)
    (y,) = results = outputs_for(OP_SCAN, inputs)
    use(driver, H100)
    run(driver, OP_SCAN, stored(inputs, OP_SCAN), results, reverse=1)
    assert cases.scan(inputs, True, gated=True).worst(y, dtype) < TOLERANCE


@pytest.mark.parametrize("without", [("dt_bias",), ("z", "dt_bias")], ids="+".join)
def test_trailing_inputs_may_be_left_out(driver: Driver, without: tuple[str, ...]) -> None:
    inputs = Inputs(Case(21, batch=2), "float32")
    (y,) = results = outputs_for(OP_SCAN, inputs)
    use(driver, H100)
    run(driver, OP_SCAN, stored(inputs, OP_SCAN, without), results, delta_softplus=1)
    assert cases.scan(inputs, False, gated="z" not in without, biased=False).worst(y, "float32") < TOLERANCE


def test_an_input_without_axes_is_left_out(driver: Driver) -> None:
    """What a TensorRT that passes absent inputs on would show for z in the middle."""
    inputs = Inputs(Case(21, batch=2), "float32")
    (y,) = results = outputs_for(OP_SCAN, inputs)
    use(driver, H100)
    tensors = [given(array) for array in stored(inputs, OP_SCAN)]
    tensors[OP_INPUTS[OP_SCAN].index("z")] = Given((), "float32")
    outs = [given(array) for array in results]
    plugin = driver.create(OP_SCAN)
    driver.build(plugin, tensors, outs)
    plugin = driver.reload(OP_SCAN, plugin)
    driver.run(plugin, tensors, outs, stream=driver.exported("host_stream")())
    driver.destroy(plugin)
    assert cases.scan(inputs, False, gated=False).worst(y, "float32") < TOLERANCE


def test_without_softplus(driver: Driver) -> None:
    inputs = Inputs(Case(30, batch=2), "float32")
    inputs.stored["delta"] = np.abs(inputs.stored["delta"]) * np.float32(0.1)
    inputs.stored["dt_bias"] = np.abs(inputs.stored["dt_bias"]) * np.float32(0.1)
    (y,) = results = outputs_for(OP_SCAN, inputs)
    use(driver, H100)
    run(driver, OP_SCAN, stored(inputs, OP_SCAN), results, delta_softplus=0)
    assert cases.scan(inputs, False, gated=True, softplus=False).worst(y, "float32") < TOLERANCE


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_convolution(driver: Driver, case: Case, dtype: str) -> None:
    inputs = Inputs(case, dtype)
    (x,) = results = outputs_for(OP_CONV, inputs)
    run(driver, OP_CONV, stored(inputs, OP_CONV), results)
    assert cases.conv(inputs).worst(x, dtype) < TOLERANCE


def test_one_directional_convolution(driver: Driver) -> None:
    inputs = Inputs(Case(21, batch=2), "float32")
    (y,) = results = outputs_for(OP_CONV, inputs, 1)
    run(driver, OP_CONV, stored(inputs, OP_CONV, ("weight_b", "bias_b")), results)
    assert cases.conv(inputs, directions=1).worst(y, "float32") < TOLERANCE


@pytest.mark.parametrize("machine", ["single", "vast"])
@pytest.mark.parametrize("case", [Case(300), Case(1030, channels=2, batch=2, states=24)], ids=str)
def test_workspace(driver: Driver, case: Case, machine: str) -> None:
    """Chunk after chunk with the stash, and segments with carried states: inside what the build phase asked for."""
    inputs = Inputs(case, "float32")
    (y,) = results = outputs_for(OP_BIDIRECTIONAL_SCAN, inputs)
    use(driver, MACHINES[machine])
    run(driver, OP_BIDIRECTIONAL_SCAN, stored(inputs, OP_BIDIRECTIONAL_SCAN), results)
    assert cases.bidirectional(inputs).worst(y, "float32") < TOLERANCE


def test_workspace_is_enough_for_every_device(driver: Driver) -> None:
    """The build phase asks for scratch memory without knowing the device, for the largest sizes."""
    draw = np.random.default_rng(0)
    exported = driver.exported
    exported("host_workspace_bound").restype = ctypes.c_int64
    exported("host_workspace_bound").argtypes = [ctypes.c_int64] * 5
    numbers, tight = (ctypes.c_int64 * 13)(), 0.0
    host = cuda_host.library()
    for _ in range(4000):
        batch, length = int(2 ** draw.uniform(0, 8)), int(2 ** draw.uniform(0, 15))
        channels, states = int(2 ** draw.uniform(0, 11)), int(2 ** draw.uniform(0, 6))
        directions, shared = int(draw.integers(1, 3)), int(draw.choice([48, 64, 100, 164, 228]))
        machine = cuda_host.Machine(int(2 ** draw.uniform(0, 12)), shared << 10, (shared - 1) << 10)
        params = arguments.ScanParams(batch, length, channels, states, 12 * (directions - 1), directions, 1)
        assert host.host_plan(ctypes.byref(params), 1, ctypes.byref(machine), numbers) == 0
        larger = [size + int(draw.integers(0, 3)) for size in (batch, length)]
        bound = exported("host_workspace_bound")(*larger, channels, states, directions)
        assert numbers[12] <= bound, (batch, length, channels, states, directions, machine)
        tight = max(tight, numbers[12] / max(1, bound))
    assert tight > 0.9  # no more than is needed somewhere


def test_the_context_that_sees_no_shapes_has_the_engines(driver: Driver) -> None:
    """enqueue is not told how many inputs there are: the engine's record of them counts until shapes are announced."""
    inputs = Inputs(Case(12), "float32")
    (y,) = results = outputs_for(OP_SCAN, inputs)
    use(driver, H100)
    tensors, outs = [given(a) for a in stored(inputs, OP_SCAN, ("z", "dt_bias"))], [given(y)]
    plugin = driver.create(OP_SCAN)
    driver.build(plugin, tensors, outs)
    assert driver.serialized(plugin) == "reverse=0 delta_softplus=1 inputs=63"
    plugin = driver.reload(OP_SCAN, plugin)
    driver.run(plugin, tensors, outs, stream=driver.exported("host_stream")(), announce=False)
    driver.destroy(plugin)
    assert cases.scan(inputs, False, gated=False, biased=False).worst(results[0], "float32") < TOLERANCE


def test_an_empty_batch_of_any_width(driver: Driver) -> None:
    """No memory stands behind it, so that any size may be said; sums of sizes must not overflow on the way."""
    inputs = Inputs(Case(5, batch=0), "float32")
    arrays, outs = all_given(OP_CONV, stored(inputs, OP_CONV), outputs_for(OP_CONV, inputs))
    arrays[0] = replace(arrays[0], shape=(0, 5, 2**62 + 1), dynamic=())
    outs[0] = replace(outs[0], dynamic=(), most=())
    plugin = driver.create(OP_CONV)
    driver.build(plugin, arrays, outs)
    plugin = driver.reload(OP_CONV, plugin)
    driver.run(plugin, arrays, outs, stream=driver.exported("host_stream")())
    driver.destroy(plugin)


@pytest.mark.parametrize("dtype", ROUNDING)
def test_what_runs_on_a_device(driver: Driver, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions of tests/gpu, here: a mistake in them shows before a GPU is there."""
    pytest.importorskip("torch")
    import cuda_torch
    import trt_torch

    monkeypatch.setattr(cuda_torch, "DEVICE", "cpu")
    monkeypatch.setattr(cuda_torch, "stream", driver.exported("host_stream"))
    use(driver, SINGLE)
    for op in OP_INPUTS:
        for case in (Case(300, channels=6, batch=2), Case(5, batch=0)):
            trt_torch.through_the_driver(driver, op, case, dtype)
