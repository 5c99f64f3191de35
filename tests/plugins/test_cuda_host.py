"""The CUDA kernels' own source, compiled for the host and run one fiber a thread: indexing, barriers, checks and plans.

What this cannot see is the device's own arithmetic (its exp2 and division), its memory model and its speed: tests/gpu.
"""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import cuda_host
import op_cases as cases
from cuda_host import H100, SINGLE, VAST, Machine
from mscope.core.errors import InputError
from mscope.plugins import cuda_arguments as arguments
from mscope.plugins.cuda_arguments import Array, Call
from mscope.plugins.cuda_resample import ResampleParams
from mscope.plugins.cuda_select import SelectParams
from op_cases import CASES, Case, Inputs

FLOAT32 = "float32"

# Errors are counted in roundings of what was summed (op_cases.Expected). The worst seen is 0.5; a sum of n terms may
# lose up to n of them, an index that is off by one loses millions.
TOLERANCE = 4.0


MACHINES = {"h100": H100, "single": SINGLE, "vast": VAST}


@dataclass(frozen=True)
class Plan:
    """What plan.h decided, in host_plan's order."""

    layout: int
    threads: int
    scan_threads: int
    block_log2: int
    groups: int
    chunk: int
    segments: int
    segment_tokens: int
    padded_states: int
    vector_rows: int
    shared_bytes: int
    blocks: int
    workspace: int


WIDE, DENSE, SMALL = range(3)


@pytest.fixture(scope="module")
def host() -> ctypes.CDLL:
    if cuda_host.compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    return cuda_host.library()


def array(stored: Any) -> Array:
    dtype = "bfloat16" if stored.dtype == np.uint16 else stored.dtype.name
    return Array(
        stored.ctypes.data, stored.shape, tuple(s // stored.itemsize for s in stored.strides), dtype, "cpu", stored
    )


class Output:
    """NaN to be overwritten, inside a larger block whose other words must stay as they are."""

    def __init__(self, case: Case, dtype: str, directions: int = 0) -> None:
        rows = (directions + 2, case.batch * case.length) if directions else (case.batch + 2, case.length)
        self.block = cases.to_storage(np.full((*rows, case.channels), np.nan), dtype)
        self.before = self.block.copy()
        self.inner = self.block[1:-1]

    def checked(self) -> Any:
        for i in (0, -1):
            np.testing.assert_array_equal(self.block[i].view(np.uint8), self.before[i].view(np.uint8))
        return self.inner


def plan_of(host: ctypes.CDLL, call: Call, machine: Machine) -> Plan:
    numbers = (ctypes.c_int64 * 13)()
    assert host.host_plan(ctypes.byref(call.params), call.dtype, ctypes.byref(machine), numbers) == 0
    return Plan(*numbers)


def run_scan(host: ctypes.CDLL, call: Call, machine: Machine, order: int = 0) -> None:
    plan = plan_of(host, call, machine)
    assert plan.shared_bytes <= machine.shared_per_block
    assert plan.threads <= 512
    workspace = np.full(plan.workspace // 4 + 64, np.nan, np.float32)
    workspace[plan.workspace // 4 :] = 7.0
    call.params.workspace, call.params.workspace_bytes = workspace.ctypes.data, plan.workspace
    assert host.host_scan(ctypes.byref(call.params), call.dtype, ctypes.byref(machine), order) == 0
    assert np.all(workspace[plan.workspace // 4 :] == 7.0)


def run_conv(
    host: ctypes.CDLL, inputs: Inputs, y: Any, names: tuple[str | None, ...] = ("weight", "bias", "weight_b", "bias_b")
) -> None:
    taps = (None if name is None else array(inputs.stored[name]) for name in names)
    call = arguments.causal_conv1d_silu(array(inputs.stored["xz"]), *taps, array(y))
    assert host.host_conv(ctypes.byref(call.params), call.dtype, 0) == 0


def bidirectional_call(inputs: Inputs, y: Any) -> Call:
    names = ["xz", "x_both", "dbc"]
    names += [f"{name}{suffix}" for suffix in ("", "_b") for name in ("dt_weight", "dt_bias", "A", "D")]
    return arguments.bidirectional_selective_scan(array(y), *(array(inputs.stored[name]) for name in names))


def scan_call(inputs: Inputs, y: Any, reverse: bool, gated: bool, softplus: bool = True, biased: bool = True) -> Call:
    arrays = [array(inputs.stored[name]) for name in ("x", "delta", "A", "B", "C", "D")]
    z = array(inputs.stored["z"]) if gated else None
    bias = array(inputs.stored["dt_bias"]) if biased else None
    return arguments.selective_scan(array(y), *arrays, z, bias, reverse=reverse, delta_softplus=softplus)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bidirectional(host: ctypes.CDLL, case: Case, machine: str) -> None:
    inputs, y = Inputs(case, FLOAT32), Output(case, FLOAT32)
    run_scan(host, bidirectional_call(inputs, y.inner), MACHINES[machine])
    assert cases.bidirectional(inputs).worst(y.checked(), FLOAT32) < TOLERANCE


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_direction(host: ctypes.CDLL, case: Case, reverse: bool) -> None:
    inputs, y = Inputs(case, FLOAT32), Output(case, FLOAT32)
    run_scan(host, scan_call(inputs, y.inner, reverse, gated=not reverse), H100)
    assert cases.scan(inputs, reverse, gated=not reverse).worst(y.checked(), FLOAT32) < TOLERANCE


@pytest.mark.parametrize("case", CASES, ids=str)
def test_convolution(host: ctypes.CDLL, case: Case) -> None:
    inputs, y = Inputs(case, FLOAT32), Output(case, FLOAT32, directions=2)
    run_conv(host, inputs, y.inner)
    assert cases.conv(inputs).worst(y.checked(), FLOAT32) < TOLERANCE
    if case.batch:  # a direction alone is the same numbers
        for direction, names in enumerate((("weight", "bias", None, None), (None, None, "weight_b", "bias_b"))):
            alone = Output(case, FLOAT32, directions=1)
            run_conv(host, inputs, alone.inner, names)
            np.testing.assert_array_equal(alone.checked()[0], y.inner[direction])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("machine", ["h100", "single"])
def test_narrow_storage(host: ctypes.CDLL, dtype: str, machine: str) -> None:
    for case in (Case(50), Case(20, rank=5, states=6, batch=2), Case(50, spare=4), Case(64, delta_scale=1e4)):
        inputs, y = Inputs(case, dtype), Output(case, dtype)
        run_scan(host, bidirectional_call(inputs, y.inner), MACHINES[machine])
        assert cases.bidirectional(inputs).worst(y.checked(), dtype) < TOLERANCE
        x = Output(case, dtype, directions=2)
        run_conv(host, inputs, x.inner)
        assert cases.conv(inputs).worst(x.checked(), dtype) < TOLERANCE


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_options(host: ctypes.CDLL, softplus: bool, biased: bool) -> None:
    case = Case(40, channels=5, batch=2)
    inputs, y = Inputs(case, FLOAT32), Output(case, FLOAT32)
    if not softplus:  # a negative step makes the state grow without bound
        inputs.stored["delta"] = np.abs(inputs.stored["delta"]) + 8
    run_scan(host, scan_call(inputs, y.inner, False, True, softplus, biased), H100)
    assert cases.scan(inputs, False, True, softplus, biased).worst(y.checked(), FLOAT32) < TOLERANCE


@pytest.mark.parametrize("states", [8, 16, 20])
@pytest.mark.parametrize("directions", [1, 2])
def test_segments(host: ctypes.CDLL, states: int, directions: int) -> None:
    """A long sequence on a large machine is cut, summarised and scanned again."""
    case = Case(1030, channels=9, states=states, rank=4, batch=2)
    inputs, y = Inputs(case, FLOAT32), Output(case, FLOAT32)
    call = bidirectional_call(inputs, y.inner) if directions == 2 else scan_call(inputs, y.inner, True, True)
    plan = plan_of(host, call, VAST)
    assert plan.segments >= 3
    assert plan.segments * plan.segment_tokens >= case.length
    run_scan(host, call, VAST)
    expected = cases.bidirectional(inputs) if directions == 2 else cases.scan(inputs, True, True)
    assert expected.worst(y.checked(), FLOAT32) < TOLERANCE
    # Uncut, on a machine that it fills.
    again = Output(case, FLOAT32)
    call = bidirectional_call(inputs, again.inner) if directions == 2 else scan_call(inputs, again.inner, True, True)
    assert plan_of(host, call, SINGLE).segments == 1
    run_scan(host, call, SINGLE)
    assert expected.worst(again.checked(), FLOAT32) < TOLERANCE


@pytest.mark.parametrize("machine", MACHINES)
def test_the_order_of_threads_does_not_matter(host: ctypes.CDLL, machine: str) -> None:
    """Bit for bit the same for threads run forwards, backwards and shuffled: no barrier is missing."""
    for case in (Case(200, channels=20), Case(60, states=24, rank=3), Case(1030, channels=2, states=8, rank=2)):
        inputs, results = Inputs(case, FLOAT32), []
        for order in range(3):
            y = Output(case, FLOAT32)
            run_scan(host, bidirectional_call(inputs, y.inner), MACHINES[machine], order)
            results.append(y.checked())
        np.testing.assert_array_equal(results[0], results[1])
        np.testing.assert_array_equal(results[0], results[2])


def far_apart(stored: Any) -> Any:
    """A copy whose first axis steps over 2^31 elements and some: pages that nobody touches cost nothing."""
    step = (2**31 + 64) * stored.itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, (len(stored) - 1) * step + stored[0].nbytes, flags=flags)
    far = np.ndarray(
        stored.shape, stored.dtype, memory, strides=(step, *np.empty(stored.shape, stored.dtype).strides[1:])
    )
    far[...] = stored
    return far


def test_offsets_beyond_32_bits(host: ctypes.CDLL) -> None:
    """Images and directions more than 2^31 elements apart, as large batches have them: the same bits."""
    case = Case(20, channels=6, batch=2)
    inputs, near, convolved = Inputs(case, "float16"), Output(case, "float16"), Output(case, "float16", directions=2)
    run_scan(host, bidirectional_call(inputs, near.inner), H100)
    run_conv(host, inputs, convolved.inner)
    for name in ("xz", "x_both", "dbc"):
        inputs.stored[name] = far_apart(inputs.stored[name])
    y, x = far_apart(near.inner * 0), far_apart(convolved.inner * 0)
    run_scan(host, bidirectional_call(inputs, y), H100)
    run_conv(host, inputs, x)
    np.testing.assert_array_equal(y, near.inner)
    np.testing.assert_array_equal(x, convolved.inner)


def test_nan_reaches_what_depends_on_it_and_nothing_else(host: ctypes.CDLL) -> None:
    case = Case(40, channels=6, batch=2)
    inputs, y = Inputs(case, FLOAT32), Output(case, FLOAT32)
    inputs.stored["x_both"][0, 40 + 20, 2] = np.nan
    run_scan(host, bidirectional_call(inputs, y.inner), SINGLE)
    expected = np.zeros(y.inner.shape, bool)
    expected[1, 20:, 2] = True
    np.testing.assert_array_equal(np.isnan(y.checked()), expected)


def test_every_layout_is_covered(host: ctypes.CDLL) -> None:
    """The machines and cases above reach each way of running: else they would check less than they seem to."""
    seen = set()
    for case in CASES:
        if case.batch:
            inputs, y = Inputs(case, FLOAT32), Output(case, FLOAT32)
            call = bidirectional_call(inputs, y.inner)
            for machine in MACHINES.values():
                plan = plan_of(host, call, machine)
                lanes, each = {WIDE: (16, 1), DENSE: (4, 4), SMALL: (4, 2)}[plan.layout]
                turns = plan.padded_states > lanes * each
                seen.add((plan.layout, turns))
                seen.add(("chunks", plan.segment_tokens > plan.chunk))
                seen.add(("vector", plan.vector_rows))
    assert seen >= {(WIDE, False), (WIDE, True), (DENSE, False), (DENSE, True), (SMALL, False)}
    assert seen >= {("chunks", True), ("chunks", False), ("vector", 1), ("vector", 0)}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("channels, rank", [(384, 12), (768, 24), (1536, 48)])
def test_plans_of_the_models(host: ctypes.CDLL, channels: int, rank: int, machine: str) -> None:
    """Sizes that are run on real devices only: the plan alone is checked."""
    for batch in (1, 8, 64, 100_000):
        for length in (50, 125, 197, 1024, 16384):
            # No memory behind these: a plan reads sizes and strides only.
            params = arguments.ScanParams(batch, length, channels, 16, rank, 2, 1)
            plan = plan_of(host, Call(params, 1, "cpu"), MACHINES[machine])
            assert plan.groups << plan.block_log2 >= channels
            assert plan.blocks == batch * plan.segments * plan.groups
            assert plan.segment_tokens * (plan.segments - 1) < length <= plan.segment_tokens * plan.segments
            assert plan.scan_threads % 64 == 0
            # The kernels' launch bounds: more threads are no launch on a device.
            assert plan.scan_threads <= plan.threads <= (512 if plan.layout == WIDE else 256)
            assert plan.chunk % (16 if plan.layout == WIDE else 4) == 0
            assert plan.chunk <= 256
            assert plan.shared_bytes <= MACHINES[machine].shared_per_block


def test_sizes_that_cannot_run_are_refused(host: ctypes.CDLL) -> None:
    numbers = (ctypes.c_int64 * 13)()

    def status(*sizes: int) -> int:
        params = arguments.ScanParams(*sizes, 1)
        return int(host.host_plan(ctypes.byref(params), 0, ctypes.byref(H100), numbers))

    assert status(1, 10, 10, 16, 4, 2) == 0
    assert status(-1, 10, 10, 16, 4, 2) == -1
    assert status(1, 0, 10, 16, 4, 2) == -1
    assert status(1, 10, 10, 16, 4, 3) == -1
    assert status(1, 1 << 31, 10, 16, 4, 2) == -1
    assert status(1, 10, 10, 100_000, 4, 2) == -6
    # Each size alone is in range; how many elements there are is more than an int64_t counts.
    assert status(1 << 30, 1 << 30, 1, 16, 4, 2) == -1
    assert status(1, 1 << 30, 1 << 30, 16, 4, 2) == -1
    assert status(1, 1 << 20, 1 << 20, 1 << 20, 4, 2) == -1
    for batch, length, channels in ((1 << 14, 1 << 30, 1 << 30), (1 << 30, 1 << 30, 1)):
        taps = arguments.ConvParams(batch, length, channels, 4)
        assert host.host_conv(ctypes.byref(taps), 0, 0) == -1
    params = arguments.ScanParams(1, 10, 10, 16, 4, 2, 1)
    assert host.host_plan(ctypes.byref(params), 7, ctypes.byref(H100), numbers) == -2
    assert host.host_scan(ctypes.byref(params), 0, ctypes.byref(H100), 0) == -3


def test_structs_agree(host: ctypes.CDLL) -> None:
    mirrors = (arguments.ScanParams, arguments.ConvParams, ResampleParams, SelectParams, Machine)
    assert [host.host_struct_bytes(i) for i in range(5)] == [ctypes.sizeof(mirror) for mirror in mirrors]


def test_storage_conversions(host: ctypes.CDLL) -> None:
    words = np.arange(65536, dtype=np.uint16)
    for code, dtype in ((1, "float16"), (2, "bfloat16")):
        got = np.empty(words.size, np.float32)
        host.host_widen(
            words.ctypes.data_as(ctypes.c_void_p), got.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(words.size), code
        )
        exact = cases.to_float(words.view(np.float16) if code == 1 else words)
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(got.astype(np.float64), exact)
        draw = np.random.default_rng(0)
        values = draw.integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
        values = np.concatenate(
            [values[~np.isnan(values)], draw.standard_normal(100_000).astype(np.float32), [65519.0, 65520.0]]
        )
        values = np.concatenate([values, draw.standard_normal(1000) * 1e-6]).astype(np.float32)
        back = np.empty(values.size, np.uint16)
        host.host_narrow(
            values.ctypes.data_as(ctypes.c_void_p),
            back.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_int64(values.size),
            code,
        )
        with np.errstate(over="ignore"):
            expected = cases.to_storage(values, dtype)
        np.testing.assert_array_equal(back, expected.view(np.uint16))


def refused(match: str, change: dict[str, Any]) -> None:
    case = Case(10, channels=6, batch=2)
    inputs, y = Inputs(case, FLOAT32), Output(case, FLOAT32)
    inputs.stored.update(change)
    with pytest.raises(InputError, match=match):
        bidirectional_call(inputs, y.inner)


def test_arrays_that_do_not_fit_are_refused_with_both_sides_named() -> None:
    zeros = np.zeros
    refused(
        r"x has shape \(2, 19, 6\): expected \(2, 20, 6\) from xz \(2, 10, 12\)",
        {"x_both": zeros((2, 19, 6), np.float32)},
    )
    refused(r"dbc has shape .*expected \(2, 20, 44\)", {"dbc": zeros((2, 20, 43), np.float32)})
    refused(r"xz has shape \(2, 10, 13\): its last axis must be even", {"xz": zeros((2, 10, 13), np.float32)})
    refused(r"A_b is float64: expected float32, as xz is float32", {"A_b": zeros((6, 16))})
    refused(r"dt_weight is float16: expected float32", {"dt_weight": zeros((6, 12), np.float16)})
    refused(r"xz has strides .*last axis must be contiguous", {"xz": zeros((2, 10, 24), np.float32)[..., ::2]})
    refused(r"A has shape .* and strides .*must be contiguous", {"A": zeros((16, 6), np.float32).T})
    refused(r"xz is float64: expected one of", {"xz": zeros((2, 10, 12))})
    refused(r"xz has shape \(10, 12\): expected three axes", {"xz": zeros((10, 12), np.float32)})
    refused(r"dt_weight has shape \(5, 12\).*size 6", {"dt_weight": zeros((5, 12), np.float32)})
