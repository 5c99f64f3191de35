"""Where a variant leaves the fp32 graph: both run with the values after every step exposed, block by block."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from mscope.core.contract import OP_DOMAIN
from mscope.core.manifest import Precision
from mscope.export.bounds import ROUNDING
from mscope.export.precision.exposed import run_exposed
from mscope.export.precision.rules import PRODUCTS

_BLOCK = re.compile(r"layers\.(\d+)/")
# Stored values of one block, and those before the first; mscope.export.bounds counts them.
_IN_A_BLOCK, _BEFORE = 11, 3


@dataclass(frozen=True)
class Step:
    """One value on the way through a graph: how far it is from the fp32 graph's.

    Attributes:
        tensor: its name, after the module that computes it.
        block: number of the block, -1 before the first and the number of blocks after the last.
        relative: root mean square of the difference over that of the value.
        explained: what so many roundings explain, in the same measure.
    """

    tensor: str
    block: int
    relative: float
    explained: float

    @property
    def drifts(self) -> bool:
        return not self.relative <= self.explained


def drift(
    fp32: onnx.ModelProto, variant: onnx.ModelProto, precision: Precision, feeds: Mapping[str, npt.NDArray[Any]]
) -> list[Step]:
    """Compares the values after every product, op and norm that both graphs have, in the fp32 graph's order.

    int8 and fp8 have no bound of their own here: they get that of bf16, as a mark to look from.
    """
    names = common_values(fp32, variant)
    wanted, got = run_exposed(fp32, names, feeds), run_exposed(variant, names, feeds)
    unit = ROUNDING.get(precision, ROUNDING["bf16"])
    blocks = [_block(name) for name in names]
    last = max(blocks, default=-1)
    seen, steps = -1, []
    for name, block in zip(names, blocks, strict=True):
        seen = block if block >= 0 else (last + 1 if seen >= 0 else -1)
        count = _BEFORE + _IN_A_BLOCK * (min(seen, last) + 1)
        length = float(np.sqrt(np.mean(np.square(wanted[name], dtype=np.float64))))
        difference = float(np.sqrt(np.mean(np.square(got[name] - wanted[name], dtype=np.float64))))
        relative = difference / length if length else difference
        steps.append(Step(name, seen, relative, unit * math.sqrt(count)))
    return steps


def first_drift(steps: list[Step]) -> Step | None:
    """The first value that is further off than its roundings explain."""
    return next((step for step in steps if step.drifts), None)


def common_values(fp32: onnx.ModelProto, variant: onnx.ModelProto) -> list[str]:
    """Outputs of products, ops and norms of the fp32 graph that the other one computes under the same name."""
    there = {name for node in variant.graph.node for name in node.output}
    names = []
    for node in fp32.graph.node:
        norm = node.op_type == "LayerNormalization" or node.name.endswith(("norm/Mul", "norm_f/Mul"))
        if node.domain == OP_DOMAIN or node.op_type in PRODUCTS or norm:
            names += [name for name in node.output if name in there]
    return names


def _block(name: str) -> int:
    match = _BLOCK.match(name)
    return int(match[1]) if match else -1
