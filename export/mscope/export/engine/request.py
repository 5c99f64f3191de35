"""What to build, and what came of it: what the parent process and its child tell each other."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mscope.core.contract import Stage
from mscope.core.engine import Flavour, SmVersion
from mscope.core.manifest import Precision

LayerSource = Literal["inspector", "builder", ""]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineRequest(_Message):
    """One engine.

    Attributes:
        onnx: path of the graph's file; the functions in it are taken out where `plugin` is given.
        engine: path to write the plan to.
        plugin: path of the plugin library; None compiles the function bodies.
        gpus: compute capabilities to build for; () the GPU of this machine.
        shapes: of each input, without the batch.
        batch: smallest, best and largest of the optimisation profile.
        timing_cache: path of TensorRT's timing cache, read and written; None without one.
    """

    flavour: Flavour
    stage: Stage
    precision: Precision
    onnx: str
    engine: str
    plugin: str | None
    gpus: tuple[SmVersion, ...]
    shapes: dict[str, tuple[int, ...]]
    batch: tuple[int, int, int]
    timing_cache: str | None = None


class EngineLayer(_Message):
    """One layer of a built engine, as its library lists it. `types` are those of its tensors, scalars left out;
    "unknown" is among them where the library does not tell one."""

    name: str
    kind: str
    types: tuple[str, ...] = ()
    nodes: tuple[str, ...] = Field((), description="the graph's nodes that it computes, where the library says")


class NetworkLayer(_Message):
    """One layer of the parsed network, before it was built."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Event(_Message):
    """One line of the child's stdout."""

    kind: Literal["phase", "step"]
    text: str
    step: int = 0
    of: int = 0


class BuildResult(_Message):
    """What the child writes at its end.

    Attributes:
        error: why there is no engine; "" where there is one.
        usage: the error is the user's to correct.
        version: of the library.
        strongly_typed: what the network says of itself.
        network: the parsed network's layers.
        layers: the engine's, from its inspector or from the builder's own list; () where neither was to be had.
        layers_from: where they come from.
    """

    error: str = ""
    usage: bool = False
    version: str = ""
    strongly_typed: bool = False
    network: tuple[NetworkLayer, ...] = ()
    layers: tuple[EngineLayer, ...] = ()
    layers_from: LayerSource = ""
    seconds: float = 0.0
