"""The shipped digits model as a bundle, its graphs in memory, and a few of its pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from mscope.calib.dataset import open_dataset, prepared_batches
from mscope.core.bundle import load_manifest
from mscope.core.config import config_for
from mscope.core.contract import Stage
from mscope.export.build import build_bundle
from mscope.export.options import BuildOptions
from mscope.export.passes.mixers import load_split
from mscope.runtime.preprocess import Preprocessor


@pytest.fixture(scope="session")
def digits_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp32 only; not to be modified."""
    folder = tmp_path_factory.mktemp("digits") / "bundle"
    build_bundle(BuildOptions(config=config_for("digits"), out=folder, parity=False))
    return folder


@pytest.fixture(scope="session")
def digits_models(digits_bundle: Path) -> dict[Stage, onnx.ModelProto]:
    """Both graphs; not to be modified."""
    return {stage: load_split(digits_bundle / f"{stage}.onnx") for stage in ("coarse", "fine")}


@pytest.fixture(scope="session")
def digits_pictures(digits_bundle: Path) -> list[npt.NDArray[np.float32]]:
    """48 pictures of the validation split in batches of 16, (16, 1, 64, 64) each; not to be modified."""
    pytest.importorskip("sklearn", reason="scikit-learn has the digits")
    manifest = load_manifest(digits_bundle)
    data = open_dataset("digits:validation", manifest, limit=48)
    preprocess = Preprocessor(manifest.preprocessing, manifest.config)

    def never(index: int, error: Exception) -> None:
        raise error

    return [batch.tensor for batch in prepared_batches(data, preprocess, 16, on_problem=never)]
