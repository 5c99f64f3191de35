"""ONNX files for a TensorRT parser that is not called from here: trtexec, Triton, a program in C++."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from mscope.core.bundle import load_manifest
from mscope.core.contract import OP_DOMAIN, Stage
from mscope.core.errors import InputError
from mscope.core.files import new_folder
from mscope.core.manifest import Manifest, Precision
from mscope.export.engine.network import input_shapes, plugin_graph
from mscope.export.extend import Progress
from mscope.plugins import build
from mscope.plugins.build_trt import NAME


@dataclass(frozen=True)
class PluginOnnx:
    """One file that was written.

    Attributes:
        file: its name.
        engine: what its engine is to be called.
        shapes: of its inputs, without the batch where that is dynamic.
        dynamic: whether the batch, every input's first axis, may vary.
    """

    file: str
    engine: str
    shapes: dict[str, tuple[int, ...]]
    dynamic: bool

    def trtexec(self, batch: tuple[int, int, int]) -> str:
        """The command that builds its engine for batches from the smallest to the largest, with the library beside it.

        It runs nothing: trtexec's own random numbers are no indices of regions.
        """
        # A bare name would be looked for in the system's folders alone.
        library = f"./{build.library_path(NAME, Path()).name}"
        words = ["trtexec", f"--onnx={self.file}", f"--staticPlugins={library}", "--stronglyTyped", "--noTF32"]
        for option, size in zip(("min", "opt", "max"), batch, strict=True) if self.dynamic else ():
            shapes = (f"{name}:{'x'.join(map(str, (size, *shape)))}" for name, shape in self.shapes.items())
            words.append(f"--{option}Shapes={','.join(shapes)}")
        return shlex.join([*words, f"--saveEngine={self.engine}", "--skipInference"])


@dataclass(frozen=True)
class StageOnnx(PluginOnnx):
    """One of a bundle's."""

    stage: Stage
    precision: Precision


def write_plugin_onnx(source: Path, out: Path, progress: Progress | None = None) -> Sequence[PluginOnnx]:
    """Writes every ONNX file of a bundle, or one file of `export_module`, without functions into a new folder.

    TensorRT's parser takes a function's body before it looks for a plugin. All files are written or none.

    Raises:
        BundleError: no bundle, or a damaged one; not an ONNX file. InputError: a file without this project's ops;
            `out` exists and is not empty, or cannot be written.
    """
    if source.is_file():
        with new_folder(out) as work:
            return [_write_graph(work, source, progress)]
    manifest = load_manifest(source)
    with new_folder(out) as work:
        return write_graphs(work, source, manifest, progress)


def write_graphs(work: Path, bundle: Path, manifest: Manifest, progress: Progress | None = None) -> list[StageOnnx]:
    """The same into a folder that is there; `manifest` is the bundle's."""
    written = []
    for stage, record in manifest.stages.items():
        for variant in record.variants:
            if variant.backend != "onnx":
                continue
            file = _plugin_name(variant.file)
            if progress is not None:
                progress(f"writing {file}")
            (work / file).write_bytes(plugin_graph(bundle / variant.file).SerializeToString())
            engine = f"{stage}.{variant.precision}.engine"
            shapes = input_shapes(manifest.config, stage)
            written.append(StageOnnx(file, engine, shapes, True, stage, variant.precision))
    return written


def _write_graph(work: Path, path: Path, progress: Progress | None) -> PluginOnnx:
    if progress is not None:
        progress(f"writing {_plugin_name(path.name)}")
    model = plugin_graph(path)
    if not any(node.domain == OP_DOMAIN for node in model.graph.node):
        raise InputError(f"{path}: no op of this project is in it, so no plugin is needed: give the file to trtexec")
    axes = {value.name: _axes(value) for value in model.graph.input}
    dynamic = any(shape[:1] == (None,) for shape in axes.values())
    fixed: dict[str, tuple[int, ...]] = {}
    for name, shape in axes.items():
        sizes = tuple(size for size in (shape[1:] if dynamic else shape) if size is not None)
        if len(sizes) + dynamic != len(shape) or (dynamic and shape[0] is not None):
            raise InputError(f"{path}: input '{name}' has an open axis that is not the batch: trtexec needs its range")
        fixed[name] = sizes
    (work / _plugin_name(path.name)).write_bytes(model.SerializeToString())
    return PluginOnnx(_plugin_name(path.name), f"{path.name.removesuffix('.onnx')}.engine", fixed, dynamic)


def _plugin_name(file: str) -> str:
    return f"{file.removesuffix('.onnx')}.plugin.onnx"


def _axes(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim)
