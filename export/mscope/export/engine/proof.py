"""Holds a built engine to what was asked: its ops by the plugin, its products in the type of its precision."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from mscope.core.contract import OP_DOMAIN
from mscope.core.errors import BackendError
from mscope.export.engine.layers import UNKNOWN
from mscope.export.engine.request import BuildResult, EngineLayer, EngineRequest, NetworkLayer
from mscope.export.precision.rules import PRODUCTS

_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8", "fp8": "fp8"}
_BODY_KINDS = frozenset({"LOOP_OUTPUT", "RECURRENCE", "TRIP_LIMIT", "ITERATOR"})


@dataclass(frozen=True)
class EngineProof:
    """What is known of an engine's insides.

    Attributes:
        ops_by_plugin: layers of the engine's network that are the project's plugin; where the engine's layers are
            listed, each of them is there too.
        products: products of the graph, all typed as asked in the network before it was built.
        proved: how many of them the engine's own list of layers shows in that type; 0 where there is no list.
        layers: layers of the engine; None where there is no list.
        source: "builder" or "inspector": whose list; "" without one.
    """

    ops_by_plugin: int
    products: int
    proved: int
    layers: int | None
    source: str

    def describe(self) -> str:
        """One line for people."""
        ops = f"{self.ops_by_plugin} ops by the plugin" if self.ops_by_plugin else "ops by their function bodies"
        if not self.source:
            return f"{ops}; {self.products} products typed in the network; no list of the engine's layers to be had"
        return f"{ops}; {self.proved} of {self.products} products shown in {self.layers} layers ({self.source}'s list)"


def prove_engine(model: onnx.ModelProto, request: EngineRequest, result: BuildResult) -> EngineProof:
    """Checks the parsed network and the engine's list of layers against the graph.

    Raises:
        BackendError: not strongly typed; an op that became its body although the plugin was given; a product that
            computes in another type than asked.
    """
    what = f"{request.flavour} engine {request.stage} {request.precision}"
    if not result.strongly_typed:
        raise BackendError(f"{what}: the network is not strongly typed, so its precision is nobody's promise")
    ops = [node.name for node in model.graph.node if node.domain == OP_DOMAIN]
    plugins = [layer for layer in result.network if layer.kind == "PLUGIN_V3"]
    bodies = [layer.name for layer in result.network if layer.kind in _BODY_KINDS]
    if request.plugin is not None and (len(plugins) != len(ops) or bodies):
        raise BackendError(
            f"{what}: {len(plugins)} of {len(ops)} ops became plugin layers, {len(bodies)} layers are loops"
        )
    products = products_of(model, request.precision)
    wanted = _TYPES[request.precision]
    if request.precision in ("fp32", "fp16", "bf16"):
        _check_network(what, result.network, plugins, products, wanted)
    if plugins and result.layers:
        shown = {name for layer in result.layers for name in (*layer.nodes, _node_of(layer.name))}
        lost = [name for name in ops if name not in shown]
        if lost:
            raise BackendError(f"{what}: {len(lost)} ops are not among the engine's layers, {lost[0]} first")
    return EngineProof(
        ops_by_plugin=len(plugins),
        products=len(products),
        proved=_proved(what, result.layers, products, wanted),
        layers=len(result.layers) or None,
        source=result.layers_from,
    )


def products_of(model: onnx.ModelProto, precision: str) -> list[str]:
    """Names of the products that a precision is about; of a quantised graph those that read quantised values."""
    nodes = [node for node in model.graph.node if not node.domain and node.op_type in PRODUCTS]
    if precision in ("int8", "fp8"):
        scaled = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
        nodes = [node for node in nodes if scaled & set(node.input)]
    return [node.name for node in nodes]


def _check_network(
    what: str, network: tuple[NetworkLayer, ...], plugins: list[NetworkLayer], products: list[str], wanted: str
) -> None:
    by_name = {layer.name: layer for layer in network if layer.kind in ("MATRIX_MULTIPLY", "CONVOLUTION")}
    for name in products:
        layer = by_name.get(name)
        if layer is None:
            raise BackendError(f"{what}: the network has no product called {name}")
        if {*layer.inputs, *layer.outputs} != {wanted}:
            raise BackendError(f"{what}: {name} computes in {', '.join({*layer.inputs, *layer.outputs})}, not {wanted}")
    for layer in plugins:
        if set(layer.outputs) != {wanted}:
            raise BackendError(f"{what}: plugin layer {layer.name} writes {', '.join(layer.outputs)}, not {wanted}")


def _proved(what: str, layers: tuple[EngineLayer, ...], products: list[str], wanted: str) -> int:
    """How many products the engine's list shows in that type; one that it shows in other types only is an error."""
    asked, shown, others = set(products), set(), {}
    for layer in layers:
        for name in asked & {*layer.nodes, _node_of(layer.name)}:
            if wanted in layer.types:
                shown.add(name)
            elif layer.types and UNKNOWN not in layer.types:
                others[name] = layer.types
    # The scales of a quantised product may be a float32 kernel of their own, which names the product too.
    for name, types in others.items():
        if name not in shown:
            raise BackendError(f"{what}: the engine computes {name} in {', '.join(types)}, not {wanted}")
    return len(shown)


def _node_of(name: str) -> str:
    """`layers.0/mixer/in_proj` of the builder's `layers.0/mixer/in_proj_U90_myl0_10`."""
    return name.split("_U")[0].split("_myl")[0]
