"""Reads the layers of a built engine: from its inspector, or from the list that the builder prints.

The inspector needs the engine loaded, which needs a GPU. The builder's own list, at the most verbose level, does not.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from mscope.export.engine.request import EngineLayer

_NODE = re.compile(r"\[ONNX Layer: ([^\]]*?)\]")
_HEAD = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), (?P<rest>.*)", re.DOTALL)
_TENSOR = re.compile(r"Dimensions: \[(?P<shape>[^\]]*)\].*?Data[tT]ype: (?P<type>\w+)")
_BLOCK = re.compile(r"layers\.(\d+)/")
_NO_LAUNCH = frozenset({"signal", "wait", "shape_call"})
# The inspector of TensorRT 10 writes "Half" or "Half, linear"; the builder's list says Half. One name for each.
_TYPES = {
    "half": "float16",
    "fp16": "float16",
    "float": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
}


def layers_of_log(message: str) -> tuple[EngineLayer, ...]:
    """The layers of the builder's message that begins with "Layers:"; () of any other message."""
    if not message.startswith("Layers:"):
        return ()
    body = message.split("\nBindings:")[0].removeprefix("Layers:")
    return tuple(_layer(text) for text in re.split(r"\n(?=\s*Name: )", body) if "LayerType: " in text)


def _layer(text: str) -> EngineLayer:
    match = _HEAD.search(text)
    assert match is not None
    return EngineLayer(
        name=match["name"].strip(),
        kind=match["kind"].strip(),
        types=_wide_types((found["shape"], found["type"]) for found in _TENSOR.finditer(match["rest"])),
        nodes=nodes_of(match["rest"]),
    )


def nodes_of(metadata: str) -> tuple[str, ...]:
    """The graph's nodes that a layer's metadata names; of a function's inner node "inner | node", the outer one."""
    names = (found.split(" | ")[-1].split(" (")[0].strip() for found in _NODE.findall(metadata))
    return tuple(dict.fromkeys(names))


def layers_of_inspector(text: str) -> tuple[EngineLayer, ...]:
    """The layers of IEngineInspector's JSON, at detailed verbosity. Raises ValueError where it is something else."""
    content = json.loads(text)
    return tuple(_inspected(layer) for layer in content["Layers"] if isinstance(layer, dict))


def _inspected(layer: dict[str, Any]) -> EngineLayer:
    tensors = [*layer.get("Inputs", ()), *layer.get("Constants", ()), *layer.get("Outputs", ())]
    shaped = [
        (
            ",".join(str(size) for size in tensor.get("Dimensions", ())),
            re.split(r"\W", str(tensor.get("Datatype") or tensor.get("Format/Datatype", "")))[0],
        )
        for tensor in tensors
        if isinstance(tensor, dict)
    ]
    return EngineLayer(
        name=str(layer.get("Name", "")),
        kind=str(layer.get("LayerType", "")),
        types=_wide_types(shaped),
        nodes=nodes_of(str(layer.get("Metadata", ""))),
    )


def _wide_types(tensors: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Types of tensors with more than one element: scale factors are float32 whatever a product computes in."""
    found = [
        _TYPES.get(kind.lower(), kind.lower()) for shape, kind in tensors if shape.replace(" ", "") not in ("", "1")
    ]
    return tuple(dict.fromkeys(found))


def launches(layers: Sequence[EngineLayer]) -> list[EngineLayer]:
    """Those that launch a kernel; the others order streams or compute shapes on the host."""
    return [layer for layer in layers if layer.kind not in _NO_LAUNCH]


def launches_per_block(layers: Sequence[EngineLayer]) -> float | None:
    """The median over the network's blocks of the kernels that work on a block; None where no layer says its block.

    A kernel that spans two blocks counts for the one in which it ends, as the sum of the residuals does with the norm.
    """
    counts: Counter[int] = Counter()
    for layer in launches(layers):
        blocks = [int(found[1]) for name in (*layer.nodes, layer.name) if (found := _BLOCK.match(name))]
        if blocks:
            counts[max(blocks)] += 1
    return float(median(counts.values())) if counts else None
