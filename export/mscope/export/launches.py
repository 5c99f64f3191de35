"""How many kernel launches a graph comes to: a figure that needs no GPU. docs/engines.md says how it is counted."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import onnx

from mscope.core.manifest import Manifest
from mscope.export.passes.mixers import load_split
from mscope.export.precision.rules import MOVERS, computes_low
from mscope.export.precision.typed import float_types

_BLOCK = re.compile(r"layers\.(\d+)/")
# What a launch of its own is never needed for: views, sizes, and casts, which the kernels beside them do.
_FREE = MOVERS | {"Cast", "CastLike", "Shape", "Expand", "QuantizeLinear", "DequantizeLinear"}


@dataclass(frozen=True)
class Launches:
    """Launches of one graph. `per_block` is the median over the blocks; blocks with importance have one more."""

    total: int
    per_block: float
    heavy: int


def launches_of(model: onnx.ModelProto) -> Launches:
    """Counts launches: one for each product and op, one for each group of connected other nodes between them.

    Nodes belong together when they are connected and the same number of products and ops lies before them: an engine
    can fuse such a group into one kernel, and no engine more than that.
    """
    graph = model.graph
    floats = set(float_types(model))
    producer = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    levels: list[int] = []
    group = list(range(len(graph.node)))

    def root(index: int) -> int:
        while group[index] != index:
            index = group[index]
        return index

    for index, node in enumerate(graph.node):
        before = [producer[name] for name in node.input if name in producer]
        heavy = computes_low(node)
        level = max((levels[i] + (1 if computes_low(graph.node[i]) else 0) for i in before), default=0)
        levels.append(level)
        for i in before:
            if not heavy and not computes_low(graph.node[i]) and levels[i] == level:
                group[root(i)] = root(index)
    members: dict[int, list[onnx.NodeProto]] = defaultdict(list)
    for index, node in enumerate(graph.node):
        members[root(index)].append(node)
    launches = [nodes for nodes in members.values() if any(_computes(node, floats) for node in nodes)]
    return Launches(
        total=len(launches),
        per_block=_per_block([[node for node in nodes if _computes(node, floats)] for nodes in launches]),
        heavy=sum(computes_low(node) for node in graph.node),
    )


def _computes(node: onnx.NodeProto, floats: set[str]) -> bool:
    return computes_low(node) or (node.op_type not in _FREE and any(name in floats for name in node.output))


def _per_block(launches: list[list[onnx.NodeProto]]) -> float:
    counts: dict[int, int] = defaultdict(int)
    for nodes in launches:
        for block in {int(match[1]) for node in nodes if (match := _BLOCK.match(node.name))}:
            counts[block] += 1
    return float(median(counts.values())) if counts else 0.0


def launches_of_bundle(folder: Path, manifest: Manifest) -> dict[str, Launches]:
    """By the name of each ONNX file of a bundle."""
    return {
        variant.file: launches_of(load_split(folder / variant.file))
        for record in manifest.stages.values()
        for variant in record.variants
        if variant.backend == "onnx"
    }
