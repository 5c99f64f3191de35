"""Choices of the model that change a graph: what it is made of, that it is the model, that TensorRT takes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import trt_library
from mscope.core.config import ModelConfig
from mscope.core.contract import OP_DOMAIN, Stage, graph_for
from mscope.export.engine.flavour import network_flags
from mscope.export.engine.network import strip_functions
from mscope.export.passes.mixers import load_split
from mscope.export.precision.typed import typed_graph
from mscope.export.to_onnx import onnx_from_model
from mscope.export.verify import kernels_here
from mscope.model.checkpoint import model_from_seed
from mscope.plugins import trt
from mscope.runtime.backends.ort import OrtRunner

REDUCED = {"arch": "vim", "keep": 0.5, "reduce_after": (1, 2)}
# Several choices at once where they do not meet. The defaults are in test_to_onnx.py.
CHOICES: dict[str, tuple[Stage, dict[str, Any]]] = {
    "topk": ("coarse", {"depth": 2, "metric": "topk"}),
    "before the gate": ("coarse", {"depth": 2, "gated_importance": False}),
    "softplus before the gate": ("coarse", {"depth": 2, "gated_importance": False, "metric": "softplus"}),
    "class in the middle": (
        "fine", {"depth": 1, "reuse": "linear", "reuse_class_token": True, "order": "class-middle"},
    ),
    "raster, unimportant first": (
        "fine", {"depth": 1, "reuse": "none", "order": "unimportant-first", "fine_order": "raster"},
    ),
    "pruned": ("full", {**REDUCED, "reduce": "prune"}),
    "pruned by softplus": (
        "full", {**REDUCED, "reduce": "prune", "prune_alignment": "zero", "prune_metric": "softplus"},
    ),
    "merged": ("full", {**REDUCED, "reduce": "merge"}),
}  # fmt: skip


@pytest.fixture(scope="module", params=CHOICES)
def chosen(
    request: pytest.FixtureRequest, small: Callable[..., ModelConfig], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Stage, Any, Path]:
    """The choice's name, the stage that it changes, the network and the file."""
    stage, changes = CHOICES[request.param]
    model = model_from_seed(small(**changes), 6).model
    path = tmp_path_factory.mktemp("choice") / f"{stage}.onnx"
    path.write_bytes(onnx_from_model(model, stage).SerializeToString())
    return request.param, stage, model, path


def nodes_of(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    """Of a graph or function, and of the graphs in their nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes_of(attribute.g)


def test_no_graph_has_a_sequence_of_tensors(chosen: tuple[str, Stage, Any, Path]) -> None:
    """Few engines have them; TensorRT has not."""
    name, _, _, path = chosen
    model = onnx.load(path)
    kinds = [node.op_type for part in (model.graph, *model.functions) for node in nodes_of(part)]
    assert not [kind for kind in kinds if "Sequence" in kind or kind.startswith("Optional")]
    # Of one value a token the single operator is as quick as its five parts.
    assert kinds.count("Softplus") == (name == "before the gate")


def test_no_op_leaves_out_an_input_before_its_last(chosen: tuple[str, Stage, Any, Path]) -> None:
    """TensorRT refuses such a node of a plugin; of a body it wants as many inputs as the node has."""
    model = load_split(chosen[-1])
    inputs = {function.name: len(function.input) for function in model.functions}
    ours = [node for node in model.graph.node if node.domain == OP_DOMAIN]
    assert ours
    for node in ours:
        assert all(node.input)
        assert len(node.input) == inputs[node.op_type]


def test_the_graph_is_the_model_in_float64(chosen: tuple[str, Stage, Any, Path]) -> None:
    _, stage, model, path = chosen
    graph, config = graph_for(model.config, stage), model.config
    random = np.random.default_rng(8)
    image = random.standard_normal((2, config.channels, config.height, config.width)).astype(np.float32)
    feeds: dict[str, Any] = {"image": image}
    exact, wide = model_from_seed(config, 6).model.double(), torch.from_numpy(image).double()
    with torch.no_grad():
        if stage == "full":
            expected = {"logits": exact.forward_full(wide)}
        else:
            seen = exact.coarse(wide)
            expected = {name: getattr(seen, name) for name in graph_for(config, "coarse").output_names}
        if stage == "fine":
            carried = {name: expected[name] for name in ("features", "embeddings")}
            carried |= dict(zip(("selected", "remaining"), exact.split(expected["importance"]), strict=True))
            expected = {"logits": exact.fine(wide, *carried.values())}
            feeds |= {name: (x.float() if x.is_floating_point() else x).numpy() for name, x in carried.items()}
    for kernel in kernels_here():
        with OrtRunner(graph, path, threads=1, kernel=kernel) as runner:
            answers = runner.infer(feeds)
        for name, wanted in expected.items():
            # float32 against float64 over three blocks: some 30 roundings of values up to 3.
            np.testing.assert_allclose(answers[name], wanted.numpy(), rtol=0, atol=1e-5, err_msg=f"{name}, {kernel}")


@pytest.mark.parametrize("with_plugin", [False, True], ids=["bodies", "plugin"])
def test_tensorrt_parses_it(chosen: tuple[str, Stage, Any, Path], with_plugin: bool) -> None:
    """In fp16, which every GPU takes, with the function bodies and with the plugin."""
    tensorrt_rtx = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")
    if with_plugin:
        with trt_library.in_use():
            trt.load("tensorrt-rtx")
    model = typed_graph(load_split(chosen[-1]), "fp16")
    if with_plugin:
        strip_functions(model)
    logger = tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR)
    network = tensorrt_rtx.Builder(logger).create_network(network_flags(tensorrt_rtx))
    parser = tensorrt_rtx.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString()), [parser.get_error(i).desc() for i in range(parser.num_errors)]
