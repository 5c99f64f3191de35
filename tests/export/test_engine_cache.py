"""Engines that were built before: what they are kept by, and what is recorded of them."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mscope.core.bundle import load_manifest, sha256_of
from mscope.core.engine import EngineRecord, load_engine_record
from mscope.core.errors import BackendError
from mscope.export.engine import cache, derive, flavour
from mscope.export.engine.device import Gpu
from mscope.export.engine.request import BuildResult, EngineLayer, EngineRequest
from mscope.plugins.trt import PLUGIN_VERSION


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSCOPE_HOME", str(tmp_path / "home"))


def test_the_cache_gives_back_what_was_kept_and_nothing_else(tmp_path: Path) -> None:
    engine, copy = tmp_path / "a.engine", tmp_path / "b.engine"
    engine.write_bytes(b"plan")
    key = cache.cache_key(graph="1", gpus=("sm_89",))
    assert key != cache.cache_key(graph="1", gpus=("sm_86",))
    assert cache.take(key, copy) is None
    cache.keep(key, engine, BuildResult(version="10.3"))
    found = cache.take(key, copy)
    assert found is not None
    assert (found.version, copy.read_bytes()) == ("10.3", b"plan")
    (cache.cache_folder() / f"{key}.engine").write_bytes(b"plam")
    copy.unlink()
    assert cache.take(key, copy) is None
    assert not copy.exists()


def test_the_cache_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_KEPT", 2)
    engine = tmp_path / "a.engine"
    engine.write_bytes(b"plan")
    for number in range(4):
        cache.keep(f"key{number}", engine, BuildResult())
        os.utime(cache.cache_folder() / f"key{number}.json", (number, number))
    cache.keep("key9", engine, BuildResult())
    assert {path.stem for path in cache.cache_folder().iterdir()} == {"key3", "key9"}
    os.utime(cache.cache_folder() / "key9.json", (10, 10))
    assert cache.take("key3", tmp_path / "b.engine") is not None
    cache.keep("key10", engine, BuildResult())
    assert {path.stem for path in cache.cache_folder().iterdir()} == {"key3", "key10"}, "what is used stays"


def test_a_cache_that_cannot_be_written_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = tmp_path / "a.engine"
    engine.write_bytes(b"plan")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "file" / "engines")
    cache.keep("key", engine, BuildResult())
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("warning: a.engine is not kept for the next build: ")
    assert cache.take("key", tmp_path / "b.engine") is None
    # A disk that is full for the entry keeps no engine that nothing would drop.
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "engines")

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(cache, "write_text_atomically", full)
        cache.keep("key", engine, BuildResult())
    assert list((tmp_path / "engines").iterdir()) == []


def test_another_process_that_drops_entries_meanwhile_disturbs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_KEPT", 1)
    engine = tmp_path / "a.engine"
    engine.write_bytes(b"plan")
    cache.cache_folder().mkdir(parents=True)
    (cache.cache_folder() / "gone.json").symlink_to(tmp_path / "nowhere")  # listed, and then not there
    cache.keep("key", engine, BuildResult(version="10.3"))
    assert sorted(path.name for path in cache.cache_folder().iterdir()) == ["key.engine", "key.json"]
    renew = os.utime

    def dropped(path: Path) -> None:
        path.unlink()
        renew(path)

    monkeypatch.setattr(os, "utime", dropped)
    found = cache.take("key", tmp_path / "b.engine")
    assert found is not None
    assert (found.version, (tmp_path / "b.engine").read_bytes()) == ("10.3", b"plan")


# The engines of a bundle, by a builder that only says what it is asked.


@pytest.fixture
def derived(
    one_block: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[list[EngineRequest], dict[str, EngineRecord]]]:
    """Derives the fp16 engines of a bundle: what was built, not taken from the cache, and what is written of them."""
    folder = tmp_path / "bundle"
    shutil.copytree(one_block, folder)
    layers = (
        EngineLayer(name="layers.0/mixer/in_proj_myl0_1", kind="gemm"),
        EngineLayer(name="layers.0/norm", kind="kgen"),
        EngineLayer(name="s", kind="signal"),
    )
    monkeypatch.setattr(derive, "load", lambda library: SimpleNamespace(__version__="10.3.0"))
    monkeypatch.setattr(derive, "prove_engine", lambda model, request, result: f"{request.stage} is proved")

    def make(gpu: Gpu | None, target: str = "trt", **options: Any) -> Any:
        built: list[EngineRequest] = []

        def build(request: EngineRequest, progress: Any) -> BuildResult:
            built.append(request)
            Path(request.engine).write_bytes(b"plan")
            return BuildResult(version="10.3.0", layers=layers)

        monkeypatch.setattr(derive, "gpu_here", lambda: gpu)
        monkeypatch.setattr(derive, "build_in_process", build)
        proofs: Any = {}
        asked = derive.EngineOptions(flavour.LIBRARIES[target], **options)
        added = derive.engines_of(asked, "fp16", proofs)(folder, load_manifest(folder), None)
        assert proofs == {variant.file: f"{stage} is proved" for stage, variant in added.items()}
        return built, {stage: load_engine_record(folder / variant.file) for stage, variant in added.items()}

    return make


def test_an_engine_for_the_gpu_here_is_asked_for_and_recorded(derived: Any, tmp_path: Path, one_block: Path) -> None:
    plugin = tmp_path / "libmscope_trt.so"
    plugin.write_bytes(b"code")
    built, records = derived(Gpu("Orin", "sm_87"), plugin=plugin, batch=(1, 2, 4))
    assert [request.stage for request in built] == list(records) == ["coarse", "fine"]
    request, record = built[0], records["coarse"]
    assert (Path(request.onnx).name, Path(request.engine).name) == ("coarse.fp16.onnx", "coarse.fp16.tensorrt.engine")
    assert (request.plugin, request.gpus, request.batch) == (str(plugin), (), (1, 2, 4))
    assert request.timing_cache == str(cache.cache_folder() / "timing-10.3.0-sm_87.cache")
    assert (record.flavour, record.version, record.precision) == ("tensorrt", "10.3.0", "fp16")
    assert (record.compute_capabilities, record.gpu_name, record.batch) == (("sm_87",), "Orin", (1, 2, 4))
    assert record.graph_sha256 == sha256_of(one_block / "coarse.fp16.onnx")
    assert (record.plugin_sha256, record.plugin_version) == (sha256_of(plugin), PLUGIN_VERSION)
    assert (record.layers, record.launches, record.launches_per_block) == (3, 2, 2.0)
    built, records = derived(None, "trt-rtx", gpus=("sm_89", "sm_120"))
    assert (built[0].gpus, built[0].timing_cache, built[0].plugin) == (("sm_89", "sm_120"), None, None)
    assert (records["fine"].compute_capabilities, records["fine"].gpu_name) == (("sm_89", "sm_120"), "")
    assert (records["fine"].plugin_sha256, records["fine"].plugin_version) == (None, None)


def test_an_engine_is_built_again_where_anything_that_it_depends_on_is_another(
    derived: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orin, plugin = Gpu("Orin", "sm_87"), tmp_path / "libmscope_trt.so"
    plugin.write_bytes(b"code")
    first = derived(orin)[1]
    taken, again = derived(orin)
    assert taken == []
    assert {stage: record.layers for stage, record in again.items()} == dict.fromkeys(first, 3)
    for gpu, options in (
        (Gpu("Thor", "sm_87"), {}), (Gpu("Orin", "sm_101"), {}), (orin, {"batch": (1, 1, 4)}),
        (orin, {"plugin": plugin}), (orin, {"target": "trt-rtx"}),
    ):  # fmt: skip
        assert len(derived(gpu, **options)[0]) == 2
        assert derived(gpu, **options)[0] == []
    plugin.write_bytes(b"other code")
    assert len(derived(orin, plugin=plugin)[0]) == 2
    for name, value in (("_RECIPE", 0), ("load", lambda library: SimpleNamespace(__version__="10.4.0"))):
        monkeypatch.setattr(derive, name, value)
        assert len(derived(orin)[0]) == 2
    for _ in range(2):
        assert len(derived(orin, batch=(1, 2, 8), cached=False)[0]) == 2
    assert len(derived(orin, batch=(1, 2, 8))[0]) == 2, "what is built without the cache is not put there"


def test_an_engine_that_is_not_what_was_asked_is_not_kept(derived: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def dishonest(*arguments: Any) -> None:
        raise BackendError("not strongly typed")

    monkeypatch.setattr(derive, "prove_engine", dishonest)
    with pytest.raises(BackendError, match="not strongly typed"):
        derived(Gpu("Orin", "sm_87"))
    assert not cache.cache_folder().exists()
