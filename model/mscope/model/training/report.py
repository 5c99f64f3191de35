"""The final report of a run: what the averaged weights do on the test split, as values, JSON and text."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from mscope.core.cascade import confidence
from mscope.core.cost import Cost, stage_cost
from mscope.core.curve import eta_curve, expected_calibration_error
from mscope.core.manifest import CurvePoint
from mscope.model.backbone import Backbone
from mscope.model.mambascope import MambaScope
from mscope.model.training.digits import Batch, Digits, Split
from mscope.model.training.evaluate import accuracy, box_covered, plain_logits, stage_outputs

TEST_PICTURES = 4000
ETAS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995, 1.0)
# The threshold at which early exits are broken down by digit size.
SIZE_ETA = 0.9
_SIZE_EDGES = (16.0, 20.0, 26.0, 34.0, 44.0)


class _Values(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SizeRow(_Values):
    """Accuracy of digits of one range of sizes, in pixels."""

    size_min: float
    size_max: float
    pictures: int
    plain: float | None = None
    coarse: float | None = None
    fine: float | None = None
    exit_rate: float | None = None  # at SIZE_ETA


class Gmacs(_Values):
    """Cost of one picture; `fine` without the coarse pass before it, `full` plain ViM."""

    coarse: float
    fine: float
    full: float


class Measured(_Values):
    """Accuracies in [0, 1] on `pictures` pictures of a split. For `vim` only `plain` and `by_size` are there."""

    split: Split
    pictures: int
    gmacs: Gmacs
    plain: float | None = None
    coarse: float | None = None
    fine: float | None = None
    fine_all_regions: float | None = None  # alpha 1 with the same weights
    fine_random_regions: float | None = None  # as many regions, drawn at random: what the ranking is worth
    box_covered: float | None = None  # share of the digit's box in the refined regions; chance: refined / all regions
    ece_coarse: float | None = None
    ece_fine: float | None = None
    curve: tuple[CurvePoint, ...] = ()
    by_size: tuple[SizeRow, ...] = ()


def measure(model: Backbone, *, split: Split = "test", pictures: int = TEST_PICTURES) -> Measured:
    """Runs a network over the first `pictures` pictures of a split.

    A MambaScope is measured at both stages, with random regions, with all of them, and over eta; a Vim as it is.
    """
    data = Digits(split).batch(0, pictures)
    cost = stage_cost(model.config)
    if not isinstance(model, MambaScope):
        right = plain_logits(model, data).argmax(-1) == data.labels
        return Measured(
            split=split,
            pictures=pictures,
            gmacs=_gmacs(cost),
            plain=float(right.mean()),
            by_size=_by_size(data, {"plain": right}),
        )
    outputs = stage_outputs(model, data)
    random = stage_outputs(model, data, regions="random")
    everything = stage_outputs(model, data, alpha=1.0)
    parts = {
        "coarse": outputs.coarse_logits.argmax(-1) == data.labels,
        "fine": outputs.fine_logits.argmax(-1) == data.labels,
        "exit_rate": confidence(outputs.coarse_logits) >= np.float32(SIZE_ETA),
    }
    return Measured(
        split=split,
        pictures=pictures,
        gmacs=_gmacs(cost),
        coarse=outputs.accuracy("coarse"),
        fine=outputs.accuracy("fine"),
        fine_all_regions=accuracy(everything.fine_logits, data.labels),
        fine_random_regions=accuracy(random.fine_logits, data.labels),
        box_covered=box_covered(model, data),
        ece_coarse=expected_calibration_error(outputs.coarse_logits, data.labels),
        ece_fine=expected_calibration_error(outputs.fine_logits, data.labels),
        curve=tuple(eta_curve(outputs, cost, ETAS)),
        by_size=_by_size(data, parts),
    )


def _gmacs(cost: Cost) -> Gmacs:
    return Gmacs(coarse=cost.coarse, fine=cost.fine, full=cost.full)


def _by_size(data: Batch, parts: dict[str, npt.NDArray[np.bool_]]) -> tuple[SizeRow, ...]:
    rows = []
    for low, high in itertools.pairwise(_SIZE_EDGES):
        inside = (data.sizes >= low) & (data.sizes < high)
        if inside.any():
            means = {name: float(values[inside].mean()) for name, values in parts.items()}
            rows.append(SizeRow(size_min=low, size_max=high, pictures=int(inside.sum()), **means))
    return tuple(rows)


def render(measured: Measured) -> str:
    """The report for people: a few lines of text."""
    lines = [f"{measured.split} split, {measured.pictures} pictures"]
    for name, value, gmacs in (
        ("plain ViM", measured.plain, measured.gmacs.full),
        ("coarse stage", measured.coarse, measured.gmacs.coarse),
        ("fine stage (after coarse)", measured.fine, measured.gmacs.coarse + measured.gmacs.fine),
        ("fine stage, all regions", measured.fine_all_regions, None),
        ("fine stage, random regions", measured.fine_random_regions, None),
    ):
        if value is not None:
            cost = f"   {1e3 * gmacs:6.2f} MMACs" if gmacs is not None else ""
            lines.append(f"  {name:<28}{100 * value:6.2f} %{cost}")
    if measured.box_covered is not None:
        lines.append(f"  digit's box in refined regions {100 * measured.box_covered:.1f} %")
    if measured.ece_coarse is not None and measured.ece_fine is not None:
        lines.append(f"  calibration error (ECE)       {measured.ece_coarse:.3f} coarse, {measured.ece_fine:.3f} fine")
    if measured.curve:
        lines.append("     eta   accuracy   exits   mean MMACs   of plain ViM")
        lines += [
            f"   {p.eta:5.3f}   {100 * p.accuracy:6.2f} %  {100 * p.exit_rate:4.0f} %     {1e3 * p.gmacs:6.2f}"
            f"         {100 * p.gmacs / measured.gmacs.full:4.0f} %"
            for p in measured.curve
        ]
    lines.append("  digit size, pixels")
    for row in measured.by_size:
        known = {"plain": row.plain, "coarse": row.coarse, "fine": row.fine, f"exits at eta {SIZE_ETA}": row.exit_rate}
        told = ", ".join(f"{name} {100 * value:.1f} %" for name, value in known.items() if value is not None)
        lines.append(f"   {row.size_min:.0f} to {row.size_max:.0f} ({row.pictures}): {told}")
    return "\n".join(lines)
