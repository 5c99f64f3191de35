"""The interface of the exported graphs and the custom ops: names, dtypes and axes, declared once.

The exporter writes these names, the runtime binds them, the verifier and the tests check against them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mscope.core.config import ModelConfig
from mscope.core.geometry import coarse_grid, regions_refined

# The custom ops; docs/ops.md is their contract.
OP_DOMAIN = "mambascope"
OP_VERSION = 2
OP_CONV = "CausalConv1dSiLU"
OP_SCAN = "SelectiveScan"
OP_BIDIRECTIONAL_SCAN = "BidirectionalSelectiveScan"
# The two ops of a block and x_proj between them: what a CPU runs as one.
OP_MIXER = "VimMixer"

OPSET = 18

Stage = Literal["coarse", "fine", "full"]
BATCH = "batch"


@dataclass(frozen=True)
class Tensor:
    """One input or output of a graph. `axes` holds sizes, or a name for a dynamic axis."""

    name: str
    dtype: Literal["float32", "int64"]
    axes: tuple[int | str, ...]


@dataclass(frozen=True)
class Graph:
    """One exported graph: its stage and what goes in and out, in order."""

    stage: Stage
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.outputs)


def image_tensor(config: ModelConfig) -> Tensor:
    """The normalised picture, (B, channels, H, W) float32."""
    return Tensor("image", "float32", (BATCH, config.channels, config.height, config.width))


def graphs(config: ModelConfig) -> tuple[Graph, ...]:
    """The graphs of a bundle: coarse and fine for mambascope, full for vim."""
    image = image_tensor(config)
    logits = Tensor("logits", "float32", (BATCH, config.classes))
    if config.arch == "vim":
        return (Graph("full", (image,), (logits,)),)
    regions = coarse_grid(config).count
    refined = regions_refined(config.alpha, regions)
    features = Tensor("features", "float32", (BATCH, regions, config.d_model))
    embeddings = Tensor("embeddings", "float32", (BATCH, regions, config.d_model))
    if config.reuse_class_token:
        # The class token's feature travels as one more row, the last.
        features = Tensor("features", "float32", (BATCH, regions + 1, config.d_model))
    coarse = Graph(
        "coarse", (image,), (logits, Tensor("importance", "float32", (BATCH, regions)), features, embeddings)
    )
    chosen = Tensor("selected", "int64", (BATCH, refined))
    others = Tensor("remaining", "int64", (BATCH, regions - refined))
    return coarse, Graph("fine", (image, features, embeddings, chosen, others), (logits,))


def graph_for(config: ModelConfig, stage: Stage) -> Graph:
    """The graph of one stage. Raises KeyError for a stage that this architecture does not have."""
    for graph in graphs(config):
        if graph.stage == stage:
            return graph
    raise KeyError(f"{config.arch} has no stage '{stage}'")
