"""Adds the typed graphs of a precision to a bundle: one beside each fp32 file, proved before it is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from mscope.core.contract import Stage, graph_for
from mscope.core.errors import BundleError, MscopeError
from mscope.core.manifest import Manifest, Precision, Variant
from mscope.export.extend import Derive, Progress, new_file
from mscope.export.interface import check_interface
from mscope.export.passes.mixers import load_split
from mscope.export.precision.proof import PrecisionProof, prove_precision
from mscope.export.precision.typed import typed_graph


def typed_variants(precision: Precision, proofs: dict[str, PrecisionProof] | None = None) -> Derive:
    """A derivation that writes `coarse.fp16.onnx` and so on from the fp32 files of the bundle.

    Args:
        precision: "fp16" or "bf16".
        proofs: gets what is proved of each file, by its name.
    """

    def derive(folder: Path, manifest: Manifest, progress: Progress | None) -> Mapping[Stage, Variant]:
        added: dict[Stage, Variant] = {}
        for stage in manifest.stages:
            name = f"{stage}.{precision}.onnx"
            if progress is not None:
                progress(f"typing {name}")
            typed = typed_graph(_fp32_graph(folder, manifest, stage), precision)
            check_interface(typed, graph_for(manifest.config, stage))
            proof = prove_precision(typed, precision)
            new_file(folder, name).write_bytes(typed.SerializeToString())
            if proofs is not None:
                proofs[name] = proof
            added[stage] = Variant(file=name, precision=precision)
        return added

    return derive


def _fp32_graph(folder: Path, manifest: Manifest, stage: Stage) -> onnx.ModelProto:
    path = folder / fp32_file(manifest, stage)
    graph = load_split(path)
    try:
        check_interface(graph, graph_for(manifest.config, stage))
    except MscopeError as error:
        raise BundleError(f"{path} is not the graph of its manifest ({error}): build the bundle again") from None
    return graph


def fp32_file(manifest: Manifest, stage: Stage) -> str:
    """The canonical graph of a stage. Raises MscopeError where the bundle has none."""
    for variant in manifest.stages[stage].variants:
        if (variant.backend, variant.precision) == ("onnx", "fp32"):
            return variant.file
    raise MscopeError(f"stage '{stage}' has no fp32 ONNX file to derive from")
