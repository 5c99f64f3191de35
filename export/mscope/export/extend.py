"""Adds files to a bundle that is being built, or to one that is there: what every derived variant goes through.

Imports neither torch nor onnx, so that a device with nothing but TensorRT adds its engines to a bundle from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mscope.core.bundle import load_manifest, record_of, revising_bundle, write_manifest
from mscope.core.contract import Stage
from mscope.core.errors import MscopeError
from mscope.core.manifest import MANIFEST, FileRecord, Manifest, StageRecord, Variant

Progress = Callable[[str], None]
# Gets the folder of an unfinished bundle, its manifest so far and the progress function; writes files into the folder
# (with names from `new_file`) and returns the variant of each stage that they add.
Derive = Callable[[Path, Manifest, Progress | None], Mapping[Stage, Variant]]


def new_file(folder: Path, name: str) -> Path:
    """The path to write `name` to, with nothing there: a file of an earlier build may be a link into the old bundle."""
    path = folder / name
    path.unlink(missing_ok=True)
    return path


def derive_variants(
    folder: Path, manifest: Manifest, derive: Sequence[Derive], progress: Progress | None = None
) -> Manifest:
    """Runs each derivation in turn in `folder` and returns the manifest with its variants and all files hashed.

    A variant takes the place of one with the same stage, backend and precision; files that nothing names any more go.

    Raises:
        MscopeError: a derivation names a stage that the bundle lacks or a file that it did not write. What they raise.
    """
    for step in derive:
        added = step(folder, manifest, progress)
        for stage, variant in added.items():
            if stage not in manifest.stages:
                raise MscopeError(f"{variant.file} was derived for stage '{stage}', which this bundle does not have")
            if not (folder / variant.file).is_file():
                raise MscopeError(f"{variant.file} was derived but not written")
        stages = {
            stage: record.model_copy(update={"variants": _with(record.variants, added.get(stage), folder, manifest)})
            for stage, record in manifest.stages.items()
        }
        for name in _files_of(manifest.stages) - _files_of(stages):
            (folder / name).unlink(missing_ok=True)
            (folder / f"{name}.json").unlink(missing_ok=True)
        manifest = manifest.model_copy(update={"stages": stages, "files": hashed_files(folder)})
    # model_copy does not validate.
    return Manifest.model_validate(manifest.model_dump())


def _with(
    variants: tuple[Variant, ...], added: Variant | None, folder: Path, manifest: Manifest
) -> tuple[Variant, ...]:
    """`added` in the place of the like; engines of a graph that it replaces by another go, for they are of the old."""
    if added is None:
        return variants
    like = [old for old in variants if (old.backend, old.precision) == (added.backend, added.precision)]
    stale = added.backend == "onnx" and any(manifest.files[old.file] != record_of(folder / added.file) for old in like)
    kept = (old for old in variants if old not in like and not (stale and old.precision == added.precision))
    return (*kept, added)


def _files_of(stages: Mapping[Stage, StageRecord]) -> set[str]:
    return {variant.file for record in stages.values() for variant in record.variants}


def hashed_files(folder: Path) -> dict[str, FileRecord]:
    """The record of every file in `folder` but the manifest, by name."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: record_of(path) for name, path in found.items() if name != MANIFEST}


def extend_bundle(folder: Path, derive: Sequence[Derive], progress: Progress | None = None) -> Manifest:
    """Adds derived variants to the bundle in `folder`, all or none: it is replaced whole at the end.

    Raises:
        BundleError: no bundle, or a damaged one. InputError: its place cannot be written. What the derivations raise.
    """
    with revising_bundle(folder) as (work, manifest):
        write_manifest(work, derive_variants(work, manifest, derive, progress))
    return load_manifest(folder, check_files=False)
