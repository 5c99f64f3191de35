"""`mscope-train`: trains the small networks that this package ships."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from mscope.core.console import examples, run_app

_EPILOG = (
    examples(
        "mscope-train --out digits.safetensors --threads 1",
        "mscope-train --out digits-vim.safetensors --arch vim",
        "mscope-train --out clip.safetensors --set metric=clip --set gated_importance=false",
        "mscope-train --out digits.safetensors --resume",
    )
    + "\n\nExit status: 0 trained; 1 a failure; 2 bad usage or input; 130 interrupted."
)

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog=_EPILOG)
def train(
    out: Annotated[Path, typer.Option(help="Weights file to write (.safetensors); FILE.ckpt beside it is the run.")],
    dataset: Annotated[str, typer.Option(help="What to learn; there is: digits.")] = "digits",
    arch: Annotated[str, typer.Option(help="mambascope, or vim for the plain baseline.")] = "mambascope",
    init: Annotated[Path | None, typer.Option(help="Start from these weights; no warm start then.")] = None,
    alpha: Annotated[float, typer.Option(help="Refined fraction of the regions, in (0, 1].")] = 0.75,
    samples: Annotated[int, typer.Option(help="Pictures seen in all.")] = 500_000,
    batch: Annotated[int, typer.Option(help="Pictures a step.")] = 32,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-3,
    seed: Annotated[int, typer.Option(help="Decides the initial weights and every training picture.")] = 0,
    extra: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Another choice of the model or the training, such as metric=clip; repeatable.",
        ),
    ] = [],  # noqa: B006
    resume: Annotated[bool, typer.Option("--resume", help="Continue the unfinished run of --out.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.  [default: PyTorch's own]")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for the report (JSON and text).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the run's record as one JSON object.")] = False,
    test_pictures: Annotated[int, typer.Option(min=1, help="Pictures of the test split to measure on.")] = 4000,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")] = False,
) -> None:
    """Trains MambaScope or plain ViM (section 4.3 of the paper) and measures it on the test split.

    From random weights a MambaScope first learns as plain ViM, then both stages together. Ctrl-C leaves a checkpoint
    that --resume continues bit for bit.
    """
    from mscope.model.training.recipe import make_recipe

    # A library linked to the system's OpenMP reads this, and torch.set_num_threads does not reach it.
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    fields: dict[str, object] = {"dataset": dataset, "arch": arch, "alpha": alpha, "samples": samples, "batch": batch}
    fields |= {"lr": lr, "seed": seed}
    if init is not None:
        fields |= {"warm_share": 0.0, "easy_share": 0.0}
    for pair in extra:
        key, _, value = pair.partition("=")
        fields[key] = value
    recipe = make_recipe(**fields)

    from rich.console import Console

    from mscope.model.training.progress import Reporter
    from mscope.model.training.report import Measured, render
    from mscope.model.training.session import Options
    from mscope.model.training.session import train as run

    options = Options(
        recipe=recipe,
        out=out,
        init=init,
        resume=resume,
        threads=threads,
        report=report,
        test_pictures=test_pictures,
        command=shlex.join(["mscope-train", *sys.argv[1:]]),
    )
    with Reporter(Console(stderr=True)) as reporter:
        record = run(options, reporter)
    if as_json:
        typer.echo(json.dumps(record))
    else:
        typer.echo(render(Measured.model_validate(record["measured"])))
        typer.echo(f"weights: {out}")


def main() -> None:
    """Entry point of `mscope-train`."""
    sys.exit(run_app(app))


if __name__ == "__main__":
    main()
