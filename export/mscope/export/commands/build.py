"""`mscope-export build`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mscope.core.console import echo
from mscope.export.commands.quantize import (
    CalibDataOption,
    CalibImagesOption,
    CalibMethodOption,
    CalibRangesOption,
    Fp8Option,
    Int8Option,
    MaxDropOption,
    SmoothingOption,
    print_quantisation,
    quantisation_json,
    quantizers_from,
)
from mscope.export.commands.shared import (
    AlphaOption,
    ArchOption,
    DebugOption,
    JsonOption,
    KeepOption,
    ReduceAfterOption,
    ReduceOption,
    ResolutionOption,
    WeightsOption,
    progress_on_terminal,
)

if TYPE_CHECKING:
    from mscope.core.manifest import Precision
    from mscope.export.build import BuildReport
    from mscope.export.extend import Derive
    from mscope.export.revise import ReviseReport
    from mscope.export.steps import VariantSteps


def build(
    size: Annotated[str, typer.Option(help="ti, s, b (224 x 224, 1,000 classes) or digits (64 x 64, 10).")] = "ti",
    arch: ArchOption = "mambascope",
    weights: WeightsOption = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Random, untrained weights from this seed.", show_default=False)
    ] = None,
    alpha: AlphaOption = None,
    reduce: ReduceOption = None,
    keep: KeepOption = None,
    reduce_after: ReduceAfterOption = None,
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
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Add precisions and engines to this bundle; needs no PyTorch.", show_default=False),
    ] = None,
    target: Annotated[
        str, typer.Option(help="onnx, trt, trt-rtx, or auto: engines where a GPU and a library for it are.")
    ] = "auto",
    gpu: Annotated[
        str | None,
        typer.Option(
            help="Build engines for this GPU, not the one here: sm_89 or sm_89,sm_120. For one that TensorRT-RTX does "
            "not know (an Orin, sm_87) the bundle gets the plugin's source: its engines are built on the device.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[str, typer.Option(help="Batches of the engines: MIN,OPT,MAX.")] = "1,1,8",
    ops: Annotated[str, typer.Option(help="In engines: plugin, function (the bodies in the graph), or auto.")] = "auto",
    fp16: Annotated[bool, typer.Option("--fp16", help="Add fp16 graphs, and engines of them.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Add bf16 graphs, and engines of them.")] = False,
    int8: Int8Option = False,
    fp8: Fp8Option = False,
    calib_data: CalibDataOption = None,
    calib_images: CalibImagesOption = None,
    calib_method: CalibMethodOption = None,
    calib_ranges: CalibRangesOption = None,
    smoothing: SmoothingOption = None,
    max_drop: MaxDropOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Builds a bundle: exports the graphs, checks them against PyTorch, writes them with a manifest.

    Without --weights the weights shipped for the size are taken; where none are shipped, random ones, for latency work.
    """
    from mscope.export.engine.device import parse_batch, parse_gpus
    from mscope.export.engine.wish import EngineWish, ops_of
    from mscope.export.options import BuildOptions, config_from_options

    quantizers = quantizers_from(
        int8=int8, fp8=fp8, data=calib_data, images=calib_images, method=calib_method, ranges=calib_ranges,
        smoothing=smoothing, max_drop=max_drop,
    )  # fmt: skip
    asked: tuple[tuple[Precision, bool], ...] = (("fp16", fp16), ("bf16", bf16), ("int8", int8), ("fp8", fp8))
    precisions = tuple(name for name, given in asked if given)
    engines = EngineWish(target, parse_gpus(gpu), parse_batch(batch), ops_of(ops))
    derive: list[Derive] = [*quantizers]
    if source is not None:
        _refuse_with_from(
            size=size != "ti", arch=arch != "mambascope", weights=weights, seed=seed is not None, alpha=alpha,
            resolution=resolution, classes=classes, labels=labels, eta=eta is not None, out=out, reduce=reduce,
            keep=keep is not None, reduce_after=reduce_after,
        )  # fmt: skip
        with progress_on_terminal() as progress:
            from mscope.export.revise import revise_bundle

            revised = revise_bundle(source, precisions, engines, progress, derive, parity=not no_parity)
        result = revised.to_json() | quantisation_json(quantizers)
        typer.echo(json.dumps(result)) if as_json else _print_revised(revised)
    else:
        options = BuildOptions(
            config=config_from_options(size, arch, alpha, resolution, classes, reduce, keep, reduce_after),
            weights=weights,
            seed=seed,
            out=out,
            labels=labels,
            eta=eta,
            parity=not no_parity,
            precisions=precisions,
            engines=engines,
        )
        options.check()
        with progress_on_terminal() as progress:
            progress("loading PyTorch")
            from mscope.export.build import build_bundle

            report = build_bundle(options, progress, derive)
        typer.echo(json.dumps(report.to_json() | quantisation_json(quantizers))) if as_json else _print(report)
    if not as_json:
        print_quantisation(quantizers)


def _refuse_with_from(**given: object) -> None:
    from mscope.core.errors import InputError

    for name, value in given.items():
        if value:
            option = name.replace("_", "-")
            raise InputError(f"--{option} is about a new bundle, --from about one that is there: give one of the two")


def _print(report: BuildReport) -> None:
    from mscope.core.cost import describe_break_even
    from mscope.core.geometry import describe_reduction

    manifest = report.manifest
    echo(f"built {manifest.name} in {report.folder}")
    echo(f"  weights  {manifest.weights.describe()}")
    for stage, record in manifest.stages.items():
        for variant in record.variants:
            size = manifest.files[variant.file].bytes / 1e6
            echo(f"  {stage:<8} {variant.file}, {size:.1f} MB, {record.tokens} tokens, {record.gmacs:.3f} GMACs")
    if manifest.config.reductions:
        saved = 1 - manifest.stages["full"].gmacs / manifest.baseline.gmacs
        echo(f"  reduced  {describe_reduction(manifest.config)}; {saved:.0%} fewer MACs than plain ViM")
    if manifest.parity is not None:
        parity = manifest.parity
        echo(
            f"  parity   logits within {parity.logits_max_abs:.1e} of PyTorch (tolerance {parity.tolerance:.1e}, "
            f"{parity.images} images)"
        )
    if report.break_even is not None:
        plain = manifest.baseline.gmacs
        echo(f"  by GMACs adaptivity {describe_break_even(report.break_even)} ({plain:.3f} GMACs)")
    _print_variants(report.steps)
    echo(f"  time     {', '.join(f'{step} {seconds:.1f} s' for step, seconds in report.seconds.items())}")
    for warning in report.warnings:
        echo(f"warning: {warning}", err=True)


def _print_revised(report: ReviseReport) -> None:
    echo(f"revised {report.manifest.name} in {report.folder}")
    for stage, record in report.manifest.stages.items():
        for variant in record.variants:
            size = report.manifest.files[variant.file].bytes / 1e6
            echo(f"  {stage:<8} {variant.file}, {size:.1f} MB")
    _print_variants(report.steps)
    for warning in report.warnings:
        echo(f"warning: {warning}", err=True)


def _print_variants(steps: VariantSteps) -> None:
    if steps.plan.note:
        echo(f"  engines  {steps.plan.note}")
    for name, proof in steps.proofs.items():
        echo(f"  proved   {name}, {proof.describe()}")
    for name, engine in steps.engine_proofs.items():
        echo(f"  proved   {name}, {engine.describe()}")
    for report in steps.reports:
        if report.not_run:
            echo(f"  not run  {report.name}: {report.not_run}")
        else:
            logits = [distance for name, distance in report.outputs.items() if name.endswith(".logits")]
            worst = max(logits, key=lambda distance: distance.relative)
            # Of an 8-bit graph, calibrated on pictures, and of one that ranks tokens, noise says little.
            made_up = " (on noise and shapes)" if worst.tolerance is None else ""
            echo(
                f"  parity   {report.name}: logits within {worst.max_abs:.1e}, cosine {worst.cosine:.6f}, "
                f"top-1 {min(report.top1_agreement.values()):.0%}{made_up}"
            )
