"""Chooses eta on labelled data and writes it, the curve and how it was chosen into the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from mscope.calib.evaluate import cascade_cost, points_of
from mscope.calib.intervals import few_images_warning
from mscope.calib.pick import Candidate, Choice, choose
from mscope.calib.study import Observed, Study
from mscope.calib.targets import CostName, Target
from mscope.calib.temperature import fit_temperature
from mscope.core.bundle import revising_bundle, write_manifest
from mscope.core.cost import Cost, break_even_exit_rate, describe_break_even
from mscope.core.curve import OperatingPoints
from mscope.core.errors import InputError
from mscope.core.manifest import Calibration, CurvePoint, Manifest, Temperature
from mscope.runtime.preprocess import pillow_version

# What of the curve goes into the manifest.
MANIFEST_POINTS = 100

# Names of the costs with their units, for JSON.
COST_KEYS: dict[CostName, str] = {"gmacs": "gmacs", "latency": "latency_ms", "energy": "energy_j"}

TemperatureChoice = Literal["keep", "fit", "none"]


@dataclass(frozen=True)
class EtaReport:
    """What was chosen and written.

    Attributes:
        bundle: the folder that was revised.
        choice: the operating point.
        calibration: as the manifest has it now.
        temperature: of both stages.
        curve: as the manifest has it now.
        break_even: early-exit rate by GMACs above which the cascade costs less than plain ViM.
        warnings: lines for people.
    """

    bundle: Path
    choice: Choice
    calibration: Calibration
    temperature: Temperature
    curve: tuple[CurvePoint, ...]
    break_even: float
    plain_gmacs: float
    warnings: tuple[str, ...]


def check_adaptive(folder: Path, manifest: Manifest) -> None:
    """Raises InputError for a plain ViM bundle, which has no eta."""
    if manifest.config.arch == "vim":
        raise InputError(f"{folder} is a plain ViM, which has no early exit and no eta: give a mambascope bundle")


def calibrate_eta(
    study: Study,
    target: Target,
    *,
    energy: Sequence[tuple[float, float]] | None = None,
    temperature: TemperatureChoice = "keep",
    safe: bool = False,
    level: float = 0.95,
    resamples: int = 500,
    write: bool = True,
) -> EtaReport:
    """Chooses eta, and the bundle where the study has several, and revises that bundle's manifest.

    Args:
        study: adaptive bundles on labelled data.
        target: what is to hold.
        energy: for each bundle the joules of every image and those that refining adds (`energy_from_profile`).
        temperature: "fit" both stages' temperatures first, "keep" the bundle's, or "none": back to 1.
        safe, level, resamples: as `choose` takes them.
        write: False leaves the bundle as it is.

    Raises:
        UnreachableError: nothing reaches the target; nothing is written. InputError: a plain ViM, a temperature that
            cannot be fitted, a place that cannot be written.
    """
    for observed in study.bundles:
        check_adaptive(observed.folder, observed.manifest)
    temperatures = [_temperature(observed, temperature) for observed in study.bundles]
    points = [points_of(one.outputs, scale.coarse) for one, scale in zip(study.bundles, temperatures, strict=True)]
    if target.metric == "latency" and any(observed.latency is None for observed in study.bundles):
        raise InputError("--target latency needs the latency measured: leave out --latency-images 0")
    if target.metric == "energy" and energy is None:
        raise InputError(
            "--target energy needs measured energy: give --profile FILE, which mscope-profile wrote on a machine with "
            "a power sensor; nothing here estimates it"
        )
    candidates = [
        Candidate(of_bundle, _costs(observed, None if energy is None else energy[place]))
        for place, (observed, of_bundle) in enumerate(zip(study.bundles, points, strict=True))
    ]
    choice = choose(candidates, target, study.images, safe=safe, level=level, resamples=resamples)
    chosen, scale = study.bundles[choice.bundle], temperatures[choice.bundle]
    curve = _curve(points[choice.bundle], chosen, choice)
    calibration = Calibration(
        data=Path(study.dataset.name).name or study.dataset.name,
        fingerprint=study.dataset.fingerprint,
        images=study.images,
        skipped=study.skipped,
        target=f"{target}, {level:.4g} confidence" if safe else str(target),
        eta=choice.eta,
        accuracy=choice.accuracy,
        optimism=choice.optimism,
        interval=(choice.interval.low, choice.interval.high),
        confidence_level=level,
        gmacs=choice.costs["gmacs"],
        exit_rate=choice.exit_rate,
        precision=chosen.precision,
        pillow=pillow_version(),
        date=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    if write:
        with revising_bundle(chosen.folder) as (work, manifest):
            changes = {"default_eta": choice.eta, "eta_curve": curve, "temperature": scale, "calibration": calibration}
            # model_copy does not validate.
            write_manifest(work, Manifest.model_validate(manifest.model_copy(update=changes).model_dump()))
    cost = cascade_cost(chosen.manifest)
    return EtaReport(
        bundle=chosen.folder,
        choice=choice,
        calibration=calibration,
        temperature=scale,
        curve=curve,
        break_even=break_even_exit_rate(cost.coarse, cost.fine, cost.full),
        plain_gmacs=cost.full,
        warnings=_warnings(chosen, choice, cost, study, level),
    )


def _temperature(observed: Observed, how: TemperatureChoice) -> Temperature:
    if how == "keep":
        return observed.manifest.temperature
    if how == "none":
        return Temperature()
    outputs = observed.outputs
    assert outputs.coarse_logits is not None
    assert outputs.fine_logits is not None
    return Temperature(
        coarse=fit_temperature(outputs.coarse_logits, outputs.labels, "coarse stage"),
        fine=fit_temperature(outputs.fine_logits, outputs.labels, "fine stage"),
    )


def _costs(observed: Observed, energy: tuple[float, float] | None) -> dict[CostName, tuple[float, float]]:
    """What every image costs, and what refining one adds."""
    cost = cascade_cost(observed.manifest)
    costs: dict[CostName, tuple[float, float]] = {"gmacs": (cost.coarse, cost.fine)}
    if observed.latency is not None:
        costs["latency"] = (observed.latency.coarse + observed.latency.select, observed.latency.fine)
    if energy is not None:
        costs["energy"] = energy
    return costs


def _curve(points: OperatingPoints, observed: Observed, choice: Choice) -> tuple[CurvePoint, ...]:
    accuracy, exit_rate = points.rates()
    cost = cascade_cost(observed.manifest)
    return tuple(
        CurvePoint(
            eta=choice.eta if point == choice.point else points.eta(point),
            accuracy=float(accuracy[point]),
            exit_rate=float(exit_rate[point]),
            gmacs=cost.adaptive(float(exit_rate[point])),
            latency_ms=None if observed.latency is None else observed.latency.adaptive(float(exit_rate[point])),
        )
        for point in points.thinned(MANIFEST_POINTS, [choice.point])
    )


def _warnings(observed: Observed, choice: Choice, cost: Cost, study: Study, level: float) -> tuple[str, ...]:
    lines = list(observed.notes)
    few = few_images_warning(study.images, level)
    if few is not None:
        lines.append(few)
    gmacs = choice.costs["gmacs"]
    if gmacs > cost.full:
        rate = break_even_exit_rate(cost.coarse, cost.fine, cost.full)
        lines.append(
            f"at eta {choice.eta:g} the cascade costs more than plain ViM: {gmacs:.4g} against {cost.full:.4g} "
            f"GMACs; by GMACs adaptivity {describe_break_even(rate)}, here {choice.exit_rate:.0%} do"
        )
    if not observed.manifest.weights.trained:
        lines.append("the weights are random and untrained: this eta means nothing")
    if study.skipped:
        lines.append(f"{study.skipped} pictures could not be read and were left out")
    return tuple(lines)


def report_to_json(report: EtaReport) -> dict[str, Any]:
    """Plain values, for `--json`."""
    return {
        "bundle": str(report.bundle.absolute()),
        "calibration": report.calibration.model_dump(mode="json"),
        "bound": report.choice.bound,
        "costs": {COST_KEYS[name]: value for name, value in report.choice.costs.items()},
        "temperature": report.temperature.model_dump(),
        "plain_gmacs": report.plain_gmacs,
        "break_even_exit_rate_gmacs": report.break_even,
        "curve": [point.model_dump(mode="json") for point in report.curve],
        "warnings": list(report.warnings),
    }
