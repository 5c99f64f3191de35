"""Engines taken apart layer by layer, over the stand-ins for CUDA and TensorRT."""

from pathlib import Path

import numpy as np
import pytest

import fake_gpu
import fake_tensorrt
import fakes
from fake_gpu import random_batch
from fake_tensorrt import LAYER_TIMES, FakeTensorRT
from mscope.core.bundle import load_manifest
from mscope.core.errors import BackendError
from mscope.runtime import Scope
from mscope.runtime.profiling.engine_layers import engine_layer_tables
from mscope.runtime.profiling.options import ProfileOptions
from mscope.runtime.profiling.run import profile_bundle


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def flavour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, network: fakes.FakeNetwork, flavour: str) -> FakeTensorRT:
    return fake_gpu.install(monkeypatch, network, flavours=(flavour,))[flavour]


@pytest.fixture
def folder(tmp_path: Path, network: fakes.FakeNetwork, flavour: str) -> Path:
    fakes.write_fake_bundle(tmp_path / "b", network)
    fake_tensorrt.add_engines(tmp_path / "b", flavour=flavour)
    return tmp_path / "b"


def tables(folder: Path, network: fakes.FakeNetwork, flavour: str, batch: int = 2):  # type: ignore[no-untyped-def]
    manifest = load_manifest(folder)
    engines = {
        stage: next(variant for variant in record.variants if variant.backend == flavour)
        for stage, record in manifest.stages.items()
    }
    image = random_batch(network, batch)
    return engine_layer_tables(folder, manifest, engines, image, flavour=flavour, runs=3)  # type: ignore[arg-type]


def test_every_layer_with_its_block_kind_and_time(
    gpu: FakeTensorRT, folder: Path, network: fakes.FakeNetwork, flavour: str
) -> None:
    coarse, fine = tables(folder, network, flavour)
    assert (coarse.stage, fine.stage, coarse.source, coarse.runs, coarse.batch) == ("coarse", "fine", "tensorrt", 3, 2)
    for table in (coarse, fine):
        assert [row.name for row in table.rows] == [name for name, _ in LAYER_TIMES]
        np.testing.assert_allclose([row.median_ms for row in table.rows], [ms for _, ms in LAYER_TIMES])
        blocks = [row.block for row in table.rows]
        assert blocks[1:] == ["layers.0", "layers.0", "layers.1", "layers.1"]
        assert [row.kind for row in table.rows[1:4]] == ["projection", "scan", "projection"]
        assert sum(row.share for row in table.rows) == pytest.approx(1.0)
    assert not any(context.captured for context in gpu.contexts)


def test_contexts_of_an_ordinary_run_have_no_profiler(
    gpu: FakeTensorRT, folder: Path, network: fakes.FakeNetwork, flavour: str
) -> None:
    with Scope.load(folder, backend=flavour) as scope:
        for _ in range(3):
            scope.run(random_batch(network, 2), 1.0)
    assert gpu.contexts
    assert all(context.profiler is None for context in gpu.contexts)
    assert any(context.captured for context in gpu.contexts)


def test_a_batch_above_the_engines_is_refused(
    gpu: FakeTensorRT, folder: Path, network: fakes.FakeNetwork, flavour: str
) -> None:
    with pytest.raises(BackendError, match=r"takes 8 images at once, .* 9: give a smaller one with --batch"):
        tables(folder, network, flavour, batch=9)


def test_an_engine_that_reports_nothing_is_an_error(
    gpu: FakeTensorRT, folder: Path, network: fakes.FakeNetwork, flavour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_tensorrt, "LAYER_TIMES", ())
    with pytest.raises(BackendError, match="reported the time of no layer"):
        tables(folder, network, flavour)


def test_a_profile_of_engines_has_layers(gpu: FakeTensorRT, folder: Path, flavour: str) -> None:
    options = ProfileOptions(
        bundle=folder, backend=flavour, duration_s=0.02, layers=True, exit_rate=0.5, idle_gaps_s=(), cold_starts=0
    )
    profile = profile_bundle(options)
    assert profile.layers is not None
    assert [table.source for table in profile.layers] == ["tensorrt", "tensorrt"]
