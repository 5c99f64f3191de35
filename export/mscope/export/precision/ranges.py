"""How large the values get that a low type must hold: the fp32 graph run with those values exposed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from mscope.export.precision.exposed import run_exposed
from mscope.export.precision.rules import LARGEST, computes_low, stays_float32
from mscope.export.precision.typed import float_types


@dataclass(frozen=True)
class Range:
    """The largest absolute value of one tensor that a typed graph stores in the low type, over all probes."""

    stage: str
    tensor: str
    largest: float
    limit: float

    @property
    def headroom(self) -> float:
        """How many times the value fits; below 1 it overflows."""
        return self.limit / self.largest if self.largest else float("inf")


def low_values(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    """Values and weights of an fp32 graph that its typed form stores in the low type, in the graph's order."""
    types, weights = float_types(model), {tensor.name for tensor in model.graph.initializer}
    names: dict[str, None] = {}
    for node in model.graph.node:
        if computes_low(node):
            read = [name for position, name in enumerate(node.input) if not stays_float32(node, position)]
            names |= dict.fromkeys(name for name in (*read, *node.output) if name in types)
    return [name for name in names if name not in weights], [name for name in names if name in weights]


def ranges_of(
    model: onnx.ModelProto, stage: str, feeds: Mapping[str, npt.NDArray[Any]], precision: str = "fp16"
) -> list[Range]:
    """The range of every value and weight that `precision` would store, largest first.

    Args:
        model: the fp32 graph.
        stage: its name, for the report.
        feeds: inputs, one row an image; given to the graph one by one, which bounds memory.
        precision: whose limit counts.
    """
    values, weights = low_values(model)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    largest = {name: float(np.abs(numpy_helper.to_array(tensors[name])).max(initial=0.0)) for name in weights}
    for row in range(len(next(iter(feeds.values())))):
        got = run_exposed(model, values, {name: array[row : row + 1] for name, array in feeds.items()})
        for name, value in got.items():
            largest[name] = max(largest.get(name, 0.0), float(np.abs(value).max(initial=0.0)))
    found = [Range(stage, name, value, LARGEST[precision]) for name, value in largest.items()]
    return sorted(found, key=lambda item: item.largest, reverse=True)
