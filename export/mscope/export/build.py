"""Builds a bundle: weights in, graphs, parity and manifest out, whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mscope.core.bundle import data_folder, load_manifest, mark_latest, record_of, write_manifest, writing_folder
from mscope.core.cascade import check_eta
from mscope.core.config import SIZES, ModelConfig
from mscope.core.contract import Stage, graphs
from mscope.core.cost import Cost, break_even_exit_rate, describe_break_even, parameter_count, stage_cost
from mscope.core.geometry import token_counts
from mscope.core.manifest import Baseline, Manifest, Parity, StageRecord, Variant, Weights
from mscope.export.comparison import check_comparator
from mscope.export.defaults import labels_for, preprocessing_for
from mscope.export.engine.plan import plan_engines
from mscope.export.extend import Derive, Progress
from mscope.export.options import BuildOptions
from mscope.export.probes import probe_images
from mscope.export.reference import TorchReference
from mscope.export.steps import VariantSteps
from mscope.export.to_onnx import onnx_from_model
from mscope.export.verify import IMAGES, check_parity
from mscope.export.weights import load_weights
from mscope.model.shipped import shipped_operating_point


@dataclass(frozen=True)
class BuildReport:
    """What was built. `seconds` by step; `warnings` are lines for people; `steps` tells of the variants."""

    folder: Path
    manifest: Manifest
    seconds: dict[str, float]
    steps: VariantSteps

    @property
    def break_even(self) -> float | None:
        """The early-exit rate, by GMACs, above which the cascade is cheaper than plain ViM; None for plain ViM."""
        return break_even_of(self.manifest)

    @property
    def warnings(self) -> tuple[str, ...]:
        return (*warnings_about(self.manifest), *self.steps.plan.warnings)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        manifest = self.manifest
        stages = {
            stage: {
                "gmacs": record.gmacs,
                "tokens": record.tokens,
                "files": {variant.file: manifest.files[variant.file].bytes for variant in record.variants},
            }
            for stage, record in manifest.stages.items()
        }
        return {
            "bundle": str(self.folder),
            "name": manifest.name,
            "params": manifest.params,
            "weights": manifest.weights.model_dump(mode="json") | {"trained": manifest.weights.trained},
            "stages": stages,
            "parity": None if manifest.parity is None else manifest.parity.model_dump(mode="json"),
            "break_even_exit_rate_gmacs": self.break_even,
            "warnings": list(self.warnings),
            **self.steps.to_json(),
            "seconds": {step: round(seconds, 2) for step, seconds in self.seconds.items()},
        }


def build_bundle(options: BuildOptions, progress: Progress | None = None, derive: Sequence[Derive] = ()) -> BuildReport:
    """Exports every stage, checks the written files against PyTorch, and puts the bundle in its place.

    Args:
        options: what to build.
        progress: called with a few words at the start of each step.
        derive: what adds further variants once the fp32 graphs are written and checked, in this order.

    Raises:
        InputError: an option, a weights file or a folder that does not do. ParityError: the graphs are not the model.
        OSError: the disk is full, for example. In every case, and on Ctrl-C, nothing is left behind.
    """
    options.check()
    if options.eta is not None:
        check_eta(options.eta)
    steps = VariantSteps(plan_engines(options.engines), options.precisions, tuple(derive))
    if options.parity and steps.any:
        check_comparator()
    labels = labels_for(options.config, options.labels)
    preprocessing = preprocessing_for(options.config)
    seconds: dict[str, float] = {}

    @contextmanager
    def step(name: str, text: str) -> Iterator[None]:
        if progress is not None:
            progress(text)
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start

    target = options.out or data_folder() / "bundles" / bundle_name(options.config)
    with writing_folder(target) as work:
        with step("weights", "loading weights"):
            loaded = load_weights(options.config, options.weights, options.seed)
        measured = shipped_operating_point(options.config) if loaded.weights.origin == "shipped" else None
        default = Manifest.model_fields["default_eta"].default if measured is None else measured.eta
        eta = default if options.eta is None else options.eta
        files: dict[Stage, Path] = {}
        for graph in graphs(options.config):
            with step(f"export_{graph.stage}", f"exporting {graph.stage}.onnx"):
                files[graph.stage] = work / f"{graph.stage}.onnx"
                files[graph.stage].write_bytes(onnx_from_model(loaded.model, graph.stage).SerializeToString())
        parity = None
        if options.parity:
            with step("parity", "comparing with PyTorch"):
                parity = check_parity(loaded.model, files, etas=(eta,))
        draft: dict[str, Any] = {
            "name": bundle_name(options.config),
            "labels": labels,
            "preprocessing": preprocessing,
            "default_eta": eta,
            "eta_curve": None if measured is None else measured.curve,
        }
        manifest = make_manifest(options.config, loaded.weights, files, parity, draft)
        if steps.any:
            with step("variants", "deriving variants"):
                manifest = steps.run(work, manifest, progress)
            if options.parity:
                with step("variants_parity", "comparing the variants"):
                    images = probe_images(options.config, IMAGES)
                    manifest = steps.check(work, manifest, TorchReference(loaded.model), images, progress)
        write_manifest(work, manifest)
        manifest = load_manifest(work)
    if options.out is None:
        mark_latest(target)
    return BuildReport(target.absolute(), manifest, seconds, steps)


def make_manifest(
    config: ModelConfig, weights: Weights, files: dict[Stage, Path], parity: Parity | None, fields: dict[str, Any]
) -> Manifest:
    """The manifest of fp32 ONNX files, with what follows from the configuration filled in."""
    cost, tokens = stage_cost(config), token_counts(config)
    stages = {
        stage: StageRecord(
            variants=(Variant(file=path.name),), gmacs=getattr(cost, stage), tokens=getattr(tokens, stage)
        )
        for stage, path in files.items()
    }
    return Manifest(
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        config=config,
        params=parameter_count(config),
        weights=weights,
        stages=stages,
        baseline=Baseline(gmacs=stage_cost(unreduced(config)).full, tokens=tokens.full),
        parity=parity,
        tools=tool_versions(),
        files={path.name: record_of(path) for path in files.values()},
        **fields,
    )


def unreduced(config: ModelConfig) -> ModelConfig:
    """The same network with all of its tokens."""
    return config.replace(reduce="none", keep=1.0, reduce_after=None, reduce_steps=None)


def bundle_name(config: ModelConfig) -> str:
    """`ti`, `s-vim`, `ti-alpha0.7-256x192`: the size, and what differs from its defaults."""
    parts = [config.size]
    if config.arch == "vim":
        parts.append("vim")
        if config.reductions:
            parts.append(f"{config.reduce}{config.keep:g}")
    elif config.alpha != ModelConfig.model_fields["alpha"].default:
        parts.append(f"alpha{config.alpha:g}")
    usual = {name: field.default for name, field in ModelConfig.model_fields.items()} | SIZES.get(config.size, {})
    if (config.height, config.width) != (usual["height"], usual["width"]):
        parts.append(f"{config.height}x{config.width}")
    return "-".join(parts)


def tool_versions() -> dict[str, str]:
    """Versions of the packages that decide what the files hold."""
    versions = {}
    for package in ("mambascope-deploy", "torch", "onnx", "onnxscript", "onnxruntime", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def break_even_of(manifest: Manifest) -> float | None:
    """r* by the GMACs that the manifest records; None for plain ViM."""
    if manifest.config.arch == "vim":
        return None
    cost = Cost(manifest.stages["coarse"].gmacs, manifest.stages["fine"].gmacs, manifest.baseline.gmacs)
    return break_even_exit_rate(cost.coarse, cost.fine, cost.full)


def warnings_about(manifest: Manifest) -> tuple[str, ...]:
    """What a user should know before trusting the bundle's answers or its savings."""
    lines = []
    if not manifest.weights.trained:
        lines.append(f"weights are {manifest.weights.describe()}; use the bundle for latency work only")
    elif manifest.weights.derived:
        names = ", ".join(manifest.weights.derived)
        lines.append(f"the weights file lacked parameters that were derived, not trained: {names}")
    rate = break_even_of(manifest)
    if rate is not None and rate > 0.0:
        lines.append(f"by GMACs adaptivity {describe_break_even(rate)}")
    if manifest.parity is None:
        lines.append("parity was not checked: run 'mscope-export verify' before relying on the graphs")
    return tuple(lines)
