"""The ops for ONNX Runtime's CUDA provider, in the real ONNX Runtime, over the kernels' host run, against float64.

What it cannot see: the CUDA provider itself, its streams, and a device (tests/gpu).
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import cuda_host
import op_cases as cases
import ort_cuda_host
import ort_graphs
from cuda_host import H100, SINGLE, VAST
from mscope.core.contract import OP_BIDIRECTIONAL_SCAN, OP_CONV, OP_MIXER, OP_SCAN
from mscope.plugins import find, ort
from op_cases import ROUNDING, Case, Inputs
from ort_graphs import FLOAT32, OP_INPUTS, Values, model_of, session_of, symbolic_shape, values_of
from ort_refusals import WRONG_SHAPES

#: As in test_cuda_host.py: roundings of what was summed.
TOLERANCE = 4.0
MACHINES = {"single": SINGLE, "vast": VAST}
# ONNX Runtime's tensors are dense, so that the cases of padded rows do not arise.
CASES = [case for case in cases.CASES if not case.spare]
OPS = (OP_CONV, OP_SCAN, OP_BIDIRECTIONAL_SCAN)


@pytest.fixture(scope="module")
def library() -> Path:
    if cuda_host.compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    return ort_cuda_host.library()


@pytest.fixture(scope="module")
def host(library: Path) -> ctypes.CDLL:
    """The same library, for what tests ask of its host run."""
    return ctypes.CDLL(str(library.resolve()))


@pytest.fixture(autouse=True)
def h100(host: ctypes.CDLL) -> None:
    host.host_set_machine(ctypes.byref(H100))


def run(library: Path, op: str, values: Values, **options: Any) -> np.ndarray:
    session = session_of(model_of(op, values, **options), library=library)
    return session.run(None, feeds_of(session, values))[0]


def feeds_of(session: onnxruntime.InferenceSession, values: Values) -> dict[str, Any]:
    return {i.name: values[i.name] for i in session.get_inputs()}


def refusal(library: Path, op: str, values: Values, **options: Any) -> str:
    """What a library says, from the node's name on; where it says it belongs to ONNX Runtime."""
    with pytest.raises(Exception, match=f"{op} 'node': ") as caught:
        run(library, op, values, **options)
    return str(caught.value).split(f"{op} 'node': ")[1]


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("case", CASES, ids=str)
class TestAgainstFloat64:
    def test_convolution(self, library: Path, case: Case, dtype: str) -> None:
        inputs = Inputs(case, dtype)
        x = run(library, OP_CONV, values_of(OP_CONV, inputs), dtype=dtype)
        assert cases.conv(inputs).worst(x, dtype) < TOLERANCE

    def test_one_direction(self, library: Path, case: Case, dtype: str) -> None:
        if dtype == "float16" and case.delta_scale > 1e3:
            pytest.skip("beyond the largest float16")
        inputs, reverse = Inputs(case, dtype), case.length % 2
        y = run(library, OP_SCAN, values_of(OP_SCAN, inputs), dtype=dtype, reverse=reverse)
        assert cases.scan(inputs, bool(reverse), gated=True).worst(y, dtype) < TOLERANCE

    def test_both_directions(self, library: Path, case: Case, dtype: str) -> None:
        if dtype == "float16" and case.delta_scale > 1e3:
            pytest.skip("beyond the largest float16")
        inputs = Inputs(case, dtype)
        y = run(library, OP_BIDIRECTIONAL_SCAN, values_of(OP_BIDIRECTIONAL_SCAN, inputs), dtype=dtype)
        assert cases.bidirectional(inputs).worst(y, dtype) < TOLERANCE


@pytest.mark.parametrize("op", OPS)
def test_parameters_as_inputs_give_the_same_bits(library: Path, op: str) -> None:
    """Nothing is kept of a constant: A and dt_weight may be computed by the graph."""
    values = values_of(op, Inputs(Case(37, channels=21, batch=2), FLOAT32))
    np.testing.assert_array_equal(run(library, op, values), run(library, op, values, constants=False))


@pytest.mark.parametrize("without", [("z",), ("dt_bias",), ("z", "dt_bias")], ids="+".join)
def test_optional_inputs(library: Path, without: tuple[str, ...]) -> None:
    inputs = Inputs(Case(21, batch=2), FLOAT32)
    y = run(library, OP_SCAN, values_of(OP_SCAN, inputs, without=without))
    expected = cases.scan(inputs, False, gated="z" not in without, biased="dt_bias" not in without)
    assert expected.worst(y, FLOAT32) < TOLERANCE


def test_one_directional_convolution(library: Path) -> None:
    inputs = Inputs(Case(21, batch=2), FLOAT32)
    x = run(library, OP_CONV, values_of(OP_CONV, inputs, without=("weight_b", "bias_b")))
    assert cases.conv(inputs, directions=1).worst(x, FLOAT32) < TOLERANCE


def test_delta_without_softplus(library: Path) -> None:
    inputs = Inputs(Case(24, delta_scale=0.1), FLOAT32)
    y = run(library, OP_SCAN, values_of(OP_SCAN, inputs, without=("dt_bias",)), delta_softplus=0)
    expected = cases.scan(inputs, False, gated=True, softplus=False, biased=False)
    # Expected.scale is no bound where delta changes its sign.
    np.testing.assert_allclose(y, expected.value, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("op", OPS)
def test_one_session_takes_any_batch_and_length(library: Path, op: str) -> None:
    """As a bundle's batches come; shapes are inferred with their symbols, and none is kept from run to run."""
    sizes = [(1, 50), (0, 50), (3, 1), (2, 300), (1, 7), (3, 50)]
    drawn = {size: values_of(op, Inputs(Case(size[1], batch=size[0]), FLOAT32)) for size in sizes}
    shared = drawn[sizes[0]]  # one set of parameters for all
    model = model_of(op, shared)
    for value in model.graph.input:
        shape = symbolic_shape(value.name, shared)
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, shape))
    session = session_of(model, library=library)
    for values in drawn.values():
        parameters = {name: value for name, value in shared.items() if ort_graphs.is_parameter(name)}
        feeds = feeds_of(session, values)
        expected = run(library, op, values | parameters)
        np.testing.assert_array_equal(session.run(None, feeds)[0], expected)


def test_what_is_declared_may_be_any_number(library: Path) -> None:
    """Of 2^64 rows nothing is inferred: not that there are none, as they come out of 64 bits."""
    values = values_of(OP_CONV, Inputs(Case(9), FLOAT32))
    model = model_of(OP_CONV, values)
    (xz,) = (value for value in model.graph.input if value.name == "xz")
    xz.CopyFrom(helper.make_tensor_value_info("xz", TensorProto.FLOAT, [2**33, 2**31, values["xz"].shape[2]]))
    (x,) = session_of(model, library=library).get_outputs()
    directions, rows, channels = x.shape
    assert (directions, channels) == (2, len(values["bias"]))
    assert rows != 0


class TestScratch:
    """Long sequences need memory beside their tensors, out of ONNX Runtime's allocator, once for a stream."""

    @pytest.mark.parametrize("op", [OP_SCAN, OP_BIDIRECTIONAL_SCAN])
    @pytest.mark.parametrize("machine", ["single", "vast"])
    def test_long_sequences(self, library: Path, host: ctypes.CDLL, op: str, machine: str) -> None:
        host.host_set_machine(ctypes.byref(MACHINES[machine]))
        host.host_workspaces()
        inputs = Inputs(Case(1024, channels=9, batch=2), FLOAT32)
        y = run(library, op, values_of(op, inputs))
        expected = cases.bidirectional(inputs) if op == OP_BIDIRECTIONAL_SCAN else cases.scan(inputs, False, gated=True)
        assert expected.worst(y, FLOAT32) < TOLERANCE
        # One multiprocessor alone has nothing to gain from segments: one direction then needs no memory.
        assert host.host_workspaces() == (0 if machine == "single" and op == OP_SCAN else 1)

    def test_it_is_taken_once_and_grows(self, library: Path, host: ctypes.CDLL) -> None:
        """The same block for every run and every node, until a larger batch wants more."""
        host.host_set_machine(ctypes.byref(SINGLE))
        values = values_of(OP_BIDIRECTIONAL_SCAN, Inputs(Case(300, channels=16), FLOAT32))
        model = model_of(OP_BIDIRECTIONAL_SCAN, values)
        (node,) = model.graph.node
        twin = onnx.NodeProto()
        twin.CopyFrom(node)
        twin.name, twin.output[0] = "twin", "y_twin"
        model.graph.node.append(twin)
        model.graph.output.append(helper.make_tensor_value_info("y_twin", TensorProto.FLOAT, [None] * 3))
        session = session_of(model, library=library)
        feeds = feeds_of(session, values)
        host.host_workspaces()
        for _ in range(2):
            alone, twins = session.run(None, feeds)
            np.testing.assert_array_equal(alone, twins)
        assert host.host_workspaces() == 1
        # An image needs 19 KiB, and 64 KiB is the least that is taken.
        larger = {
            name: np.concatenate([value] * 5, axis=1 if name in ort_graphs.BOTH_DIRECTIONS else 0)
            for name, value in feeds.items()
        }
        many, _ = session.run(None, larger)
        np.testing.assert_array_equal(many, np.concatenate([alone] * 5))
        session.run(None, feeds)
        assert host.host_workspaces() == 1, "the larger one serves the smaller batch too"

    def test_threads_on_one_stream_do_not_mix(self, library: Path, host: ctypes.CDLL) -> None:
        """As with a user_compute_stream: between the two launches of a scan in segments no other may write there."""
        host.host_set_machine(ctypes.byref(VAST))
        values = values_of(OP_SCAN, Inputs(Case(1024, channels=9), FLOAT32))
        session = session_of(model_of(OP_SCAN, values), library=library)
        feeds = feeds_of(session, values)
        alone = session.run(None, feeds)[0]
        host.host_wait_for_another(250)
        try:
            with ThreadPoolExecutor(2) as pool:
                both = [pool.submit(session.run, None, feeds) for _ in range(2)]
            for run in both:
                np.testing.assert_array_equal(run.result()[0], alone)
        finally:
            twice = host.host_wait_for_another(0)
        assert twice == 0


class TestRefusals:
    @pytest.mark.parametrize(
        ("op", "name", "shape", "message"),
        [each for each in WRONG_SHAPES if each[0] != OP_MIXER],
        ids=lambda v: str(v).split(" has")[0],
    )
    def test_wrong_shapes(self, library: Path, op: str, name: str, shape: tuple[int, ...], message: str) -> None:
        """Constants when the session is made, inputs when it runs; in the words of the library for the CPU."""
        values = values_of(op, Inputs(Case(9), FLOAT32)) | {name: np.zeros(shape, np.float32)}
        with pytest.raises(Exception, match=f"{op} 'node': {message}"):
            run(library, op, values)
        said = refusal(library, op, values, constants=False)
        if ort_graphs.LIBRARY is not None:
            assert said == refusal(ort_graphs.LIBRARY, op, values, constants=False)

    def test_attributes_and_half_a_direction(self, library: Path) -> None:
        inputs = Inputs(Case(9), FLOAT32)
        for attribute in ("reverse", "delta_softplus"):
            said = refusal(library, OP_SCAN, values_of(OP_SCAN, inputs), **{attribute: 2})
            assert said == f"attribute {attribute} is 2, expected 0 or 1"
        said = refusal(library, OP_CONV, values_of(OP_CONV, inputs, without=("weight_b",)))
        assert said == "got bias_b without weight_b, expected both or neither"

    def test_what_the_kernels_refuse_names_the_node(self, library: Path, host: ctypes.CDLL) -> None:
        """A launch that fails is an error of the run, and the session goes on."""
        values = values_of(OP_SCAN, Inputs(Case(9), FLOAT32))
        session = session_of(model_of(OP_SCAN, values), library=library)
        host.host_expect(5, None)  # another device than the tensors'
        try:
            with pytest.raises(Exception, match="SelectiveScan 'node': the scan's plan failed: status -3"):
                session.run(None, feeds_of(session, values))
        finally:
            host.host_expect(0, None)
        session.run(None, feeds_of(session, values))


def test_the_mixer_is_not_in_it_and_is_taken_apart(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime inlines the function's body: convolution and scan by the library, the product its own."""
    from mscope.export.functions import attach_functions

    monkeypatch.setenv(find.PLUGIN_DIR, str(library.parent))
    inputs = Inputs(Case(50, channels=9, batch=2), FLOAT32)
    values = values_of(OP_MIXER, inputs)
    model = model_of(OP_MIXER, values)
    attach_functions(model)
    kernels, calls = ort.kernels_created("ort_cuda"), ort.calls("ort_cuda")
    session = session_of(model, library=library)
    assert ort.kernels_created("ort_cuda") == kernels + 2
    (y,) = session.run(None, feeds_of(session, values))
    assert ort.calls("ort_cuda") == calls + 2
    # As in test_ort_ops.py, counted in what all three stages sum.
    assert cases.mixer(inputs).worst(y, FLOAT32) < 1.0


def test_every_op_of_the_contract_is_in_it_but_the_mixer(library: Path) -> None:
    for op in OP_INPUTS:
        values = values_of(op, Inputs(Case(9), FLOAT32))
        if op == OP_MIXER:
            with pytest.raises(Exception, match=OP_MIXER):
                session_of(model_of(op, values), library=library)
        else:
            session_of(model_of(op, values), library=library)
