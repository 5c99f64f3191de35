"""`mscope-export build`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mscope.export.commands.shared import (
    AlphaOption,
    ArchOption,
    DebugOption,
    JsonOption,
    ResolutionOption,
    WeightsOption,
    progress_on_terminal,
)

if TYPE_CHECKING:
    from mscope.export.build import BuildReport

_LATER = "Not in this version, which builds fp32 ONNX."


def build(
    size: Annotated[str, typer.Option(help="ti, s, b (224 x 224, 1,000 classes) or digits (64 x 64, 10).")] = "ti",
    arch: ArchOption = "mambascope",
    weights: WeightsOption = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Random, untrained weights from this seed.", show_default=False)
    ] = None,
    alpha: AlphaOption = None,
    resolution: ResolutionOption = None,
    classes: Annotated[
        int | None, typer.Option(help="Number of classes.  [default: by size]", show_default=False)
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Class names, one a line.  [default: by size]", show_default=False)
    ] = None,
    eta: Annotated[
        float | None, typer.Option(help="Exit threshold that the bundle runs with by default.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder.  [default: below the user's data folder, as the latest]", show_default=False),
    ] = None,
    no_parity: Annotated[bool, typer.Option("--no-parity", help="Skip the comparison with PyTorch.")] = False,
    target: Annotated[str, typer.Option(help=f"onnx. Others: {_LATER}")] = "onnx",
    fp16: Annotated[bool, typer.Option("--fp16", help=_LATER)] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help=_LATER)] = False,
    int8: Annotated[bool, typer.Option("--int8", help=_LATER)] = False,
    fp8: Annotated[bool, typer.Option("--fp8", help=_LATER)] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Builds a bundle: exports the graphs, checks them against PyTorch, writes them with a manifest.

    Without --weights the weights shipped for the size are taken; where none are shipped, random ones, for latency work.
    """
    from mscope.export.options import BuildOptions, config_from_options

    asked = [name for name, given in (("fp16", fp16), ("bf16", bf16), ("int8", int8), ("fp8", fp8)) if given]
    options = BuildOptions(
        config=config_from_options(size, arch, alpha, resolution, classes),
        weights=weights,
        seed=seed,
        out=out,
        labels=labels,
        eta=eta,
        parity=not no_parity,
        precision=asked[0] if asked else "fp32",
        target=target,
    )
    options.check_supported()
    with progress_on_terminal() as progress:
        progress("loading PyTorch")
        from mscope.export.build import build_bundle

        report = build_bundle(options, progress)
    if as_json:
        typer.echo(json.dumps(report.to_json()))
    else:
        _print(report)


def _print(report: BuildReport) -> None:
    from mscope.core.cost import describe_break_even

    manifest = report.manifest
    typer.echo(f"built {manifest.name} in {report.folder}")
    typer.echo(f"  weights  {manifest.weights.describe()}")
    for stage, record in manifest.stages.items():
        for variant in record.variants:
            size = manifest.files[variant.file].bytes / 1e6
            typer.echo(f"  {stage:<8} {variant.file}, {size:.1f} MB, {record.tokens} tokens, {record.gmacs:.3f} GMACs")
    if manifest.parity is not None:
        parity = manifest.parity
        typer.echo(
            f"  parity   logits within {parity.logits_max_abs:.1e} of PyTorch (tolerance {parity.tolerance:.1e}, "
            f"{parity.images} images)"
        )
    if report.break_even is not None:
        plain = manifest.baseline.gmacs
        typer.echo(f"  by GMACs adaptivity {describe_break_even(report.break_even)} ({plain:.3f} GMACs)")
    typer.echo(f"  time     {', '.join(f'{step} {seconds:.1f} s' for step, seconds in report.seconds.items())}")
    for warning in report.warnings:
        typer.echo(f"warning: {warning}", err=True)
