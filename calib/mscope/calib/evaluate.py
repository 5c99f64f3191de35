"""What stored outputs say: accuracy, calibration and cost of each stage and of the cascade over eta, with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mscope.calib.intervals import RESAMPLES, Estimate, estimate, percentile_interval, resampled_counts, wilson
from mscope.calib.latency import StageLatency
from mscope.calib.outputs import Outputs
from mscope.core.cascade import confidence, exits_early
from mscope.core.cost import Cost
from mscope.core.curve import (
    OperatingPoints,
    ReliabilityBin,
    calibration_error,
    reliability,
    reliability_bin,
)
from mscope.core.manifest import Manifest, Temperature

TOP = 5
CURVE_POINTS = 200
RELIABILITY_BINS = 15

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Answers:
    """One way to answer every image: a stage alone, the cascade, or plain ViM.

    Attributes:
        top1: accuracy.
        top5: share of images whose class is among the five likeliest; None where there are no more than five classes.
        ece: expected calibration error of the confidence.
        gmacs: mean cost of an image, with its interval.
        latency_ms: expected time of an image at batch 1; None if not measured.
        bins: confidence against accuracy.
    """

    top1: Estimate
    top5: Estimate | None
    ece: Estimate
    gmacs: Estimate
    latency_ms: float | None
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class CurveRow:
    """The cascade at one eta."""

    eta: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    exit_rate: float
    gmacs: float
    latency_ms: float | None


@dataclass(frozen=True)
class ClassRow:
    """One class: accuracies in [0, 1]; `low` and `high` are Wilson's interval of `adaptive` (of `plain` without it)."""

    index: int
    label: str
    images: int
    coarse: float | None
    fine: float | None
    adaptive: float | None
    plain: float | None
    exit_rate: float | None
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """Everything that follows from the outputs of a bundle, and of a plain ViM beside it.

    Attributes:
        images: that were read.
        level: of every interval.
        eta: of the adaptive answers; None for a plain ViM bundle.
        exit_rate: share of images that exit at that eta.
        answers: by name: coarse, fine (every image refined), adaptive, plain.
        differences: accuracy of adaptive minus that of coarse, fine and plain, on the same images.
        curve: the cascade over eta: all distinct points, or about 200 of them; empty for a plain ViM.
        curve_points: how many distinct points there are.
        classes: one row for each class that has images.
        latency: measured stages; None if not measured.
    """

    images: int
    level: float
    eta: float | None
    temperature: Temperature
    exit_rate: Estimate | None
    answers: dict[str, Answers]
    differences: dict[str, Estimate]
    curve: tuple[CurveRow, ...]
    curve_points: int
    classes: tuple[ClassRow, ...]
    latency: StageLatency | None


@dataclass(frozen=True)
class _Answered:
    """One way to answer, image by image: right, among the top five, confidence; and its cost."""

    right: Bools
    among: Bools
    sure: Floats
    gmacs: float
    latency_ms: float | None


def cascade_cost(manifest: Manifest) -> Cost:
    """GMACs of the stages as the manifest has them, with plain ViM's of that size."""
    stages = manifest.stages
    return Cost(stages["coarse"].gmacs, stages["fine"].gmacs, manifest.baseline.gmacs)


def points_of(outputs: Outputs, temperature: float) -> OperatingPoints:
    """The operating points of a cascade, its coarse confidence scaled by `temperature`."""
    assert outputs.coarse_logits is not None
    assert outputs.fine_logits is not None
    return OperatingPoints(
        confidence(outputs.coarse_logits, temperature),
        outputs.coarse_logits.argmax(axis=1) == outputs.labels,
        outputs.fine_logits.argmax(axis=1) == outputs.labels,
    )


def evaluate(
    manifest: Manifest,
    outputs: Outputs,
    *,
    eta: float | None = None,
    plain: Outputs | None = None,
    plain_gmacs: float | None = None,
    latency: StageLatency | None = None,
    plain_latency_ms: float | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """Evaluates stored outputs. All intervals share their resamples of the images, so that differences are paired.

    Args:
        manifest: of the bundle.
        outputs: of the bundle: both stages, or a plain ViM's.
        eta: threshold of the adaptive answers; None: the bundle's.
        plain: outputs of a plain ViM on the same images, for comparison.
        plain_gmacs: its cost; None: the manifest's baseline.
        latency: measured stages of the bundle.
        plain_latency_ms: measured time of the plain ViM.
        level: confidence level of the intervals.
        resamples: bootstrap resamples.
        seed: of the resampling.

    Raises:
        InputError: eta is outside [0, 1].
    """
    temperature = manifest.temperature
    labels = outputs.labels
    ways: dict[str, _Answered] = {}
    early: Bools | None = None
    points: OperatingPoints | None = None
    shown: list[int] = []
    if outputs.coarse_logits is not None and outputs.fine_logits is not None:
        cost = cascade_cost(manifest)
        eta = manifest.default_eta if eta is None else eta
        coarse = _answered(outputs.coarse_logits, labels, temperature.coarse, cost.coarse, _time(latency, 1.0))
        fine = _answered(outputs.fine_logits, labels, temperature.fine, cost.adaptive(0.0), _time(latency, 0.0))
        early = exits_early(coarse.sure, eta)
        rate = float(early.mean())
        adaptive = _Answered(
            np.where(early, coarse.right, fine.right),
            np.where(early, coarse.among, fine.among),
            np.where(early, coarse.sure, fine.sure),
            cost.adaptive(rate),
            _time(latency, rate),
        )
        ways = {"coarse": coarse, "fine": fine, "adaptive": adaptive}
        points = points_of(outputs, temperature.coarse)
        shown = points.thinned(CURVE_POINTS, [points.at(eta)])
    if outputs.full_logits is not None:
        plain, plain_gmacs = outputs, manifest.stages["full"].gmacs
    if plain is not None:
        assert plain.full_logits is not None
        cost_of_plain = manifest.baseline.gmacs if plain_gmacs is None else plain_gmacs
        ways["plain"] = _answered(plain.full_logits, labels, 1.0, cost_of_plain, plain_latency_ms)

    draws = _Draws(ways, early, points, shown, resamples, seed)
    answers = {name: _answers(name, way, draws, manifest, level) for name, way in ways.items()}
    differences = {}
    if "adaptive" in ways:
        for name in ways:
            if name != "adaptive":
                value = answers["adaptive"].top1.value - answers[name].top1.value
                paired = draws.top1["adaptive"] - draws.top1[name]
                differences[f"adaptive - {name}"] = estimate(value, paired, level)
    return Evaluation(
        images=len(outputs),
        level=level,
        eta=eta,
        temperature=temperature,
        exit_rate=None if early is None else estimate(float(early.mean()), draws.exits, level, share_of=len(outputs)),
        answers=answers,
        differences=differences,
        curve=() if points is None else _curve(points, shown, draws, manifest, latency, level, eta),
        curve_points=0 if points is None else len(points),
        classes=_classes(manifest, labels, ways, early, level),
        latency=latency,
    )


class _Draws:
    """Every figure on every resample: (resamples,) float64 arrays by name, and the curve's (resamples, points)."""

    def __init__(
        self,
        ways: dict[str, _Answered],
        early: Bools | None,
        points: OperatingPoints | None,
        shown: list[int],
        resamples: int,
        seed: int,
    ) -> None:
        images = len(next(iter(ways.values())).right)
        names = list(ways)
        columns = [way.right for way in ways.values()] + [way.among for way in ways.values()]
        if early is not None:
            columns.append(early)
        values = np.stack(columns).astype(np.float64)
        bins = [reliability_bin(way.sure, RELIABILITY_BINS) for way in ways.values()]
        gaps = [way.sure.astype(np.float64) - way.right for way in ways.values()]
        means = np.empty((resamples, len(columns)))
        eces = np.empty((resamples, len(names)))
        self.curve = np.empty((resamples, len(shown)))
        for row, counts in enumerate(resampled_counts(images, resamples, seed)):
            means[row] = values @ counts / images
            for column, (bin_of, gap) in enumerate(zip(bins, gaps, strict=True)):
                sums = np.bincount(bin_of, weights=gap * counts, minlength=RELIABILITY_BINS)
                eces[row, column] = np.abs(sums).sum() / images
            if points is not None:
                self.curve[row] = points.rates(counts)[0][shown]
        self.top1 = {name: means[:, i] for i, name in enumerate(names)}
        self.top5 = {name: means[:, len(names) + i] for i, name in enumerate(names)}
        self.ece = {name: eces[:, i] for i, name in enumerate(names)}
        self.exits = means[:, -1]


def _answered(
    logits: Floats, labels: npt.NDArray[np.int64], temperature: float, gmacs: float, latency_ms: float | None
) -> _Answered:
    own = logits[np.arange(len(labels)), labels][:, None]
    # Ties go to the lower index, as argmax has it.
    ahead = (logits > own).sum(axis=1)
    ahead += ((logits == own) & (np.arange(logits.shape[1]) < labels[:, None])).sum(axis=1)
    return _Answered(ahead == 0, ahead < TOP, confidence(logits, temperature), gmacs, latency_ms)


def _answers(name: str, way: _Answered, draws: _Draws, manifest: Manifest, level: float) -> Answers:
    images = len(way.right)
    top5 = None
    if manifest.config.classes > TOP:
        top5 = estimate(float(way.among.mean()), draws.top5[name], level, share_of=images)
    bins = reliability(way.sure, way.right, RELIABILITY_BINS)
    gmacs = np.full(len(draws.exits), way.gmacs)
    if name == "adaptive":
        cost = cascade_cost(manifest)
        gmacs = cost.coarse + (1.0 - draws.exits) * cost.fine
    return Answers(
        top1=estimate(float(way.right.mean()), draws.top1[name], level, share_of=images),
        top5=top5,
        ece=estimate(calibration_error(bins), draws.ece[name], level, biased=True),
        gmacs=estimate(way.gmacs, gmacs, level),
        latency_ms=way.latency_ms,
        bins=bins,
    )


def _curve(
    points: OperatingPoints,
    shown: list[int],
    draws: _Draws,
    manifest: Manifest,
    latency: StageLatency | None,
    level: float,
    eta: float | None,
) -> tuple[CurveRow, ...]:
    accuracy, exit_rate = points.rates()
    low, high = percentile_interval(draws.curve, level)
    cost = cascade_cost(manifest)
    chosen = None if eta is None else points.at(eta)
    return tuple(
        CurveRow(
            # The eta in use keeps its own name; the others get the shortest number that is their point.
            eta=eta if eta is not None and point == chosen else points.eta(point),
            accuracy=float(accuracy[point]),
            accuracy_low=float(low[place]),
            accuracy_high=float(high[place]),
            exit_rate=float(exit_rate[point]),
            gmacs=cost.adaptive(float(exit_rate[point])),
            latency_ms=_time(latency, float(exit_rate[point])),
        )
        for place, point in enumerate(shown)
    )


def _classes(
    manifest: Manifest, labels: npt.NDArray[np.int64], ways: dict[str, _Answered], early: Bools | None, level: float
) -> tuple[ClassRow, ...]:
    count = np.bincount(labels, minlength=manifest.config.classes)

    def share(values: Bools | None) -> npt.NDArray[np.float64] | None:
        if values is None:
            return None
        return np.bincount(labels, weights=values, minlength=len(count)) / np.maximum(count, 1)

    rates = {name: share(way.right) for name, way in ways.items()}
    exits = share(early)
    rows = []
    for index in np.flatnonzero(count).tolist():
        of_class = {name: None if (rate := rates.get(name)) is None else float(rate[index])
                    for name in ("coarse", "fine", "adaptive", "plain")}  # fmt: skip
        headline = of_class["plain"] if of_class["adaptive"] is None else of_class["adaptive"]
        assert headline is not None
        low, high = wilson(headline, int(count[index]), level)
        label = manifest.labels[index] if manifest.labels else f"class {index}"
        rows.append(
            ClassRow(
                index=index,
                label=label,
                images=int(count[index]),
                **of_class,
                exit_rate=None if exits is None else float(exits[index]),
                low=float(low),
                high=float(high),
            )
        )
    return tuple(rows)


def _time(latency: StageLatency | None, exit_rate: float) -> float | None:
    if latency is None:
        return None
    return latency.coarse + latency.select if exit_rate == 1.0 else latency.adaptive(exit_rate)
