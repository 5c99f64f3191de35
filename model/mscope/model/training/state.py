"""The checkpoint of an unfinished run: all that is needed to go on as if it had never stopped, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mscope.core.errors import CheckpointError, MscopeError
from mscope.core.files import replacing
from mscope.model.training.recipe import Recipe, make_recipe

_FORMAT = "mscope-train/1"


@dataclass(frozen=True)
class TrainingState:
    """A run between two steps. Data, schedule and phases are functions of `step`; nothing else is random."""

    recipe: Recipe
    step: int  # steps done
    peak_lr: float  # below the recipe's after a restart
    restarts: int
    accuracy: float  # moving average over the training batches
    seconds: float  # spent so far
    from_file: bool  # began with a weights file instead of random weights
    average_updates: int
    model: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, Any]


def save_state(state: TrainingState, path: Path) -> None:
    """Writes atomically: a crash or a full disk leaves the previous checkpoint. Raises MscopeError if it cannot."""
    content = vars(state) | {"format": _FORMAT, "recipe": state.recipe.model_dump()}
    try:
        with replacing(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise MscopeError(f"cannot write the checkpoint {path}: {error}") from None


def load_state(path: Path) -> TrainingState:
    """Reads a checkpoint without executing anything in it. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"nothing to resume: there is no checkpoint at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(f"cannot read {path} as a training checkpoint: {reason}") from None
    if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of mscope-train (expected format {_FORMAT})")
    try:
        return TrainingState(**content | {"recipe": make_recipe(**content["recipe"])})
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} lacks parts of a checkpoint: {error}") from None
