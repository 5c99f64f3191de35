"""Which weights a bundle is built from, and the same ones again when it is verified."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mscope.core.config import ModelConfig
from mscope.core.errors import CheckpointError, InputError
from mscope.core.manifest import Manifest
from mscope.model.checkpoint import Loaded, model_from_checkpoint, model_from_seed
from mscope.model.shipped import shipped_weights


def load_weights(config: ModelConfig, weights: Path | None, seed: int | None) -> Loaded:
    """The network to export.

    Args:
        config: must fit the file.
        weights: a checkpoint file, or None for the weights shipped for this size, or random ones where none are.
        seed: asks for random weights even where some are shipped; not to be combined with a file.

    Raises:
        InputError: both a file and a seed.
        CheckpointError: the file does not fit.
    """
    if weights is not None:
        if seed is not None:
            raise InputError("--seed draws random weights and --weights names a file: give one of the two")
        return model_from_checkpoint(config, weights)
    shipped = _shipped(config) if seed is None else None
    return shipped or model_from_seed(config, seed or 0)


def _shipped(config: ModelConfig) -> Loaded | None:
    path = shipped_weights(config.size, config.arch)
    if path is None:
        return None
    loaded = model_from_checkpoint(config, path)
    return replace(loaded, weights=loaded.weights.model_copy(update={"origin": "shipped"}))


def weights_of_bundle(manifest: Manifest, weights: Path | None) -> Loaded:
    """The network that a bundle was built from, from its source and not from the bundle's own graphs.

    Args:
        manifest: the bundle's.
        weights: the checkpoint file; needed when the bundle was built from one, refused otherwise.

    Raises:
        InputError: the file is needed and missing, or given and not the one that the bundle was built from.
    """
    recorded, config = manifest.weights, manifest.config
    if recorded.origin != "file" and weights is not None:
        raise InputError(f"the bundle was built from {recorded.origin} weights: leave --weights out")
    if recorded.origin == "random":
        return model_from_seed(config, recorded.seed or 0)
    if recorded.origin == "shipped":
        loaded = _shipped(config)
        if loaded is None or loaded.weights.sha256 != recorded.sha256:
            raise CheckpointError(
                f"the bundle was built from another version of the shipped weights ({recorded.name}): build it again"
            )
        return loaded
    if weights is None:
        raise InputError(f"the bundle was built from {recorded.name}: name that file with --weights to compare with it")
    loaded = model_from_checkpoint(config, weights)
    if loaded.weights.sha256 != recorded.sha256:
        raise InputError(f"{weights} is not the file that the bundle was built from, {recorded.name}: sha256 differs")
    return loaded
