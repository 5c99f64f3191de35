"""What differs between runs of one program: how far a further run may be off before it means something.

The samples of a run tell nothing of it: where memory lies, what else the host runs, how warm it is change from process
to process. Several runs of A tell: the logarithm of a statistic is taken for normal over runs, and a further run lies
within Student's prediction interval, mean +- t s sqrt(1 + 1/n), 19 of 20 times.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mscope.core.errors import InputError
from mscope.runtime.profiling.diff_statistics import NEEDED
from mscope.runtime.profiling.schema import Profile

# 97.5 % quantiles of Student's t by degrees of freedom; for more than the last the last, which is a little wide.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Between:
    """Between `low` and `high`, relative to A, a further run of A's program lies with 95 %; `runs` are known."""

    batch: int
    path: str
    metric: str
    runs: int
    low: float
    high: float

    def holds(self, change: float) -> bool:
        """Whether a relative change from A is one that runs show by themselves."""
        return self.low <= change <= self.high


def between_runs(first: Profile, again: Sequence[Profile]) -> tuple[Between, ...]:
    """The interval of each statistic of each path that all runs have samples enough for.

    Args:
        first: A.
        again: further runs of the same, two or more: of one difference alone nothing follows (t is 12.7).

    Raises:
        InputError: fewer than two, or runs of something else than A.
    """
    if len(again) < 2:
        raise InputError("--again takes two more runs of A at least: from one nothing follows on how runs differ")
    for profile in again:
        if (profile.bundle.manifest_sha256, profile.runtime) != (first.bundle.manifest_sha256, first.runtime):
            raise InputError("--again takes further runs of A: the same bundle, backend, precision and threads")
    runs = [_statistics(profile) for profile in (first, *again)]
    found = []
    for key in runs[0]:
        values = [math.log(run[key]) for run in runs if run.get(key, 0.0) > 0.0]
        if len(values) < len(runs):
            continue
        spread = statistics.stdev(values) * math.sqrt(1.0 + 1.0 / len(values))
        half = _T[min(len(values) - 1, len(_T)) - 1] * spread
        middle = statistics.fmean(values)
        low, high = (math.exp(middle + side * half - values[0]) - 1.0 for side in (-1, 1))
        found.append(Between(*key, len(values), low, high))
    return tuple(found)


def _statistics(profile: Profile) -> dict[tuple[int, str, str], float]:
    """By batch, path and metric, milliseconds."""
    return {
        (batch.batch, name, metric): float(getattr(path.total.summary, f"{metric}_ms"))
        for batch in profile.batches
        for name, path in batch.paths.items()
        for metric, needed in NEEDED.items()
        if path.total.summary.count >= needed
    }
