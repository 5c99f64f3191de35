"""The weights that come with the package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from mscope.core.config import ModelConfig
from mscope.core.manifest import CurvePoint

_FOLDER = Path(__file__).parent / "weights"
_FILES = {("digits", "mambascope"): "digits.safetensors", ("digits", "vim"): "digits-vim.safetensors"}


def shipped_weights(size: str, arch: str) -> Path | None:
    """The weights file shipped for a size and architecture, or None where there is none.

    The JSON file beside it records the command, the seed and the measured accuracy of each.
    """
    name = _FILES.get((size, arch))
    path = _FOLDER / name if name is not None else None
    return path if path is not None and path.is_file() else None


@dataclass(frozen=True)
class Operating:
    """The threshold chosen for shipped weights, and their measured accuracy and cost around it."""

    eta: float
    curve: tuple[CurvePoint, ...]


def shipped_operating_point(config: ModelConfig) -> Operating | None:
    """What was measured for the weights shipped for a configuration.

    None where nothing is shipped, and for another configuration than the measured one: with another alpha or order of
    the tokens the same weights have another curve.
    """
    path = shipped_weights(config.size, config.arch)
    if path is None or config.arch == "vim":
        return None
    record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    measured = record[config.arch]
    if ModelConfig.model_validate(measured["config"]) != config:
        return None
    return Operating(record["eta"], tuple(CurvePoint(**point) for point in measured["measured"]["curve"]))
