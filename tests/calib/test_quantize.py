"""Quantised graphs: exact integer arithmetic, only the products touched, native kernels and stock ONNX Runtime."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mscope.calib.calibrate import calibrate, smoothed_models
from mscope.calib.chain import opened
from mscope.calib.quantize import quantized, scale_for
from mscope.calib.sites import find_sites, groups_of
from mscope.core.config import config_for
from mscope.core.contract import OP_DOMAIN, graph_for
from mscope.core.errors import InputError
from mscope.plugins import find
from mscope.runtime.backends.ort import OrtRunner

CONFIG = config_for("digits")
Models = dict[Any, onnx.ModelProto]


@pytest.fixture(scope="module")
def limits(digits_models: Models, digits_pictures: list[np.ndarray]) -> dict[Any, dict[str, float]]:
    seen = calibrate(CONFIG, digits_models, lambda: digits_pictures, "percentile", None)
    return {stage: ranges.limits for stage, ranges in seen.stages.items()}


@pytest.fixture(scope="module")
def int8(digits_models: Models, limits: dict[Any, dict[str, float]]) -> Models:
    return {stage: quantized(model, "int8", limits[stage]) for stage, model in digits_models.items()}


def linear(rows: int = 8, columns: int = 5) -> onnx.ModelProto:
    """x -> Gemm (transB, bias) as a head, one output channel of it zero."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((columns, rows)).astype(np.float32)
    weight[2] = 0
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "head.weight", "head.bias"], ["y"], name="head", transB=1)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", columns])],
        [
            numpy_helper.from_array(weight, "head.weight"),
            numpy_helper.from_array(random.standard_normal(columns).astype(np.float32), "head.bias"),
        ],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(OP_DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, feeds)[0]
    return result


def test_int8_is_integer_arithmetic_and_nothing_else() -> None:
    model = linear()
    weight, bias = (numpy_helper.to_array(tensor).astype(np.float64) for tensor in model.graph.initializer)
    x = np.random.default_rng(1).standard_normal((6, 8)).astype(np.float32) * 2
    limit = 3.0
    scale, scales = limit / 127, np.where(np.abs(weight).max(1) > 0, np.abs(weight).max(1) / 127, 1.0)
    whole_x = np.clip(np.rint(x / np.float32(scale)), -128, 127)
    whole_w = np.rint((weight / scales[:, None]).astype(np.float32))
    assert np.abs(whole_x).max() >= 127, "something is clipped"
    expected = (whole_x @ whole_w.T) * scale * scales + bias
    int8 = quantized(model, "int8", {"x": limit})
    # ONNX's own evaluator goes by the letter; ONNX Runtime's fused product does not look at the axis of the scales.
    letter = onnx.ModelProto.FromString(int8.SerializeToString())
    letter.opset_import[0].version = 19  # the evaluator has no older one; the operator is the same
    for got in (run(int8, x=x), ReferenceEvaluator(letter).run(None, {"x": x})[0]):
        # Sums of integers are exact; the scales and the bias are float32, the evaluator's sums too.
        assert np.abs(got - expected).max() <= 16 * np.finfo(np.float32).eps * np.abs(expected).max()
        assert np.abs(got - (x @ weight.T + bias)).max() > 1e-3, "nothing was quantised"


def test_a_range_of_zero_gives_the_bias() -> None:
    model = linear()
    got = run(quantized(model, "int8", {"x": 0.0}), x=np.zeros((2, 8), np.float32))
    assert np.array_equal(got, np.tile(numpy_helper.to_array(model.graph.initializer[1]), (2, 1)))
    assert scale_for(0.0, "int8") == 1.0


@pytest.mark.parametrize("limit", [float("nan"), float("inf"), -1.0])
def test_a_range_that_is_none_is_refused(limit: float) -> None:
    with pytest.raises(InputError, match="the range of x is"):
        quantized(linear(), "int8", {"x": limit})
    with pytest.raises(InputError, match="no calibrated range for x"):
        quantized(linear(), "int8", {})


def test_weights_are_symmetric_with_a_scale_for_each_channel(int8: Models) -> None:
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8["fine"].graph.initializer}
    weights = [name for name in arrays if name.endswith(":quantized")]
    assert len(weights) == len(find_sites_of(int8["fine"]))
    for name in weights:
        scale = arrays[name.replace(":quantized", ":scale")]
        assert arrays[name].dtype == np.int8
        assert arrays[name].min() >= -127, "-128 has no counterpart"
        assert scale.shape == arrays[name].shape[-1:]
        rows = tuple(range(arrays[name].ndim - 1))
        assert (np.abs(arrays[name]).max(axis=rows) == 127).all(), "every channel uses the whole range"
    zeros = [array for name, array in arrays.items() if name.endswith(":zero")]
    assert zeros
    assert all((zero == 0).all() for zero in zeros), "TensorRT takes no other zero point"


def find_sites_of(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[1].endswith(":dq")]


def test_only_the_products_read_quantised_tensors(digits_models: Models, int8: Models) -> None:
    for stage, model in digits_models.items():
        before = {node.name: node for node in model.graph.node}
        sites = {site.node for site in find_sites(model)}
        assert len(sites) == 3 * CONFIG.depth + (4 if stage == "fine" else 2)
        for node in int8[stage].graph.node:
            if node.name in before and node.name not in sites:
                # The scan, the norms, the importance, the outputs: to the letter what they were.
                assert node == before[node.name]
        scans = [node for node in int8[stage].graph.node if node.domain == OP_DOMAIN]
        assert len(scans) == 2 * CONFIG.depth
        assert [f.name for f in int8[stage].functions] == [f.name for f in model.functions]
        onnx.checker.check_model(int8[stage])


def test_files_shrink_and_no_float_copy_of_a_weight_stays(digits_models: Models, int8: Models) -> None:
    for stage, model in digits_models.items():
        names = {tensor.name for tensor in int8[stage].graph.initializer}
        assert not names & {site.weight for site in find_sites(model)}
        assert int8[stage].ByteSize() < 0.5 * model.ByteSize()


def test_groups_left_out_stay_in_float32(digits_models: Models, limits: dict[Any, dict[str, float]]) -> None:
    model = digits_models["fine"]
    out = ("layers.2.x_proj", "head")
    partly = quantized(model, "int8", limits["fine"], out)
    stored = (tensor for tensor in partly.graph.initializer if tensor.data_type == TensorProto.INT8)
    done = {tensor.name.removesuffix(":quantized") for tensor in stored if tensor.name.endswith(":quantized")}
    expected = {site.weight for site in find_sites(model) if site.group not in out}
    assert done == expected
    assert not {name for name in done if name.startswith(("layers.2.mixer.x_proj", "head"))}
    assert len(done) == len(find_sites(model)) - 2
    everything = groups_of(find_sites(model))
    assert quantized(model, "int8", limits["fine"], everything).graph.node == model.graph.node


@pytest.mark.skipif(find.library("ort") is None, reason=f"no native kernels: {find.why_missing('ort')}")
def test_onnx_runtime_fuses_every_product_and_keeps_the_native_kernels(int8: Models, tmp_path: Path) -> None:
    for model in int8.values():
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.register_custom_ops_library(str(find.library("ort")))
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        ops = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
        assert ops["MatMulIntegerToFloat"] == len(find_sites_of(model))
        assert ops["MatMul"] == ops["Gemm"] == ops["DequantizeLinear"] == 0
        assert ops["BidirectionalSelectiveScan"] == ops["CausalConv1dSiLU"] == CONFIG.depth


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("batch", [1, 3])
def test_stock_onnx_runtime_runs_the_files_like_the_native_kernels(
    digits_models: Models,
    digits_pictures: list[np.ndarray],
    limits: dict[Any, dict[str, float]],
    precision: Any,
    batch: int,
    tmp_path: Path,
) -> None:
    model = quantized(digits_models["coarse"], precision, limits["coarse"])
    onnx.checker.check_model(model)
    path = tmp_path / "coarse.onnx"
    path.write_bytes(model.SerializeToString())
    image = digits_pictures[0][:batch]
    logits = {}
    for kernel in ("function", "native") if find.library("ort") is not None else ("function",):
        with OrtRunner(graph_for(CONFIG, "coarse"), path, kernel=kernel) as runner:  # type: ignore[arg-type]
            logits[kernel] = runner.infer({"image": image})["logits"]
    with opened(CONFIG, {"coarse": digits_models["coarse"]}) as chain:
        exact = chain.run_stage("coarse", {"image": image})["logits"]
    for values in logits.values():
        # Measured: 0.02 to 0.07 of the spread; a wrong scale or axis gives 0.5 and more.
        assert 0 < np.sqrt(np.mean((values - exact) ** 2)) < 0.2 * exact.std()


def test_fp8_is_e4m3_at_opset_19_functions_included(digits_models: Models, limits: dict[Any, dict[str, float]]) -> None:
    model = quantized(digits_models["fine"], "fp8", limits["fine"])
    stored = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT8E4M3FN]
    assert all(len(tensor.raw_data) == np.prod(tensor.dims) for tensor in stored), "a byte a value"
    kinds = {tensor.data_type for tensor in model.graph.initializer if tensor.name.endswith(":quantized")}
    assert kinds == {TensorProto.FLOAT8E4M3FN}
    versions = {op.version for holder in (model, *model.functions) for op in holder.opset_import if not op.domain}
    assert versions == {19}
    assert digits_models["fine"].opset_import[0].version == 18, "the fp32 graph was left alone"


def test_smoothing_makes_an_outlier_channel_harmless(digits_models: Models, digits_pictures: list[np.ndarray]) -> None:
    """Three channels of each norm 64 times as large, their weights as much smaller: the same network, hard for int8."""
    hard: Models = {}
    for stage, model in digits_models.items():
        hard[stage] = onnx.ModelProto()
        hard[stage].CopyFrom(model)
        for tensor in hard[stage].graph.initializer:
            values = numpy_helper.to_array(tensor).copy()
            if re.fullmatch(r"layers\.\d\.norm\.weight", tensor.name):
                values[[3, 17, 40]] *= 64
            elif re.fullmatch(r"layers\.\d\.mixer\.in_proj\.weight", tensor.name):
                values[[3, 17, 40]] /= 64
            else:
                continue
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    errors = {}
    for smoothing in (None, 0.5):
        seen = calibrate(CONFIG, hard, lambda: digits_pictures, "minmax", smoothing)
        base = smoothed_models(hard, seen.stages)
        models = {stage: quantized(base[stage], "int8", seen.stages[stage].limits) for stage in base}
        with opened(CONFIG, hard) as exact, opened(CONFIG, models) as chain:
            expected, got = (c.run(digits_pictures[0])["fine"]["logits"] for c in (exact, chain))
        errors[smoothing] = float(np.sqrt(np.mean((got - expected) ** 2)) / expected.std())
    assert errors[0.5] < 0.4 * errors[None], errors
