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
_TENSOR = re.compile(r"Dimensions: \[(?P<shape>[^\]]*)\].*?Data[tT]ype: (?P<type>[^,}]*)")
_BLOCK = re.compile(r"layers\.(\d+)/")
_NO_LAUNCH = frozenset({"signal", "wait", "shape_call", "NoOp"})
# One name for each type. It comes alone ("Half", "FP8") or within a format ("Row major linear FP16 format").
_TYPES = {
    **{name: name for name in ("float16", "float32", "bfloat16", "fp8", "fp4", "int4", "int8", "int32", "int64")},
    **{name: name for name in ("uint8", "bool")},
    "half": "float16",
    "fp16": "float16",
    "float": "float32",
    "fp32": "float32",
    "bf16": "bfloat16",
}
#: The type of a tensor of which the library does not tell: TensorRT 10 has "N/A due to dynamic shapes" for all tensors
#: of layers that Myelin did not compile.
UNKNOWN = "unknown"


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
    layers = content.get("Layers") if isinstance(content, dict) else None
    if not isinstance(layers, list):
        raise ValueError("the inspector's JSON has no list of layers")
    return tuple(_inspected(layer) for layer in layers if isinstance(layer, dict))


def _inspected(layer: dict[str, Any]) -> EngineLayer:
    tensors = [*layer.get("Inputs", ()), *layer.get("Constants", ()), *layer.get("Outputs", ())]
    shaped = [
        (
            ",".join(str(size) for size in tensor.get("Dimensions", ())),
            str(tensor.get("Datatype") or tensor.get("Format/Datatype", "")),
        )
        for tensor in tensors
        if isinstance(tensor, dict)
    ]
    weights = layer.get("Weights")
    if isinstance(weights, dict):
        shaped.append((str(weights.get("Count", "")), str(weights.get("Type", ""))))
    return EngineLayer(
        name=str(layer.get("Name", "")),
        kind=str(layer.get("LayerType", "")),
        types=_wide_types(shaped),
        nodes=nodes_of(str(layer.get("Metadata", ""))),
    )


def _wide_types(tensors: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Types of tensors with more than one element: scale factors are float32 whatever a product computes in."""
    found = [_type_of(said) for shape, said in tensors if shape.replace(" ", "") not in ("", "1")]
    return tuple(dict.fromkeys(found))


def _type_of(said: str) -> str:
    return next((_TYPES[word] for word in re.findall(r"\w+", said.lower()) if word in _TYPES), UNKNOWN)


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
