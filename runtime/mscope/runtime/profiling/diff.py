"""Two profiles compared, path by path and part by part, and conditions that a build can be held to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from mscope.core.errors import InputError
from mscope.runtime.profiling.diff_runs import Between, between_runs
from mscope.runtime.profiling.diff_statistics import (
    MIN_SAMPLES,
    NEEDED,
    Change,
    changes_of,
    mann_whitney_p,
)
from mscope.runtime.profiling.schema import PathProfile, Profile

# What a condition may name beside the statistics of a latency.
_OTHER = ("throughput", "memory", "energy")
_CONDITION = re.compile(
    r"(?:(?P<path>exit|refine|plain)\.)?(?P<metric>[a-z0-9]+)\s*(?P<sign>[<>])\s*(?P<limit>[+-]?\d{1,6}(?:\.\d{1,6})?)\s*%"
)
_SHOWN = ("p50", "p99")


@dataclass(frozen=True)
class Condition:
    """What must not happen, such as "refine.p99 > +5 %": `limit` is 0.05. Without a path it holds for each of them."""

    text: str
    path: str | None
    metric: str
    above: bool
    limit: float


def parse_condition(text: str) -> Condition:
    """A condition from `[PATH.]METRIC>+N%` or `<-N%`. Raises InputError that names the forms."""
    found = _CONDITION.fullmatch(text.strip())
    metrics = (*NEEDED, *_OTHER)
    if found is None or found["metric"] not in metrics:
        raise InputError(
            f"condition '{text}': write [exit.|refine.|plain.]METRIC>+N% or METRIC<-N%, METRIC one of "
            f"{', '.join(metrics)}; such as 'p99>+5%' or 'throughput<-5%'"
        )
    limit = float(found["limit"]) / 100.0
    if (found["sign"] == ">") != (limit >= 0.0):
        raise InputError(f"condition '{text}' would fail when nothing changes: write >+N% or <-N%")
    return Condition(text.strip(), found["path"], found["metric"], found["sign"] == ">", limit)


@dataclass(frozen=True)
class SeriesDiff:
    """One series of both profiles.

    Attributes:
        batch, path: where it was measured.
        part: "total", or a part's name.
        counts: samples of A and of B.
        p: Mann-Whitney's, of "no difference at all"; None below 8 samples.
        changes: by statistic; those that the samples do not suffice for are absent.
    """

    batch: int
    path: str
    part: str
    counts: tuple[int, int]
    p: float | None
    changes: dict[str, Change]


@dataclass(frozen=True)
class Exceeded:
    """A condition that did not hold, and where; `change` is relative, `low` and `high` None where there is no test."""

    condition: str
    where: str
    change: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ProfileDiff:
    """Everything found: A is the first profile, B the second; changes are from A to B.

    Attributes:
        differences: what is not the same beside the latencies, in words.
        doubts: warnings that the profiles themselves carry.
        series: totals and parts of every path.
        peak_memory, energy: relative changes (energy by (batch, path)); None where either has none.
        exceeded: conditions that did not hold; their figures are significant, or have no spread to test.
        between: how far runs of A are apart by themselves; empty when only one is known.
    """

    differences: tuple[str, ...]
    doubts: tuple[str, ...]
    series: tuple[SeriesDiff, ...]
    peak_memory: float | None
    energy: dict[tuple[int, str], Change]
    exceeded: tuple[Exceeded, ...]
    between: tuple[Between, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values, for strict JSON."""
        return {
            "differences": list(self.differences),
            "doubts": list(self.doubts),
            "series": [
                {**asdict(s), "changes": {n: asdict(c) | {"significant": c.significant} for n, c in s.changes.items()}}
                for s in self.series
            ],
            "peak_memory": self.peak_memory,
            "energy": [
                {"batch": batch, "path": path, **asdict(change)} for (batch, path), change in self.energy.items()
            ],
            "exceeded": [asdict(entry) for entry in self.exceeded],
            "between_runs": [asdict(entry) for entry in self.between],
        }


def compare(
    before: Profile,
    after: Profile,
    conditions: Sequence[Condition] = (),
    *,
    again: Sequence[Profile] = (),
    force: bool = False,
) -> ProfileDiff:
    """Compares two profiles and checks conditions.

    A condition fails where the figure is beyond the limit *and* the 95 % interval of its change leaves out "no change",
    and, with further runs of A in `again`, where it is also beyond what these differ by among themselves.

    Raises:
        InputError: profiles of other models, batch sizes or threads (unless `force`), nothing in common, a condition
            that these profiles cannot answer, or too few runs in `again`, or not of A.
    """
    refused = _mismatches(before, after)
    if refused and not force:
        raise InputError(f"not comparable: {'; '.join(refused)}: measure alike, or --force")
    series = tuple(_series(before, after))
    if not series:
        raise InputError("not comparable: no path at the same batch size in both")
    found = ProfileDiff(
        differences=(*refused, *_differences(before, after)),
        doubts=tuple(f"{name}: {line}" for name, profile in (("A", before), ("B", after)) for line in profile.warnings),
        series=series,
        peak_memory=_memory(before, after),
        energy=_energy(before, after),
        exceeded=(),
        between=between_runs(before, again) if again else (),
    )
    return replace(found, exceeded=tuple(entry for condition in conditions for entry in _check(condition, found)))


def _mismatches(a: Profile, b: Profile) -> list[str]:
    pairs: list[tuple[str, object, object]] = [
        ("architecture", a.bundle.arch, b.bundle.arch),
        ("size", a.bundle.size, b.bundle.size),
        ("resolution", _by(a.bundle.resolution), _by(b.bundle.resolution)),
        ("alpha", a.bundle.alpha, b.bundle.alpha),
        ("threads", a.runtime.threads, b.runtime.threads),
        ("batches", [x.batch for x in a.batches], [x.batch for x in b.batches]),
    ]
    return [f"{name} {x} and {y}" for name, x, y in pairs if x != y]


def _differences(a: Profile, b: Profile) -> list[str]:
    pairs: list[tuple[str, object, object]] = [
        ("processor", a.machine.cpu, b.machine.cpu),
        ("device", a.machine.device, b.machine.device),
        ("power mode", a.machine.power_mode, b.machine.power_mode),
        ("backend", a.runtime.backend, b.runtime.backend),
        ("kernels", a.runtime.kernel, b.runtime.kernel),
        ("place of the exit decision", a.runtime.decide, b.runtime.decide),
        ("precision", a.runtime.precision, b.runtime.precision),
        ("input", a.settings.input, b.settings.input),
        ("weights", a.bundle.weights, b.bundle.weights),
    ]
    pairs += [(name, a.versions.get(name), b.versions.get(name)) for name in sorted({*a.versions, *b.versions})]
    return [f"{name}: {x} and {y}" for name, x, y in pairs if x != y]


def _by(resolution: tuple[int, int]) -> str:
    return f"{resolution[0]} x {resolution[1]}"


def _series(a: Profile, b: Profile) -> list[SeriesDiff]:
    others = {batch.batch: batch for batch in b.batches}
    found = []
    for first in a.batches:
        second = others.get(first.batch)
        if second is None:
            continue
        for path, one in first.paths.items():
            if path in second.paths:
                found += _path(first.batch, path, one, second.paths[path])
    return found


def _path(batch: int, path: str, one: PathProfile, two: PathProfile) -> list[SeriesDiff]:
    pairs = [("total", one.total, two.total)]
    pairs += [(name, part, two.parts[name]) for name, part in one.parts.items() if name in two.parts]
    found = []
    for name, x, y in pairs:
        samples = np.asarray(x.samples_ms, np.float64), np.asarray(y.samples_ms, np.float64)
        enough = min(samples[0].size, samples[1].size) >= MIN_SAMPLES
        # Of a part only what is shown; of the total all that a condition may name.
        wanted = NEEDED if name == "total" else _SHOWN
        found.append(
            SeriesDiff(
                batch, path, name, (samples[0].size, samples[1].size), mann_whitney_p(*samples) if enough else None,
                changes_of(wanted, *samples),
            )
        )  # fmt: skip
    return found


def _memory(a: Profile, b: Profile) -> float | None:
    if a.memory is None or b.memory is None or not a.memory.peak_bytes or b.memory.peak_bytes is None:
        return None
    return None if a.memory.batch != b.memory.batch else b.memory.peak_bytes / a.memory.peak_bytes - 1.0


def _energy(a: Profile, b: Profile) -> dict[tuple[int, str], Change]:
    """Joules an image, idle included (it is always known); the interval from both uncertainties, first order."""
    if a.power is None or b.power is None or a.power.total != b.power.total:
        return {}
    others = {(entry.batch, entry.path): entry for entry in b.power.paths}
    found: dict[tuple[int, str], Change] = {}
    for one in a.power.paths:
        two = others.get((one.batch, one.path))
        x, y = one.joules_per_image, two.joules_per_image if two else None
        if two is None or not x or y is None:
            continue
        errors = (one.uncertainty_joules_per_image or 0.0) / x, (two.uncertainty_joules_per_image or 0.0) / x
        change = y / x - 1.0
        half = float(np.hypot(errors[0] * y / x, errors[1]))
        found[(one.batch, one.path)] = Change(x, y, change, change - half, change + half)
    return found


def _check(condition: Condition, found: ProfileDiff) -> list[Exceeded]:
    if condition.metric == "memory":
        if found.peak_memory is None:
            raise InputError(f"condition '{condition.text}': the profiles have no peak memory of one batch size")
        wrong = _beyond(condition, found.peak_memory)
        return [Exceeded(condition.text, "peak memory", found.peak_memory, None, None)] if wrong else []
    asked = list(_asked(condition, found))
    if not asked:
        raise InputError(f"condition '{condition.text}': {_missing(condition, found)}")
    return [
        Exceeded(condition.text, where, change.relative, change.low, change.high)
        for where, change in asked
        if change.significant
        and _beyond(condition, change.relative)
        and not _as_runs_do(condition, where, change, found)
    ]


def _as_runs_do(condition: Condition, where: str, change: Change, found: ProfileDiff) -> bool:
    """Whether runs of A differ by as much among themselves."""
    inverse = condition.metric == "throughput"
    metric, relative = ("mean", 1.0 / (1.0 + change.relative) - 1.0) if inverse else (condition.metric, change.relative)
    return any(
        entry.metric == metric and _where(entry.batch, entry.path) == where and entry.holds(relative)
        for entry in found.between
    )


def _where(batch: int, path: str) -> str:
    return f"{path}, batch {batch}"


def _asked(condition: Condition, found: ProfileDiff) -> list[tuple[str, Change]]:
    if condition.metric == "energy":
        pairs = [(batch, path, change) for (batch, path), change in found.energy.items()]
    else:
        metric = "mean" if condition.metric == "throughput" else condition.metric
        pairs = [
            (series.batch, series.path, _inverse(change) if condition.metric == "throughput" else change)
            for series in found.series
            if series.part == "total" and (change := series.changes.get(metric)) is not None
        ]
    return [(_where(batch, path), change) for batch, path, change in pairs if condition.path in (None, path)]


def _inverse(change: Change) -> Change:
    """Throughput is batch / mean latency: its change, from the mean's."""
    return Change(
        1e3 / change.before, 1e3 / change.after, 1.0 / (1.0 + change.relative) - 1.0,
        1.0 / (1.0 + change.high) - 1.0, 1.0 / (1.0 + change.low) - 1.0,
    )  # fmt: skip


def _beyond(condition: Condition, change: float) -> bool:
    return change > condition.limit if condition.above else change < condition.limit


def _missing(condition: Condition, found: ProfileDiff) -> str:
    if condition.metric == "energy":
        return "the profiles have no energy by the same rails: measure both with --power"
    if condition.path is not None and all(series.path != condition.path for series in found.series):
        return f"the profiles have no path '{condition.path}'"
    needed = NEEDED.get(condition.metric, MIN_SAMPLES)
    return f"{condition.metric} needs {needed} samples in each profile: measure longer"
