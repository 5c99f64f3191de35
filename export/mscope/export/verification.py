"""`mscope-export verify`: everything about a bundle that can be checked on this machine, in one report."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mscope.core.bundle import load_manifest
from mscope.core.cascade import select_regions
from mscope.core.contract import Stage
from mscope.core.errors import InputError, ParityError
from mscope.core.geometry import coarse_grid, regions_refined
from mscope.core.manifest import Manifest, Parity
from mscope.export.comparison import check_comparator
from mscope.export.extend import Progress
from mscope.export.passes.mixers import load_split
from mscope.export.polygraphy_files import check_target, write_polygraphy_files
from mscope.export.precision.derive import fp32_file
from mscope.export.precision.drift import Step, drift, first_drift
from mscope.export.precision.ranges import Range, ranges_of
from mscope.export.probes import adversarial_images, probe_images
from mscope.export.reference import Floats, GraphReference, Reference, Regions, TorchReference
from mscope.export.variants import VariantReport, compare_variants
from mscope.runtime.backends.base import Arrays

_PROBES = 6
_MOST_IMAGES = 64
_SHOWN = 5
# The drift needs no more: every value of it is an average over tokens and channels.
_DRIFT_IMAGES = 2


@dataclass
class Verification:
    """What was found. `problems` is empty where everything keeps to its bounds.

    Attributes:
        parity: the fp32 graphs against the network in float64; None where PyTorch is not installed.
        reference: what the variants were compared with: "pytorch", or "fp32": the bundle's own fp32 graphs.
        images: probes, and the pictures that were given.
        variants: one for each way to run a variant here, and for each that cannot.
        ranges: where there are fp16 files: the largest values that they must hold, over probes, extremes and pictures.
        drift: with `layers`: by file, every value on the way through the graph.
        polygraphy: with a folder for Polygraphy: the command lines that run its files.
    """

    folder: Path
    manifest: Manifest
    parity: Parity | None
    reference: str
    images: int
    variants: list[VariantReport] = field(default_factory=list)
    ranges: list[Range] = field(default_factory=list)
    drift: dict[str, list[Step]] = field(default_factory=dict)
    polygraphy: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        found = [f"{report.name}: {problem}" for report in self.variants for problem in report.problems]
        over = [
            f"fp16 overflows: {item.stage} {item.tensor} reaches {item.largest:.3g}, fp16 holds {item.limit:g}"
            for item in self.ranges
            if item.headroom < 1
        ]
        return found + over

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        return {
            "bundle": str(self.folder.absolute()),
            "weights": self.manifest.weights.model_dump(mode="json") | {"trained": self.manifest.weights.trained},
            "parity": None if self.parity is None else self.parity.model_dump(mode="json"),
            "reference": self.reference,
            "images": self.images,
            "variants": [report.to_json() for report in self.variants],
            "fp16_ranges": [_plain(item) | {"headroom": _finite(item.headroom)} for item in self.ranges[:_SHOWN]],
            "layers": {
                name: {
                    "first_drift": None if (first := first_drift(steps)) is None else _plain(first),
                    "steps": [_plain(step) for step in steps],
                }
                for name, steps in self.drift.items()
            },
            "polygraphy": self.polygraphy,
            "problems": self.problems,
        }


def _plain(item: Range | Step) -> dict[str, Any]:
    return {name: _finite(value) for name, value in asdict(item).items()}


def _finite(value: Any) -> Any:
    """None for what JSON has no number for: a value that overflowed."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def verify(
    folder: Path,
    weights: Path | None = None,
    pictures: Sequence[str] = (),
    *,
    layers: bool = False,
    polygraphy: Path | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Checks a bundle's files, its fp32 graphs against PyTorch in float64, and every variant against fp32.

    Args:
        folder: the bundle.
        weights: the checkpoint that it was built from, where it was built from one (see `weights_of_bundle`).
        pictures: files, folders, globs or .npy tensors to compare on beside the probes; 64 at most.
        layers: also compare every ONNX variant step by step.
        polygraphy: a new folder to write what Polygraphy runs on a device with TensorRT.
        progress: called with a few words at each step.

    Raises:
        BundleError: damaged. InputError: other weights than the bundle's, a picture that cannot be read, or a folder
            that is not empty.
        MscopeError: Polygraphy is not installed. ParityError: the fp32 graphs are not the model. What variants do wrong
            is in the result, not raised.
    """
    manifest = load_manifest(folder)
    check_comparator()
    tell = progress or (lambda text: None)
    files: dict[Stage, Path] = {stage: folder / fp32_file(manifest, stage) for stage in manifest.stages}
    given = _given(manifest, pictures)
    if polygraphy is not None:
        check_target(polygraphy, manifest.config, _PROBES + len(given))
    parity: Parity | None = None
    reference: Reference = GraphReference(manifest.config, files)
    if importlib.util.find_spec("torch") is not None:
        tell("loading PyTorch")
        from mscope.export.verify import check_parity
        from mscope.export.weights import weights_of_bundle

        model = weights_of_bundle(manifest, weights).model
        tell("comparing the fp32 graphs with PyTorch")
        parity = check_parity(model, files, etas=(manifest.default_eta,), temperature=manifest.temperature.coarse)
        reference = TorchReference(model)
    elif weights is not None:
        raise InputError(
            "--weights needs PyTorch, which is not installed: leave it out to compare with the fp32 graphs"
        )
    images = np.concatenate([probe_images(manifest.config, _PROBES), given])
    report = Verification(folder, manifest, parity, reference.name, len(images))
    tell("comparing the variants")
    report.variants = compare_variants(folder, manifest, reference, images)
    low = {v.precision for record in manifest.stages.values() for v in record.variants if v.backend == "onnx"}
    if "fp16" in low:
        tell("looking for the largest values")
        recipe = manifest.preprocessing
        extremes = adversarial_images(manifest.config, recipe.mean, recipe.std)
        report.ranges = _ranges(manifest, files, reference, np.concatenate([images, extremes]))
    if polygraphy is not None:
        tell("writing the files for Polygraphy")
        report.polygraphy = _hand_over(polygraphy, folder, manifest, reference, images)
    if layers:
        report.drift = _drift(folder, manifest, files, reference, images[:_DRIFT_IMAGES], tell)
    return report


def _given(manifest: Manifest, pictures: Sequence[str]) -> Floats:
    from mscope.runtime.preprocess import Preprocessor
    from mscope.runtime.sources import expand_pictures

    config = manifest.config
    shape = (config.channels, config.height, config.width)
    if not pictures:
        return np.zeros((0, *shape), np.float32)
    items = expand_pictures(list(pictures), shape)
    if len(items) > _MOST_IMAGES:
        raise InputError(f"--images stands for {len(items)} pictures, at most {_MOST_IMAGES} are compared: name fewer")
    prepare = Preprocessor(manifest.preprocessing, config)
    rows: Floats = np.stack([prepare(item.load(), item.source).tensor for item in items]).astype(np.float32)
    return rows


def feeds_of(
    manifest: Manifest, reference: Reference, images: Floats, first: Arrays | None = None
) -> dict[Stage, Arrays]:
    """What each stage's graph takes for these images, every one refined as the reference would.

    `first` are `reference.first`'s outputs, where they are there already.
    """
    if manifest.config.arch == "vim":
        return {"full": {"image": images}}
    first = reference.first(images) if first is None else first
    count = regions_refined(manifest.config.alpha, coarse_grid(manifest.config).count)
    selected, remaining = select_regions(first["importance"], count)
    handed_on = {name: first[name] for name in ("features", "embeddings")}
    fine: Arrays = {"image": images, "selected": selected, "remaining": remaining, **handed_on}
    return {"coarse": {"image": images}, "fine": fine}


def _hand_over(target: Path, folder: Path, manifest: Manifest, reference: Reference, images: Floats) -> list[str]:
    first = reference.first(images)
    feeds = feeds_of(manifest, reference, images, first)
    outputs: dict[Stage, Arrays] = {next(iter(feeds)): first}
    if "fine" in feeds:
        regions = Regions(feeds["fine"]["selected"], feeds["fine"]["remaining"])
        outputs["fine"] = {"logits": reference.fine(images, first, regions)}
    return write_polygraphy_files(target, folder, manifest, feeds, outputs, reference.name)


def _ranges(manifest: Manifest, files: dict[Stage, Path], reference: Reference, images: Floats) -> list[Range]:
    found = []
    for stage, feeds in feeds_of(manifest, reference, images).items():
        found += ranges_of(load_split(files[stage]), stage, feeds)
    return sorted(found, key=lambda item: item.largest, reverse=True)


def _drift(
    folder: Path, manifest: Manifest, files: dict[Stage, Path], reference: Reference, images: Floats, tell: Progress
) -> dict[str, list[Step]]:
    found = {}
    for stage, feeds in feeds_of(manifest, reference, images).items():
        for variant in manifest.stages[stage].variants:
            if variant.backend == "onnx" and variant.precision != "fp32":
                tell(f"comparing {variant.file} step by step")
                graphs = load_split(files[stage]), load_split(folder / variant.file)
                found[variant.file] = drift(*graphs, variant.precision, feeds)
    return found


def raise_problems(report: Verification) -> None:
    """Raises ParityError with the first problem and how many there are."""
    problems = report.problems
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ParityError(f"{problems[0]}{more}")
