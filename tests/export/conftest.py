"""Small networks that export in a second or two, and what is exported from them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from mscope.core.config import ModelConfig, make_config
from mscope.core.contract import Stage
from mscope.export.build import build_bundle
from mscope.export.options import BuildOptions
from mscope.export.passes.mixers import split_mixers
from mscope.export.to_onnx import onnx_from_model
from mscope.model.backbone import Backbone
from mscope.model.checkpoint import model_from_seed

# Odd where it may be, and no two sizes alike, so that a mixed-up axis shows.
_SMALL = {
    "size": "small", "d_model": 24, "depth": 3, "d_state": 5, "d_conv": 4, "patch": 4, "channels": 3,
    "height": 24, "width": 40, "classes": 7,
}  # fmt: skip


@pytest.fixture(scope="session")
def small() -> Callable[..., ModelConfig]:
    """A small configuration, 3 x 5 regions; keyword arguments change it."""

    def make(**changes: Any) -> ModelConfig:
        return make_config(_SMALL | changes)

    return make


@pytest.fixture(scope="session")
def network(small: Callable[..., ModelConfig]) -> Backbone:
    """The small MambaScope, default choices, seed 1."""
    return model_from_seed(small(), 1).model


@pytest.fixture(scope="session")
def written(network: Backbone) -> dict[Stage, onnx.ModelProto]:
    """Its two graphs as a bundle's files hold them; not to be modified."""
    return {stage: onnx_from_model(network, stage) for stage in ("coarse", "fine")}


@pytest.fixture(scope="session")
def exported(written: dict[Stage, onnx.ModelProto]) -> dict[Stage, onnx.ModelProto]:
    """The same with the mixers taken apart, as everything that works on graphs gets them; not to be modified."""
    return {stage: split_mixers(copy.deepcopy(model)) for stage, model in written.items()}


@pytest.fixture(scope="session")
def one_block(small: Callable[..., ModelConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of one block, fp32 and fp16 graphs; not to be modified."""
    folder = tmp_path_factory.mktemp("one-block") / "bundle"
    build_bundle(BuildOptions(small(depth=1), seed=1, out=folder, precisions=("fp16",)))
    return folder


@pytest.fixture
def files(written: dict[Stage, onnx.ModelProto], tmp_path: Path) -> dict[Stage, Path]:
    """The two graphs as files."""
    paths: dict[Stage, Path] = {stage: tmp_path / f"{stage}.onnx" for stage in written}
    for stage, path in paths.items():
        path.write_bytes(written[stage].SerializeToString())
    return paths
