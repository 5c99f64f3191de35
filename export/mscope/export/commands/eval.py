"""`mscope-export eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mscope.core.console import echo
from mscope.export.commands.labelled import (
    BackendOption,
    BatchOption,
    DataArgument,
    KernelOption,
    LatencyImagesOption,
    LevelOption,
    LimitOption,
    PrecisionOption,
    SeedOption,
    ThreadsOption,
    images_progress,
    telling,
)
from mscope.export.commands.shared import DebugOption, JsonOption
from mscope.runtime.choices import KernelName


def evaluate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Its folder; adaptive (mambascope) or a ViM.")],
    data: DataArgument,
    eta: Annotated[
        float | None,
        typer.Option(metavar="ETA", help="Threshold of the adaptive figures.  [default: the bundle's]"),
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="A plain ViM bundle to run on the same pictures.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write eval.json, CSV files, plots, and the outputs to continue from, into this folder."
        ),
    ] = None,
    level: LevelOption = 0.95,
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
    """Measures a bundle on labelled pictures: accuracy, calibration and cost of each stage and of every eta.

    One pass stores both stages' outputs; a run that was stopped goes on where it was. Without --out they are kept below
    the user's data folder, and nothing else is written.
    """
    from mscope.calib.evaluate import evaluate as evaluate_outputs
    from mscope.calib.intervals import check_level
    from mscope.calib.report import answer_names, print_evaluation, to_json, warnings_about, write_results
    from mscope.calib.study import StudyOptions, observe
    from mscope.core.bundle import load_manifest
    from mscope.core.cascade import check_eta
    from mscope.core.errors import InputError
    from mscope.core.text import readable

    check_level(level)
    plain_bundle = load_manifest(bundle, check_files=False).config.arch == "vim"
    if eta is not None:
        check_eta(eta)
        if plain_bundle:
            raise InputError(f"{bundle} is a plain ViM, which has no early exit: leave --eta out")
    if compare is not None and (plain_bundle or not load_manifest(compare, check_files=False).config.plain):
        raise InputError("--compare takes a plain ViM bundle ('build --arch vim', not reduced) beside an adaptive one")
    options = StudyOptions(
        data=data,
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
        study = observe(
            [bundle] if compare is None else [bundle, compare],
            options,
            on_problem=on_problem,
            on_start=images_progress,
        )
    first, plain = study.bundles[0], study.bundles[1] if compare is not None else None
    result = evaluate_outputs(
        first.manifest,
        first.outputs,
        eta=eta,
        plain=None if plain is None else plain.outputs,
        plain_gmacs=None if plain is None else plain.manifest.stages["full"].gmacs,
        latency=first.latency,
        plain_latency_ms=first.plain_ms if plain is None else plain.plain_ms,
        level=level,
        seed=seed,
    )
    warnings = warnings_about(study, result)
    content = to_json(study, result, warnings)
    if out is not None:
        from mscope.calib.plots import plot_curve, plot_reliability

        written = write_results(out, content, result)
        title = f"{first.manifest.name}, {study.images} pictures of {readable(Path(study.dataset.name).name)}"
        if result.curve:
            plot_curve(result, title, out / "curve.png")
            written.append(out / "curve.png")
        plot_reliability(result, answer_names(study), title, out / "reliability.png")
        written.append(out / "reliability.png")
        echo(f"written: {', '.join(str(path) for path in written)}", err=True)
    if as_json:
        typer.echo(json.dumps(content, ensure_ascii=False, allow_nan=False))
    else:
        print_evaluation(study, result)
    for warning in warnings:
        echo(f"warning: {warning}", err=True)
