"""The choice of eta, and of the bundle where several are given, by trying every operating point that the data has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mscope.calib.intervals import Estimate, resampled_counts, wilson
from mscope.calib.targets import UNITS, CostName, Target
from mscope.core.curve import OperatingPoints
from mscope.core.errors import InputError

Floats = npt.NDArray[np.float64]
_TIGHTENINGS = 12
# The figures of a point come from sums in floating point: 0.79 must not miss 79 of 100 by a rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Candidate:
    """One bundle to choose from.

    Attributes:
        points: its operating points on the images, the same ones for all candidates.
        costs: by name (gmacs, latency in ms, energy in J) what every image costs, and what refining one adds; "gmacs"
            is always there, the others where they were measured.
    """

    points: OperatingPoints
    costs: Mapping[CostName, tuple[float, float]]

    def mean(self, name: CostName, exit_rate: Floats) -> Floats:
        """Mean cost of an image at each exit rate."""
        always, refined = self.costs[name]
        return always + (1.0 - exit_rate) * refined


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        bundle: index of the candidate.
        point: of its operating points.
        eta: a short number that is this point.
        accuracy: on the images that the choice was made on.
        optimism: expected excess of that over the accuracy on new images, because eta was chosen on the same ones
            (bootstrap: choose on a resample, compare with all images; Efron and Gong 1983).
        interval: of the accuracy on new images: Wilson's, both ends lowered by the optimism.
        exit_rate: share of the images that exit there.
        costs: mean costs of an image there, by name.
        bound: what is held against the target: the figure itself, or with a confidence level its safe end.
    """

    bundle: int
    point: int
    eta: float
    accuracy: float
    optimism: float
    interval: Estimate
    exit_rate: float
    costs: Mapping[CostName, float]
    bound: float


class UnreachableError(InputError):
    """No operating point reaches the target; the message says what the best one has."""


def choose(
    candidates: Sequence[Candidate],
    target: Target,
    images: int,
    *,
    safe: bool = False,
    level: float = 0.95,
    resamples: int = 500,
    seed: int = 0,
) -> Choice:
    """The cheapest point that has the accuracy, or the most accurate one within the cost.

    Ties go to the better figure of the other kind, then to the earlier bundle, then to the larger eta.

    Args:
        candidates: bundles with their points on the same images.
        target: what is to hold.
        images: how many there are.
        safe: the target has to hold for the end of the figure's interval that is against it (optimism included), not
            just for the figure.
        level: confidence level of that interval and of the reported one, two-sided.
        resamples: bootstrap resamples of the optimism.
        seed: of the resampling.

    Raises:
        UnreachableError: no point reaches the target.
    """
    search = _Search(candidates, target, images, level if safe else None)
    everything = search.figures(None)
    required = target.value
    for _ in range(_TIGHTENINGS):
        chosen = search.best(everything, required)
        if chosen is None:
            break
        flattery = search.optimism(everything, required, resamples, seed)
        bound = float(search.bounds(everything)[chosen])
        if safe:
            # The optimism of the constrained figure: what looks better than it is counts against it.
            bound -= search.sign * flattery.constrained
        shortfall = search.sign * (target.value - bound)
        if shortfall <= _ROUNDING * max(1.0, target.value):
            return search.choice(everything, chosen, flattery.accuracy, bound, level)
        required += search.sign * shortfall * (1.0 + 1e-6)
    raise UnreachableError(search.best_reachable(everything, safe))


@dataclass(frozen=True)
class _Figures:
    """Of all candidates' points one after the other, (m,) each, on one (re)sample; `cost` is what the target weighs."""

    accuracy: Floats
    exit_rate: Floats
    cost: Floats


@dataclass(frozen=True)
class _Optimism:
    accuracy: float
    constrained: float


class _Search:
    def __init__(self, candidates: Sequence[Candidate], target: Target, images: int, level: float | None) -> None:
        self._candidates, self._target, self._images, self._level = candidates, target, images, level
        self._accuracy_bound = target.metric == "accuracy"
        self.sign = 1.0 if self._accuracy_bound else -1.0
        self._cost: CostName = "gmacs" if target.metric == "accuracy" else target.metric
        if any(self._cost not in candidate.costs for candidate in candidates):
            raise InputError(f"--target {target}: the {self._cost} of the bundles was not measured")
        self._bundle = np.concatenate(
            [np.full(len(candidate.points), place) for place, candidate in enumerate(candidates)]
        )
        self._point = np.concatenate([np.arange(len(candidate.points)) for candidate in candidates])

    def figures(self, counts: npt.NDArray[np.int64] | None) -> _Figures:
        rates = [candidate.points.rates(counts) for candidate in self._candidates]
        exits = np.concatenate([exit_rate for _, exit_rate in rates])
        return _Figures(np.concatenate([accuracy for accuracy, _ in rates]), exits, self._costs(exits))

    def _costs(self, exit_rate: Floats) -> Floats:
        ends = np.cumsum([len(candidate.points) for candidate in self._candidates])[:-1]
        parts = zip(self._candidates, np.split(exit_rate, ends), strict=True)
        return np.concatenate([candidate.mean(self._cost, rate) for candidate, rate in parts])

    def constrained(self, figures: _Figures) -> Floats:
        """The figure that the target bounds."""
        return figures.accuracy if self._accuracy_bound else figures.cost

    def bounds(self, figures: _Figures) -> Floats:
        """That figure, or the end of its interval that is against the target."""
        if self._level is None:
            return self.constrained(figures)
        if self._accuracy_bound:
            return wilson(figures.accuracy, self._images, self._level)[0]
        return self._costs(wilson(figures.exit_rate, self._images, self._level)[0])

    def best(self, figures: _Figures, required: float) -> int | None:
        """The best point whose bound reaches `required`; None if none does."""
        margin = self.sign * (self.bounds(figures) - required)
        feasible = np.flatnonzero(margin >= -_ROUNDING * max(1.0, abs(required)))
        if not feasible.size:
            return None
        # Costs that differ by rounding only are one cost.
        cost = np.round(figures.cost[feasible] / max(float(figures.cost.max()), 1e-300), 12)
        accuracy = figures.accuracy[feasible]
        first, second = (cost, -accuracy) if self._accuracy_bound else (-accuracy, cost)
        order = np.lexsort((-self._point[feasible], self._bundle[feasible], second, first))
        return int(feasible[order[0]])

    def optimism(self, everything: _Figures, required: float, resamples: int, seed: int) -> _Optimism:
        """How much the same choice on a resample flatters itself, against all images, on average."""
        accuracy = constrained = 0.0
        whole = self.constrained(everything)
        for counts in resampled_counts(self._images, resamples, seed):
            figures = self.figures(counts)
            chosen = self.best(figures, required)
            if chosen is None:
                chosen = int(np.argmax(self.sign * self.bounds(figures)))
            accuracy += figures.accuracy[chosen] - everything.accuracy[chosen]
            constrained += self.sign * (self.constrained(figures)[chosen] - whole[chosen])
        return _Optimism(max(0.0, float(accuracy) / resamples), max(0.0, float(constrained) / resamples))

    def choice(self, figures: _Figures, chosen: int, optimism: float, bound: float, level: float) -> Choice:
        bundle, point = int(self._bundle[chosen]), int(self._point[chosen])
        candidate = self._candidates[bundle]
        accuracy, exit_rate = float(figures.accuracy[chosen]), figures.exit_rate[chosen]
        low, high = wilson(accuracy, self._images, level)
        return Choice(
            bundle=bundle,
            point=point,
            eta=candidate.points.eta(point),
            accuracy=accuracy,
            optimism=optimism,
            interval=Estimate(accuracy - optimism, max(0.0, float(low) - optimism), max(0.0, float(high) - optimism)),
            exit_rate=float(exit_rate),
            costs={name: float(candidate.mean(name, exit_rate)) for name in candidate.costs},
            bound=bound,
        )

    def best_reachable(self, figures: _Figures, safe: bool) -> str:
        bounds = self.bounds(figures)
        chosen = int(np.argmax(self.sign * bounds))
        candidate = self._candidates[int(self._bundle[chosen])]
        eta = candidate.points.eta(int(self._point[chosen]))
        end = (" (safe end of the interval, before the optimism of the choice)") if safe else ""
        return (
            f"{self._target} cannot be reached on these {self._images} images: the best {self._target.metric} is "
            f"{float(bounds[chosen]):.6g}{UNITS[self._target.metric]}{end}, at eta {eta:g} (accuracy "
            f"{figures.accuracy[chosen]:.4f}, {figures.exit_rate[chosen]:.0%} exit early); nothing was written"
        )
