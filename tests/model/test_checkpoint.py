import argparse
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mscope.core.config import ModelConfig, config_for
from mscope.core.errors import CheckpointError, InputError
from mscope.core.geometry import Grid
from mscope.model.checkpoint import model_from_checkpoint, model_from_seed, resize_positions, state_from_file
from mscope.model.mambascope import MambaScope

VIM = config_for("digits", "vim")
SCOPE = config_for("digits")


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model_from_seed(VIM, 5).model.state_dict().items()}


def save(path: Path, content: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("form", ["bare.pth", "model.pth", "training.pth", "ddp.pth", "half.pth", "plain.safetensors"])
def test_official_forms_load(tmp_path: Path, state: dict[str, torch.Tensor], form: str) -> None:
    content: Any = {
        "bare.pth": state,
        "model.pth": {"model": state},
        "training.pth": {"model": state, "args": argparse.Namespace(lr=1e-3), "epoch": 299, "scaler": {"scale": 1.0}},
        "ddp.pth": {f"module.{key}": value for key, value in state.items()},
        "half.pth": {key: value.half() for key, value in state.items()},
        "plain.safetensors": state,
    }[form]
    loaded = model_from_checkpoint(VIM, save(tmp_path / form, content))
    tolerance = 1e-3 if form == "half.pth" else 0.0
    for key, value in loaded.model.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=tolerance, atol=tolerance)
    assert loaded.weights.origin == "file"
    assert loaded.weights.sha256
    assert not loaded.model.training


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_a_seed_that_no_generator_takes(seed: int) -> None:
    with pytest.raises(InputError, match=rf"--seed is from 0 to 18446744073709551615, got {seed}"):
        model_from_seed(VIM, seed)


def test_the_official_key_names() -> None:
    keys = set(model_from_seed(config_for("ti", "vim", depth=1), 0).model.state_dict())
    mixer = {"in_proj.weight", "conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias"}
    mixer |= {"A_log", "D", "conv1d_b.weight", "conv1d_b.bias", "x_proj_b.weight", "dt_proj_b.weight"}
    mixer |= {"dt_proj_b.bias", "A_b_log", "D_b", "out_proj.weight"}
    own = {"patch_embed.proj.weight", "patch_embed.proj.bias", "cls_token", "pos_embed", "norm_f.weight"}
    assert keys == own | {"head.weight", "head.bias", "layers.0.norm.weight"} | {f"layers.0.mixer.{k}" for k in mixer}


def test_mambascope_from_vim(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    loaded = model_from_checkpoint(SCOPE, save(tmp_path / "vim.pth", state))
    model = loaded.model
    assert isinstance(model, MambaScope)
    assert "pos_embed_coarse" in loaded.weights.derived
    assert any(key.startswith("reuse.") for key in loaded.weights.derived)
    assert model.reuse is not None
    assert (model.reuse(torch.randn(2, 16, 64)) == 0).all()
    image = torch.randn(2, 1, 64, 64)
    vim = model_from_checkpoint(VIM, tmp_path / "vim.pth").model
    torch.testing.assert_close(model.forward_full(image), vim(image))
    again = model_from_checkpoint(SCOPE, tmp_path / "vim.pth").model.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in model.state_dict().items())


def test_vim_from_a_mambascope_file(tmp_path: Path) -> None:
    scope = model_from_seed(SCOPE, 1).model
    path = save(tmp_path / "scope.safetensors", dict(scope.state_dict()))
    loaded = model_from_checkpoint(VIM, path).model
    image = torch.randn(1, 1, 64, 64)
    torch.testing.assert_close(loaded.forward_full(image), scope.forward_full(image))
    assert model_from_checkpoint(SCOPE, path).weights.derived == ()


def test_resizing_keeps_the_middle_class_row_out_of_the_grid() -> None:
    # The grid is a ramp over rows; the class token's row, in the middle, is far outside of it.
    ramp = torch.arange(4.0).repeat_interleave(4).reshape(1, 16, 1)
    positions = torch.cat([ramp[:, :8], torch.full((1, 1, 1), 1e6), ramp[:, 8:]], dim=1)
    resized = resize_positions(positions, Grid(4, 4), Grid(2, 2))
    assert resized[0, 2].item() == 1e6
    grid = torch.cat([resized[0, :2], resized[0, 3:]]).reshape(2, 2)
    assert grid.abs().max().item() < 4
    assert (grid[1] > grid[0]).all()
    assert torch.equal(resize_positions(positions, Grid(4, 4), Grid(4, 4)), positions)


def test_another_resolution_resizes_positions(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = save(tmp_path / "vim.pth", state)
    loaded = model_from_checkpoint(config_for("digits", height=96, width=64), path)
    assert {"pos_embed", "pos_embed_coarse"} <= set(loaded.weights.derived)
    assert loaded.model.pos_embed.shape == (1, 97, 64)


def test_missing_extra_and_misshapen_keys_are_named(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    missing = dict(state)
    del missing["layers.3.mixer.A_b_log"]
    extra = state | {"rope.freqs": torch.zeros(2)}
    misshapen = state | {"head.weight": torch.zeros(11, 64)}
    partial = state | {"reuse.norm.weight": torch.ones(64)}
    for name, content, message in (
        ("missing.pth", missing, r"lacks key 'layers\.3\.mixer\.A_b_log'"),
        ("extra.pth", extra, r"unknown key 'rope\.freqs'"),
        ("misshapen.pth", misshapen, r"'head\.weight' has shape \(11, 64\).*needs \(10, 64\)"),
        ("partial.pth", partial, r"lacks key 'pos_embed_coarse'"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            model_from_checkpoint(SCOPE, save(tmp_path / name, content))
        assert "\n" not in str(caught.value)
    without = {key: value for key, value in state.items() if key != "pos_embed"}
    with pytest.raises(CheckpointError, match="lacks key 'pos_embed'"):
        model_from_checkpoint(SCOPE, save(tmp_path / "without.pth", without))


@pytest.mark.parametrize("shape", [(1, 0, 64), (1, 1, 64), (1, 2, 64), (1, 12, 64), (2, 65, 64), (0, 65, 64), (65, 64)])
@pytest.mark.parametrize("config", [SCOPE, VIM], ids=["mambascope", "vim"])
def test_positions_of_no_square_grid_are_named(
    tmp_path: Path, state: dict[str, torch.Tensor], config: ModelConfig, shape: tuple[int, ...]
) -> None:
    path = save(tmp_path / "vim.pth", state | {"pos_embed": torch.zeros(shape)})
    with pytest.raises(CheckpointError, match=rf"'pos_embed' has shape {re.escape(str(shape))}.*needs \(1, 65, 64\)"):
        model_from_checkpoint(config, path)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/mscope-evil",)


def test_a_checkpoint_cannot_execute_code(tmp_path: Path) -> None:
    marker = Path("/tmp/mscope-evil")
    marker.unlink(missing_ok=True)
    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pth", "raw.pth"):
        with pytest.raises(CheckpointError, match="cannot read"):
            state_from_file(tmp_path / name)
    assert not marker.exists()


def test_unreadable_files(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CheckpointError, match="no weights file"):
        state_from_file(tmp_path / "nowhere.pth")
    for suffix in (".pth", ".safetensors"):
        path = tmp_path / f"broken{suffix}"
        for content in (b"", b"a text, renamed", bytes(1000)):
            path.write_bytes(content)
            with pytest.raises(CheckpointError, match="cannot read"):
                state_from_file(path)
    whole = save(tmp_path / "whole.pth", state).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cannot read"):
        state_from_file(tmp_path / "cut.pth")
    for content in ([1, 2], {}, {"model": {}}, {"a": "text"}, {1: torch.zeros(1)}):
        with pytest.raises(CheckpointError):
            state_from_file(save(tmp_path / "odd.pth", content))
    state["head.bias"][0] = float("nan")
    with pytest.raises(CheckpointError, match=r"head\.bias holds NaN"):
        state_from_file(save(tmp_path / "nan.pth", state))


def test_a_tensor_of_more_values_than_the_file_holds(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pth", {"model": {"cls_token": torch.zeros(1).expand(10**12)}})
    with pytest.raises(CheckpointError, match="cls_token has 1000000000000 values, of which the file holds fewer"):
        state_from_file(path)


def test_a_pickle_of_another_protocol_is_one_line(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    (tmp_path / "x.pth").write_bytes(pickle.dumps(print, protocol=4))
    with pytest.raises(CheckpointError, match="cannot read"):
        state_from_file(tmp_path / "x.pth")
    assert not recwarn.list


def test_an_archive_that_unpacks_to_more_than_it_is_is_not_read(
    tmp_path: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.pth", state)
    assert state_from_file(path)
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
        target.writestr("archive/data/more", bytes(64 << 20))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(CheckpointError, match=r"packed\.pth as a checkpoint: its members unpack to \d+ MiB, more than"):
        state_from_file(packed)
