"""`build --from`: adds precisions and engines to a bundle that is there, on a device that has no PyTorch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mscope.core.bundle import load_manifest, revising_bundle, write_manifest
from mscope.core.manifest import Manifest, Precision
from mscope.export.comparison import check_comparator
from mscope.export.engine.plan import plan_engines
from mscope.export.engine.wish import EngineWish
from mscope.export.extend import Derive, Progress
from mscope.export.precision.derive import fp32_file
from mscope.export.probes import probe_images
from mscope.export.reference import GraphReference
from mscope.export.steps import VariantSteps

_IMAGES = 6


@dataclass(frozen=True)
class ReviseReport:
    """What was added to a bundle."""

    folder: Path
    manifest: Manifest
    steps: VariantSteps
    seconds: float

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.steps.plan.warnings

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        stages = {
            stage: {"files": {variant.file: self.manifest.files[variant.file].bytes for variant in record.variants}}
            for stage, record in self.manifest.stages.items()
        }
        return {
            "bundle": str(self.folder),
            "name": self.manifest.name,
            "stages": stages,
            "warnings": list(self.warnings),
            **self.steps.to_json(),
            "seconds": round(self.seconds, 2),
        }


def revise_bundle(
    folder: Path,
    precisions: tuple[Precision, ...] = (),
    engines: EngineWish | None = None,
    progress: Progress | None = None,
    derive: Sequence[Derive] = (),
    *,
    parity: bool = True,
) -> ReviseReport:
    """Adds variants to a bundle and compares them with its fp32 graphs; it is replaced whole, or stays as it is.

    Args:
        folder: the bundle.
        precisions: as in BuildOptions.
        engines: which; None builds none. Of `precisions`, or where none is asked for of what the bundle has.
        progress: called with a few words at each step.
        derive: the caller's own derivations, before the engines.
        parity: compare what can run here.

    Raises:
        BundleError, InputError, BackendError, ParityError: as `build_bundle`.
    """
    start = time.perf_counter()
    if parity:
        check_comparator()
    steps = VariantSteps(plan_engines(engines or EngineWish()), precisions, tuple(derive))
    with revising_bundle(folder) as (work, manifest):
        revised = steps.run(work, manifest, progress)
        if parity:
            files = {stage: work / fp32_file(revised, stage) for stage in revised.stages}
            reference = GraphReference(revised.config, files)
            revised = steps.check(work, revised, reference, probe_images(revised.config, _IMAGES), progress)
        write_manifest(work, revised)
    return ReviseReport(folder.absolute(), load_manifest(folder), steps, time.perf_counter() - start)
