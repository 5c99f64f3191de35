"""An ONNX file as a TensorRT network: parsed with the plugin or with the function bodies, and read back."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import onnx

from mscope.core.config import ModelConfig
from mscope.core.contract import OP_DOMAIN, OP_SCAN, Stage, graph_for
from mscope.export.engine.flavour import major, network_flags
from mscope.export.engine.request import EngineRequest, NetworkLayer
from mscope.export.passes.mixers import load_split


class ParseError(Exception):
    """The parser refused the graph; the message is the parser's."""


def network_from_onnx(module: ModuleType, builder: Any, logger: Any, request: EngineRequest) -> tuple[Any, Any]:
    """The strongly typed network and its parser, which must outlive it.

    With a plugin the functions leave the model in memory: TensorRT's parser prefers a body to a plugin.

    Raises:
        ParseError: with the parser's reasons.
    """
    path = Path(request.onnx)
    model = load_split(path) if request.plugin is None else plugin_graph(path)
    network = builder.create_network(network_flags(module))
    parser = module.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        reasons = [str(parser.get_error(i).desc()) for i in range(parser.num_errors)]
        raise ParseError("; ".join(dict.fromkeys(reasons)) or "no reason given")
    return network, parser


def plugin_graph(path: Path) -> onnx.ModelProto:
    """The graph of a bundle's file as TensorRT's parser takes it with the plugin: mixers taken apart, no functions."""
    model = load_split(path)
    strip_functions(model)
    return model


def strip_functions(model: onnx.ModelProto) -> None:
    """Takes the function bodies out of a model in memory, and writes out the attributes that a plugin is made with."""
    del model.functions[:]
    for node in model.graph.node:
        if node.domain != OP_DOMAIN or node.op_type != OP_SCAN:
            continue
        given = {attribute.name for attribute in node.attribute}
        for name, value in {"reverse": 0, "delta_softplus": 1}.items():
            if name not in given:
                node.attribute.append(onnx.helper.make_attribute(name, value))


def input_shapes(config: ModelConfig, stage: Stage) -> dict[str, tuple[int, ...]]:
    """The shape of each input of a stage, without the batch."""
    return {tensor.name: tuple(int(axis) for axis in tensor.axes[1:]) for tensor in graph_for(config, stage).inputs}


def add_profile(builder: Any, config: Any, request: EngineRequest) -> None:
    """The optimisation profile of the dynamic batch, for every input."""
    profile = builder.create_optimization_profile()
    for name, shape in request.shapes.items():
        profile.set_shape(name, *((size, *shape) for size in request.batch))
    config.add_optimization_profile(profile)


def layers_of_network(network: Any) -> tuple[NetworkLayer, ...]:
    """Every layer: its name (the ONNX node's), kind, and the types of what it reads and writes."""
    layers = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        read = [layer.get_input(i) for i in range(layer.num_inputs)]
        written = [layer.get_output(i) for i in range(layer.num_outputs)]
        layers.append(
            NetworkLayer(
                name=layer.name,
                kind=_enum_name(layer.type),
                inputs=tuple(type_name(tensor.dtype) for tensor in read if tensor is not None),
                outputs=tuple(type_name(tensor.dtype) for tensor in written if tensor is not None),
            )
        )
    return tuple(layers)


def strongly_typed(module: ModuleType, network: Any) -> bool:
    """What the network says of itself. TensorRT 11 makes no others; its headers say that the flag is ignored."""
    flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    if flag is None or (module.__name__ == "tensorrt" and major(module) >= 11):
        return True
    return bool(network.get_flag(flag))


_TYPE_NAMES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}


def type_name(dtype: Any) -> str:
    """`float16` of DataType.HALF, and so on."""
    name = _enum_name(dtype)
    return _TYPE_NAMES.get(name, name.lower())


def _enum_name(value: Any) -> str:
    return str(getattr(value, "name", value)).split(".")[-1]
