"""`mscope-profile predict`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mscope.runtime.profiling.roofline import Precision
    from mscope.runtime.profiling.roofline_words import Answer, Question

EPILOG = """Examples:

  mscope-profile predict --size ti --device orin-nano --eta 0.6 --fps 60

  mscope-profile predict --size s --device orin-agx --precision fp16 --sweep

The figures are predicted from data sheets and counted work, not measured: 'mscope-profile' on the device measures.
"""


class PrecisionName(str, Enum):
    """Values of --precision."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


def predict(
    size: Annotated[str, typer.Option(metavar="NAME", help="ti, s, b or digits.")] = "ti",
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A bundle instead of --size; its curve tells the exit rate at --eta."),
    ] = None,
    arch: Annotated[str, typer.Option(metavar="NAME", help="mambascope or vim, with --size.")] = "mambascope",
    device: Annotated[
        str,
        typer.Option(metavar="NAME", help="orin-agx, orin-nx, orin-nano, orin-nano-super, h200, rtx-4090, cpu, ..."),
    ] = "orin-nano",
    precision: Annotated[
        PrecisionName | None, typer.Option(help="Of the network.  [default: fp16; on the cpu fp32]", show_default=False)
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=4096, metavar="N", help="Images run together.")] = 1,
    resolution: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS", help="Side of the picture, with --size.  [default: the size's own]", show_default=False
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(metavar="A", help="Refined fraction, with --size.  [default: the size's own]", show_default=False),
    ] = None,
    eta: Annotated[float | None, typer.Option(metavar="ETA", help="Exit threshold.", show_default=False)] = None,
    exit_rate: Annotated[
        float | None, typer.Option(metavar="R", help="Share of images that exit early, in 0 to 1.", show_default=False)
    ] = None,
    fps: Annotated[float | None, typer.Option(metavar="N", help="Images a second to hold.", show_default=False)] = None,
    threads: Annotated[int, typer.Option(metavar="N", help="Of the cpu: 1 or 2.")] = 2,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="A table over resolutions 224 to 1024 and batches 1 to 32.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout (a line each with --sweep).")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> int:
    """Predicts latency on a device that is not here, as a range, and says whether a frame rate would hold."""
    import json
    from dataclasses import replace

    from mscope.core.bundle import load_manifest
    from mscope.core.config import config_for
    from mscope.core.console import echo
    from mscope.runtime.profiling.roofline_words import (
        SWEEP_BATCHES,
        SWEEP_RESOLUTIONS,
        Question,
        answer,
        exit_rate_of,
    )

    if bundle is not None:
        manifest = load_manifest(bundle)
        config = manifest.config
        if eta is not None and exit_rate is None:
            exit_rate = exit_rate_of(manifest, eta)
    else:
        changes = {"alpha": alpha, "height": resolution, "width": resolution}
        config = config_for(size, arch, **{name: value for name, value in changes.items() if value is not None})
    default: Precision = "fp32" if device == "cpu" else "fp16"
    chosen: Precision = default if precision is None else precision.value
    asked = Question(
        config=config, device=device, precision=chosen, batch=batch, fps=fps, eta=eta, exit_rate=exit_rate,
        threads=threads,
    )  # fmt: skip
    if sweep:
        answers = [
            answer(replace(asked, config=config.replace(height=side, width=side), batch=many))
            for side in SWEEP_RESOLUTIONS
            for many in SWEEP_BATCHES
        ]
    else:
        answers = [answer(asked)]
    if as_json:
        typer.echo("\n".join(json.dumps(found.to_json()) for found in answers))
    else:
        for line in _table(asked, answers) if sweep else _lines(answers[0]):
            echo(line)
    return 0


def _lines(found: Answer) -> list[str]:
    from mscope.runtime.profiling.roofline_words import LABEL

    asked = found.question
    side = f"{asked.config.height} x {asked.config.width}"
    lines = [f"{found.device_name}, {asked.config.size} at {side}, {asked.precision}, batch {asked.batch}: {LABEL}"]
    lines += [f"  {line}" for line in found.words]
    lines.append("")
    names = {"exit": "exits early", "refine": "is refined", "plain": "plain ViM"}
    lines += [f"  {names[name]:<12}{span!s}" for name, span in found.paths.items()]
    shares = [
        f"{entry.stage}: "
        + ", ".join(f"{name} {share:.0%}" for name, share in sorted(entry.limits.items(), key=lambda e: -e[1]))
        for entry in found.stages
    ]
    lines += [
        "",
        "limited by",
        *(f"  {line}" for line in shares),
        "",
        "assumed",
        *(f"  {line}" for line in found.assumptions),
    ]
    lines.append(f"  figures of the device: {found.source}")
    return lines


def _table(asked: Question, answers: list[Answer]) -> list[str]:
    from mscope.runtime.profiling.roofline_words import LABEL, short

    names = list(answers[0].paths)
    lines = [f"{answers[0].device_name}, {asked.config.size}, {asked.precision}, milliseconds a batch: {LABEL}"]
    lines.append(f"{'side':>6}{'batch':>7}" + "".join(f"{name:>22}" for name in names))
    for found in answers:
        spans = "".join(f"{f'{short(span.best_ms)} to {short(span.worst_ms)}':>22}" for span in found.paths.values())
        lines.append(f"{found.question.config.height:>6}{found.question.batch:>7}{spans}")
    return lines
