"""A bundle's ONNX files for a TensorRT parser that is not called from here: trtexec, Triton, a program in C++."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from mscope.core.bundle import load_manifest
from mscope.core.contract import Stage
from mscope.core.files import new_folder
from mscope.core.manifest import Manifest, Precision
from mscope.export.engine.network import input_shapes, plugin_graph
from mscope.export.extend import Progress
from mscope.plugins import build
from mscope.plugins.build_trt import NAME


@dataclass(frozen=True)
class PluginOnnx:
    """One file that was written, and its inputs' shapes without the batch."""

    file: str
    stage: Stage
    precision: Precision
    shapes: dict[str, tuple[int, ...]]

    def trtexec(self, batch: tuple[int, int, int]) -> str:
        """The command that builds its engine for batches from the smallest to the largest, with the library beside it.

        It runs nothing: trtexec's own random numbers are no indices of regions.
        """
        # A bare name would be looked for in the system's folders alone.
        library = f"./{build.library_path(NAME, Path()).name}"
        words = ["trtexec", f"--onnx={self.file}", f"--staticPlugins={library}", "--stronglyTyped", "--noTF32"]
        for option, size in zip(("min", "opt", "max"), batch, strict=True):
            shapes = (f"{name}:{'x'.join(map(str, (size, *shape)))}" for name, shape in self.shapes.items())
            words.append(f"--{option}Shapes={','.join(shapes)}")
        return shlex.join([*words, f"--saveEngine={self.stage}.{self.precision}.engine", "--skipInference"])


def write_plugin_onnx(bundle: Path, out: Path, progress: Progress | None = None) -> list[PluginOnnx]:
    """Writes every ONNX file of a bundle without its functions into a new folder, whole or not at all.

    TensorRT's parser takes a function's body before it looks for a plugin.

    Raises:
        BundleError: no bundle, or a damaged one. InputError: `out` exists and is not empty, or cannot be written.
    """
    manifest = load_manifest(bundle)
    with new_folder(out) as work:
        return write_graphs(work, bundle, manifest, progress)


def write_graphs(work: Path, bundle: Path, manifest: Manifest, progress: Progress | None = None) -> list[PluginOnnx]:
    """The same into a folder that is there; `manifest` is the bundle's."""
    written = []
    for stage, record in manifest.stages.items():
        for variant in record.variants:
            if variant.backend != "onnx":
                continue
            file = f"{variant.file.removesuffix('.onnx')}.plugin.onnx"
            if progress is not None:
                progress(f"writing {file}")
            (work / file).write_bytes(plugin_graph(bundle / variant.file).SerializeToString())
            written.append(PluginOnnx(file, stage, variant.precision, input_shapes(manifest.config, stage)))
    return written
