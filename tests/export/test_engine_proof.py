"""What is read of a built engine's layers, and what that proves."""

from __future__ import annotations

import json
from typing import Any

import onnx
import pytest

from mscope.core.errors import BackendError
from mscope.export.engine.layers import launches, launches_per_block, layers_of_inspector, layers_of_log, nodes_of
from mscope.export.engine.proof import prove_engine
from mscope.export.engine.request import BuildResult, EngineLayer, EngineRequest, NetworkLayer
from mscope.export.precision.typed import typed_graph


def network(*kinds: tuple[str, str, str]) -> tuple[NetworkLayer, ...]:
    return tuple(NetworkLayer(name=name, kind=kind, inputs=(t, t), outputs=(t,)) for name, kind, t in kinds)


@pytest.fixture
def proof_case(exported: dict[str, onnx.ModelProto]) -> tuple[onnx.ModelProto, EngineRequest, Any]:
    """A typed graph, its request with a plugin, and a function that makes a result of layers, honest by default."""
    model = typed_graph(exported["coarse"], "fp16")
    request = EngineRequest(
        flavour="tensorrt", stage="coarse", precision="fp16", onnx="coarse.onnx", engine="coarse.engine",
        plugin="libmscope_trt.so", gpus=(), shapes={"image": (3, 24, 40)}, batch=(1, 2, 4),
    )  # fmt: skip
    nodes = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    ops = [node.name for node in model.graph.node if node.domain]
    honest = network(
        *((node.name, "MATRIX_MULTIPLY", "float16") for node in nodes),
        *((name, "PLUGIN_V3", "float16") for name in ops),
    )
    listed = tuple(
        EngineLayer(name=f"{layer.name}_U1_myl0_{i}", kind="gemm", types=("float16",)) for i, layer in enumerate(honest)
    )

    def result(**changes: Any) -> BuildResult:
        fields = {"strongly_typed": True, "network": honest, "layers": listed, "layers_from": "builder"}
        return BuildResult(**(fields | changes))

    return model, request, result


def test_an_honest_engine_is_proved(proof_case: Any) -> None:
    model, request, result = proof_case
    proof = prove_engine(model, request, result())
    assert (proof.ops_by_plugin, proof.products, proof.proved) == (6, 11, 11)
    assert "11 of 11 products shown" in proof.describe()
    without = prove_engine(model, request, result(layers=(), layers_from=""))
    assert "no list of the engine's layers" in without.describe()


def test_a_dishonest_engine_is_not(proof_case: Any) -> None:
    model, request, result = proof_case
    honest, listed = result().network, result().layers
    with pytest.raises(BackendError, match="not strongly typed"):
        prove_engine(model, request, result(strongly_typed=False))
    with pytest.raises(BackendError, match="5 of 6 ops became plugin layers"):
        prove_engine(model, request, result(network=honest[:-1]))
    with pytest.raises(BackendError, match="1 layers are loops"):
        prove_engine(model, request, result(network=(*honest, *network(("x", "RECURRENCE", "float32")))))
    wide = tuple(layer.model_copy(update={"outputs": ("float32",)}) for layer in honest[:1])
    with pytest.raises(BackendError, match=r"patch_embed/MatMul computes in .*float32.*, not float16"):
        prove_engine(model, request, result(network=(*wide, *honest[1:])))
    mixed = honest[-1].model_copy(update={"outputs": ("float16", "float32")})
    with pytest.raises(BackendError, match=r"plugin layer .* writes float16, float32, not float16"):
        prove_engine(model, request, result(network=(*honest[:-1], mixed)))
    with pytest.raises(BackendError, match="the network has no product called patch_embed/MatMul"):
        prove_engine(model, request, result(network=honest[1:]))
    slow = listed[2].model_copy(update={"types": ("float32",)})
    with pytest.raises(BackendError, match=r"the engine computes layers\.0/mixer/x_proj in float32, not float16"):
        prove_engine(model, request, result(layers=(*listed[:2], slow, *listed[3:])))
    with pytest.raises(BackendError, match="1 ops are not among the engine's layers"):
        prove_engine(model, request, result(layers=listed[:-1]))


def test_an_engine_of_function_bodies_is_held_to_its_products(proof_case: Any) -> None:
    model, request, result = proof_case
    request = request.model_copy(update={"plugin": None})
    products = tuple(layer for layer in result().network if layer.kind == "MATRIX_MULTIPLY")
    loops = network(("scan", "RECURRENCE", "float32"), ("scan", "LOOP_OUTPUT", "float32"))
    listed = tuple(EngineLayer(name=layer.name, kind="gemm", types=("float16",)) for layer in products)
    proof = prove_engine(model, request, result(network=(*products, *loops), layers=listed))
    assert (proof.ops_by_plugin, proof.products, proof.proved) == (0, 11, 11)
    assert proof.describe().startswith("ops by their function bodies; 11 of 11 products shown in 11 layers")
    wide = products[0].model_copy(update={"inputs": ("float32", "float32")})
    with pytest.raises(BackendError, match=r"float32.*, not float16"):
        prove_engine(model, request, result(network=(wide, *products[1:], *loops), layers=listed))


def test_a_product_is_wrong_where_no_layer_shows_its_type(proof_case: Any) -> None:
    """A quantised product's scales may be a kernel of their own that bears its name, before it or after."""
    model, request, result = proof_case
    listed = result().layers
    scales = listed[0].model_copy(update={"kind": "kgen", "types": ("float32",)})
    for layers in ((scales, *listed), (*listed, scales)):
        assert prove_engine(model, request, result(layers=layers)).proved == 11
    with pytest.raises(BackendError, match="the engine computes patch_embed/MatMul in float32, not float16"):
        prove_engine(model, request, result(layers=(scales, *listed[1:])))


def test_layers_are_read_from_the_builders_list() -> None:
    scalar = "{ Name: alpha, Dimensions: [1], Strides: [1], Datatype: Float, Format: x }"
    message = (
        "Layers:\nName: layers.0/mixer/in_proj_U9_myl0_10, LayerType: gemm, Inputs: [ { Name: a, Dimensions: [-1,64], "
        f"Strides: [64,1], Datatype: Half, Format: y }}], Constants: [{scalar}], Outputs: [], TacticName: t, Metadata: "
        "[ONNX Layer: layers.0/mixer/in_proj]\nName: __myl_Add_myl0_11, LayerType: kgen, Inputs: [], Metadata: \n"
        "[ONNX Layer: node_of_x | layers.1/mixer/Scan (Scan)][ONNX Layer: layers.1/norm/Pow]\n"
        "Name: w, LayerType: wait, Inputs: [], Metadata: \nBindings:\n Name: image, DataType: Float, Dimensions: [-1]\n"
    )
    layers = layers_of_log(message)
    assert [(layer.kind, layer.types) for layer in layers] == [("gemm", ("float16",)), ("kgen", ()), ("wait", ())]
    assert layers[1].nodes == ("layers.1/mixer/Scan", "layers.1/norm/Pow")
    assert len(launches(layers)) == 2
    assert launches_per_block(layers) == 1.0
    assert launches_per_block(layers[2:]) is launches_per_block(()) is None
    assert layers_of_log("Engine generation completed") == ()
    assert nodes_of("[ONNX Layer: a][ONNX Layer: a]") == ("a",)


def test_layers_are_read_from_the_inspector() -> None:
    layer = {
        "Name": "layers.0/mixer/in_proj_myl0_3", "LayerType": "gemm",
        "Inputs": [{"Name": "a", "Dimensions": [-1, 64], "Format/Datatype": "Half"}],
        "Outputs": [{"Name": "b", "Dimensions": [-1, 128], "Format/Datatype": "Float, linear"}],
        "Metadata": "[ONNX Layer: layers.0/mixer/in_proj]",
    }  # fmt: skip
    (read,) = layers_of_inspector(json.dumps({"Layers": [layer], "Bindings": []}))
    assert (read.types, read.nodes) == (("float16", "float32"), ("layers.0/mixer/in_proj",))


DYNAMIC = "N/A due to dynamic shapes"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Half", "float16"), ("FP8", "fp8"), ("Int8", "int8"), ("BFloat16", "bfloat16"), ("BF16", "bfloat16"),
        ("Row major linear FP16 format", "float16"), ("Row major linear FP32", "float32"),
        ("Channel major BFloat16 format where channel % 8 == 0", "bfloat16"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("Half(64,1:8,...)", "float16"), (DYNAMIC, "unknown"), ("Unknown format", "unknown"), ("", "unknown"),
    ],
)  # fmt: skip
def test_tensorrt_has_many_words_for_a_type(said: str, expected: str) -> None:
    """The words are those of NVIDIA's trt-engine-explorer (trex/activations.py) and of TensorRT's documentation."""
    tensor = {"Name": "a", "Dimensions": [-1, 64], "Format/Datatype": said}
    layer = {"Name": "x", "LayerType": "CaskConvolution", "Inputs": [tensor], "Outputs": []}
    (read,) = layers_of_inspector(json.dumps({"Layers": [layer]}))
    assert read.types == (expected,)
    shown = f"{{ Name: a, Dimensions: [-1,64], Format/Datatype: {said} }}"
    assert layers_of_log(f"Layers:\nName: x, LayerType: gemm, Inputs: [ {shown}]")[0].types == (expected,)


def test_what_tensorrt_does_not_tell_of_an_engine_is_neither_proof_nor_error(proof_case: Any) -> None:
    """With a dynamic batch TensorRT 10 names no tensor's type in layers that Myelin did not compile, weights apart."""
    model, request, result = proof_case
    tensor = {"Name": "a", "Dimensions": [-1, 64], "Format/Datatype": DYNAMIC}
    weights = {"Type": "Half", "Count": 4096}

    def listed(name: str, kind: str, **more: Any) -> dict[str, Any]:
        return {"Name": name, "LayerType": kind, "Inputs": [tensor], "Outputs": [tensor], **more}

    products = [layer.name for layer in result().network if layer.kind == "MATRIX_MULTIPLY"]
    ops = [listed(layer.name, "PluginV3") for layer in result().network if layer.kind == "PLUGIN_V3"]
    content = [listed(products[0], "CaskConvolution", Weights=weights), *(listed(n, "CaskGemm") for n in products[1:])]
    layers = layers_of_inspector(json.dumps({"Layers": [*content, *ops]}))
    proof = prove_engine(model, request, result(layers=layers, layers_from="inspector"))
    assert (proof.products, proof.proved) == (11, 1)
    content[0]["Weights"] = {"Type": "Float", "Count": 4096}
    layers = layers_of_inspector(json.dumps({"Layers": [*content, *ops]}))
    assert prove_engine(model, request, result(layers=layers, layers_from="inspector")).proved == 0
