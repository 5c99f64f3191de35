"""The ops in ONNX Runtime against float64, by every implementation: the native kernels of each instruction set, the
exported function bodies, and PyTorch's reference. The cases are those of the CUDA kernels, and more lengths.
"""

from __future__ import annotations

import numpy as np
import pytest

import op_cases as cases
import ort_graphs
from mscope.core.contract import OP_BIDIRECTIONAL_SCAN, OP_CONV, OP_MIXER, OP_SCAN
from op_cases import Case, Inputs
from ort_graphs import FLOAT32, OP_INPUTS, run, usable_isas, values_of

#: Errors are counted in roundings of what was summed (op_cases.Expected), and grow with what compounds over tokens: a
#: decay near one is off by up to two roundings in each.
TOLERANCE = 4.0
#: What a mixer sums is counted through its three stages, each by absolute values, so that a rounding of it is worth
#: more: an error of the product, up to 2 of its own roundings, is a fraction of one here. Worst measured: 0.6.
MIXER_TOLERANCE = 1.0

CASES = [
    *cases.CASES,
    Case(49, channels=17),
    Case(1024, channels=3, states=24),
    Case(4096, channels=5, states=4),
    Case(4096, channels=2, states=1, delta_scale=1e-3),
    Case(9, channels=130, states=70),
    Case(40, channels=48, rank=33),
    Case(35, delta_scale=30.0, channels=20),
]


def denormals(values: np.ndarray) -> int:
    """How many there are, by their bits: a thread's mode may compare them as 0."""
    bits = values.astype(np.float32).view(np.uint32) & 0x7FFFFFFF
    return int(((bits > 0) & (bits < 0x00800000)).sum())


IMPLEMENTATIONS = [*(f"native-{isa}" for isa in usable_isas()), "function", "torch"]
needs_library = pytest.mark.skipif(ort_graphs.LIBRARY is None, reason=ort_graphs.WHY_MISSING)


def skip_where_unfit(implementation: str, case: Case, dtype: str = FLOAT32) -> None:
    if implementation.startswith("native"):
        return
    if dtype != FLOAT32:
        pytest.skip("this implementation is float32; 16-bit storage is tested on the native kernels")
    if case.length > 400:
        pytest.skip("a loop of standard operators: too slow to repeat at this length")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES, ids=str)
class TestAgainstFloat64:
    def test_convolution(self, case: Case, implementation: str) -> None:
        skip_where_unfit(implementation, case)
        inputs = Inputs(case, FLOAT32)
        x = run(implementation, OP_CONV, values_of(OP_CONV, inputs))
        assert cases.conv(inputs).worst(x, FLOAT32) < TOLERANCE

    @pytest.mark.parametrize("reverse", [0, 1])
    def test_one_direction(self, case: Case, implementation: str, reverse: int) -> None:
        skip_where_unfit(implementation, case)
        inputs = Inputs(case, FLOAT32)
        y = run(implementation, OP_SCAN, values_of(OP_SCAN, inputs), reverse=reverse)
        assert cases.scan(inputs, bool(reverse), gated=True).worst(y, FLOAT32) < TOLERANCE

    def test_both_directions(self, case: Case, implementation: str) -> None:
        skip_where_unfit(implementation, case)
        inputs = Inputs(case, FLOAT32)
        y = run(implementation, OP_BIDIRECTIONAL_SCAN, values_of(OP_BIDIRECTIONAL_SCAN, inputs))
        assert cases.bidirectional(inputs).worst(y, FLOAT32) < TOLERANCE

    def test_mixer(self, case: Case, implementation: str) -> None:
        skip_where_unfit(implementation, case)
        inputs = Inputs(case, FLOAT32)
        y = run(implementation, OP_MIXER, values_of(OP_MIXER, inputs))
        assert cases.mixer(inputs).worst(y, FLOAT32) < MIXER_TOLERANCE


@needs_library
@pytest.mark.parametrize("isa", usable_isas())
class TestNativeKernels:
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_storage_of_16_bits(self, case: Case, dtype: str, isa: str) -> None:
        if dtype == "float16" and case.delta_scale > 1e3:
            pytest.skip("beyond the largest float16")
        inputs, name = Inputs(case, dtype), f"native-{isa}"
        x = run(name, OP_CONV, values_of(OP_CONV, inputs), dtype=dtype)
        assert cases.conv(inputs).worst(x, dtype) < TOLERANCE
        y = run(name, OP_SCAN, values_of(OP_SCAN, inputs), dtype=dtype, reverse=1)
        assert cases.scan(inputs, True, gated=True).worst(y, dtype) < TOLERANCE
        y = run(name, OP_BIDIRECTIONAL_SCAN, values_of(OP_BIDIRECTIONAL_SCAN, inputs), dtype=dtype)
        assert cases.bidirectional(inputs).worst(y, dtype) < TOLERANCE
        y = run(name, OP_MIXER, values_of(OP_MIXER, inputs), dtype=dtype)
        assert cases.mixer(inputs).worst(y, dtype) < MIXER_TOLERANCE

    @pytest.mark.parametrize("op", OP_INPUTS)
    def test_parameters_as_inputs_give_the_same_bits(self, op: str, isa: str) -> None:
        """Repacked in each run instead of once: A and dt_weight may be computed by the graph."""
        values = values_of(op, Inputs(Case(37, channels=21, batch=2), FLOAT32))
        fed = run(f"native-{isa}", op, values, constants=False)
        np.testing.assert_array_equal(run(f"native-{isa}", op, values), fed)

    @pytest.mark.parametrize("op", OP_INPUTS)
    def test_any_number_of_threads_gives_the_same_bits(self, op: str, isa: str) -> None:
        values = values_of(op, Inputs(Case(50, channels=70, batch=3), FLOAT32))
        one = run(f"native-{isa}", op, values, threads=1)
        for threads in (2, 5):
            np.testing.assert_array_equal(one, run(f"native-{isa}", op, values, threads=threads))

    @pytest.mark.parametrize("without", [("z",), ("dt_bias",), ("z", "dt_bias")], ids="+".join)
    def test_optional_inputs(self, without: tuple[str, ...], isa: str) -> None:
        inputs = Inputs(Case(21, batch=2), FLOAT32)
        for constants in (True, False):
            values = values_of(OP_SCAN, inputs, without=without)
            y = run(f"native-{isa}", OP_SCAN, values, constants=constants)
            expected = cases.scan(inputs, False, gated="z" not in without, biased="dt_bias" not in without)
            assert expected.worst(y, FLOAT32) < TOLERANCE

    def test_one_directional_convolution(self, isa: str) -> None:
        inputs = Inputs(Case(21, batch=2), FLOAT32)
        values = values_of(OP_CONV, inputs, without=("weight_b", "bias_b"))
        y = run(f"native-{isa}", OP_CONV, values)
        assert cases.conv(inputs, directions=1).worst(y, FLOAT32) < TOLERANCE

    def test_delta_without_softplus(self, isa: str) -> None:
        """Some of it negative: decays above one, which the fast exponential does not take."""
        inputs = Inputs(Case(24, delta_scale=0.1), FLOAT32)
        values = values_of(OP_SCAN, inputs, without=("dt_bias",))
        y = run(f"native-{isa}", OP_SCAN, values, delta_softplus=0)
        expected = cases.scan(inputs, False, gated=True, softplus=False, biased=False)
        # Expected.scale is no bound where delta changes its sign.
        np.testing.assert_allclose(y, expected.value, rtol=2e-5, atol=1e-5)

    @pytest.mark.parametrize("name", ["x", "delta", "B", "C", "z"])
    def test_nan_reaches_the_output(self, name: str, isa: str) -> None:
        inputs = Inputs(Case(40, channels=19), FLOAT32)
        values = values_of(OP_SCAN, inputs)
        array = values[name]
        assert array is not None
        array[0, 35, 3] = np.nan
        y = run(f"native-{isa}", OP_SCAN, values)
        clean = run(f"native-{isa}", OP_SCAN, values_of(OP_SCAN, inputs))
        np.testing.assert_array_equal(y[:, :35], clean[:, :35])
        channels = slice(None) if name in "BC" else 3
        assert np.isnan(y[0, 35, channels]).all()
        if name in {"x", "delta", "B"}:  # a poisoned state stays so
            assert np.isnan(y[0, 36:, channels]).all()

    @pytest.mark.parametrize("delta", [1e8, 1e30, 3e38, np.inf])
    def test_any_delta_is_finite_work(self, delta: float, isa: str) -> None:
        """A step so large that nothing is remembered: the state is delta x B, no 0 * inf, no overflow."""
        values = values_of(OP_SCAN, Inputs(Case(3, channels=5), FLOAT32))
        for name in ("delta", "x"):
            values[name] = np.zeros((1, 3, 5), np.float32)
        deltas, x = values["delta"], values["x"]
        assert deltas is not None
        assert x is not None
        x[0, 0], deltas[0, 1] = 1.0, delta
        y = run(f"native-{isa}", OP_SCAN, values)
        if np.isinf(delta):
            assert np.isfinite(y[0, 0]).all()  # inf * 0 is not a number, in float64 as well
        else:
            np.testing.assert_array_equal(y[0, 1:], 0.0)

    def test_no_slow_denormals(self, isa: str) -> None:
        """States that decay through the denormals, which can cost a hundred times what others do, are flushed to 0."""
        inputs = Inputs(Case(2000, channels=16), FLOAT32)
        fading = values_of(OP_SCAN, inputs)
        fading["x"] = np.zeros_like(inputs.wide("x"), dtype=np.float32)
        fading["x"][0, 0] = 1e-30
        assert denormals(run("torch", OP_SCAN, fading)) > 10, "PyTorch keeps them: the case has some"
        assert denormals(run(f"native-{isa}", OP_SCAN, fading)) == 0
