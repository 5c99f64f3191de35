"""Measured energy of an image, from a profile that `mscope-profile` wrote; nothing here estimates any."""

from __future__ import annotations

from pathlib import Path

from mscope.core.errors import InputError
from mscope.core.manifest import Manifest
from mscope.runtime.profiling.schema import load_profile

# Of the GMACs that tell one alpha or size from another; a profile holds them as the manifest does.
_SAME = 1e-6


def energy_from_profile(path: Path, manifest: Manifest) -> tuple[float, float]:
    """Joules that every image costs (the exit path), and that refining one adds, at the profile's smallest batch.

    Raises:
        InputError: no profile, one of another bundle, or one without measured power on both paths.
    """
    profile = load_profile(path)
    stages = {stage: record.gmacs for stage, record in manifest.stages.items()}
    theirs = profile.bundle.gmacs
    if set(theirs) < set(stages) or any(abs(theirs[name] - stages[name]) > _SAME * stages[name] for name in stages):
        raise InputError(f"{path} is a profile of another bundle ({profile.bundle.name}): profile {manifest.name}")
    if profile.power is None:
        raise InputError(
            f"{path} has no measured energy: run mscope-profile with its power measurement on a machine with a sensor"
        )
    measured = {
        (row.path, row.batch): row.joules_per_image for row in profile.power.paths if row.joules_per_image is not None
    }
    batches = sorted({batch for name, batch in measured if {("exit", batch), ("refine", batch)} <= set(measured)})
    if not batches:
        raise InputError(f"{path} does not have the energy of both paths, exit and refine: measure again")
    leaves, refined = measured["exit", batches[0]], measured["refine", batches[0]]
    return leaves, refined - leaves
