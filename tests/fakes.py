"""Tiny bundles that obey the contract, made of a few ONNX nodes, and the same arithmetic in numpy.

The graphs are simple but hide nothing: every input of the fine graph moves its logits, and so does the order of the
indices, so that a mix-up of rows, indices or tensors shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from mscope.core.bundle import load_manifest, record_of, write_manifest
from mscope.core.config import ModelConfig, make_config
from mscope.core.contract import OPSET, Tensor, graph_for
from mscope.core.cost import parameter_count, stage_cost
from mscope.core.geometry import coarse_grid, regions_refined, token_counts
from mscope.core.manifest import Baseline, Manifest, Preprocessing, StageRecord, Variant, Weights

Floats = npt.NDArray[np.float32]


def fake_config(**changes: Any) -> ModelConfig:
    """64 x 48 pixels, 4 x 3 regions of 16 pixels, 10 classes, 3 channels: nothing is square that could be mistaken."""
    fields = {
        "size": "fake", "d_model": 4, "depth": 2, "patch": 8, "channels": 3, "height": 64, "width": 48, "classes": 10,
    }  # fmt: skip
    return make_config(fields | changes)


class FakeNetwork:
    """The numbers in the graphs. `gain` scales the coarse logits: the larger, the surer the coarse stage."""

    def __init__(self, config: ModelConfig, gain: float = 1.0, seed: int = 0) -> None:
        self.config, self.seed = config, seed
        rng = np.random.default_rng(seed)
        grid, width, classes = coarse_grid(config), config.d_model, config.classes
        count = regions_refined(config.alpha, grid.count)

        def normal(*shape: int) -> Floats:
            return rng.normal(size=shape).astype(np.float32)

        self.weights = {
            "coarse_head": normal(grid.count, classes) * np.float32(gain),
            "feature": normal(1, 1, width),
            "embedding": normal(1, 1, width),
            "chosen_place": normal(count, 1),
            "other_place": normal(grid.count - count, 1),
            "fine_head": normal(width, classes),
            "pixels_head": normal(1, classes),
        }

    def regions(self, image: Floats) -> Floats:
        """(B, Nc): the mean of every region's pixels."""
        grid = coarse_grid(self.config)
        cells = image.reshape(len(image), self.config.channels, grid.rows, -1, grid.cols, 2 * self.config.patch)
        means: Floats = cells.mean(axis=(1, 3, 5), dtype=np.float64).reshape(len(image), -1).astype(np.float32)
        return means

    def coarse(self, image: Floats) -> dict[str, Floats]:
        means = self.regions(image)
        return {
            "logits": means @ self.weights["coarse_head"],
            "importance": means,
            "features": means[..., None] * self.weights["feature"],
            "embeddings": means[..., None] * self.weights["embedding"],
        }

    def fine(self, image: Floats, selected: npt.NDArray[np.int64], remaining: npt.NDArray[np.int64]) -> Floats:
        coarse = self.coarse(image)
        chosen = np.take_along_axis(coarse["features"], selected[..., None], axis=1)
        others = np.take_along_axis(coarse["embeddings"], remaining[..., None], axis=1)
        tokens = (chosen * self.weights["chosen_place"]).sum(axis=1) + (others * self.weights["other_place"]).sum(
            axis=1
        )
        pixels = image.mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32)[:, None]
        logits: Floats = tokens @ self.weights["fine_head"] + pixels @ self.weights["pixels_head"]
        return logits

    def full(self, image: Floats) -> Floats:
        logits: Floats = self.coarse(image)["logits"]
        return logits

    def onnx_model(self, stage: str) -> onnx.ModelProto:
        graph = graph_for(self.config, stage)  # type: ignore[arg-type]
        nodes = {"coarse": self._coarse_nodes, "fine": self._fine_nodes, "full": self._full_nodes}[stage]()
        axes = {"flat": [0, -1], "last": [-1], "tokens_axis": [1], "all_axes": [1, 2, 3], "channel_axis": [1]}
        constants = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        constants += [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in axes.items()]
        body = helper.make_graph(
            [helper.make_node(op, ins, [out], **attributes) for op, ins, out, attributes in nodes],
            stage,
            [_value(tensor) for tensor in graph.inputs],
            [_value(tensor) for tensor in graph.outputs],
            constants,
        )
        model = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        onnx.checker.check_model(model)
        return model

    def _mean_nodes(self) -> list[Any]:
        side = 2 * self.config.patch
        return [
            ("AveragePool", ["image"], "pooled", {"kernel_shape": [side, side], "strides": [side, side]}),
            ("ReduceMean", ["pooled", "channel_axis"], "grey", {"keepdims": 1}),
            ("Reshape", ["grey", "flat"], "means", {}),
        ]

    def _coarse_nodes(self) -> list[Any]:
        return [
            *self._mean_nodes(),
            ("MatMul", ["means", "coarse_head"], "logits", {}),
            ("Identity", ["means"], "importance", {}),
            ("Unsqueeze", ["means", "last"], "column", {}),
            ("Mul", ["column", "feature"], "features", {}),
            ("Mul", ["column", "embedding"], "embeddings", {}),
        ]

    def _full_nodes(self) -> list[Any]:
        return [*self._mean_nodes(), ("MatMul", ["means", "coarse_head"], "logits", {})]

    def _fine_nodes(self) -> list[Any]:
        return [
            ("Unsqueeze", ["selected", "last"], "selected_3", {}),
            ("Unsqueeze", ["remaining", "last"], "remaining_3", {}),
            ("GatherND", ["features", "selected_3"], "chosen", {"batch_dims": 1}),
            ("GatherND", ["embeddings", "remaining_3"], "others", {"batch_dims": 1}),
            ("Mul", ["chosen", "chosen_place"], "chosen_placed", {}),
            ("Mul", ["others", "other_place"], "others_placed", {}),
            ("ReduceSum", ["chosen_placed", "tokens_axis"], "chosen_sum", {"keepdims": 0}),
            ("ReduceSum", ["others_placed", "tokens_axis"], "others_sum", {"keepdims": 0}),
            ("Add", ["chosen_sum", "others_sum"], "token", {}),
            ("MatMul", ["token", "fine_head"], "token_logits", {}),
            ("ReduceMean", ["image", "all_axes"], "pixels_4", {"keepdims": 1}),
            ("Reshape", ["pixels_4", "flat"], "pixels", {}),
            ("MatMul", ["pixels", "pixels_head"], "pixel_logits", {}),
            ("Add", ["token_logits", "pixel_logits"], "logits", {}),
        ]


def _value(tensor: Tensor) -> onnx.ValueInfoProto:
    dtype = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}[tensor.dtype]
    return helper.make_tensor_value_info(tensor.name, dtype, list(tensor.axes))


def write_fake_bundle(folder: Path, network: FakeNetwork, **manifest_changes: Any) -> Manifest:
    """Writes the network's graphs and a manifest into `folder`. Pixels 0 ... 255 become -1 ... 1."""
    folder.mkdir(parents=True, exist_ok=True)
    config = network.config
    cost, tokens = stage_cost(config), token_counts(config)
    stages, files = {}, {}
    for stage in ("full",) if config.arch == "vim" else ("coarse", "fine"):
        name = f"{stage}.onnx"
        (folder / name).write_bytes(network.onnx_model(stage).SerializeToString())
        files[name] = record_of(folder / name)
        stages[stage] = StageRecord(
            variants=(Variant(file=name),), gmacs=getattr(cost, stage), tokens=getattr(tokens, stage)
        )
    fields: dict[str, Any] = {
        "name": "fake",
        "created": "2025-01-01T00:00:00Z",
        "config": config,
        "params": parameter_count(config),
        "weights": Weights(origin="random", seed=network.seed),
        "preprocessing": Preprocessing(
            mode="RGB" if config.channels == 3 else "L",
            resize=min(config.height, config.width),
            mean=(0.5,) * config.channels,
            std=(0.5,) * config.channels,
        ),
        "labels": tuple(f"label {i}" for i in range(config.classes)),
        "stages": stages,
        "baseline": Baseline(gmacs=cost.full, tokens=tokens.full),
        "files": files,
    }
    manifest = Manifest(**(fields | manifest_changes))
    write_manifest(folder, manifest)
    return manifest


def replace_graph(folder: Path, stage: str, model: onnx.ModelProto) -> None:
    """Puts another graph in a bundle and records its hash, as a faulty exporter would."""
    manifest = load_manifest(folder, check_files=False)
    name = f"{stage}.onnx"
    (folder / name).write_bytes(model.SerializeToString())
    files = {**manifest.files, name: record_of(folder / name)}
    write_manifest(folder, manifest.model_copy(update={"files": files}))


def random_images(config: ModelConfig, count: int, seed: int = 1) -> Floats:
    """(count, C, H, W) float32 whose regions differ in brightness."""
    rng = np.random.default_rng(seed)
    grid = coarse_grid(config)
    levels = rng.normal(size=(count, 1, grid.rows, grid.cols)).repeat(2 * config.patch, 2).repeat(2 * config.patch, 3)
    noise = rng.normal(size=(count, config.channels, config.height, config.width)) * 0.1
    images: Floats = (levels + noise).astype(np.float32)
    return images
