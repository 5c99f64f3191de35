"""Weights from files: official Vim checkpoints and our own, checked key by key, never executing what they hold."""

from __future__ import annotations

import argparse
import math
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mscope.core.bundle import sha256_of
from mscope.core.config import ModelConfig
from mscope.core.errors import CheckpointError, InputError
from mscope.core.geometry import Grid, class_row, coarse_grid, fine_grid
from mscope.core.manifest import MAX_SEED, Weights
from mscope.model.backbone import Backbone
from mscope.model.mambascope import MambaScope
from mscope.model.vim import Vim

_MAX_BYTES = 16 << 30
_DERIVED_PREFIXES = ("pos_embed_coarse", "reuse.")


@dataclass(frozen=True)
class Loaded:
    """A network with its weights, in evaluation mode, and where they come from."""

    model: Backbone
    weights: Weights


def build_model(config: ModelConfig) -> Backbone:
    """An initialised network of the configured architecture."""
    return MambaScope(config) if config.arch == "mambascope" else Vim(config)


def model_from_seed(config: ModelConfig, seed: int) -> Loaded:
    """Random, untrained weights, the same for the same seed: for latency work.

    Raises:
        InputError: the seed is not one of 0 ... 2^64 - 1.
    """
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"--seed is from 0 to {MAX_SEED}, got {seed}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config).eval()
    return Loaded(model, Weights(origin="random", seed=seed))


def model_from_checkpoint(config: ModelConfig, path: Path) -> Loaded:
    """A network with the weights of a checkpoint file.

    Args:
        config: must fit the file; a plain Vim file fits a MambaScope, whose own parameters are then derived:
            positions of the coarse grid by bicubic resizing, feature reuse silent (its last layer zero).
        path: .safetensors, or a .pth with a state dict, bare or under `model`. Loaded with `weights_only`.

    Raises:
        CheckpointError: unreadable, or a missing, extra or misshapen key, which is named.
    """
    state = state_from_file(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # what is derived must not depend on the caller's generator
        model = build_model(config)
    derived = _fit(model, state, path)
    model.load_state_dict(state)
    record = Weights(origin="file", name=path.name, sha256=sha256_of(path), derived=tuple(derived))
    return Loaded(model.eval(), record)


def state_from_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by name, on the CPU, float32. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"no weights file at {path}")
    if path.stat().st_size > _MAX_BYTES:
        raise CheckpointError(f"{path} is larger than {_MAX_BYTES >> 30} GiB: not a checkpoint of these models")
    content = _read(path)
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} holds no state dict (expected one, bare or under 'model')")
    state = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: entry {key!r} is not a named tensor: no state dict of a model")
        if value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise CheckpointError(f"{path}: {key} has {value.numel()} values, of which the file holds fewer")
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: {key} holds NaN or infinity")
        state[key.removeprefix("module.")] = value.float()
    return state


def _read(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        _check_archive(path)
        # Training checkpoints of Vim carry their argparse options; that one harmless class is let through.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            # Of odd files torch warns in several lines; what matters is an error.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # every library below raises its own kinds for a foreign file
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        if reason.startswith("Weights only load failed"):
            reason = "it does not hold tensors alone, and what could execute code is not loaded"
        raise CheckpointError(f"cannot read {path} as a checkpoint: {reason}") from None


def _check_archive(path: Path) -> None:
    """Refuses a .pth whose members are larger than it: torch.save compresses none, and loading reads each whole."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return  # of before PyTorch 1.6: not an archive, and not compressed
    with zipfile.ZipFile(path) as archive:
        held = sum(member.file_size for member in archive.infolist())
    if held > path.stat().st_size:
        raise ValueError(f"its members unpack to {held / 2**20:.0f} MiB, more than the file: write it with torch.save")


def _fit(model: Backbone, state: dict[str, Tensor], path: Path) -> list[str]:
    """Adds derived parameters to `state` and checks every key and shape; returns what was derived."""
    wanted = model.state_dict()
    derived = []
    if "pos_embed" in state and "pos_embed" in wanted:
        resized = _resized_positions(state["pos_embed"], fine_grid(model.config), wanted["pos_embed"].shape)
        if resized is not None:
            state["pos_embed"] = resized
            derived.append("pos_embed")
    own = [key for key in wanted if key.startswith(_DERIVED_PREFIXES)]
    if isinstance(model, MambaScope) and not any(key in state for key in own):
        state.update(_derive(model, state))
        derived += own
    elif not isinstance(model, MambaScope):
        # A MambaScope file holds a whole Vim: `--arch vim` takes that.
        for key in [key for key in state if key.startswith(_DERIVED_PREFIXES)]:
            del state[key]
    for problem, keys in (("lacks", wanted.keys() - state.keys()), ("has unknown", state.keys() - wanted.keys())):
        if keys:
            first = sorted(keys)[0]
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            wrong = f"{problem} key '{first}'{more}"
            raise CheckpointError(f"{path} {wrong}: is it a {model.config.arch} {model.config.size}?")
    for key, tensor in state.items():
        if tensor.shape != wanted[key].shape:
            raise CheckpointError(
                f"{path}: '{key}' has shape {tuple(tensor.shape)}, "
                f"{model.config.arch} {model.config.size} needs {tuple(wanted[key].shape)}"
            )
    return derived


def _derive(model: MambaScope, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """MambaScope's own parameters from a plain Vim's (MODEL.md, last paragraph of the fine stage)."""
    if model.reuse is not None:
        model.reuse.silence()
    parameters = {key: value for key, value in model.state_dict().items() if key.startswith("reuse.")}
    fine, coarse = fine_grid(model.config), coarse_grid(model.config)
    positions = state.get("pos_embed")
    if positions is not None and positions.shape == (1, 1 + fine.count, model.config.d_model):
        parameters["pos_embed_coarse"] = resize_positions(positions, fine, coarse)
    else:
        parameters["pos_embed_coarse"] = model.pos_embed_coarse.detach()  # `pos_embed` is reported by the caller
    return parameters


def _resized_positions(positions: Tensor, grid: Grid, wanted: torch.Size) -> Tensor | None:
    """`positions` for another resolution, or None if they fit already or are no square grid of the right width."""
    if positions.dim() != 3 or positions.shape == wanted or (positions.shape[0], positions.shape[2]) != (1, wanted[2]):
        return None
    side = math.isqrt(max(0, positions.shape[1] - 1))
    if side * side != positions.shape[1] - 1 or side < 2:
        return None
    return resize_positions(positions, Grid(side, side), grid)


def resize_positions(positions: Tensor, source: Grid, target: Grid) -> Tensor:
    """Bicubic resizing of position embeddings (1, source.count + 1, D) to (1, target.count + 1, D).

    The class token's row sits in the middle: it is taken out first and put back in the middle of the result.
    """
    row = class_row(source.count)
    class_position = positions[:, row : row + 1]
    patches = torch.cat([positions[:, :row], positions[:, row + 1 :]], dim=1)
    image = patches.reshape(1, source.rows, source.cols, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=(target.rows, target.cols), mode="bicubic", align_corners=False)
    resized = image.permute(0, 2, 3, 1).reshape(1, target.count, -1)
    middle = class_row(target.count)
    return torch.cat([resized[:, :middle], class_position, resized[:, middle:]], dim=1)
