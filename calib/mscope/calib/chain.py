"""The stages of a network run one after the other, every image through all of them: what calibration and gate watch."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from mscope.core.cascade import select_regions
from mscope.core.config import ModelConfig
from mscope.core.contract import Stage, Tensor, graph_for, graphs
from mscope.core.errors import MscopeError
from mscope.core.geometry import coarse_grid, regions_refined
from mscope.runtime.backends.base import Arrays
from mscope.runtime.backends.ort import OrtRunner

Floats = npt.NDArray[np.float32]
Models = Mapping[Stage, onnx.ModelProto]


class Chain:
    """Open graphs of every stage. Made by `opened`.

    Attributes:
        config: the network's configuration.
    """

    def __init__(self, config: ModelConfig, runners: Mapping[Stage, OrtRunner]) -> None:
        self.config = config
        self._runners = runners

    def run(self, image: Floats) -> dict[Stage, Arrays]:
        """The outputs of each stage for (B, C, H, W) float32; the fine one refines what the coarse one ranked first.

        The coarse outputs have `selected` and `remaining` beside them, int64.
        """
        if "full" in self._runners:
            return {"full": self._runners["full"].infer({"image": image})}
        coarse = self._runners["coarse"].infer({"image": image})
        return {"coarse": coarse, "fine": self.refine(image, coarse)}

    def refine(self, image: Floats, coarse: Arrays) -> Arrays:
        """The fine stage's outputs given the coarse stage's; adds the selection to `coarse`."""
        count = regions_refined(self.config.alpha, coarse_grid(self.config).count)
        coarse["selected"], coarse["remaining"] = select_regions(coarse["importance"], count)
        names = ("features", "embeddings", "selected", "remaining")
        return self._runners["fine"].infer({"image": image, **{name: coarse[name] for name in names}})

    def run_stage(self, stage: Stage, feeds: Arrays) -> Arrays:
        """The outputs of one stage."""
        return self._runners[stage].infer(feeds)


@contextlib.contextmanager
def opened(
    config: ModelConfig, models: Models, watched: Mapping[Stage, tuple[str, ...]] | None = None
) -> Iterator[Chain]:
    """Opens graphs that are in memory, on the native kernels where they are built.

    Args:
        config: the network's configuration.
        models: the graph of some or all stages.
        watched: tensors inside each graph that its runs return too.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mscope-calib-")))
        runners: dict[Stage, OrtRunner] = {}
        for graph in graphs(config):
            if graph.stage not in models:
                continue
            names = (watched or {}).get(graph.stage, ())
            model, extra = _watching(models[graph.stage], names)
            path = folder / f"{graph.stage}.onnx"
            path.write_bytes(model.SerializeToString())
            contract = replace(graph_for(config, graph.stage), outputs=(*graph.outputs, *extra))
            runners[graph.stage] = stack.enter_context(OrtRunner(contract, path))
        yield Chain(config, runners)


def _watching(model: onnx.ModelProto, names: tuple[str, ...]) -> tuple[onnx.ModelProto, tuple[Tensor, ...]]:
    """A copy with tensors made outputs, and what these are."""
    if not names:
        return model, ()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {value.name: value for value in copy.graph.value_info}
    extra = []
    for name in names:
        if name not in known:
            raise MscopeError(f"the shape of {name} is not recorded in {model.graph.name}: build the bundle again")
        dims = known[name].type.tensor_type.shape.dim
        extra.append(Tensor(name, "float32", tuple(dim.dim_param or dim.dim_value for dim in dims)))
        copy.graph.output.append(known[name])
    return copy, tuple(extra)
