"""Statistics of a run (`mscope-run --stats`): how many left early, and whether that or the confidence drifted."""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from json import dumps
from typing import Any

from mscope.runtime.result import Result

# Below this there are too few images in a third for the limits to mean anything.
MIN_IMAGES = 30
# Control limits, in standard errors: with no drift one run in 370 is outside.
LIMIT = 3.0


@dataclass(frozen=True)
class Drift:
    """A mean over the first and over the last third of a run, in the order of the images.

    Attributes:
        first, last: the two means.
        limit: by how much they may differ when nothing drifts: three standard errors of the difference.
        drifted: whether they differ by more.
    """

    first: float
    last: float
    limit: float
    drifted: bool


@dataclass(frozen=True)
class RunStats:
    """A run in numbers.

    Attributes:
        images: that were answered.
        exit_rate: share that left early; None for a plain ViM, as are the drifts of a cascade's numbers.
        mean_confidence: of the final answers.
        exit_rate_drift, confidence_drift: of the exits, and of the confidence that eta is compared with (of the only
            one, for a plain ViM); None below 30 images.
        deadline: with a deadline, how many images met it and for how many the fine stage was left out.
    """

    images: int
    exit_rate: float | None
    mean_confidence: float
    exit_rate_drift: Drift | None
    confidence_drift: Drift | None
    deadline: dict[str, int] | None

    @property
    def drifted(self) -> bool:
        """Whether anything did."""
        return any(drift is not None and drift.drifted for drift in (self.exit_rate_drift, self.confidence_drift))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"drifted": self.drifted}

    def lines(self) -> list[str]:
        """For people."""
        lines = [f"{self.images} images, mean confidence {self.mean_confidence:.1%}"]
        if self.exit_rate is not None:
            lines[0] += f", {self.exit_rate:.1%} left early"
        for name, drift in (("exit rate", self.exit_rate_drift), ("confidence", self.confidence_drift)):
            if drift is not None:
                found = "drifted" if drift.drifted else "steady"
                lines.append(
                    f"{name} {found}: {drift.first:.1%} in the first third, {drift.last:.1%} in the last "
                    f"(beyond {drift.limit:.1%} apart is drift)"
                )
        if self.images < MIN_IMAGES:
            lines.append(f"too few images to tell drift from chance: {MIN_IMAGES} are needed")
        if self.drifted:
            lines.append("the pictures changed over the run: check the camera, or choose eta anew")
        if self.deadline is not None:
            met, skipped = self.deadline["met"], self.deadline["skipped_fine"]
            lines.append(f"deadline met by {met} of {self.images}, the fine stage left out for {skipped}")
        return lines


class RunRecord:
    """Collects what the statistics need of each result, 24 bytes an image: a camera may run for days."""

    def __init__(self) -> None:
        self._exits, self._sure, self._final = array("d"), array("d"), array("d")
        self._met = self._skipped = self._with_deadline = 0
        self._adaptive = False

    def add(self, result: Result) -> None:
        """The next result, in the order of the run."""
        self._adaptive = result.stage != "full"
        # What eta decided, not what a deadline made of it.
        skipped = result.deadline is not None and result.deadline.skipped_fine
        self._exits.append(float(result.stage == "coarse" and not skipped))
        self._sure.append(result.confidence if result.coarse_confidence is None else result.coarse_confidence)
        self._final.append(result.confidence)
        if result.deadline is not None:
            self._with_deadline += 1
            self._met += result.deadline.met
            self._skipped += skipped

    def stats(self) -> RunStats | None:
        """The statistics so far; None before the first result."""
        if not self._final:
            return None
        return RunStats(
            images=len(self._final),
            exit_rate=_mean(self._exits) if self._adaptive else None,
            mean_confidence=_mean(self._final),
            exit_rate_drift=rate_drift(self._exits) if self._adaptive else None,
            confidence_drift=mean_drift(self._sure),
            deadline={"met": self._met, "skipped_fine": self._skipped} if self._with_deadline else None,
        )


def print_stats(stats: RunStats | None, *, json: bool) -> None:
    """Prints the statistics on stderr, as one JSON object {"stats": ...} or as lines; nothing when nothing was run.

    Never on stdout, where every line is the result of an image.
    """
    if stats is None:
        return
    lines = [dumps({"stats": stats.to_dict()}, allow_nan=False)] if json else stats.lines()
    print("\n".join(lines), file=sys.stderr, flush=True)


def rate_drift(values: Sequence[float]) -> Drift | None:
    """Drift of a share, of values 0 and 1: as in a p-chart the limits come from the binomial of both thirds."""
    thirds = _thirds(values)
    if thirds is None:
        return None
    first, last = thirds
    pooled = (sum(first) + sum(last)) / (len(first) + len(last))
    return _drift(first, last, pooled * (1.0 - pooled) * (1.0 / len(first) + 1.0 / len(last)))


def mean_drift(values: Sequence[float]) -> Drift | None:
    """Drift of a mean: the limits come from the scatter within each third."""
    thirds = _thirds(values)
    if thirds is None:
        return None
    first, last = thirds
    return _drift(first, last, _variance(first) / len(first) + _variance(last) / len(last))


def _drift(first: Sequence[float], last: Sequence[float], variance: float) -> Drift:
    before, after, limit = _mean(first), _mean(last), LIMIT * math.sqrt(variance)
    return Drift(before, after, limit, abs(after - before) > limit)


def _thirds(values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]] | None:
    if len(values) < MIN_IMAGES:
        return None
    third = len(values) // 3
    return values[:third], values[-third:]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
