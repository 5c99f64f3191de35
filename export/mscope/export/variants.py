"""Compares every file of a bundle that can run here with a reference, output by output, within its bounds."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from mscope.core.cascade import select_regions
from mscope.core.contract import Stage, graphs
from mscope.core.engine import load_engine_record
from mscope.core.errors import BackendError, MscopeError, ParityError
from mscope.core.geometry import coarse_grid, regions_refined
from mscope.core.manifest import Manifest, Precision, VariantParity
from mscope.export.agreement import compare_exits, compare_selected
from mscope.export.bounds import COSINE, is_judged, tolerance
from mscope.export.comparison import Distance, compare_outputs
from mscope.export.reference import Floats, Reference, Regions
from mscope.plugins import find
from mscope.runtime.backends.base import Arrays, Kernel, Runner
from mscope.runtime.backends.registry import BACKENDS, Entry, RunnerOptions

_BATCHES = (1, 2, 3)


@dataclass
class VariantReport:
    """One way to run a bundle here: backend, precision, kernel. `problems` is empty where it keeps to its bounds.

    Attributes:
        outputs: by "stage.output".
        top1_agreement: by stage, the share of images with the reference's likeliest class.
        exit_agreement: share of images with the reference's exit decision at the bundle's eta and between any two
            confidences.
        exit_flips: images that exit otherwise at the bundle's eta.
        selected_agreement: share of refined regions that the reference refines too.
        not_run: why it did not run; everything else is then empty.
    """

    backend: str
    precision: Precision
    kernel: str
    images: int = 0
    outputs: dict[str, Distance] = field(default_factory=dict)
    top1_agreement: dict[str, float] = field(default_factory=dict)
    exit_agreement: float | None = None
    exit_flips: int | None = None
    selected_agreement: float | None = None
    problems: list[str] = field(default_factory=list)
    not_run: str = ""

    @property
    def name(self) -> str:
        return " ".join(part for part in (self.backend, self.precision, self.kernel) if part)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def parity(self, stage: Stage, reference: Reference) -> VariantParity:
        """What the manifest keeps of a stage's file."""
        logits = self.outputs[f"{stage}.logits"]
        coarse = stage == "coarse"
        return VariantParity(
            images=self.images,
            reference=reference.name,
            max_abs=logits.max_abs,
            tolerance=logits.tolerance,
            cosine=logits.cosine,
            top1_agreement=self.top1_agreement[stage],
            exit_agreement=self.exit_agreement if coarse else None,
            selected_agreement=self.selected_agreement if coarse else None,
        )


def compare_variants(
    folder: Path,
    manifest: Manifest,
    reference: Reference,
    images: Floats,
    *,
    skip: Sequence[Precision] = (),
    quick: bool = False,
) -> list[VariantReport]:
    """Runs every variant on every backend of its format and compares; those that cannot run here say why.

    Args:
        folder, manifest: the bundle, or one that is being built.
        reference: what they are held to.
        images: (n, C, H, W) float32, normalised.
        skip: precisions to leave out.
        quick: on the fastest kernels only, not on each.
    """
    expected = reference.first(images)
    there = {(v.backend, v.precision): None for record in manifest.stages.values() for v in record.variants}
    reports = []
    for form, precision in there:
        entries = [
            entry
            for entry in BACKENDS.values()
            if entry.format == form and (precision in entry.precisions or _is_emulated(entry, precision))
        ]
        if precision in skip:
            continue
        if not entries:
            reports.append(VariantReport(form, precision, "", not_run="no backend of this version runs it"))
        for entry in entries:
            found = entry.probe()
            if not found.available:
                reports.append(VariantReport(entry.name, precision, "", not_run=found.missing))
                continue
            try:
                files = _files(folder, manifest, entry, precision)
            except BackendError as error:
                reports.append(VariantReport(entry.name, precision, "", not_run=str(error)))
                continue
            for kernel in _kernels(entry, quick):
                reports.append(_compare(files, manifest, entry, precision, kernel, reference, images, expected))
    return reports


def check_reports(reports: Sequence[VariantReport]) -> None:
    """Raises ParityError with the first problem of any report."""
    for report in reports:
        if report.problems:
            raise ParityError(f"{report.name}: {report.problems[0]}")


def _files(folder: Path, manifest: Manifest, entry: Entry, precision: Precision) -> dict[Stage, Path]:
    """The file that a backend runs of each stage that has one; of several engines the one for this machine.

    Raises:
        BackendError: a stage has engines, but for another GPU, library or plugin; the first says so.
    """
    found: dict[Stage, Path] = {}
    for stage, record in manifest.stages.items():
        refused = ""
        for variant in record.variants:
            path = folder / variant.file
            if stage in found or (variant.backend, variant.precision) != (entry.format, precision):
                continue
            if reason := entry.mismatch(path, variant, "auto"):
                refused = refused or reason
            else:
                found[stage] = path
        if refused and stage not in found:
            raise BackendError(refused)
    return found


def _kernels(entry: Entry, quick: bool) -> tuple[Kernel, ...]:
    library = {"ort-cpu": "ort", "ort-cuda": "ort_cuda"}.get(entry.name)
    if library is None:
        return ("auto",)
    if find.library(library) is None:
        return ("function",)
    return ("native",) if quick else ("function", "native")


def _is_emulated(entry: Entry, precision: Precision) -> bool:
    """ONNX Runtime has no bfloat16 products on the CPU: it runs no such file, but what it would compute can be told."""
    return entry.name == "ort-cpu" and precision == "bf16"


def _compare(
    files: Mapping[Stage, Path],
    manifest: Manifest,
    entry: Entry,
    precision: Precision,
    kernel: Kernel,
    reference: Reference,
    images: Floats,
    expected: Arrays,
) -> VariantReport:
    emulated = _is_emulated(entry, precision)
    report = VariantReport(entry.name, precision, f"{kernel}, products emulated" if emulated else kernel)
    try:
        with _runners(files, manifest, entry, precision, kernel, emulated) as (runners, batch):
            report.kernel = report.kernel.replace("auto", next(iter(runners.values())).kernel)
            # An engine's smallest batch may be larger than all the images: some are run again.
            rows = np.arange(max(len(images), batch[0])) % len(images)
            got, regions = _run(manifest, runners, images[rows], batch)
    except MscopeError as error:
        report.problems.append(str(error))
        return report
    rows = rows[: len(got["logits"])]
    report.images = min(len(rows), len(images))
    images, expected = images[rows], {name: value[rows] for name, value in expected.items()}
    first: Stage = "full" if manifest.config.arch == "vim" else "coarse"
    outputs = {f"{first}.{name}": (got[name], expected[name]) for name in expected if name in got}
    if regions is not None:
        outputs["fine.logits"] = got["fine"], reference.fine(images, expected, regions)
    report.outputs = compare_outputs(
        outputs, lambda name, scale: tolerance(manifest.config, _stage_of(name), precision, scale)
    )
    _judge(report, manifest)
    for name, (ours, theirs) in outputs.items():
        if name.endswith(".logits"):
            report.top1_agreement[_stage_of(name)] = float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean())
    if regions is not None:
        _note_decisions(report, manifest, got["logits"], expected, regions)
    return report


@contextlib.contextmanager
def _runners(
    files: Mapping[Stage, Path],
    manifest: Manifest,
    entry: Entry,
    precision: Precision,
    kernel: Kernel,
    emulated: bool,
) -> Iterator[tuple[dict[Stage, Runner], tuple[int, int]]]:
    """Active runners of every stage, and the smallest and largest batch that they take."""
    batch = (1, max(_BATCHES))
    with contextlib.ExitStack() as stack:
        runners: dict[Stage, Runner] = {}
        for graph in graphs(manifest.config):
            if graph.stage not in files:
                raise ParityError(f"the bundle has no {entry.format} {precision} file for stage '{graph.stage}'")
            path = files[graph.stage]
            if entry.format != "onnx":
                smallest, _, largest = load_engine_record(path).batch
                batch = max(batch[0], smallest), min(batch[1], largest)
            if emulated:
                path = _emulated(path, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mscope-bf16-"))))
            options = RunnerOptions(threads=1 if entry.name == "ort-cpu" else None, kernel=kernel)
            runners[graph.stage] = stack.enter_context(entry.runner(graph, path, options))
        yield runners, (batch[0], max(batch))


def _emulated(path: Path, scratch: Path) -> Path:
    from mscope.export.passes.mixers import load_graph
    from mscope.export.precision.emulate import emulate_bf16

    target = scratch / path.name
    target.write_bytes(emulate_bf16(load_graph(path)).SerializeToString())
    return target


def _run(
    manifest: Manifest, runners: Mapping[Stage, Runner], images: Floats, batch: tuple[int, int]
) -> tuple[Arrays, Regions | None]:
    """The outputs of the first graph by name, the fine logits as "fine", and what was refined: every image is."""
    rows: list[Arrays] = []
    for part in _parts(images, batch):
        if manifest.config.arch == "vim":
            rows.append(runners["full"].infer({"image": part}))
            continue
        first = runners["coarse"].infer({"image": part})
        count = regions_refined(manifest.config.alpha, coarse_grid(manifest.config).count)
        selected, remaining = select_regions(first["importance"], count)
        handed_on = {name: first[name] for name in ("features", "embeddings")}
        fine = runners["fine"].infer({"image": part, "selected": selected, "remaining": remaining, **handed_on})
        rows.append({**first, "fine": fine["logits"], "selected": selected, "remaining": remaining})
    got = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    if manifest.config.arch == "vim":
        return got, None
    return got, Regions(got.pop("selected"), got.pop("remaining"))


def _parts(images: Floats, batch: tuple[int, int]) -> list[Floats]:
    """Batches of 1, 2, 3, 1, ... as far as the range allows; images that fill no smallest batch are left out."""
    parts: list[Floats] = []
    start = 0
    while start < len(images):
        size = min(max(_BATCHES[len(parts) % len(_BATCHES)], batch[0]), batch[1])
        part = images[start : start + size]
        if len(part) < batch[0]:
            break
        parts.append(part)
        start += size
    return parts


def _stage_of(name: str) -> Stage:
    return cast(Stage, name.partition(".")[0])


def _judge(report: VariantReport, manifest: Manifest) -> None:
    """Notes every output that is beyond what the precision explains; NaN is."""
    for name, distance in report.outputs.items():
        told = name.replace(".", " ")
        if distance.tolerance is not None and not distance.max_abs <= distance.tolerance:
            report.problems.append(
                f"{told} differ by {distance.max_abs:.2g}, {report.precision} explains {distance.tolerance:.2g}"
            )
        least = COSINE.get(report.precision) if is_judged(manifest.config, report.precision) else None
        if name.endswith(".logits") and least is not None and not distance.cosine >= least:
            report.problems.append(f"{told} have cosine {distance.cosine:.4f}, expected {least}")


def _note_decisions(
    report: VariantReport, manifest: Manifest, logits: Floats, expected: Arrays, regions: Regions
) -> None:
    wanted, _ = select_regions(expected["importance"], regions.selected.shape[1])
    common = [len(np.intersect1d(got, want)) for got, want in zip(regions.selected, wanted, strict=True)]
    report.selected_agreement = float(np.mean(common) / wanted.shape[1])
    sharpness = manifest.temperature.coarse
    exact = expected["logits"].astype(np.float64) / sharpness
    actual = logits / sharpness
    bounds = {
        name: np.inf
        if report.outputs[f"coarse.{name}"].tolerance is None
        else report.outputs[f"coarse.{name}"].tolerance
        for name in ("importance", "logits")
    }
    try:
        compare_selected(regions.selected, expected["importance"].astype(np.float64), float(bounds["importance"] or 0))
    except ParityError as error:
        report.problems.append(str(error))
    eta = manifest.default_eta
    limit = float(bounds["logits"] or 0) / sharpness
    report.exit_flips = round(len(exact) * (1 - compare_exits(actual, exact, (eta,), np.inf, between=False)))
    try:
        report.exit_agreement = compare_exits(actual, exact, (eta,), limit)
    except ParityError as error:
        report.exit_agreement = compare_exits(actual, exact, (eta,), np.inf)
        report.problems.append(str(error))
