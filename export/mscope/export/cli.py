"""`mscope-export`: builds, verifies and describes bundles."""

from __future__ import annotations

import sys

import typer

from mscope.core.console import examples, run_app
from mscope.export.commands.build import build
from mscope.export.commands.calibrate_eta import calibrate_eta
from mscope.export.commands.doctor import doctor
from mscope.export.commands.eval import evaluate
from mscope.export.commands.info import info
from mscope.export.commands.plugins import app as plugins
from mscope.export.commands.verify import verify

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="From PyTorch weights to a bundle that mscope-run runs: ONNX graphs, checked against the model.",
    epilog=examples(
        "mscope-export build --size ti",
        "mscope-export info",
        "mscope-export eval bundles/digits digits --out results",
    )
    + "\n\nExit status: 0 done; 1 a failure; 2 bad usage or input; 130 interrupted. COMMAND --help has more examples.",
)
app.command(
    short_help="Builds a bundle: graphs, checked, with a manifest.",
    epilog=examples(
        "mscope-export build --size ti",
        "mscope-export build --size s --weights vim_s.pth --alpha 0.7 --out bundles/s",
        "mscope-export build --size ti --arch vim",
        "mscope-export build --size ti --fp16 --target trt-rtx --gpu sm_89",
        "mscope-export build --size ti --fp16 --gpu sm_87    (an Orin: then on it, as it says)",
        "mscope-export build --from bundles/ti --target trt",
        "mscope-export build --size digits --int8 --calib-data digits",
    ),
)(build)
app.command(
    short_help="Checks a bundle's files, and its variants against PyTorch.",
    epilog=examples(
        "mscope-export verify",
        "mscope-export verify bundles/s --weights vim_s.pth --json",
        "mscope-export verify bundles/ti --images photos --layers",
        "mscope-export verify bundles/ti --polygraphy polygraphy-ti",
    ),
)(verify)
app.command(
    short_help="Parameters, tokens and GMACs of each stage.",
    epilog=examples(
        "mscope-export info",
        "mscope-export info bundles/s --json",
        "mscope-export info --size s --alpha 0.7 --resolution 256x192",
    ),
)(info)
app.command(
    "eval",
    short_help="Accuracy and cost over eta, on labelled pictures.",
    epilog=examples(
        "mscope-export eval bundles/s imagenet/val --out results/s",
        "mscope-export eval bundles/digits digits --compare bundles/digits-vim --limit 1000 --json",
    ),
)(evaluate)
app.command(
    "calibrate-eta",
    short_help="Chooses eta on labelled pictures and writes it into the bundle.",
    epilog=examples(
        "mscope-export calibrate-eta bundles/s imagenet/val --target 'accuracy>=0.79'",
        "mscope-export calibrate-eta bundles/s-0.5 bundles/s-0.7 photos --target 'latency<=8ms' --temperature",
    ),
)(calibrate_eta)
app.add_typer(plugins, name="plugins", short_help="The TensorRT plugin library: build, path, check, source, onnx.")
app.command(
    short_help="What of this machine can be used, and what mends the rest.",
    epilog=examples("mscope-export doctor", "mscope-export doctor --json"),
)(doctor)


def main() -> None:
    """Entry point of the command."""
    sys.exit(run_app(app))


if __name__ == "__main__":
    main()
