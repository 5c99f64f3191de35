"""What eta is to reach: `accuracy>=0.79`, `gmacs<=2.5`, `latency<=8ms`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from mscope.core.errors import InputError

CostName = Literal["gmacs", "latency", "energy"]
Metric = Literal["accuracy", CostName]
_FORM = re.compile(r"\s*([a-z]+)\s*(>=|<=|≥|≤)\s*([0-9.]+(?:e[+-]?\d+)?)\s*([a-zµ%]*)\s*", re.IGNORECASE)
# What the values of each figure are in, for people.
UNITS: dict[Metric, str] = {"accuracy": "", "gmacs": " GMACs", "latency": " ms", "energy": " J"}
# To the unit that the value is kept in.
_UNITS: dict[Metric, dict[str, float]] = {
    "accuracy": {"": 1.0, "%": 0.01},
    "gmacs": {"": 1.0, "g": 1.0, "m": 1e-3},
    "latency": {"ms": 1.0, "us": 1e-3, "µs": 1e-3, "s": 1e3},
    "energy": {"j": 1.0, "mj": 1e-3},
}
_EXAMPLES = "accuracy>=0.79, accuracy>=79%, gmacs<=2.5, latency<=8ms or energy<=40mJ"


@dataclass(frozen=True)
class Target:
    """A bound on one figure: accuracy (a share) from below; mean GMACs, latency (ms) or energy (J) from above."""

    metric: Metric
    value: float

    def __str__(self) -> str:
        unit = {"latency": "ms", "energy": "J"}.get(self.metric, "")
        return f"{self.metric}{_side(self.metric)}{self.value:g}{unit}"


def _side(metric: Metric) -> str:
    return ">=" if metric == "accuracy" else "<="


def parse_target(text: str) -> Target:
    """A target as the command line gives it. Raises InputError with examples."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise InputError(f"--target is for example {_EXAMPLES}, in quotes (the shell takes > and <); got '{text}'")
    name, side, number, unit = match[1].lower(), match[2], match[3], match[4].lower()
    metric = next((known for known in _UNITS if known == name), None)
    if metric is None:
        raise InputError(f"--target: unknown figure '{name}'; use {_EXAMPLES}")
    if side.replace("≥", ">=").replace("≤", "<=") != _side(metric):
        raise InputError(f"--target: {metric} is bounded by {_side(metric)}; use {_EXAMPLES}")
    if unit not in _UNITS[metric]:
        units = " or ".join(f"'{unit}'" if unit else "none" for unit in _UNITS[metric])
        raise InputError(f"--target: {metric} takes the unit {units}, got '{unit}'; use {_EXAMPLES}")
    try:
        value = float(number) * _UNITS[metric][unit]
    except ValueError:
        raise InputError(f"--target: '{number}' is not a number; use {_EXAMPLES}") from None
    if not math.isfinite(value) or value <= 0 or (metric == "accuracy" and value > 1):
        hint = "a share between 0 and 1, or with %" if metric == "accuracy" else "more than 0"
        raise InputError(f"--target: {metric} {number}{match[4]} is out of range: it is {hint}")
    return Target(metric, value)
