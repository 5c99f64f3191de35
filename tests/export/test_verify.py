"""Parity: passes for every option of the model, fails for what is not the model, and its rules for near-ties."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mscope.core.config import ModelConfig
from mscope.core.contract import Stage, graphs
from mscope.core.errors import ParityError
from mscope.export.agreement import compare_exits, compare_selected
from mscope.export.probes import probe_images
from mscope.export.to_onnx import onnx_from_model
from mscope.export.verify import IMAGES, check_parity
from mscope.model.backbone import Backbone
from mscope.model.checkpoint import model_from_seed

# Every value of every option at least once, in few exports.
VARIANTS: list[dict[str, Any]] = [
    {"metric": "topk", "metric_topk": 3, "order": "class-middle", "reuse": "linear", "ema_start": "first"},
    {"metric": "softplus", "order": "class-after-important", "reuse": "none", "alpha": 1.0},
    {"metric": "clip", "order": "unimportant-first", "reuse_class_token": True, "gated_importance": False},
    {"fine_order": "raster"},
    {"fine_order": "raster", "order": "class-middle", "alpha": 1.0},
    {"metric": "raw", "gated_importance": False, "d_conv": 2, "importance_from": 1, "importance_every": 1},
    {"metric": "l1", "d_conv": 3, "alpha": 0.1, "channels": 1, "height": 16, "width": 16},
    {"order": "class-after-important", "alpha": 1.0, "reuse": "linear", "reuse_class_token": True},
]


def export(model: Backbone, folder: Path) -> dict[Stage, Path]:
    files: dict[Stage, Path] = {}
    for graph in graphs(model.config):
        files[graph.stage] = folder / f"{graph.stage}.onnx"
        files[graph.stage].write_bytes(onnx_from_model(model, graph.stage).SerializeToString())
    return files


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: "-".join(str(value) for value in changes.values()))
def test_every_option_of_the_model(small: Callable[..., ModelConfig], changes: dict[str, Any], tmp_path: Path) -> None:
    model = model_from_seed(small(depth=2, **changes), 3).model
    parity = check_parity(model, export(model, tmp_path))
    assert parity.images == IMAGES
    assert parity.logits_max_abs <= parity.tolerance < 1e-4
    assert parity.selected_agreement == 1.0
    assert parity.exit_agreement == 1.0


def test_plain_vim_on_a_grid_of_odd_size(small: Callable[..., ModelConfig], tmp_path: Path) -> None:
    model = model_from_seed(small(arch="vim", height=12, width=20, depth=2), 0).model
    parity = check_parity(model, export(model, tmp_path))
    assert parity.logits_max_abs <= parity.tolerance < 1e-4
    assert parity.selected_agreement is None


def damage(path: Path, initializer: str, change: Callable[[np.ndarray], None]) -> None:
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == initializer:
            value = numpy_helper.to_array(tensor).copy()
            change(value)
            tensor.CopyFrom(numpy_helper.from_array(value, initializer))
            path.write_bytes(model.SerializeToString())
            return
    raise AssertionError(f"no initializer {initializer}")


def swap_rows(value: np.ndarray) -> None:
    value[[0, 1]] = value[[1, 0]]


def swap_columns(value: np.ndarray) -> None:
    value[:, [0, 1]] = value[:, [1, 0]]


def nudge(value: np.ndarray) -> None:
    value.reshape(-1)[0] += 0.05


def poison(value: np.ndarray) -> None:
    value.reshape(-1)[0] = np.nan


@pytest.mark.parametrize(
    ("stage", "initializer", "change"),
    [
        ("coarse", "layers.0.mixer.in_proj.weight", nudge),
        ("coarse", "layers.2.mixer.A_b", swap_columns),
        ("coarse", "pos_embed_coarse", lambda value: np.copyto(value, value[:, ::-1].copy())),
        ("fine", "layers.1.mixer.conv1d_b.weight", nudge),
        ("fine", "reuse.fc2.weight", nudge),
        ("fine", "pos_embed", swap_rows),
    ],
)
def test_one_wrong_weight_is_found(
    network: Backbone, files: dict[Stage, Path], stage: Stage, initializer: str, change: Callable[[np.ndarray], None]
) -> None:
    damage(files[stage], initializer, change)
    with pytest.raises(ParityError, match="is not the model"):
        check_parity(network, files)


def test_nan_is_never_parity(network: Backbone, files: dict[Stage, Path]) -> None:
    damage(files["coarse"], "norm_f.weight", poison)
    with pytest.raises(Exception, match="NaN"):
        check_parity(network, files)


def test_regions_may_swap_only_within_tolerance() -> None:
    scores = np.array([[0.5, 0.4, 0.4 + 1e-7, 0.1]])
    assert compare_selected(np.array([[0, 2]]), scores, 1e-6) == 1.0
    assert compare_selected(np.array([[0, 1]]), scores, 1e-6) == 0.0
    with pytest.raises(ParityError, match=r"regions \[1\] of probe image 0 where the model refines \[2\]"):
        compare_selected(np.array([[0, 1]]), scores, 1e-8)
    with pytest.raises(ParityError, match=r"regions \[3\]"):
        compare_selected(np.array([[0, 3]]), scores, 1e-6)
    # Two scores may each be off by the tolerance, towards one another.
    assert compare_selected(np.array([[1]]), np.array([[0.5 + 1.9e-6, 0.5]]), 1e-6) == 0.0
    with pytest.raises(ParityError):
        compare_selected(np.array([[1]]), np.array([[0.5 + 2.1e-6, 0.5]]), 1e-6)
    # The best that was missed and the worst that was taken count, whatever else is near.
    for scores in ([0.5, 0.4, 0.4 - 1e-7, 0.4 - 2e-7], [0.4, 0.4, 0.4 - 1e-7, 0.1]):
        with pytest.raises(ParityError, match=r"regions \[2, 3\] .* refines \[0, 1\]"):
            compare_selected(np.array([[2, 3]]), np.array([scores]), 1e-6)


def test_exits_may_differ_only_within_tolerance() -> None:
    logits = np.log(np.array([[0.6, 0.4], [0.9, 0.1]]))
    eta = 0.6 - 1e-6
    assert compare_exits(logits, logits, (eta,), 1e-6) == 1.0
    moved = logits + np.array([[-1e-5, 0.0], [0.0, 0.0]])
    assert compare_exits(moved, logits, (eta,), 1e-4) == 0.5
    with pytest.raises(ParityError, match="exits early"):
        compare_exits(moved, logits, (eta,), 1e-7)
    # 1e-3 of the first logit are 0.6 x 0.4 x 1e-3 = 2.4e-4 of the confidence, past an eta that is 1e-4 away.
    moved = logits + np.array([[-1e-3, 0.0], [0.0, 0.0]])
    # Errors of t in two logits explain t / 2 of a confidence.
    assert compare_exits(moved, logits, (0.6 - 1e-4,), 2.1e-4) == 0.5
    with pytest.raises(ParityError, match="exits early"):
        compare_exits(moved, logits, (0.6 - 1e-4,), 1.9e-4)
    with pytest.raises(ParityError, match=r"eta 0.75"):
        compare_exits(logits[::-1], logits, (), 1e-6)


def test_probes_are_the_same_every_time_and_all_different(small: Callable[..., ModelConfig]) -> None:
    images = probe_images(small(), IMAGES)
    assert images.shape == (IMAGES, 3, 24, 40)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, probe_images(small(), IMAGES))
    assert len({image.tobytes() for image in images}) == IMAGES
