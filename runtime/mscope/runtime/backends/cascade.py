"""The cascade over one batch: the decision between the stages, and the stages as a backend runs them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mscope.core.cascade import Bools, confidence, exits_early, select_regions
from mscope.core.contract import Stage, graphs
from mscope.core.errors import InputError
from mscope.core.geometry import coarse_grid, regions_refined
from mscope.core.manifest import Manifest
from mscope.runtime.backends.base import Runner
from mscope.runtime.result import DeviceTimes, Floats, Ints, Outcome, StageName

Rows = npt.NDArray[np.intp]
# Given the coarse confidences (B,) float32 and which images are to be refined (B,), which of these are. Called after
# the coarse stage, when there is one at least.
MayRefine = Callable[[Floats, Bools], Bools]


@dataclass(frozen=True)
class Seen:
    """What the coarse stage leaves: logits and importance on the host, `kept` wherever the backend keeps the rest."""

    logits: Floats
    importance: Floats
    kept: Any


class Cascade(ABC):
    """Runs a bundle's stages over batches and decides in between which images go on.

    Subclasses say how a stage runs and where its tensors live; the decision is here, once, on the host.

    Attributes:
        largest: the largest batch of one go; larger ones are run in several. None: any.
    """

    largest: int | None = None

    def __init__(self, manifest: Manifest) -> None:
        self.config = manifest.config
        self.temperature = manifest.temperature
        self._graphs = {graph.stage: graph for graph in graphs(manifest.config)}

    @property
    def notes(self) -> tuple[str, ...]:
        """What did not go as it should have, though the answers are right; lines for people."""
        return ()

    def run(
        self, image: Any, eta: float | None, *, refine_all: bool = False, may_refine: MayRefine | None = None
    ) -> Outcome:
        """The outcome of a batch (B, C, H, W) float32; B may be 0.

        Args:
            image: as the backend takes it: an array on the host, a `DeviceArray`, or `Pictures` still to be scaled.
            eta: from which confidence on an image exits; None for a plain ViM.
            refine_all: no image exits.
            may_refine: has the last word on which images go on.

        Raises:
            BackendError: the backend failed, or gave NaN.
        """
        size = self.largest or len(image)
        if len(image) <= size:
            return self._run(image, eta, refine_all, may_refine)
        parts = [image[i : i + size] for i in range(0, len(image), size)]
        return _joined([self._run(part, eta, refine_all, may_refine) for part in parts])

    def take(self, array: Any) -> Any:
        """A batch that another library has on a GPU, to be given to `run`. Raises InputError where it does not fit."""
        raise InputError(
            f"tensor: a {type(array).__name__} on a CUDA device, which this backend does not read: move it to the host "
            "(torch: .cpu().numpy(), CuPy and PyCUDA: .get()), or take a backend on the GPU"
        )

    def time_on_device(self, on: bool) -> bool:
        """Whether outcomes will have times of the device's own clock, if there is one; it costs a little."""
        return False

    def close(self) -> None:
        """Releases what the cascade owns beside its runners; further calls do nothing."""
        return

    @abstractmethod
    def _run_full(self, image: Any) -> Floats:
        """Logits of plain ViM, (B, classes), the caller's own; B >= 1, as everywhere below."""

    @abstractmethod
    def _run_coarse(self, image: Any) -> Seen:
        """The coarse stage; logits and importance are the caller's own."""

    @abstractmethod
    def _compact(self, kept: Any, rows: Rows) -> Any:
        """What `_run_fine` needs of these rows, ascending, one or more; the rows of others may be dropped."""

    @abstractmethod
    def _run_fine(self, kept: Any, selected: Ints, remaining: Ints) -> Floats:
        """Logits of the fine stage for the compacted rows, the caller's own."""

    def _run(self, image: Any, eta: float | None, refine_all: bool, may_refine: MayRefine | None) -> Outcome:
        if eta is None:
            started = time.perf_counter()
            logits = self._run_full(image) if len(image) else self._empty("full", "logits")
            elapsed = (time.perf_counter() - started) * 1e3
            everywhere: list[StageName] = ["full"] * len(image)
            return Outcome(
                logits, confidence(logits), tuple(everywhere), None, None, None, None, {"full": elapsed}, self.notes
            )
        started = time.perf_counter()
        if len(image):
            seen = self._run_coarse(image)
        else:
            seen = Seen(self._empty("coarse", "logits"), self._empty("coarse", "importance"), None)
        coarse_done = time.perf_counter()

        coarse_confidence = confidence(seen.logits, self.temperature.coarse)
        wanted = ~exits_early(coarse_confidence, eta) | refine_all
        if may_refine is not None and wanted.any():
            wanted &= may_refine(coarse_confidence, wanted)
        refined = np.flatnonzero(wanted)
        chosen = np.zeros((0, self._count), np.int64)
        if refined.size:
            chosen, remaining = select_regions(seen.importance[refined], self._count)
            kept = self._compact(seen.kept, refined)
        selection_done = time.perf_counter()

        fine_logits = seen.logits[:0]
        if refined.size:
            fine_logits = self._run_fine(kept, chosen, remaining)
        outcome = self._outcome(seen, coarse_confidence, refined, chosen, fine_logits)
        done = time.perf_counter()
        stage_ms = {
            "coarse": (coarse_done - started) * 1e3,
            "select": (selection_done - coarse_done) * 1e3,
            "fine": (done - selection_done) * 1e3,
        }
        return replace(outcome, stage_ms=stage_ms)

    @property
    def _count(self) -> int:
        return regions_refined(self.config.alpha, coarse_grid(self.config).count)

    def _outcome(
        self, seen: Seen, coarse_confidence: Floats, refined: Rows, chosen: Ints, fine_logits: Floats
    ) -> Outcome:
        """The outcome of a batch of which the rows `refined` went on; its times are still to be filled in.

        Args:
            chosen: (len(refined), K), their regions.
            fine_logits: (len(refined), classes).
        """
        selected = np.full((len(seen.logits), self._count), -1, np.int64)
        logits, final_confidence = seen.logits.copy(), coarse_confidence.copy()
        selected[refined], logits[refined] = chosen, fine_logits
        if refined.size:
            final_confidence[refined] = confidence(fine_logits, self.temperature.fine)
        stages: list[StageName] = ["coarse"] * len(seen.logits)
        for row in refined:
            stages[row] = "fine"
        return Outcome(
            logits=logits,
            confidence=final_confidence,
            stages=tuple(stages),
            coarse_logits=seen.logits,
            coarse_confidence=coarse_confidence,
            importance=seen.importance,
            selected=selected,
            stage_ms={},
            notes=self.notes,
        )

    def _empty(self, stage: Stage, name: str) -> Floats:
        # Not every engine takes an empty batch.
        tensor = next(tensor for tensor in self._graphs[stage].outputs if tensor.name == name)
        return np.zeros((0, *(int(axis) for axis in tensor.axes[1:])), np.float32)


class HostCascade(Cascade):
    """Every tensor is a numpy array, as the runners take and give them."""

    def __init__(self, manifest: Manifest, runners: Mapping[Stage, Runner]) -> None:
        super().__init__(manifest)
        self._runners = runners

    def _run_full(self, image: Floats) -> Floats:
        return self._runners["full"].infer({"image": image})["logits"]

    def _run_coarse(self, image: Floats) -> Seen:
        given = self._runners["coarse"].infer({"image": image})
        kept = {"image": image, "features": given["features"], "embeddings": given["embeddings"]}
        return Seen(given["logits"], given["importance"], kept)

    def _compact(self, kept: dict[str, Floats], rows: Rows) -> dict[str, Floats]:
        if rows.size == len(kept["image"]):
            return kept
        return {name: array[rows] for name, array in kept.items()}

    def _run_fine(self, kept: dict[str, Floats], selected: Ints, remaining: Ints) -> Floats:
        return self._runners["fine"].infer({**kept, "selected": selected, "remaining": remaining})["logits"]


def _joined(parts: list[Outcome]) -> Outcome:
    """One outcome of several, in their order; times add up."""

    def rows(name: str) -> Any:
        arrays = [getattr(part, name) for part in parts]
        return None if arrays[0] is None else np.concatenate(arrays)

    return Outcome(
        logits=rows("logits"),
        confidence=rows("confidence"),
        stages=tuple(stage for part in parts for stage in part.stages),
        coarse_logits=rows("coarse_logits"),
        coarse_confidence=rows("coarse_confidence"),
        importance=rows("importance"),
        selected=rows("selected"),
        stage_ms={name: sum(part.stage_ms[name] for part in parts) for name in parts[0].stage_ms},
        notes=parts[-1].notes,
        device=_joined_times([part.device for part in parts]),
    )


def _joined_times(parts: list[DeviceTimes | None]) -> DeviceTimes | None:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    names = dict.fromkeys(name for part in known for name in part.parts)
    sums = {name: sum(part.parts.get(name, 0.0) for part in known) for name in names}
    return DeviceTimes(sums, sum(part.total for part in known))
