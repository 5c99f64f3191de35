"""`mscope-export calibrate-eta`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mscope.core.console import echo
from mscope.export.commands.labelled import (
    BackendOption,
    BatchOption,
    KernelOption,
    LatencyImagesOption,
    LimitOption,
    PrecisionOption,
    SeedOption,
    ThreadsOption,
    images_progress,
    telling,
)
from mscope.export.commands.shared import DebugOption, JsonOption
from mscope.runtime.choices import KernelName

if TYPE_CHECKING:
    from mscope.calib.eta import EtaReport


def calibrate_eta(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="BUNDLE... DATA",
            help="Bundles to choose from (such as several alphas), then the labelled pictures: a folder with one "
            "folder for each class, a .csv list of 'path,class', or digits:validation.",
        ),
    ],
    target: Annotated[
        str,
        typer.Option(
            metavar="TARGET", help="'accuracy>=0.79', 'gmacs<=2.5', 'latency<=8ms' or 'energy<=40mJ', in quotes."
        ),
    ],
    confidence_level: Annotated[
        float | None,
        typer.Option(
            metavar="LEVEL",
            help="The target has to hold for the safe end of the interval, such as 0.95.",
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[
        bool | None,
        typer.Option(
            "--temperature/--no-temperature",
            help="Fit the temperature of both stages' confidence first, or go back to none.  [default: the bundle's]",
            show_default=False,
        ),
    ] = None,
    profile: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="For an energy target: what mscope-profile wrote with --json; one for each bundle, in order.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Choose and report; leave the bundle as it is.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write calibration.json here; outputs are kept here too (eval's --out does)."),
    ] = None,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    batch: BatchOption = 16,
    latency_images: LatencyImagesOption = 50,
    backend: BackendOption = "auto",
    kernel: KernelOption = KernelName.auto,
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Chooses eta on labelled pictures and writes it, with its curve, into the bundle.

    Every operating point that the pictures have is tried: the cheapest with the accuracy, or the most accurate within
    the cost. Of several bundles the chosen one is revised. An unreachable target is an error that says the best
    reachable, and writes nothing.
    """
    from mscope.calib.energy import energy_from_profile
    from mscope.calib.eta import calibrate_eta as calibrate
    from mscope.calib.eta import check_adaptive, report_to_json
    from mscope.calib.intervals import check_level
    from mscope.calib.study import StudyOptions, observe
    from mscope.calib.targets import parse_target
    from mscope.core.bundle import load_manifest
    from mscope.core.errors import InputError
    from mscope.core.files import write_text_atomically

    if len(arguments) < 2:
        raise InputError("give a bundle and then the labelled pictures, such as: calibrate-eta bundles/s photos/")
    wanted = parse_target(target)
    if confidence_level is not None:
        check_level(confidence_level)
    folders = [Path(argument) for argument in arguments[:-1]]
    manifests = [load_manifest(folder, check_files=False) for folder in folders]
    for folder, manifest in zip(folders, manifests, strict=True):
        check_adaptive(folder, manifest)
    energy = None
    if profile or wanted.metric == "energy":
        if len(profile or ()) != len(folders):
            raise InputError(
                f"{len(folders)} bundles and {len(profile or ())} --profile files: an energy target needs one for each "
                "bundle, which mscope-profile wrote on a machine with a power sensor; nothing here estimates energy"
            )
        energy = [energy_from_profile(path, of) for path, of in zip(profile or (), manifests, strict=True)]
    options = StudyOptions(
        data=arguments[-1],
        limit=limit,
        seed=seed,
        batch=batch,
        backend=backend,
        kernel=kernel.value,
        precision=precision,
        threads=threads,
        latency_images=latency_images,
        out=out,
    )
    with telling() as on_problem:
        study = observe(folders, options, on_problem=on_problem, on_start=images_progress)
    report = calibrate(
        study,
        wanted,
        energy=energy,
        temperature="keep" if temperature is None else "fit" if temperature else "none",
        safe=confidence_level is not None,
        level=confidence_level or 0.95,
        write=not dry_run,
    )
    content = report_to_json(report)
    if out is not None:
        write_text_atomically(out / "calibration.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    if as_json:
        typer.echo(json.dumps(content, ensure_ascii=False, allow_nan=False))
    else:
        _print(report, len(folders), dry_run)
    for warning in report.warnings:
        echo(f"warning: {warning}", err=True)


def _print(report: EtaReport, bundles: int, dry_run: bool) -> None:
    from mscope.core.cost import describe_break_even

    choice, record = report.choice, report.calibration
    of_several = f" of {bundles} bundles {report.bundle}," if bundles > 1 else ""
    echo(f"{record.target}:{of_several} eta {choice.eta:g}, chosen on {record.images} pictures of {record.data}")
    low, high = record.interval
    echo(
        f"  accuracy   {100 * choice.accuracy:.2f} % on them, optimism {100 * choice.optimism:.2f} points; on new "
        f"pictures {100 * low:.2f} to {100 * high:.2f} % ({100 * record.confidence_level:g} % interval)"
    )
    gmacs = choice.costs["gmacs"]
    ratio = gmacs / report.plain_gmacs
    echo(f"  exit early {100 * choice.exit_rate:.1f} %")
    echo(f"  cost       {gmacs:.4g} GMACs, {100 * ratio:.0f} % of plain ViM's {report.plain_gmacs:.4g}")
    if "latency" in choice.costs:
        echo(f"  latency    {choice.costs['latency']:.2f} ms expected at batch 1, on this machine")
    if "energy" in choice.costs:
        echo(f"  energy     {choice.costs['energy']:.4g} J expected, from the profile")
    if (report.temperature.coarse, report.temperature.fine) != (1.0, 1.0):
        echo(f"  temperature {report.temperature.coarse:.4g} coarse, {report.temperature.fine:.4g} fine")
    echo(f"  by GMACs adaptivity {describe_break_even(report.break_even)}")
    echo("nothing written (--dry-run)" if dry_run else f"written into {report.bundle}")
