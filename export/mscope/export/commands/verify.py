"""`mscope-export verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mscope.core.console import echo
from mscope.export.commands.shared import DebugOption, JsonOption, WeightsOption, progress_on_terminal

if TYPE_CHECKING:
    from mscope.export.precision.drift import Step
    from mscope.export.variants import VariantReport
    from mscope.export.verification import Verification


def verify(
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="BUNDLE", help="Its folder.  [default: the one built last]", show_default=False),
    ] = None,
    weights: WeightsOption = None,
    images: Annotated[
        list[str] | None,
        typer.Option(help="Pictures to compare on beside the probes: file, folder, glob, .npy.", show_default=False),
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Find the first layer of a variant that drifts.")] = False,
    polygraphy: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write what NVIDIA's polygraphy runs on a device with TensorRT into this new folder: graphs, inputs, "
            "reference outputs; and print its command lines.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Checks a bundle's files, its fp32 graphs against PyTorch, and every variant that can run here against that.

    PyTorch runs the weights from their source, not from the bundle: random ones from their seed, shipped ones from the
    package; for a bundle built from a file name that file with --weights. Where PyTorch is not installed, variants are
    compared with the bundle's fp32 graphs. A variant beyond the bounds of its precision ends it with status 1.
    """
    from mscope.core.bundle import latest_bundle

    folder = bundle or latest_bundle()
    with progress_on_terminal() as progress:
        from mscope.export.verification import raise_problems
        from mscope.export.verification import verify as run

        report = run(folder, weights, images or (), layers=layers, polygraphy=polygraphy, progress=progress)
    if as_json:
        typer.echo(json.dumps(report.to_json(), allow_nan=False))
    else:
        _print(report)
    raise_problems(report)


def _print(report: Verification) -> None:
    if report.parity is None:
        echo(f"{report.folder}: whole; PyTorch is not installed, so that variants are held to its fp32 graphs")
    else:
        weights = report.manifest.weights.describe()
        echo(f"{report.folder}: whole, and the model it was built from ({weights})")
        for name, value in report.parity.model_dump(exclude_none=True).items():
            echo(f"  {name.replace('_', ' '):<22} {value:.3g}")
    echo(f"variants on {report.images} images, against {report.reference}")
    for variant in report.variants:
        _print_variant(variant)
    if report.ranges:
        largest = report.ranges[0]
        echo(
            f"fp16 range: the largest value is {largest.largest:.3g}, in {largest.stage} {largest.tensor}; "
            f"fp16 holds {largest.headroom:.0f} times as much"
        )
    for name, steps in report.drift.items():
        _print_drift(name, steps)
    if report.polygraphy:
        echo("to run on a device with TensorRT and the plugin:")
        for line in report.polygraphy:
            typer.echo(line)


def _print_variant(report: VariantReport) -> None:
    if report.not_run:
        echo(f"  {report.name}: not run: {report.not_run}")
        return
    echo(f"  {report.name}")
    for name, distance in report.outputs.items():
        bound = "" if distance.tolerance is None else f" (bound {distance.tolerance:.1e})"
        echo(
            f"    {name:<18} max abs {distance.max_abs:.1e}{bound}, relative {distance.relative:.1e}, "
            f"cosine {distance.cosine:.6f}"
        )
    for stage, share in report.top1_agreement.items():
        echo(f"    {stage} top-1 agreement {share:.1%}")
    if report.exit_agreement is not None:
        echo(
            f"    exits: {report.exit_flips} flip at the bundle's eta, {report.exit_agreement:.1%} of images agree at "
            f"every eta; refined regions {report.selected_agreement:.1%} the same"
        )
    for problem in report.problems:
        echo(f"    problem: {problem}")


def _print_drift(name: str, steps: list[Step]) -> None:
    from mscope.export.precision.drift import first_drift

    worst = max(steps, key=lambda step: step.relative / step.explained)
    first = first_drift(steps)
    told = "no value drifts" if first is None else f"first drift at {first.tensor}: {first.relative:.1e}"
    echo(f"{name}: {told}; furthest {worst.tensor}: {worst.relative:.1e}, roundings explain {worst.explained:.1e}")
