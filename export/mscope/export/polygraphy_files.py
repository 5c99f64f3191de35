"""For NVIDIA's `polygraphy run` on a device with TensorRT: graphs, inputs, reference outputs and the command lines.

docs/tensorrt-plugin.md has an example.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mscope.core.config import ModelConfig
from mscope.core.contract import Stage, Tensor, graphs
from mscope.core.errors import InputError
from mscope.core.files import check_new_folder, new_folder
from mscope.core.manifest import Manifest, Precision
from mscope.export.bounds import tolerance
from mscope.export.engine.plugin_onnx import write_graphs
from mscope.runtime.backends.base import Arrays

_MOST_BYTES = 256 << 20


def check_target(folder: Path, config: ModelConfig, images: int) -> None:
    """Raises InputError where files for so many images cannot be written into `folder`, before they are computed."""
    check_new_folder(folder)
    tensors = [tensor for graph in graphs(config) for tensor in (*graph.inputs, *graph.outputs)]
    size = images * sum(map(_bytes_of_one, tensors)) * 4 // 3  # base64
    if size > _MOST_BYTES:
        raise InputError(
            f"--polygraphy would write {size >> 20} MiB of inputs and outputs for {images} images, at most "
            f"{_MOST_BYTES >> 20} MiB: name fewer --images"
        )


def _bytes_of_one(tensor: Tensor) -> int:
    """Of one image's row: the first axis is the batch."""
    return math.prod(axis for axis in tensor.axes[1:] if isinstance(axis, int)) * np.dtype(tensor.dtype).itemsize


def write_polygraphy_files(
    folder: Path,
    bundle: Path,
    manifest: Manifest,
    feeds: Mapping[Stage, Arrays],
    outputs: Mapping[Stage, Arrays],
    reference: str,
) -> list[str]:
    """Writes `folder` whole or not at all, and returns a command line for each stage and precision.

    Args:
        folder: new, or empty (see `check_target`).
        bundle, manifest: whose ONNX files are to be run.
        feeds: each graph's inputs for n images.
        outputs: what `reference`, by its name, answers to them.
    """
    from polygraphy.comparator import RunResults
    from polygraphy.json import save_json
    from polygraphy.logger import G_LOGGER

    # Its log would go to stdout.
    with new_folder(folder) as work, G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        for stage in manifest.stages:
            # An iteration an image: the batch of 1 is what Polygraphy's own profile takes.
            save_json(_by_image(feeds[stage]), str(work / f"{stage}.inputs.json"))
            results = RunResults()
            results.add(_by_image(outputs[stage]), runner_name=reference)
            results.save(str(work / f"{stage}.outputs.json"))
        written = write_graphs(work, bundle, manifest)
    lines = []
    for graph in written:
        bounds = _bounds(manifest.config, graph.stage, graph.precision, outputs[graph.stage])
        lines.append(_command(folder, graph.file, graph.stage, bounds))
    return lines


def _by_image(arrays: Arrays) -> list[Arrays]:
    count = len(next(iter(arrays.values())))
    return [{name: value[i : i + 1] for name, value in arrays.items()} for i in range(count)]


def _bounds(config: ModelConfig, stage: Stage, precision: Precision, outputs: Arrays) -> dict[str, float]:
    """Infinite where the precision is reported and not judged."""
    bounds = {name: tolerance(config, stage, precision, float(np.abs(value).max())) for name, value in outputs.items()}
    return {name: math.inf if bound is None else bound for name, bound in bounds.items()}


def _command(folder: Path, file: str, stage: Stage, bounds: Mapping[str, float]) -> str:
    """A line for a shell. The plugin's place is asked for where it runs.

    Polygraphy only dlopens a plugin library, so that ours must register itself (MSCOPE_TRT_REGISTER), with a TensorRT
    that is there already: Polygraphy imports it later, but for an option whose value is TensorRT's. The verbosity is
    what it would be without.
    """

    def quoted(name: str) -> str:
        return shlex.quote(str(folder / name))

    atol = " ".join(f"{name}:{bound:.3g}" for name, bound in bounds.items())
    return (
        f"MSCOPE_TRT_REGISTER=1 polygraphy run {quoted(file)} --trt --strongly-typed --profiling-verbosity detailed "
        f'--plugins "$(mscope-export plugins path)" --load-inputs {quoted(f"{stage}.inputs.json")} '
        f"--load-outputs {quoted(f'{stage}.outputs.json')} --validate --rtol 0 --atol {atol}"
    )
