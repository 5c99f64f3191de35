"""Smoothing: known exponents, a fold that changes no bit, and what it buys on an outlier channel."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from mscope.calib.calibrate import calibrate, smoothed_models
from mscope.calib.chain import opened
from mscope.calib.quantize import quantized
from mscope.calib.sites import find_sites
from mscope.calib.smooth import exponents_for, smoothed, smoothing_exponents
from mscope.core.config import config_for
from mscope.core.errors import InputError
from mscope.export.to_onnx import onnx_from_model
from mscope.model.checkpoint import model_from_seed
from mscope.model.mambascope import MambaScope

CONFIG = config_for("digits")


def test_exponents_are_the_formula_rounded_and_centred() -> None:
    # max|x|^0.5 / max|w|^0.5 = 1, 4, 16, 1: log2 0, 2, 4, 0, mean 1.5 -> -1.5, 0.5, 2.5, -1.5 rounded to even.
    got = smoothing_exponents([1, 16, 256, 4], [1, 1, 1, 4], 0.5)
    assert got.tolist() == [-2, 0, 2, -2]
    assert smoothing_exponents([1, 4], [1, 1], 1.0).tolist() == [-1, 1]
    assert smoothing_exponents([1, 1], [1, 4], 0.0).tolist() == [1, -1]


def test_dead_channels_stay_as_they_are_and_extremes_are_bounded() -> None:
    assert smoothing_exponents([0, 4, 1], [1, 1, 0], 0.5).tolist() == [0, 0, 0]
    assert smoothing_exponents([0, 0], [1, 1], 0.5).tolist() == [0, 0]
    assert np.abs(smoothing_exponents([1e-30, 1e30], [1, 1], 1.0)).max() <= 12


@pytest.mark.parametrize("strength", [-0.1, 1.1])
def test_a_strength_outside_0_to_1_is_refused(strength: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        smoothing_exponents([1], [1], strength)


def test_the_fold_changes_no_bit_of_either_stage(
    digits_models: dict[Any, onnx.ModelProto], digits_pictures: list[np.ndarray]
) -> None:
    seen = calibrate(CONFIG, digits_models, lambda: digits_pictures[:1], "minmax", 0.5)
    folded = smoothed_models(digits_models, seen.stages)
    for stage, ranges in seen.stages.items():
        in_proj = [name for name in ranges.exponents if "norm" in name]
        assert len(in_proj) == CONFIG.depth + (stage == "fine"), "one a block, and the reused features' LayerNorm"
        assert any(any(powers) for powers in ranges.exponents.values()), "nothing was smoothed"
        before, after = digits_models[stage], folded[stage]
        assert before.SerializeToString() != after.SerializeToString()
    with opened(CONFIG, digits_models) as plain, opened(CONFIG, folded) as smooth:
        expected, got = plain.run(digits_pictures[1]), smooth.run(digits_pictures[1])
    for stage, outputs in expected.items():
        for name, values in outputs.items():
            assert np.array_equal(got[stage][name], values), f"{stage} {name}"


def test_a_norm_that_feeds_more_than_one_product_is_left_alone(digits_models: dict[Any, onnx.ModelProto]) -> None:
    for model in digits_models.values():
        head = next(site for site in find_sites(model) if site.group == "head")
        assert head.norm is None, "norm_f also makes the features"
        assert {site.norm.weight for site in find_sites(model) if site.norm} >= {"layers.0.norm.weight"}


def test_a_norm_that_makes_two_tensors_is_left_alone() -> None:
    """With reuse_class_token its MLP runs twice: factors of both would be folded into the one norm."""
    config = config_for("digits", reuse_class_token=True, depth=1)
    network = model_from_seed(config, 1).model
    assert isinstance(network, MambaScope)
    assert network.reuse is not None
    with torch.no_grad():
        network.reuse.norm.weight.copy_(torch.exp2(torch.arange(config.d_model) % 7 - 3.0))
    models: dict[Any, onnx.ModelProto] = {stage: onnx_from_model(network, stage) for stage in ("coarse", "fine")}
    pictures = np.random.default_rng(2).standard_normal((3, 1, 64, 64)).astype(np.float32)
    seen = calibrate(config, models, lambda: [pictures], "percentile", 0.5)
    assert seen.stages["fine"].exponents.keys() == {"layers.0/norm/Mul"}
    with opened(config, models) as plain, opened(config, smoothed_models(models, seen.stages)) as smooth:
        assert np.array_equal(smooth.run(pictures)["fine"]["logits"], plain.run(pictures)["fine"]["logits"])
    # Its matrices are stored once for both.
    int8 = quantized(models["fine"], "int8", seen.stages["fine"].limits)
    onnx.checker.check_model(int8)
    reads = [name for node in int8.graph.node for name in node.input]
    assert (reads.count("reuse.fc1.weight:quantized"), reads.count("reuse.fc1.weight:dq")) == (1, 2)


def layer_norm_model(width: int = 4, outputs: int = 3) -> onnx.ModelProto:
    """x -> LayerNormalization -> MatMul, with a bias in the norm."""
    random = np.random.default_rng(1)
    arrays = {
        "reuse.norm.weight": random.uniform(0.5, 2, width),
        "reuse.norm.bias": random.standard_normal(width),
        "reuse.fc1.weight": random.standard_normal((width, outputs)),
    }
    graph = helper.make_graph(
        [
            helper.make_node("LayerNormalization", ["x", "reuse.norm.weight", "reuse.norm.bias"], ["n"], name="n"),
            helper.make_node("MatMul", ["n", "reuse.fc1.weight"], ["y"], name="fc1"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", outputs])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def test_the_bias_of_a_layer_norm_is_folded_too() -> None:
    model = layer_norm_model()
    folded = smoothed(model, {"n": np.array([3, -2, 0, 1])})
    old, new = ({t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (model, folded))
    factors = np.array([8, 0.25, 1, 2], np.float32)
    assert np.array_equal(new["reuse.norm.weight"] * factors, old["reuse.norm.weight"])
    assert np.array_equal(new["reuse.norm.bias"] * factors, old["reuse.norm.bias"])
    assert np.array_equal(new["reuse.fc1.weight"], old["reuse.fc1.weight"] * factors[:, None])


def test_an_outlier_channel_moves_into_the_weights() -> None:
    exponents = exponents_for(layer_norm_model(), {"n": np.array([1, 1, 200, 1], np.float32)}, 1.0)["n"]
    levelled = np.ldexp(np.array([1, 1, 200, 1.0]), -exponents)
    assert levelled.max() / levelled.min() < 2, "the channels are within a factor of the rounding to powers of two"


def test_factors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="y is no norm's output"):
        smoothed(layer_norm_model(), {"y": np.zeros(3, np.int64)})
    with pytest.raises(InputError, match="3 factors for the 4 channels"):
        smoothed(layer_norm_model(), {"n": np.zeros(3, np.int64)})
