"""A prediction as an answer: would this network hold that frame rate on that device?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mscope.core.config import ModelConfig
from mscope.core.cost import stage_cost
from mscope.core.errors import InputError
from mscope.core.manifest import Manifest
from mscope.runtime.profiling.devices import CPU, Cpu, Gpu, gpu_named
from mscope.runtime.profiling.roofline import Precision, Prediction, StageName, predict

LABEL = "a prediction, not a measurement"
SWEEP_RESOLUTIONS = (224, 384, 512, 768, 1024)
SWEEP_BATCHES = (1, 8, 32)

_GPU_ASSUMPTIONS = (
    "a TensorRT engine with this package's plugin, replayed as a CUDA graph",
    "30 to 70 % of the arithmetic peak, 50 to 85 % of the bandwidth, tiles of 64 x 64 that one multiprocessor makes",
    "clocks at the mode's highest: no throttling, nothing else on the device",
)
_INT8_ASSUMPTION = "every product in int8, all else in float32; at worst a kernel more for each product, which rounds"
_CPU_ASSUMPTIONS = (
    "native kernels in ONNX Runtime on one or two cores of the processor named, nothing else on it",
    "rates of matrix products and of the scan as measured one by one on that processor",
)
_ALL_ASSUMPTIONS = ("the network alone: no camera, decoding, resizing, nor transfer of the picture",)


@dataclass(frozen=True)
class Question:
    """What is asked: a network on a device, and at which rate of frames.

    Attributes:
        device: a name of the table, or "cpu".
        fps: images a second that must be held; None: only the latencies.
        eta: the threshold; it matters only through the exit rate.
        exit_rate: share of images that leave early; None: unknown.
    """

    config: ModelConfig
    device: str
    precision: Precision
    batch: int = 1
    fps: float | None = None
    eta: float | None = None
    exit_rate: float | None = None
    threads: int = 2


@dataclass(frozen=True)
class Span:
    """Milliseconds of a batch, from best to worst."""

    best_ms: float
    worst_ms: float

    def within(self, budget_ms: float) -> bool | None:
        """Whether it fits into a budget; None where only the best case does."""
        return True if self.worst_ms <= budget_ms else None if self.best_ms <= budget_ms else False

    def __str__(self) -> str:
        return f"{short(self.best_ms)} to {short(self.worst_ms)} ms"


def short(value: float) -> str:
    """Three digits, and no exponent for thousands."""
    return f"{value:.0f}" if value >= 100.0 else f"{value:.3g}"


@dataclass(frozen=True)
class Answer:
    """Latencies by stage and path, and what they mean in words."""

    question: Question
    device_name: str
    source: str
    stages: tuple[Prediction, ...]
    paths: dict[str, Span]
    words: tuple[str, ...]
    assumptions: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for strict JSON; `prediction` is always true."""
        asked = self.question
        config = asked.config
        return {
            "prediction": True,
            "device": self.device_name,
            "source": self.source,
            "size": config.size,
            "arch": config.arch,
            "resolution": [config.height, config.width],
            "alpha": config.alpha,
            "precision": asked.precision,
            "batch": asked.batch,
            "fps": asked.fps,
            "eta": asked.eta,
            "exit_rate": asked.exit_rate,
            "stages": {
                entry.stage: {"best_ms": entry.best_ms, "worst_ms": entry.worst_ms, "limits": entry.limits}
                for entry in self.stages
            },
            "paths": {name: {"best_ms": span.best_ms, "worst_ms": span.worst_ms} for name, span in self.paths.items()},
            "words": list(self.words),
            "assumptions": list(self.assumptions),
        }


def device_named(name: str) -> Gpu | Cpu:
    """A device of the table. Raises InputError."""
    return CPU if name == "cpu" else gpu_named(name)


def exit_rate_of(manifest: Manifest, eta: float) -> float | None:
    """The share of images that leave early at eta, interpolated in the bundle's curve; None where it has none there."""
    points = sorted((point.eta, point.exit_rate) for point in manifest.eta_curve or ())
    if not points or not points[0][0] <= eta <= points[-1][0]:
        return None
    return float(np.interp(eta, [x for x, _ in points], [y for _, y in points]))


def answer(question: Question) -> Answer:
    """Predicts every stage and says whether the rate is held. Raises InputError for values out of range."""
    if question.fps is not None and not 0.0 < question.fps <= 1e6:
        raise InputError(f"--fps is above 0, got {question.fps:g}")
    for name, value in (("--eta", question.eta), ("--exit-rate", question.exit_rate)):
        if value is not None and not 0.0 <= value <= 1.0:
            raise InputError(f"{name} lies in 0 to 1, got {value:g}")
    device = device_named(question.device)
    names: tuple[StageName, ...] = ("full",) if question.config.arch == "vim" else ("coarse", "fine", "full")
    stages = tuple(
        predict(
            question.config, name, device, batch=question.batch, precision=question.precision, threads=question.threads
        )
        for name in names
    )
    spans = {entry.stage: Span(entry.best_ms, entry.worst_ms) for entry in stages}
    paths = {"plain": spans["full"]}
    if "coarse" in spans:
        coarse, fine = spans["coarse"], spans["fine"]
        paths = {
            "exit": coarse,
            "refine": Span(coarse.best_ms + fine.best_ms, coarse.worst_ms + fine.worst_ms),
            "plain": spans["full"],
        }
    own = _CPU_ASSUMPTIONS if isinstance(device, Cpu) else _GPU_ASSUMPTIONS
    if question.precision == "int8":
        own = (*own, _INT8_ASSUMPTION)
    words = (*_frames(question, device.name, paths), *_mean(question, paths), *_against_plain(question, stages))
    return Answer(question, device.name, device.source, stages, paths, words, (*own, *_ALL_ASSUMPTIONS))


def _frames(question: Question, device: str, paths: dict[str, Span]) -> list[str]:
    """Whether each single batch is ready before the next one comes."""
    if question.fps is None:
        return []
    budget = 1e3 * question.batch / question.fps
    what = f"{question.config.size} on {device}, {question.precision}, batch {question.batch}"
    goal = f"{question.fps:g} images a second leave {budget:.3g} ms"
    if "refine" not in paths:
        fits = paths["plain"].within(budget)
        return [f"predicted: {_YES_NO[fits]}, {goal}; plain {what} takes {paths['plain']}"]
    leave, refine = paths["exit"], paths["refine"]
    if refine.within(budget) is True:
        return [f"predicted: yes, {goal}; even a refined image of {what} takes {refine}, so it holds at every eta"]
    if leave.within(budget) is False:
        return [f"predicted: no, {goal}; even an image that exits early takes {leave} ({what})"]
    certain = refine.within(budget) is False
    head = "not every frame" if certain else "perhaps"
    return [f"predicted: {head}, {goal}; an image that exits early takes {leave}, a refined one {refine} ({what})"]


_YES_NO = {True: "yes", False: "no", None: "perhaps"}


def _mean(question: Question, paths: dict[str, Span]) -> list[str]:
    """What the exit rate makes of it: on average, frames may wait for each other in a queue."""
    if "refine" not in paths:
        return []
    leave, refine = paths["exit"], paths["refine"]
    at = "" if question.eta is None else f" at eta {question.eta:g}"
    found = []
    rate = question.exit_rate
    if rate is not None:
        mean = Span(
            *(
                rate * e + (1 - rate) * r
                for e, r in ((leave.best_ms, refine.best_ms), (leave.worst_ms, refine.worst_ms))
            )
        )
        line = f"with {rate:.0%} early exits{at} the mean is {mean}"
        if question.fps is not None:
            fits = mean.within(1e3 * question.batch / question.fps)
            held = {True: "held", False: "not held", None: "held in the best case only"}[fits]
            line += f": on average {question.fps:g} images a second are {held}"
        return [line]
    if question.eta is not None:
        found.append(
            f"how many images exit early{at} depends on the weights and the pictures: give --exit-rate, or a --bundle "
            "with a curve"
        )
    if question.fps is not None and refine.within(1e3 * question.batch / question.fps) is not True:
        budget = 1e3 * question.batch / question.fps
        needed = [
            _needed(e, r, budget) for e, r in ((leave.best_ms, refine.best_ms), (leave.worst_ms, refine.worst_ms))
        ]
        low, high = ("no exit rate" if n is None else f"{n:.0%}" for n in needed)
        found.append(
            f"on average it holds when at least {low} (best case) to {high} (worst case) of the images exit early"
        )
    return found


def _needed(leave: float, refine: float, budget: float) -> float | None:
    """The smallest exit rate whose mean fits into the budget; None where none does."""
    return None if leave > budget else max(0.0, (refine - budget) / (refine - leave))


def _against_plain(question: Question, stages: tuple[Prediction, ...]) -> list[str]:
    """Where adaptivity pays there, which launch-bound devices decide otherwise than GMACs."""
    by = {entry.stage: entry for entry in stages}
    if "coarse" not in by:
        return []
    cost = stage_cost(question.config)
    ends = [
        1.0 - (full - coarse) / fine
        for coarse, fine, full in (
            (by["coarse"].best_ms, by["fine"].best_ms, by["full"].best_ms),
            (by["coarse"].worst_ms, by["fine"].worst_ms, by["full"].worst_ms),
        )
    ]
    low, high = sorted(max(0.0, end) for end in ends)
    by_macs = max(0.0, 1.0 - (cost.full - cost.coarse) / cost.fine)
    if low > 1.0:
        return [f"slower than plain ViM even if every image exits early (by GMACs it pays above {by_macs:.0%})"]
    more = f"{low:.0%}" if round(low, 2) == round(high, 2) else f"{low:.0%} to {high:.0%}"
    if high > 1.0:
        return [f"faster than plain ViM at best when more than {low:.0%} of the images exit early, at worst never"]
    return [f"faster than plain ViM when more than {more} of the images exit early (by GMACs {by_macs:.0%})"]
