"""Rows of the tables: accuracies with intervals, and paired differences from the row that a variant is a variant of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ablations.observe import Observed
from ablations.results import EtaRow, Figure, Row
from ablations.variants import Variant
from mscope.calib.intervals import RESAMPLES, estimate, resampled_counts
from mscope.core.config import ModelConfig
from mscope.core.cost import Cost, stage_cost
from mscope.core.geometry import coarse_grid, regions_refined

LEVEL = 0.95
_SEED = 0

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """A variant's networks on the same pictures, one for each seed (one alone for given weights)."""

    variant: Variant
    config: ModelConfig
    seeds: tuple[int, ...]
    runs: tuple[Observed, ...]

    def only(self, seeds: Sequence[int]) -> Measured:
        """The runs of some of the seeds."""
        runs = tuple(run for seed, run in zip(self.seeds, self.runs, strict=True) if seed in seeds)
        return Measured(self.variant, self.config, tuple(seed for seed in self.seeds if seed in seeds), runs)


class Bootstrap:
    """The same resamples of the pictures for every figure, so that differences are paired."""

    def __init__(self, pictures: int, resamples: int = RESAMPLES) -> None:
        self._pictures = pictures
        self._counts = np.stack(list(resampled_counts(pictures, resamples, _SEED))).astype(np.float32)

    def mean(self, values: Floats, *, share: bool = True) -> Figure:
        """The mean of one value a picture, (n,), with its interval; `share`: of right answers, in [0, 1]."""
        draws = (self._counts @ values.astype(np.float32)).astype(np.float64) / self._pictures
        found = estimate(float(values.mean()), draws, LEVEL, share_of=self._pictures if share else None)
        return Figure(value=found.value, low=found.low, high=found.high)


def row(measured: Measured, base: Measured | None, bootstrap: Bootstrap, eta: float) -> Row:
    """A row of a table. Accuracies are averaged over the seeds; intervals are over the pictures.

    Args:
        measured: the variant.
        base: what it is compared with, None for a base. Where seeds are missing the common ones are compared.
        bootstrap: of as many pictures.
        eta: of the adaptive figures.
    """
    if base is not None:
        common = [seed for seed in measured.seeds if seed in base.seeds]
        measured, base = measured.only(common), base.only(common)
    right = {name: _right(measured, name, eta) for name in ("coarse", "fine", "adaptive")}
    exit_rate = float(np.mean([run.early(eta).mean() for run in measured.runs]))
    cost = stage_cost(measured.config)
    regions = coarse_grid(measured.config).count
    result = Row(
        name=measured.variant.name,
        table=measured.variant.table,
        base=measured.variant.base,
        seeds=measured.seeds,
        regions_refined=regions_refined(measured.config.alpha, regions),
        coarse=bootstrap.mean(right["coarse"].mean(0)),
        fine=bootstrap.mean(right["fine"].mean(0)),
        adaptive=bootstrap.mean(right["adaptive"].mean(0)),
        fine_by_seed=tuple(float(value) for value in right["fine"].mean(1)),
        exit_rate=exit_rate,
        covered=float(np.mean([run.covered.mean() for run in measured.runs])),
        mmacs_coarse=1e3 * cost.coarse,
        mmacs_fine=1e3 * cost.fine,
        mmacs_adaptive=1e3 * cost.adaptive(exit_rate),
    )
    if base is None:
        return result
    lost = {name: values - _right(base, name, eta) for name, values in right.items()}
    return result.model_copy(
        update={
            "coarse_difference": bootstrap.mean(lost["coarse"].mean(0), share=False),
            "fine_difference": bootstrap.mean(lost["fine"].mean(0), share=False),
            "adaptive_difference": bootstrap.mean(lost["adaptive"].mean(0), share=False),
            "fine_difference_by_seed": tuple(float(value) for value in lost["fine"].mean(1)),
            "same_regions": _same_regions(measured, base),
        }
    )


def eta_rows(
    run: Observed, plain_right: npt.NDArray[np.bool_], cost: Cost, etas: Sequence[float], bootstrap: Bootstrap
) -> list[EtaRow]:
    """Accuracy and cost over eta, beside plain ViM's answers on the same pictures."""
    rows = []
    for eta in etas:
        right, rate = run.adaptive_right(eta).astype(np.float64), float(run.early(eta).mean())
        rows.append(
            EtaRow(
                eta=eta,
                accuracy=bootstrap.mean(right),
                from_plain=bootstrap.mean(right - plain_right, share=False),
                exit_rate=rate,
                mmacs=1e3 * cost.adaptive(rate),
                of_plain=cost.adaptive(rate) / cost.full,
            )
        )
    return rows


def _right(measured: Measured, stage: str, eta: float) -> Floats:
    """(seeds, n): 1 where the answer is right."""
    pick = {
        "coarse": lambda run: run.coarse_right,
        "fine": lambda run: run.fine_right,
        "adaptive": lambda run: run.adaptive_right(eta),
    }[stage]
    return np.stack([pick(run) for run in measured.runs]).astype(np.float64)


def _same_regions(measured: Measured, base: Measured) -> float | None:
    """Mean share of the refined regions that the base refines too; None where it refines another number of them."""
    shares = []
    for run, other in zip(measured.runs, base.runs, strict=True):
        count = run.refined.sum(1)
        if (count != other.refined.sum(1)).any():
            return None
        shares.append(((run.refined & other.refined).sum(1) / count).mean())
    return float(np.mean(shares))
