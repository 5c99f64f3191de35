"""`mscope-export verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mscope.export.commands.shared import DebugOption, JsonOption, WeightsOption, progress_on_terminal


def verify(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle.  [default: the latest]", show_default=False)] = None,
    weights: WeightsOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Checks a bundle's files, then compares its graphs with PyTorch on the weights it was built from.

    Those come from their source, not from the bundle: random ones from their seed, shipped ones from the package; for a
    bundle built from a file name that file with --weights.
    """
    from mscope.core.bundle import latest_bundle

    folder = bundle or latest_bundle()
    with progress_on_terminal() as progress:
        progress("comparing with PyTorch")
        from mscope.export.verify import verify_bundle

        manifest, parity = verify_bundle(folder, weights)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "bundle": str(folder.absolute()),
                    "weights": manifest.weights.model_dump(mode="json") | {"trained": manifest.weights.trained},
                    "parity": parity.model_dump(mode="json"),
                }
            )
        )
        return
    typer.echo(f"{folder}: whole, and the model it was built from ({manifest.weights.describe()})")
    for name, value in parity.model_dump(exclude_none=True).items():
        typer.echo(f"  {name.replace('_', ' '):<22} {value:.3g}")
