"""Exported reduced ViMs: what they cost, that they are the model on every kernel, ties included, the whole bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from mscope.core.bundle import load_manifest
from mscope.core.config import ModelConfig, config_for
from mscope.core.console import run_app
from mscope.core.contract import OP_BIDIRECTIONAL_SCAN, OP_CONV, OP_SCAN, graph_for
from mscope.core.cost import stage_cost
from mscope.core.errors import InputError
from mscope.core.geometry import block_tokens, vim_name
from mscope.export.cli import app
from mscope.export.info import info_from_bundle
from mscope.export.passes.mixers import split_mixers
from mscope.export.to_onnx import onnx_from_model
from mscope.export.verification import verify
from mscope.export.verify import kernels_here
from mscope.model import scan
from mscope.model.backbone import Backbone
from mscope.model.checkpoint import model_from_seed
from mscope.runtime.backends.ort import OrtRunner
from mscope.runtime.profiling.devices import GPUS
from mscope.runtime.profiling.roofline import predict
from mscope.runtime.report import print_table
from mscope.runtime.scope import Scope

Small = Callable[..., ModelConfig]
# 60 patch tokens; the originals' blocks at depth 4: after 1, 2 and 2.5 to prune, after 2 to merge.
CHOICES: dict[str, dict[str, Any]] = {
    "prune": {"reduce": "prune", "keep": 0.4},
    "prune-zero": {"reduce": "prune", "keep": 0.5, "prune_alignment": "zero"},
    "merge": {"reduce": "merge", "keep": 0.4, "reduce_after": (1, 3)},
}


def with_ties(config: ModelConfig) -> Backbone:
    """A network of which the first block computes nothing: every score and every cosine after it is 0."""
    model = model_from_seed(config, 2).model
    with torch.no_grad():
        model.blocks()[0].mixer.out_proj.weight.zero_()
        for name, parameter in model.blocks()[0].mixer.named_parameters():
            if name in ("D", "D_b") or name.startswith("x_proj"):
                parameter.zero_()
    return model


@pytest.fixture(scope="module", params=CHOICES)
def exported(request: pytest.FixtureRequest, small: Small) -> tuple[Backbone, onnx.ModelProto]:
    """A network with ties in its first step, and its graph."""
    model = with_ties(small(arch="vim", depth=4, **CHOICES[request.param]))
    return model, onnx_from_model(model, "full")


def test_the_graph_is_the_model_where_all_scores_are_equal(
    exported: tuple[Backbone, onnx.ModelProto], tmp_path: Path
) -> None:
    model, proto = exported
    path = tmp_path / "full.onnx"
    path.write_bytes(proto.SerializeToString())
    config = model.config
    random = np.random.default_rng(3)
    for kernel in kernels_here():
        with OrtRunner(graph_for(config, "full"), path, threads=1, kernel=kernel) as runner:
            for batch in (1, 3):
                shape = (batch, config.channels, config.height, config.width)
                images = random.standard_normal(shape).astype(np.float32)
                with torch.no_grad(), scan.implementation("reference"):
                    expected = model.forward_full(torch.from_numpy(images)).numpy()
                # float32 sums in another order; another token chosen is 1e-3 and more.
                np.testing.assert_allclose(runner.infer({"image": images})["logits"], expected, rtol=0, atol=2e-6)


def shapes_of(proto: onnx.ModelProto) -> dict[str, list[int]]:
    """Of every value, for one image."""
    found = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    for info in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output):
        dims = info.type.tensor_type.shape.dim
        # Batch and length are one axis between the ops of a block, such as "65*batch".
        found[info.name] = [dim.dim_value if dim.HasField("dim_value") else _rows(dim.dim_param) for dim in dims]
    return found


def _rows(symbol: str) -> int:
    return prod(int(factor) for factor in symbol.split("*") if factor.isdigit())


def counted_macs(proto: onnx.ModelProto, config: ModelConfig) -> int:
    """Multiply-accumulates of the products and ops of a graph, from its shapes alone; docs/cost.md."""
    split = split_mixers(onnx.ModelProto.FromString(proto.SerializeToString()))
    shapes, total = shapes_of(split), 0
    for node in split.graph.node:
        out = prod(shapes[node.output[0]])
        if node.op_type in ("MatMul", "Gemm"):
            total += out * shapes[node.input[0]][-1]
        elif node.op_type == "Conv":
            total += out * prod(shapes[node.input[1]][1:])
        elif node.op_type == OP_CONV:
            total += out * shapes[node.input[1]][1]
        elif node.op_type == OP_SCAN:
            total += 3 * out * config.d_state
        elif node.op_type == OP_BIDIRECTIONAL_SCAN:
            total += 2 * out * (config.dt_rank + 3 * config.d_state)
    return total


def test_the_analytic_cost_is_what_the_graph_has(exported: tuple[Backbone, onnx.ModelProto]) -> None:
    model, proto = exported
    assert stage_cost(model.config).full * 1e9 == pytest.approx(counted_macs(proto, model.config), rel=1e-12)


def test_the_graph_has_static_shapes_and_the_planned_tokens(exported: tuple[Backbone, onnx.ModelProto]) -> None:
    model, proto = exported
    shapes = shapes_of(proto)
    lengths = [shapes[f"layers.{block}/mixer/in_proj"][1] for block in range(model.config.depth)]
    assert tuple(lengths) == block_tokens(model.config)
    for info in proto.graph.value_info:
        named = [dim.dim_param for dim in info.type.tensor_type.shape.dim if not dim.HasField("dim_value")]
        # Only the batch is open, alone or times the rows of a table that is gathered from.
        assert len(named) <= 1
    kinds = {node.op_type for node in proto.graph.node}
    assert not kinds & {"Loop", "If", "NonZero", "SplitToSequence", "SequenceAt", "ScatterND", "ScatterElements"}
    topk = [node for node in proto.graph.node if node.op_type == "TopK"]
    constants = {tensor.name for tensor in proto.graph.initializer}
    assert topk
    assert all(node.input[1] in constants for node in topk)


def test_keeping_all_gives_the_plain_graph_byte_for_byte(small: Small) -> None:
    plain = onnx_from_model(model_from_seed(small(arch="vim", depth=2), 1).model, "full")
    kept = onnx_from_model(model_from_seed(small(arch="vim", depth=2, reduce="merge", keep=1.0), 1).model, "full")
    assert plain.SerializeToString() == kept.SerializeToString()


@pytest.mark.parametrize("method", ["prune", "merge"])
def test_a_bundle_of_digits(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MSCOPE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "bundle"
    given = ["build", "--size", "digits", "--arch", "vim", "--reduce", method, "--keep", "0.5", "--fp16"]
    assert run_app(app, [*given, "--out", str(folder), "--target", "onnx"]) == 0
    assert f"reduced  {method}: 64 patch tokens" in capsys.readouterr().out
    manifest = load_manifest(folder)
    assert manifest.name == f"digits-vim-{method}0.5"
    assert (manifest.config.reduce, manifest.config.keep) == (method, 0.5)
    assert manifest.stages["full"].gmacs == stage_cost(manifest.config).full < manifest.baseline.gmacs
    assert manifest.baseline.gmacs == stage_cost(config_for("digits", "vim")).full
    info = info_from_bundle(folder)
    assert info["reduction"]["method"] == method
    assert info["reduction"]["tokens_of_blocks"][-1] == 33
    json.dumps(info)
    report = verify(folder)
    assert report.problems == []
    assert {variant.precision for variant in report.variants if not variant.not_run} == {"fp32", "fp16"}
    with Scope.load(folder) as scope:
        answer = scope(np.zeros((1, 64, 64), np.float32))
        assert answer.gmacs == pytest.approx(stage_cost(manifest.config).full)
    name = vim_name(manifest.config)
    assert name == f"ViM, {method}d to 0.5"
    capsys.readouterr()
    print_table([answer], manifest)
    assert run_app(app, ["eval", str(folder), "digits", "--limit", "30", "--threads", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.count(name) == 2
    assert "plain ViM" not in shown


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--arch", "vim", "--reduce", "drop", "--keep", "0.5"], "--reduce is prune or merge, got 'drop'"),
        (["--arch", "vim", "--reduce", "prune"], "needs --keep"),
        (["--reduce", "prune", "--keep", "0.5"], "goes with --arch vim"),
        (["--arch", "vim", "--keep", "0.5"], "go with --reduce"),
        (["--arch", "vim", "--reduce", "merge", "--keep", "0.05", "--reduce-after", "2,4"], "at most half can"),
        (["--arch", "vim", "--reduce", "prune", "--keep", "0.5", "--reduce-after", "5-10"], "--reduce-after is a list"),
        (["--arch", "vim", "--reduce", "prune", "--keep", "0.5", "--reduce-after", "24"], "from 1 to 23"),
    ],
)
def test_what_does_not_go_together_is_refused(
    given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(app, ["info", "--size", "ti", *given]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_info_describes_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(app, ["info", "--arch", "vim", "--reduce", "prune", "--keep", "0.512"]) == 0
    described = "prune: 196 patch tokens, 157 after block 5, 126 after block 10, 101 after block 15"
    assert described in capsys.readouterr().out


def test_a_reduced_vim_is_not_predicted_as_a_plain_one() -> None:
    config = config_for("ti", "vim", reduce="merge", keep=0.7)
    with pytest.raises(InputError, match="cannot be predicted"):
        predict(config, "full", GPUS["orin-nano-8"])
