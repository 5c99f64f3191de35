"""Two passes over pictures, both stages: the largest magnitude of every channel, then how the magnitudes spread."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from mscope.calib.chain import Models, opened
from mscope.calib.observers import ChannelMax, Histogram
from mscope.calib.ranges import Method, limit_from
from mscope.calib.record import StageRanges
from mscope.calib.sites import find_sites
from mscope.calib.smooth import exponents_for, smoothed
from mscope.core.config import ModelConfig
from mscope.core.contract import Stage
from mscope.core.errors import InputError

Floats = npt.NDArray[np.float32]
# Gives the same batches, (B, C, H, W) float32, at every call.
Batches = Callable[[], Iterable[Floats]]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Seen:
    """Ranges by stage, and how many pictures and batches each pass went over."""

    stages: dict[Stage, StageRanges]
    images: int
    batches: int


def calibrate(
    config: ModelConfig,
    models: Models,
    batches: Batches,
    method: Method,
    smoothing: float | None,
    progress: Progress | None = None,
) -> Seen:
    """Observes every activation that is to be quantised, in each stage; the fine one gets what the coarse one selects.

    Every picture goes through both stages, whatever its confidence, so that the ranges hold at any eta.

    Args:
        config: the network's configuration.
        models: its fp32 graphs.
        batches: the pictures, the same at every call.
        method: how ranges follow from what was seen.
        smoothing: SmoothQuant's alpha, or None to leave the activations as they are.
        progress: called with a few words at the start of each pass.

    Raises:
        InputError: no pictures. MscopeError: NaN or infinity in a graph, or pictures that change between the passes.
    """
    if progress is not None:
        progress("calibrating: largest values")
    channels = {stage: _channel_observers(models, stage) for stage in models}
    images, count = _observe(config, models, batches, channels)
    if images == 0:
        raise InputError("calibration needs pictures, none could be read: give --calib-data a folder of pictures")
    stages = {}
    for stage, model in models.items():
        maxima = {name: observer.values for name, observer in channels[stage].items()}
        exponents = {} if smoothing is None else exponents_for(model, maxima, smoothing)
        for name, powers in exponents.items():
            maxima[name] = np.ldexp(maxima[name], -powers.astype(np.int32))
        largest = {name: float(values.max()) for name, values in maxima.items()}
        stored = {name: tuple(powers.tolist()) for name, powers in exponents.items()}
        stages[stage] = StageRanges(maxima=largest, limits=largest, exponents=stored)
    if method != "minmax":
        if progress is not None:
            progress(f"calibrating: {method}")
        stages = _clipped(config, models, batches, stages, method)
    return Seen(stages, images, count)


def smoothed_models(models: Models, stages: dict[Stage, StageRanges]) -> dict[Stage, onnx.ModelProto]:
    """The graphs with the smoothing of their ranges folded in."""
    return {
        stage: smoothed(model, {name: np.array(powers) for name, powers in stages[stage].exponents.items()})
        for stage, model in models.items()
    }


def _channel_observers(models: Models, stage: Stage) -> dict[str, ChannelMax]:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in models[stage].graph.initializer}
    return {
        site.activation: ChannelMax(site.activation, shapes[site.weight][site.input_axis])
        for site in find_sites(models[stage])
    }


def _clipped(
    config: ModelConfig, models: Models, batches: Batches, stages: dict[Stage, StageRanges], method: Method
) -> dict[Stage, StageRanges]:
    histograms = {
        stage: {name: Histogram(name, largest) for name, largest in ranges.maxima.items()}
        for stage, ranges in stages.items()
    }
    _observe(config, smoothed_models(models, stages), batches, histograms)
    return {
        stage: ranges.model_copy(
            update={"limits": {name: limit_from(seen, method) for name, seen in histograms[stage].items()}}
        )
        for stage, ranges in stages.items()
    }


def _observe(
    config: ModelConfig,
    models: Models,
    batches: Batches,
    observers: dict[Stage, dict[str, ChannelMax]] | dict[Stage, dict[str, Histogram]],
) -> tuple[int, int]:
    """One pass; how many pictures and batches it went over."""
    images = count = 0
    watched = {stage: tuple(of_stage) for stage, of_stage in observers.items()}
    with opened(config, models, watched) as chain:
        for batch in batches():
            for stage, outputs in chain.run(batch).items():
                for name, observer in observers[stage].items():
                    observer.update(outputs[name])
            images += len(batch)
            count += 1
    return images, count
