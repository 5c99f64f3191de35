"""`mscope-export`: builds, verifies and describes bundles."""

from __future__ import annotations

import sys

import typer

from mscope.core.console import run_app
from mscope.export.commands.build import build
from mscope.export.commands.info import info
from mscope.export.commands.verify import verify

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="From PyTorch weights to a bundle that mscope-run runs: ONNX graphs, checked against the model.",
)
app.command(
    epilog="Examples: mscope-export build --size ti"
    " | mscope-export build --size s --weights vim_s.pth --alpha 0.7 --out bundles/s"
    " | mscope-export build --size ti --arch vim"
)(build)
app.command(epilog="Examples: mscope-export verify | mscope-export verify bundles/s --weights vim_s.pth --json")(verify)
app.command(
    epilog="Examples: mscope-export info | mscope-export info bundles/s --json"
    " | mscope-export info --size s --alpha 0.7 --resolution 256x192"
)(info)


def main() -> None:
    """Entry point of the command."""
    sys.exit(run_app(app))


if __name__ == "__main__":
    main()
