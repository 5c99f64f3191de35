"""What is measured: a loaded bundle on pictures, each path as one call that times itself part by part."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mscope.core.manifest import Preprocessing
from mscope.runtime.backends.cascade import MayRefine
from mscope.runtime.profiling.measure import Case, Clock, Timing
from mscope.runtime.profiling.schema import PathName
from mscope.runtime.result import Outcome, Result


class Subject(Protocol):
    """What a workload needs of a `Scope`."""

    def prepare(self, image: Any, source: str | None = None) -> Any: ...

    def stack(self, prepared: Sequence[Any]) -> Any: ...

    def run(
        self,
        tensor: Any,
        eta: float | None = None,
        *,
        refine_all: bool = False,
        may_refine: MayRefine | None = None,
    ) -> Outcome: ...

    def results(
        self, outcome: Outcome, sources: Sequence[str], preprocess_ms: Sequence[float], *, eta: float | None = None
    ) -> list[Result]: ...


@dataclass
class Workload:
    """A bundle and the pictures that it is measured on, in turn.

    Attributes:
        subject: the loaded bundle.
        images: whatever its `prepare` takes; one or more.
        clock: seconds, rising; the host's.
    """

    subject: Subject
    images: Sequence[Any]
    clock: Clock = time.perf_counter
    _turn: Iterator[Any] = field(init=False)

    def __post_init__(self) -> None:
        self._turn = itertools.cycle(self.images)

    def path(self, name: PathName, batch: int, *, on_host: bool = False) -> Case:
        """One batch of which every image takes that path, from the pictures to the results.

        `on_host`: the exit is decided on the host, whatever the subject was loaded with.
        """
        eta = {"exit": 0.0, "refine": 1.0, "plain": None}[name]
        # Whoever has a say in the decision brings it to the host.
        may_refine: MayRefine | None = (lambda confidence, wanted: wanted) if on_host else None
        return lambda: self._timed(name, batch, eta, may_refine)

    def fine_alone(self) -> Case:
        """The fine stage of one single image, as it runs in a larger batch of which one image did not exit."""
        timed = self.path("refine", 1)

        def call() -> Timing:
            fine = timed().parts_ms["fine"]
            return Timing(fine, {"fine": fine})

        return call

    def load(self, name: PathName, batch: int) -> Callable[[], int]:
        """Runs one batch on a path and returns its number of images: a load for a power meter."""
        timed = self.path(name, batch)

        def call() -> int:
            timed()
            return batch

        return call

    def _timed(self, name: PathName, batch: int, eta: float | None, may_refine: MayRefine | None = None) -> Timing:
        clock = self.clock
        images = list(itertools.islice(self._turn, batch))
        sources = ["image"] * batch
        started = clock()
        prepared = [self.subject.prepare(image) for image in images]
        ready = clock()
        tensor = self.subject.stack(prepared)
        outcome = self.subject.run(tensor, eta, refine_all=name == "refine", may_refine=may_refine)
        ran = clock()
        each = (ready - started) * 1e3 / batch
        self.subject.results(outcome, sources, [each] * batch, eta=eta)
        done = clock()
        stages = dict(outcome.stage_ms)
        if name == "exit" and "fine" in stages:
            # No fine stage ran: what its place in the clockwork takes belongs to the decision.
            stages["select"] = stages.get("select", 0.0) + stages.pop("fine", 0.0)
        # What the stages leave of the run. Stages that claim more than it took show as a gap of the whole.
        check = max(0.0, (ran - ready) * 1e3 - sum(stages.values()))
        parts = {
            "preprocess": (ready - started) * 1e3,
            "check": check,
            **stages,
            "postprocess": (done - ran) * 1e3,
        }
        device = outcome.device
        if device is None:
            return Timing((done - started) * 1e3, parts)
        return Timing((done - started) * 1e3, parts, device.parts, device.total)


def made_up_picture(recipe: Preprocessing, seed: int = 0) -> npt.NDArray[np.uint8]:
    """A picture of smooth shapes and noise, uint8, (H, W, 3), or (H, W) for a network of grey ones.

    Its height is what the recipe resizes the shorter side to, its shape 4 : 3: preprocessing costs little, and nothing
    is decoded.
    """
    rng = np.random.default_rng(seed)
    height, width = recipe.resize, recipe.resize * 4 // 3
    rows = np.linspace(0, 3, height)[:, None, None]
    columns = np.linspace(0, 4, width)[None, :, None]
    phases = rng.uniform(0, 6, 3)
    smooth = 128 + 90 * np.sin(rows + phases) * np.cos(columns - phases)
    noisy = smooth + rng.normal(0, 8, (height, width, 3))
    picture = np.clip(noisy, 0, 255).astype(np.uint8)
    return picture[..., 0] if recipe.mode == "L" else picture
