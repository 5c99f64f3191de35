"""What was asked for in the way of engines, checked for contradictions; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mscope.core.errors import InputError
from mscope.export.engine.flavour import ONNX_ONLY, TARGETS

Ops = Literal["auto", "plugin", "function"]
OPS: tuple[Ops, ...] = ("auto", "plugin", "function")


@dataclass(frozen=True)
class EngineWish:
    """What was asked for.

    Attributes:
        target: "onnx", "trt", "trt-rtx", or "auto": engines where a GPU and a library for it are.
        gpus: compute capabilities instead of the GPU here.
        batch: smallest, best and largest batch.
        ops: "plugin" insists on the plugin library, "function" compiles the bodies in the graph, "auto" takes the
            plugin where it is and says so where it is not.
    """

    target: str = ONNX_ONLY
    gpus: tuple[str, ...] = ()
    batch: tuple[int, int, int] = (1, 1, 8)
    ops: Ops = "auto"

    def check(self) -> None:
        """Raises InputError for what contradicts itself."""
        if self.target not in TARGETS:
            raise InputError(f"unknown target '{self.target}': choose one of {', '.join(TARGETS)}")
        if self.target == ONNX_ONLY and self.gpus:
            raise InputError("--gpu belongs to engines: give --target trt-rtx with it, or leave it out")


def ops_of(text: str) -> Ops:
    """`--ops` as it was typed. Raises InputError."""
    for ops in OPS:
        if text == ops:
            return ops
    raise InputError(f"unknown --ops '{text}': choose one of {', '.join(OPS)}")
