"""`mscope-export info`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mscope.core.console import echo
from mscope.export.commands.shared import (
    AlphaOption,
    DebugOption,
    JsonOption,
    KeepOption,
    ReduceAfterOption,
    ReduceOption,
    ResolutionOption,
)


def info(
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="BUNDLE", help="Its folder.  [default: the one built last]", show_default=False),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="ti, s, b or digits: a configuration instead of a bundle.", show_default=False)
    ] = None,
    arch: Annotated[str | None, typer.Option(help="mambascope or vim, with --size.", show_default=False)] = None,
    alpha: AlphaOption = None,
    resolution: ResolutionOption = None,
    reduce: ReduceOption = None,
    keep: KeepOption = None,
    reduce_after: ReduceAfterOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Prints parameters, tokens and GMACs of each stage, of a bundle or of a configuration."""
    from mscope.core.bundle import latest_bundle
    from mscope.core.errors import InputError
    from mscope.export.info import info_from_bundle, info_from_config
    from mscope.export.options import config_from_options

    given = (size, arch, alpha, resolution, reduce, keep, reduce_after)
    if bundle is not None and any(value is not None for value in given):
        raise InputError("give a bundle, or --size, --arch and what else describes a network, not both")
    if any(value is not None for value in given):
        config = config_from_options(
            size or "ti", arch or "mambascope", alpha, resolution, reduce=reduce, keep=keep, reduce_after=reduce_after
        )
        content = info_from_config(config)
    else:
        content = info_from_bundle(bundle or latest_bundle())
    if as_json:
        typer.echo(json.dumps(content))
    else:
        _print(content)


def _print(content: dict[str, Any]) -> None:
    from mscope.core.cost import describe_break_even

    height, width = content["resolution"]
    alpha = "" if content["alpha"] is None else f", alpha {content['alpha']:g}"
    params = content["params"] / 1e6
    echo(f"{content['arch']} {content['size']}{alpha}, {height} x {width}, {params:.2f} M parameters")
    for stage in ("coarse", "fine", "full"):
        if content["tokens"][stage] is not None:
            name = ("reduced ViM" if content["reduction"] else "plain ViM") if stage == "full" else stage
            echo(f"  {name:<11} {content['tokens'][stage]:>5} tokens {content['gmacs'][stage]:>9.3f} GMACs")
    if content["reduction"]:
        echo(f"  {content['reduction']['steps']}")
    rate = content["break_even_exit_rate_gmacs"]
    if rate is not None:
        echo(f"  by GMACs adaptivity {describe_break_even(rate)} (break-even exit rate {rate:.2f})")
    if content["weights"] is not None:
        weights = content["weights"]
        origin = f"random, seed {weights['seed']}: untrained" if weights["origin"] == "random" else weights["name"]
        echo(f"  weights    {origin}")
    longest = max((len(variant["file"]) for variant in content["variants"]), default=0)
    for variant in content["variants"]:
        kind = f"{variant['backend']} {variant['precision']}"
        launches = content["launches"][variant["file"]]
        told = (
            ""
            if launches["per_block"] is None
            else f", {launches['total']} launches, {launches['per_block']:g} a block"
        )
        echo(f"  {variant['file']:<{longest}} {variant['stage']}, {kind}, {variant['bytes'] / 1e6:.1f} MB{told}")
