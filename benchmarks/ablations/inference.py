"""The variants that need no training: the same weights, another option at inference."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from ablations.observe import Observed, observe
from ablations.trained import fingerprint
from ablations.variants import Variant
from mscope.core.bundle import sha256_of
from mscope.core.config import ModelConfig
from mscope.model.checkpoint import state_from_file
from mscope.model.mambascope import MambaScope
from mscope.model.training.digits import Batch


def configured(config: ModelConfig, variant: Variant) -> ModelConfig:
    """`config` with the variant's changes."""
    return config.replace(**variant.changes)


def network(config: ModelConfig, weights: Path) -> MambaScope:
    """The weights in a network of `config`; what reuse they have is left out where `config` has none."""
    model = MambaScope(config).eval()
    state = state_from_file(weights)
    if config.reuse == "none":
        state = {name: tensor for name, tensor in state.items() if not name.startswith("reuse.")}
    model.load_state_dict(state)
    return model


def observe_all(
    work: Path,
    weights: Path,
    config: ModelConfig,
    variants: Sequence[Variant],
    pictures: Batch,
    say: Callable[[str], None],
) -> dict[str, Observed]:
    """Every variant of `config` with those weights, by name; what lies below `work` already is read there."""
    folder = work / "inference"
    folder.mkdir(parents=True, exist_ok=True)
    seen = {}
    for variant in variants:
        own = configured(config, variant)
        key = f"{sha256_of(weights)} {own.model_dump_json()} {variant.regions} {fingerprint(pictures)}"
        path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
        if not path.is_file():
            say(f"{weights.name}: {variant.name}")
            observe(network(own, weights), pictures, regions=variant.regions).save(path)
        seen[variant.name] = Observed.load(path)
    return seen
