"""What a bundle or a configuration is and costs: parameters, tokens, GMACs, break-even exit rate, files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mscope.core.bundle import load_manifest
from mscope.core.config import ModelConfig
from mscope.core.cost import break_even_exit_rate, parameter_count, stage_cost
from mscope.core.engine import load_engine_record
from mscope.core.geometry import block_tokens, describe_reduction, token_counts
from mscope.core.manifest import Manifest


def info_from_config(config: ModelConfig) -> dict[str, Any]:
    """The analytic figures of a configuration; for plain ViM those of the two stages are None."""
    cost, tokens = stage_cost(config), token_counts(config)
    adaptive = config.arch == "mambascope"
    stages = ("coarse", "fine", "full")
    return {
        "arch": config.arch,
        "size": config.size,
        "alpha": config.alpha if adaptive else None,
        "resolution": [config.height, config.width],
        "params": parameter_count(config),
        "weights": None,
        "tokens": {stage: getattr(tokens, stage) if adaptive or stage == "full" else None for stage in stages},
        "gmacs": {stage: round(getattr(cost, stage), 4) if adaptive or stage == "full" else None for stage in stages},
        "reduction": _reduction(config),
        "break_even_exit_rate_gmacs": (
            round(break_even_exit_rate(cost.coarse, cost.fine, cost.full), 4) if adaptive else None
        ),
        "variants": [],
        "launches": {},
    }


def _reduction(config: ModelConfig) -> dict[str, Any] | None:
    """How a reduced ViM is thinned out; None where every block works on all tokens."""
    if not config.reductions:
        return None
    return {
        "method": config.reduce,
        "keep": config.keep,
        "steps": describe_reduction(config),
        "tokens_of_blocks": list(block_tokens(config)),
    }


def info_from_bundle(folder: Path) -> dict[str, Any]:
    """The same of a bundle, with its weights and files. The files' hashes are checked. Raises BundleError."""
    manifest = load_manifest(folder)
    return info_from_config(manifest.config) | {
        "bundle": str(folder.absolute()),
        "name": manifest.name,
        "created": manifest.created,
        "weights": manifest.weights.model_dump(mode="json") | {"trained": manifest.weights.trained},
        "variants": _variants(manifest),
        "launches": _launches(folder, manifest),
        "default_eta": manifest.default_eta,
        "parity": None if manifest.parity is None else manifest.parity.model_dump(mode="json"),
        "tools": manifest.tools,
    }


def _variants(manifest: Manifest) -> list[dict[str, Any]]:
    return [
        {"stage": stage, **variant.model_dump(mode="json"), "bytes": manifest.files[variant.file].bytes}
        for stage, record in manifest.stages.items()
        for variant in record.variants
    ]


def _launches(folder: Path, manifest: Manifest) -> dict[str, dict[str, float | int | None]]:
    """Kernel launches: of an ONNX file counted from its graph, of an engine what its record tells."""
    from mscope.export.launches import launches_of_bundle

    counts: dict[str, dict[str, float | int | None]] = {
        name: asdict(launches) for name, launches in launches_of_bundle(folder, manifest).items()
    }
    for record in manifest.stages.values():
        for variant in record.variants:
            if variant.backend != "onnx":
                engine = load_engine_record(folder / variant.file)
                counts[variant.file] = {"total": engine.launches, "per_block": engine.launches_per_block}
    return counts
