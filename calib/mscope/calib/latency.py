"""How long each stage takes here: medians at batch 1, over pictures of the data set."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mscope.calib.dataset import Dataset, prepared_batches
from mscope.runtime.scope import Scope

_WARM_UP = 5


@dataclass(frozen=True)
class StageLatency:
    """Medians of one picture's time in each stage, milliseconds, host clock, preprocessing left out.

    Attributes:
        coarse: the coarse stage.
        select: softmax, exit decision and ranking.
        fine: the fine stage, after the coarse one.
        images: pictures that the medians are over.
    """

    coarse: float
    select: float
    fine: float
    images: int

    def adaptive(self, exit_rate: float) -> float:
        """Expected time of a picture when `exit_rate` of them leave after the coarse stage."""
        return self.coarse + self.select + (1.0 - exit_rate) * self.fine


def measure_latency(
    scopes: Sequence[Scope], dataset: Dataset, images: int
) -> tuple[list[StageLatency | None], list[float | None]]:
    """Times every bundle on the same pictures, in turn picture by picture, so that a busy moment hits them alike.

    Args:
        scopes: bundles of one input size, adaptive or plain.
        dataset: the first `images` readable pictures are taken.
        images: how many; 0 measures nothing.

    Returns:
        For each bundle the latency of its stages (None for a plain ViM), and of its whole plain pass (None otherwise).
    """
    nothing: tuple[list[StageLatency | None], list[float | None]] = ([None] * len(scopes), [None] * len(scopes))
    if images < 1:
        return nothing
    times: list[dict[str, list[float]]] = [{} for _ in scopes]
    taken = 0
    stop = min(len(dataset), _WARM_UP + 2 * images)
    batches = [
        prepared_batches(dataset, scope.preprocess, 1, stop=stop, on_problem=lambda index, problem: None)
        for scope in scopes
    ]
    for pictures in zip(*batches, strict=False):
        if taken == 0:
            for _ in range(_WARM_UP):
                for scope, picture in zip(scopes, pictures, strict=True):
                    scope.run(picture.tensor, refine_all=True)
        for scope, picture, spent in zip(scopes, pictures, times, strict=True):
            for stage, ms in scope.run(picture.tensor, refine_all=True).stage_ms.items():
                spent.setdefault(stage, []).append(ms)
        taken += 1
        if taken == images:
            break
    if not taken:
        return nothing
    stages: list[StageLatency | None] = []
    plain: list[float | None] = []
    for spent in times:
        median = {stage: statistics.median(values) for stage, values in spent.items()}
        plain.append(median.get("full"))
        adaptive = "coarse" in median
        stages.append(StageLatency(median["coarse"], median["select"], median["fine"], taken) if adaptive else None)
    return stages, plain
