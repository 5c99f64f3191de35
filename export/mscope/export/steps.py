"""The variants of a build, in order: typed graphs, what the caller derives, engines; each is held to its bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mscope.core.errors import MscopeError
from mscope.core.manifest import Manifest, Precision
from mscope.export.engine.derive import engines_of
from mscope.export.engine.elsewhere import add_source
from mscope.export.engine.plan import EnginePlan
from mscope.export.engine.proof import EngineProof
from mscope.export.extend import Derive, Progress, derive_variants
from mscope.export.precision.derive import typed_variants
from mscope.export.precision.proof import PrecisionProof
from mscope.export.precision.rules import TYPED
from mscope.export.reference import Floats, Reference
from mscope.export.variants import VariantReport, check_reports, compare_variants


@dataclass
class VariantSteps:
    """What was derived and what is known of it.

    Attributes:
        plan: how engines are built.
        precisions: asked for beside fp32.
        derive: the caller's derivations.
        proofs: of the typed files, by name. engine_proofs: of the engines, by file name.
        reports: how the variants compare with the reference.
    """

    plan: EnginePlan
    precisions: tuple[Precision, ...] = ()
    derive: Sequence[Derive] = ()
    proofs: dict[str, PrecisionProof] = field(default_factory=dict)
    engine_proofs: dict[str, EngineProof] = field(default_factory=dict)
    reports: list[VariantReport] = field(default_factory=list)

    @property
    def any(self) -> bool:
        """Whether there is anything to derive."""
        return bool(self.precisions or self.derive or self.plan.options or self.plan.elsewhere)

    def run(self, folder: Path, manifest: Manifest, progress: Progress | None) -> Manifest:
        """Derives everything in `folder` and returns its manifest, in which every precision that was asked for is.

        Raises:
            MscopeError: a precision is missing at the end. What the derivations raise.
        """
        typed = [typed_variants(precision, self.proofs) for precision in self.precisions if precision in TYPED]
        manifest = derive_variants(folder, manifest, (*typed, *self.derive), progress)
        wanted = self.precisions or _lowest(manifest)
        for precision in wanted:
            for stage, record in manifest.stages.items():
                if not any((v.backend, v.precision) == ("onnx", precision) for v in record.variants):
                    raise MscopeError(
                        f"{precision} was asked for and stage '{stage}' has no such file: nothing made it"
                    )
        if self.plan.options is not None:
            engines = [engines_of(self.plan.options, precision, self.engine_proofs) for precision in wanted]
            manifest = derive_variants(folder, manifest, engines, progress)
        if self.plan.elsewhere is not None and self.plan.elsewhere.source:
            manifest = add_source(folder, manifest)
        return manifest

    def check(
        self, folder: Path, manifest: Manifest, reference: Reference, images: Floats, progress: Progress | None
    ) -> Manifest:
        """Runs what can run here and writes its parity into the manifest's variants.

        Raises:
            ParityError: a variant is further from the reference than its precision explains.
        """
        if progress is not None:
            progress("comparing the variants")
        self.reports = compare_variants(folder, manifest, reference, images, skip=("fp32",), quick=True)
        for report in self.reports:
            # What is to be run names the bundle, of which `folder` is the unfinished copy.
            report.not_run = report.not_run.replace(str(folder), "BUNDLE")
        check_reports(self.reports)
        return with_parity(manifest, self.reports, reference)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        from dataclasses import asdict

        return {
            "precision": {name: asdict(proof) for name, proof in self.proofs.items()},
            "engines": {name: asdict(proof) for name, proof in self.engine_proofs.items()},
            "variants": [report.to_json() for report in self.reports],
            "engines_note": "; ".join(self.plan.warnings) or self.plan.note,
            "on_device": None if self.plan.elsewhere is None else self.plan.elsewhere.to_json(),
        }


def _lowest(manifest: Manifest) -> tuple[Precision, ...]:
    """The precisions beside fp32 that every stage has as ONNX, or fp32."""
    sets = [{v.precision for v in record.variants if v.backend == "onnx"} for record in manifest.stages.values()]
    shared = set.intersection(*sets) - {"fp32"}
    return tuple(sorted(shared)) or ("fp32",)


def with_parity(manifest: Manifest, reports: Sequence[VariantReport], reference: Reference) -> Manifest:
    """The manifest with what `reports` say of each variant's logits."""
    from mscope.runtime.backends.registry import BACKENDS

    known = {(BACKENDS[r.backend].format, r.precision): r for r in reports if r.outputs and not r.problems}
    stages = {}
    for stage, record in manifest.stages.items():
        variants = []
        for variant in record.variants:
            report = known.get((variant.backend, variant.precision))
            update = {} if report is None else {"parity": report.parity(stage, reference)}
            variants.append(variant.model_copy(update=update))
        stages[stage] = record.model_copy(update={"variants": tuple(variants)})
    return Manifest.model_validate(manifest.model_copy(update={"stages": stages}).model_dump())
