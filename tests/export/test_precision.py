"""Typed graphs: what is low and what stays float32, proved on the written file, and how near float32 they compute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mscope.core.config import ModelConfig
from mscope.core.contract import Stage, graph_for
from mscope.core.errors import BundleError, InputError, MscopeError
from mscope.core.manifest import Variant, Weights
from mscope.export.build import make_manifest
from mscope.export.defaults import labels_for, preprocessing_for
from mscope.export.interface import check_interface
from mscope.export.precision import typed as typed_module
from mscope.export.precision.derive import fp32_file, typed_variants
from mscope.export.precision.drift import common_values, drift, first_drift
from mscope.export.precision.emulate import emulate_bf16
from mscope.export.precision.proof import prove_precision
from mscope.export.precision.ranges import ranges_of
from mscope.export.precision.rules import computes_low
from mscope.export.precision.typed import float_types, low_tensor, typed_graph
from mscope.export.probes import adversarial_images, probe_images
from mscope.export.to_onnx import onnx_from_model
from mscope.model.checkpoint import model_from_seed
from mscope.plugins import find

Small = Callable[..., ModelConfig]
Exported = dict[Stage, onnx.ModelProto]
LOW = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("stage", ["coarse", "fine"])
def test_products_and_ops_are_low_and_all_else_is_not(
    exported: Exported, small: Small, stage: Stage, precision: str
) -> None:
    typed = typed_graph(exported[stage], precision)
    check_interface(typed, graph_for(small(), stage))
    proof = prove_precision(typed, precision)
    depth = small().depth
    reuse = 2 if stage == "fine" else 0
    assert proof.low == {
        "MatMul": 3 * depth + 1 + reuse, "Gemm": 1, "CausalConv1dSiLU": depth, "BidirectionalSelectiveScan": depth,
    }  # fmt: skip
    types = float_types(typed)
    for name in ("A", "A_b", "D", "D_b", "dt_proj.bias", "dt_proj_b.bias"):
        assert types[f"layers.1.mixer.{name}"] == TensorProto.FLOAT, name
    for name in ("in_proj.weight", "conv1d.weight", "conv1d.bias", "dt_proj.weight"):
        assert types[f"layers.1.mixer.{name}"] == LOW[precision], name
    assert types["layers.1.mixer.x_proj.weight+layers.1.mixer.x_proj_b.weight"] == LOW[precision]
    for node in typed.graph.node:
        # Norms, the residual stream and the importance.
        if node.op_type in ("Pow", "ReduceMean", "Sqrt", "Softplus", "ReduceMax", "LayerNormalization", "Erf"):
            assert {types[name] for name in node.output} == {TensorProto.FLOAT}, node.name


def test_what_moves_values_keeps_their_type_and_a_mix_is_float32() -> None:
    graph = onnx.shape_inference.infer_shapes(
        onnx.parser.parse_model("""<ir_version: 9, opset_import: ["": 18]> g (float[b, 2] x) => (float[b, 4] y)
            <float[2, 2] v = {1, 2, 3, 4}, float[2, 2] w = {1, 2, 3, 4}, int64[2] shape = {-1, 2}>
            { p = MatMul(x, v) r = Reshape(p, shape) q = MatMul(r, w) a = Abs(x) y = Concat<axis = 1>(a, q) }""")
    )
    typed = typed_graph(graph, "fp16")
    assert [node.op_type for node in typed.graph.node] == [
        "Cast",
        "MatMul",
        "Reshape",
        "MatMul",
        "Abs",
        "Cast",
        "Concat",
    ]
    assert (float_types(typed)["r"], float_types(typed)["y"]) == (TensorProto.FLOAT16, TensorProto.FLOAT)
    assert prove_precision(typed, "fp16").describe() == "fp16: 2 MatMul; 1 others float32, 2 casts"


def test_only_products_of_onnx_itself_are_low() -> None:
    assert computes_low(helper.make_node("MatMul", ["a", "b"], ["y"]))
    assert not computes_low(helper.make_node("MatMul", ["a", "b"], ["y"], domain="elsewhere"))


def test_the_source_is_not_touched_and_the_result_is_always_the_same(exported: Exported) -> None:
    before = exported["fine"].SerializeToString(deterministic=True)
    first, second = (typed_graph(exported["fine"], "fp16").SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert exported["fine"].SerializeToString(deterministic=True) == before
    assert len(first) < 0.75 * len(before)


@pytest.mark.parametrize(
    "changes",
    [
        {"metric": "l1", "gated_importance": False},
        {"metric": "topk", "metric_topk": 3, "reuse": "linear", "order": "class-middle"},
        {"reuse_class_token": True, "fine_order": "raster", "alpha": 1.0},
    ],
    ids=str,
)
def test_options_of_the_model_can_be_typed(small: Small, changes: dict[str, Any]) -> None:
    config = small(depth=2, **changes)
    model = model_from_seed(config, 3).model
    for stage in ("coarse", "fine"):
        typed = typed_graph(onnx_from_model(model, stage), "fp16")
        check_interface(typed, graph_for(config, stage))
        prove_precision(typed, "fp16")


def test_a_product_left_in_float32_is_found(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        typed_module, "computes_low", lambda node: computes_low(node) and node.name != "layers.1/mixer/out_proj"
    )
    wrong = typed_graph(exported["coarse"], "fp16")
    with pytest.raises(MscopeError, match=r"MatMul layers\.1/mixer/out_proj reads .* as float32, not as float16"):
        prove_precision(wrong, "fp16")


def test_a_norm_in_the_low_type_is_found(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typed_module, "computes_low", lambda node: computes_low(node) or node.op_type == "Pow")
    with pytest.raises(Exception, match="Pow"):
        prove_precision(typed_graph(exported["coarse"], "fp16"), "fp16")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("l = Cast<to = 10>(x) p = MatMul(l, w) a = Abs(p) y = Cast<to = 1>(a)", "Abs .*computes in float16, not in"),
        ("a = Abs(x) y = Neg(a)", "no node of the graph computes in it"),
        ("l = elsewhere.Op(x) p = MatMul(l, w) y = Cast<to = 1>(p)", "the type of l, read by .*, is not known"),
        ("l = Cast<to = 10>(x) y = Cast<to = 1>(l)", "no node of the graph computes in it"),
        (
            "l = Cast<to = 10>(x) p = MatMul(l, w) c = Concat<axis = 0>(p, x) y = Cast<to = 1>(c)",
            "mixes float16 and float32: the graph is not strongly typed",
        ),
        # An input that is left out, the gate, does not hide the one after it, delta's bias.
        (
            'l = Cast<to = 10>(x) y = mambascope.SelectiveScan(l, l, x, l, l, x, "", l)',
            "SelectiveScan .*reads l as float16, not as float32",
        ),
        (
            'l = Cast<to = 10>(x) y = mambascope.SelectiveScan(l, l, x, l, l, x, "", x)',
            "SelectiveScan .*does not write float16",
        ),
    ],
)
def test_what_is_no_proof(body: str, message: str) -> None:
    """By hand, so that ONNX's own checks of the exporter's graphs do not answer first."""
    model = onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["": 18, "elsewhere": 1, "mambascope": 2]>
        g (float[b, 2] x) => (float[b, 2] y) <float16[2, 2] w = {{1, 2, 3, 4}}> {{ {body} }}""")
    with pytest.raises(MscopeError, match=message):
        prove_precision(model, "fp16")


def test_the_wrong_claim_is_found(exported: Exported) -> None:
    with pytest.raises(MscopeError, match="as float32, not as float16"):
        prove_precision(exported["coarse"], "fp16")
    with pytest.raises(MscopeError, match="as float16, not as bfloat16"):
        prove_precision(typed_graph(exported["coarse"], "fp16"), "bf16")
    with pytest.raises(InputError, match="not a typed precision"):
        typed_graph(exported["coarse"], "int8")


def test_rounding_is_to_nearest_even() -> None:
    # Halfway cases of bfloat16 (8 bits of mantissa) and values around them.
    halfway = 2.0**-8
    value = np.array([1.0, 1 + halfway, 1 + 3 * halfway, 1 + halfway + 2.0**-20, -(1 + halfway), 3e38], np.float32)
    low = numpy_helper.to_array(low_tensor(numpy_helper.from_array(value, "w"), "bf16", "w")).astype(np.float32)
    assert low[:5].tolist() == [1.0, 1.0, 1 + 2.0**-6, 1 + 2.0**-7, -1.0]
    random = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    for precision, unit in (("fp16", 2.0**-11), ("bf16", 2.0**-8)):
        tensor = low_tensor(numpy_helper.from_array(random, "w"), precision, "w")
        error = np.abs(numpy_helper.to_array(tensor).astype(np.float32) - random)
        assert np.all(error <= unit * np.abs(random) + 2.0**-25)


@pytest.mark.parametrize("value", [65520.0, np.inf, np.nan])
def test_a_weight_that_fp16_cannot_hold_is_refused(value: float) -> None:
    tensor = numpy_helper.from_array(np.array([1.0, value], np.float32), "layers.0.mixer.in_proj.weight")
    with pytest.raises(MscopeError, match=r"layers\.0\.mixer\.in_proj\.weight holds .* build without --fp16"):
        low_tensor(tensor, "fp16", "w")


def product(weight: np.ndarray) -> onnx.ModelProto:
    """image (B, n) @ weight."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["image", "w"], ["logits"], name="head")],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", weight.shape[0]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model)


def test_emulated_bfloat16_is_bfloat16() -> None:
    random = np.random.default_rng(1)
    x, w = (random.standard_normal(shape).astype(np.float32) for shape in ((3, 64), (64, 5)))
    emulated = emulate_bf16(typed_graph(product(w), "bf16"))
    session = onnxruntime.InferenceSession(emulated.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"image": x})

    def rounded(value: np.ndarray) -> np.ndarray:
        return numpy_helper.to_array(low_tensor(numpy_helper.from_array(value, "v"), "bf16", "v")).astype(np.float32)

    exact = rounded(x).astype(np.float64) @ rounded(w).astype(np.float64)
    # The sum is in float32, one rounding to bfloat16 at its end: half a unit of 2**-8 relative.
    assert np.all(np.abs(got - exact) <= 2.0**-8 * np.abs(exact) + 1e-5)
    assert np.array_equal(got, rounded(got))


def test_ranges_find_the_largest_value_and_the_overflow() -> None:
    weight = np.full((4, 2), 2.0, np.float32)
    images = np.array([[1.0, 1, 1, 1], [-9000.0, 0, 0, 0], [10000.0, 10000, 10000, 10000]], np.float32)
    found = {item.tensor: item for item in ranges_of(product(weight), "full", {"image": images})}
    assert found["logits"].largest == 80000.0
    assert found["logits"].headroom == pytest.approx(65504 / 80000)
    assert found["image"].largest == 10000.0
    assert found["w"].largest == 2.0
    small = {item.tensor: item for item in ranges_of(product(weight / 64), "full", {"image": images[:1] / 64})}
    assert (small["image"].largest, small["w"].largest, small["logits"].largest) == (2.0**-6, 2.0**-5, 2.0**-9)


def test_adversarial_images_span_the_range_of_pixels(small: Small) -> None:
    images = adversarial_images(small(), (0.5, 0.25, 0.0), (0.5, 0.25, 0.5))
    assert images.shape == (7, 3, 24, 40)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images[0, :, 0, 0], [-1.0, -1.0, 0.0])
    np.testing.assert_array_equal(images[1, :, 0, 0], [1.0, 3.0, 2.0])
    assert len({image.tobytes() for image in images}) == len(images)
    assert (images[5] != images[0]).any(axis=0).sum() == 1


@pytest.mark.parametrize("stage", ["coarse", "fine"])
def test_what_is_compared_for_drift(exported: Exported, small: Small, stage: Stage) -> None:
    reuse = ["reuse/norm", "reuse/fc1/MatMul", "reuse/fc2/MatMul"] if stage == "fine" else []
    of_a_block = ("norm/Mul", "in_proj", "CausalConv1dSiLU:x", "x_proj", "BidirectionalSelectiveScan:y", "out_proj")
    variant = typed_graph(exported[stage], "fp16")
    names = common_values(exported[stage], variant)
    assert [name for name in names if not name.startswith("layers.")] == [
        "patch_embed/MatMul", *reuse, "norm_f/Mul", "logits",
    ]  # fmt: skip
    for block in range(small().depth):
        found = [name for name in names if name.startswith(f"layers.{block}/")]
        assert [name.split("/mixer/")[-1].removeprefix(f"layers.{block}/") for name in found] == [*of_a_block]
    for node in variant.graph.node:
        node.output[:] = ["fused" if name == "layers.1/mixer/x_proj" else name for name in node.output]
    assert common_values(exported[stage], variant) == [name for name in names if name != "layers.1/mixer/x_proj"]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_an_honest_variant_does_not_drift(
    exported: Exported, small: Small, precision: Any, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(find, "library", lambda name: None)
    feeds = {"image": probe_images(small(), 2)}
    steps = drift(exported["coarse"], typed_graph(exported["coarse"], precision), precision, feeds)
    assert first_drift(steps) is None
    assert {step.block for step in steps} == {-1, 0, 1, 2, 3}
    assert max(step.relative for step in steps) > 0


@pytest.mark.parametrize(
    ("weight", "tensor", "block"),
    [("layers.1.mixer.x_proj.weight", "layers.1/mixer/x_proj", 1), ("norm_f.weight", "norm_f/Mul", 3)],
)
def test_the_first_layer_that_drifts_is_named(
    exported: Exported, small: Small, weight: str, tensor: str, block: int
) -> None:
    variant = typed_graph(exported["coarse"], "fp16")
    for stored in variant.graph.initializer:
        if stored.name.startswith(weight):
            value = numpy_helper.to_array(stored) * np.float16(1.05)
            stored.CopyFrom(numpy_helper.from_array(value, stored.name))
    first = first_drift(drift(exported["coarse"], variant, "fp16", {"image": probe_images(small(), 2)}))
    assert first is not None
    assert (first.tensor, first.block) == (tensor, block)


def test_a_graph_that_is_not_the_one_of_its_manifest_is_refused(files: dict[Stage, Path], small: Small) -> None:
    config = small(classes=8)
    fields: dict[str, Any] = {
        "name": "x",
        "labels": labels_for(config, None),
        "preprocessing": preprocessing_for(config),
    }
    manifest = make_manifest(config, Weights(origin="random", seed=0), files, None, fields)
    with pytest.raises(BundleError, match=r"coarse\.onnx is not the graph of its manifest .*: build the bundle again$"):
        typed_variants("fp16")(files["coarse"].parent, manifest, None)
    assert not list(files["coarse"].parent.glob("*.fp16.onnx"))

    assert fp32_file(manifest, "coarse") == "coarse.onnx"
    others = tuple(Variant(file="x", precision=p, backend=b) for p, b in (("fp16", "onnx"), ("fp32", "tensorrt")))
    coarse = manifest.stages["coarse"].model_copy(update={"variants": others})
    with pytest.raises(MscopeError, match="stage 'coarse' has no fp32 ONNX file"):
        fp32_file(manifest.model_copy(update={"stages": {**manifest.stages, "coarse": coarse}}), "coarse")
