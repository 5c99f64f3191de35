"""What the exported graphs are made of, and that they run at any batch."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from mscope.core.cascade import select_regions
from mscope.core.config import ModelConfig, config_for
from mscope.core.contract import (
    OP_BIDIRECTIONAL_SCAN,
    OP_CONV,
    OP_DOMAIN,
    OP_MIXER,
    OP_VERSION,
    OPSET,
    Stage,
    graph_for,
)
from mscope.core.cost import parameter_count
from mscope.core.errors import MscopeError
from mscope.core.geometry import coarse_grid, regions_refined, token_counts
from mscope.export import passes
from mscope.export.passes.mixers import join_mixers, split_mixers
from mscope.export.to_onnx import check_interface, onnx_from_model
from mscope.model.backbone import Backbone
from mscope.model.checkpoint import model_from_seed
from mscope.model.mambascope import MambaScope

# What a block is: RMSNorm in six nodes, three projections, two ops, the residual sum (named at the top level).
BLOCK = {
    "Pow": 1, "ReduceMean": 1, "Add": 1, "Sqrt": 1, "Div": 1, "Mul": 1,
    "MatMul": 3, OP_CONV: 1, OP_BIDIRECTIONAL_SCAN: 1,
}  # fmt: skip
STAGES: tuple[Stage, ...] = ("coarse", "fine")


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("stage", STAGES)
def test_a_block_is_what_it_should_be(exported: dict[Stage, onnx.ModelProto], network: Backbone, stage: Stage) -> None:
    for layer in range(network.config.depth):
        nodes = [node for node in exported[stage].graph.node if node.name.startswith(f"layers.{layer}/")]
        assert Counter(node.op_type for node in nodes) == BLOCK
        names = {node.name for node in nodes}
        assert {f"layers.{layer}/mixer/{part}" for part in ("in_proj", "x_proj", "out_proj")} <= names


@pytest.mark.parametrize("stage", STAGES)
def test_a_file_holds_whole_mixers(
    written: dict[Stage, onnx.ModelProto], exported: dict[Stage, onnx.ModelProto], stage: Stage
) -> None:
    """One op a block, whose body is the two others and x_proj; taken apart and joined again the file is the same."""
    model = written[stage]
    joined = Counter(BLOCK) - Counter({OP_CONV: 1, OP_BIDIRECTIONAL_SCAN: 1, "MatMul": 1}) + Counter({OP_MIXER: 1})
    for block in ("layers.0/", "layers.1/", "layers.2/"):
        assert Counter(node.op_type for node in model.graph.node if node.name.startswith(block)) == joined
    assert [function.name for function in model.functions] == [OP_MIXER, OP_CONV, OP_BIDIRECTIONAL_SCAN]
    assert [node.op_type for node in model.functions[0].node] == [OP_CONV, "MatMul", OP_BIDIRECTIONAL_SCAN]
    onnx.checker.check_model(model, full_check=True)
    again = join_mixers(copy.deepcopy(exported[stage]))
    assert list(again.graph.node) == list(model.graph.node)
    assert list(split_mixers(again).graph.node) == list(exported[stage].graph.node)
    infos = {info.name for info in model.graph.value_info}
    assert {name for node in model.graph.node for name in node.output} <= infos | {o.name for o in model.graph.output}


def test_a_mixer_of_which_a_part_is_read_elsewhere_stays_apart(exported: dict[Stage, onnx.ModelProto]) -> None:
    model = copy.deepcopy(exported["coarse"])
    scan = next(node for node in model.graph.node if node.op_type == OP_BIDIRECTIONAL_SCAN)
    model.graph.output.append(onnx.helper.make_tensor_value_info(scan.input[2], onnx.TensorProto.FLOAT, [None] * 3))
    counts = Counter(node.op_type for node in join_mixers(model).graph.node)
    assert (counts[OP_MIXER], counts[OP_CONV], counts[OP_BIDIRECTIONAL_SCAN]) == (2, 1, 1)


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_between_the_blocks_moves_data(exported: dict[Stage, onnx.ModelProto], stage: Stage) -> None:
    nodes = list(exported[stage].graph.node)
    inside = [i for i, node in enumerate(nodes) if node.name.startswith("layers.")]
    kinds = {node.op_type for node in nodes[inside[0] : inside[-1] + 1]}
    assert not kinds & {"Transpose", "Slice", "Split", "Gather", "Reshape", "Concat", "Cast", "Identity"}


@pytest.mark.parametrize("stage", STAGES)
def test_ops_come_as_functions_and_only_those_used(exported: dict[Stage, onnx.ModelProto], stage: Stage) -> None:
    model = exported[stage]
    assert sorted(function.name for function in model.functions) == sorted([OP_CONV, OP_BIDIRECTIONAL_SCAN])
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": OPSET, OP_DOMAIN: OP_VERSION}
    onnx.checker.check_model(model, full_check=True)


def test_functions_come_out_cleanly(exported: dict[Stage, onnx.ModelProto]) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(exported["coarse"])
    del model.functions[:]
    onnx.checker.check_model(model)
    with pytest.raises(Exception, match=OP_CONV):
        session(model)


@pytest.mark.parametrize("stage", STAGES)
def test_initializers_have_checkpoint_names_and_are_stored_once(
    exported: dict[Stage, onnx.ModelProto], network: Backbone, stage: Stage
) -> None:
    graph = exported[stage].graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert len(tensors) == len(graph.initializer)
    read = {name for node in graph.node for name in node.input}
    assert set(tensors) <= read
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    numbers = re.compile(r"(int64|float32)(\[[\d, ]*\])?\(.*\)")
    for name, value in tensors.items():
        if numbers.fullmatch(name):
            assert value.size <= 16
        elif name.endswith((".A", ".A_b")):
            original = -np.exp(state[f"{name}_log"])
            np.testing.assert_allclose(value, original, rtol=1e-6)
        elif "+" in name and "x_proj" in name:
            np.testing.assert_array_equal(value, [state[part].T for part in name.split("+")])
        elif name.endswith("_proj.weight") and "dt_proj" not in name:
            np.testing.assert_array_equal(value, state[name].T)
        elif name == "cls_token+pos_embed":
            assert value.shape == state["cls_token"].shape
        elif name == "pos_embed":
            # One row a region: the four patches' side by side, without the class token's.
            assert value.size == state[name].size - network.config.d_model
        else:
            assert value.size == state[name].size
    for layer in range(network.config.depth):
        for part in ("norm.weight", "mixer.in_proj.weight", "mixer.conv1d.weight", "mixer.dt_proj.bias", "mixer.A_b"):
            assert f"layers.{layer}.{part}" in tensors


@pytest.mark.parametrize("stage", STAGES)
def test_every_value_has_a_shape(exported: dict[Stage, onnx.ModelProto], network: Backbone, stage: Stage) -> None:
    graph = exported[stage].graph
    shapes = {
        info.name: [dim.dim_value or dim.dim_param for dim in info.type.tensor_type.shape.dim]
        for info in (*graph.value_info, *graph.output)
    }
    tokens = getattr(token_counts(network.config), stage)
    of_op = {
        OP_CONV: [2, f"{tokens}*batch", network.config.d_inner],
        OP_BIDIRECTIONAL_SCAN: ["batch", tokens, network.config.d_inner],
    }
    for node in graph.node:
        assert set(node.output) <= set(shapes)
        if node.domain == OP_DOMAIN:
            assert [shapes[name] for name in node.output] == [of_op[node.op_type]]


def test_no_trace_of_the_exporter_or_of_local_paths(exported: dict[Stage, onnx.ModelProto]) -> None:
    for model in exported.values():
        content = model.SerializeToString()
        assert str(Path.cwd()).encode() not in content
        assert b"pkg.torch" not in content
        assert b"model.layers" not in content


def test_same_weights_same_bytes(network: Backbone, written: dict[Stage, onnx.ModelProto]) -> None:
    assert onnx_from_model(network, "fine").SerializeToString() == written["fine"].SerializeToString()


def test_passes_are_idempotent(exported: dict[Stage, onnx.ModelProto]) -> None:
    for model in exported.values():
        again = onnx.ModelProto()
        again.CopyFrom(model)
        passes.clean(again)
        assert again.graph.SerializeToString(deterministic=True) == model.graph.SerializeToString(deterministic=True)


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_any_batch(written: dict[Stage, onnx.ModelProto], network: Backbone, batch: int) -> None:
    assert isinstance(network, MambaScope)
    config = network.config
    image = np.random.default_rng(5).standard_normal((batch, config.channels, config.height, config.width))
    image = image.astype(np.float32)
    coarse = graph_for(config, "coarse")
    first = dict(zip(coarse.output_names, session(written["coarse"]).run(None, {"image": image}), strict=True))
    count = regions_refined(config.alpha, coarse_grid(config).count)
    selected, remaining = select_regions(first["importance"], count)
    feeds = {"image": image, "selected": selected, "remaining": remaining}
    feeds |= {name: first[name] for name in ("features", "embeddings")}
    (logits,) = session(written["fine"]).run(None, feeds)
    with torch.no_grad():
        expected_coarse, expected = network(torch.from_numpy(image))
    np.testing.assert_allclose(first["logits"], expected_coarse.numpy(), atol=1e-5)
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)


def test_everything_refined(small: Callable[..., ModelConfig]) -> None:
    # At alpha 1 no coarse token is left: `remaining` has no columns, and two inputs are read by nothing.
    model = model_from_seed(small(alpha=1.0, depth=1), 0).model
    exported = onnx_from_model(model, "fine")
    assert [value.name for value in exported.graph.input] == list(graph_for(model.config, "fine").input_names)
    assert session(exported) is not None


def test_interface_check_names_what_differs(
    exported: dict[Stage, onnx.ModelProto], small: Callable[..., ModelConfig]
) -> None:
    with pytest.raises(MscopeError, match="inputs are"):
        check_interface(exported["coarse"], graph_for(small(), "fine"))
    with pytest.raises(MscopeError, match=r"logits has axes .*7.* the contract says .*8"):
        check_interface(exported["coarse"], graph_for(small(classes=8), "coarse"))
    wrong = onnx.ModelProto()
    wrong.CopyFrom(exported["coarse"])
    wrong.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    with pytest.raises(MscopeError, match="image is float16"):
        check_interface(wrong, graph_for(small(), "coarse"))


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "stage"), [("mambascope", "coarse"), ("mambascope", "fine"), ("vim", "full")])
def test_ti_is_small(arch: str, stage: Stage, tmp_path: Path) -> None:
    """Exports and loads in seconds, because nothing is unrolled: neither the tokens nor what an op computes."""
    config = config_for("ti", arch)
    exported = onnx_from_model(model_from_seed(config, 0).model, stage)
    path = tmp_path / "ti.onnx"
    path.write_bytes(exported.SerializeToString())
    assert path.stat().st_size < 1.3 * 4 * parameter_count(config)
    # A block: norm and residual in 7 nodes, two products, the mixer. Beside them embedding, importance, reuse and head.
    assert len(exported.graph.node) <= 24 * 10 + 65
    onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
