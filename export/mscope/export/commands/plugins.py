"""`mscope-export plugins build|path|check|source|onnx`: the TensorRT plugin library, also where there is no Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mscope.core.console import echo, examples
from mscope.export.commands.shared import DebugOption, JsonOption, progress_on_terminal

FolderArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="A new folder, or an empty one.", show_default=False)
]

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="The TensorRT plugin library, libmscope_trt.so: builds it, says where it is, tries it; and what a device "
    "without Python needs instead: its source, and ONNX files for trtexec.",
    epilog=examples(
        "mscope-export plugins build --arch 87",
        "mscope-export plugins check",
        "mscope-export plugins source orin/plugin",
    ),
)


@app.command(
    short_help="Compiles kernels and plugins with nvcc; needs no GPU.",
    epilog=examples(
        "mscope-export plugins build",
        "mscope-export plugins build --arch 87    (an Orin alone: seconds)",
        "mscope-export plugins build --tensorrt-include /usr/include/aarch64-linux-gnu",
    ),
)
def build(
    arch: Annotated[
        str | None,
        typer.Option(help="Compute capabilities, as 87,90.  [default: all from 75 to 120]", show_default=False),
    ] = None,
    tensorrt_include: Annotated[
        Path | None,
        typer.Option(
            help="Folder of NvInferRuntime.h.  [default: $TensorRT_INCLUDE_DIR, else the project's own header]",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the library.  [default: inside the package]", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build even when nothing changed.")] = False,
    debug: DebugOption = False,
) -> None:
    """Compiles the CUDA kernels and the plugins into one file with nvcc and prints its path; needs no GPU."""
    from mscope.core.errors import BackendError
    from mscope.plugins.build import BuildError
    from mscope.plugins.build_trt import build_trt
    from mscope.plugins.trt_options import PluginBuild

    options = PluginBuild.from_options(arch, tensorrt_include, out, force)
    with progress_on_terminal() as progress:
        progress("compiling: the kernels for every architecture take about a minute of CPU time")
        try:
            library = build_trt(options)
        except BuildError as error:
            raise BackendError(str(error)) from None
    typer.echo(library)


@app.command(epilog=examples("trtexec --onnx=model.onnx --staticPlugins=$(mscope-export plugins path)"))
def path(debug: DebugOption = False) -> None:
    """Prints where the library is."""
    from mscope.plugins import trt

    typer.echo(trt.library_path())


@app.command(
    short_help="Loads the library into every TensorRT that is installed.",
    epilog=examples("mscope-export plugins check", "mscope-export plugins check --json"),
)
def check(as_json: JsonOption = False, debug: DebugOption = False) -> int:
    """Loads the library into every TensorRT that is installed, each in a process of its own; says what it takes.

    The exit status is 0 where at least one TensorRT is here and every one has taken all plugins, else 1.
    """
    from mscope.plugins.trt_check import check as run_check

    report = run_check()
    if as_json:
        typer.echo(json.dumps(report.to_json()))
    else:
        _print(report.to_json())
    return 0 if report.passed else 1


@app.command(
    short_help="Writes the library's source, to build with cmake and nvcc alone.",
    epilog=examples(
        "mscope-export plugins source orin/plugin",
        "cmake -S orin/plugin -B build -DCMAKE_CUDA_ARCHITECTURES=87 && cmake --build build    (on the device)",
    ),
)
def source(
    folder: FolderArgument,
    debug: DebugOption = False,
) -> None:
    """Writes the sources of the library with a CMakeLists.txt and a README, for a device without Python."""
    from mscope.core.errors import BackendError
    from mscope.core.files import new_folder
    from mscope.plugins.build import BuildError
    from mscope.plugins.trt_source import write_source

    try:
        with new_folder(folder) as work:
            write_source(work)
    except BuildError as error:
        raise BackendError(str(error)) from None
    typer.echo(folder)


@app.command(
    "onnx",
    short_help="Writes ONNX files so that TensorRT's parser takes the plugin.",
    epilog=examples(
        "mscope-export plugins onnx bundles/ti orin/onnx",
        "mscope-export plugins onnx bundles/ti orin/onnx --batch 1,1,16 --json",
        "mscope-export plugins onnx vmamba.onnx orin/onnx    (a file of export_module, docs/own-models.md)",
    ),
)
def plugin_onnx(
    source: Annotated[
        Path,
        typer.Argument(metavar="BUNDLE|FILE", help="A bundle's folder, or one ONNX file.", show_default=False),
    ],
    folder: FolderArgument,
    batch: Annotated[str, typer.Option(help="Batches of the engines: MIN,OPT,MAX.")] = "1,1,8",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Writes a bundle's ONNX files, or one file, without the functions, which the parser would take before the plugin.

    Prints the trtexec command of each; --batch goes into these alone.
    """
    from mscope.export.engine.device import parse_batch

    sizes = parse_batch(batch)
    with progress_on_terminal() as progress:
        progress("reading")
        from mscope.export.engine.plugin_onnx import StageOnnx, write_plugin_onnx

        written = write_plugin_onnx(source, folder, progress)
    if as_json:
        files = [
            {
                "file": f.file,
                "stage": f.stage if isinstance(f, StageOnnx) else None,
                "precision": f.precision if isinstance(f, StageOnnx) else None,
                "shapes": f.shapes,
                "trtexec": f.trtexec(sizes),
            }
            for f in written
        ]
        typer.echo(json.dumps({"folder": str(folder), "batch": sizes, "files": files}))
    else:
        for file in written:
            typer.echo(file.trtexec(sizes))


def _print(report: dict[str, Any]) -> None:
    echo(f"library     {report['library'] or 'none'}")
    if report["library"]:
        echo(f"  built     with TensorRT headers: {report['headers']}; code for {', '.join(report['targets'])}")
        echo(f"  T         {', '.join(report['types'])}")
        for op in report["ops"]:
            echo(f"  {op['name']} version {report['version']}")
            for role in ("inputs", "outputs"):
                tensors = (
                    f"{t['name']} ({t['shape'].replace(' ', ', ')}) {t['type']}{'?' if t['optional'] else ''}"
                    for t in op[role]
                )
                echo(f"    {role:<10} {', '.join(tensors)}")
            for a in op["attributes"]:
                echo(f"    attribute  {a['name']}, {a['least']} to {a['most']}, default {a['default']}")
    for flavour in report["flavours"]:
        state = flavour["problem"] or f"took {len(flavour['creators'])} creators"
        tried = f"{flavour['version']}  {state}" if flavour["version"] else "not installed"
        echo(f"{flavour['flavour']:<13} {tried}")
        for creator in flavour["creators"]:
            echo(f"    {creator['name']} {creator['version']} in namespace '{creator['namespace']}'")
    for line in report["missing"]:
        echo(f"missing     {line}")
