"""Which engine of a bundle runs where, and what is said of those that do not fit."""

import importlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fake_gpu
import fake_tensorrt
import fakes
from fake_cuda import FakeCuda, Misuse
from fake_gpu import FakeDriver, random_batch
from fake_tensorrt import FakeTensorRT, TensorIOMode
from mscope.core.bundle import load_manifest, record_of, write_manifest
from mscope.core.console import run_app
from mscope.core.engine import sidecar_of
from mscope.core.errors import BackendError, BundleError
from mscope.runtime import Scope
from mscope.runtime.backends import plugin_library
from mscope.runtime.backends.device_runner import DeviceRunner
from mscope.runtime.cli import app
from mscope.runtime.device.cuda import Memory
from mscope.runtime.device.stream import Stream
from mscope.runtime.device.tensors import DeviceTensor


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, network: fakes.FakeNetwork) -> dict[str, FakeTensorRT]:
    return fake_gpu.install(monkeypatch, network, flavours=("tensorrt", "tensorrt-rtx"))


@pytest.fixture
def folder(tmp_path: Path, network: fakes.FakeNetwork) -> Path:
    fakes.write_fake_bundle(tmp_path / "b", network)
    return tmp_path / "b"


def rewrite(folder: Path, path: Path, content: bytes) -> None:
    """Another content for a file of the bundle, with the manifest told: what its hashes do not catch."""
    path.write_bytes(content)
    manifest = load_manifest(folder, check_files=False)
    files = {**manifest.files, path.name: record_of(path)}
    write_manifest(folder, manifest.model_copy(update={"files": files}))


def refusal(folder: Path, kind: type[Exception] = BackendError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        Scope.load(folder, **({"backend": "tensorrt"} | options))
    said = str(caught.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_either_flavour_runs(
    gpu: dict[str, FakeTensorRT], folder: Path, network: fakes.FakeNetwork, flavour: str
) -> None:
    fake_tensorrt.add_engines(folder, flavour=flavour)
    for backend in (flavour, "auto"):
        with Scope.load(folder, backend=backend) as scope:
            assert (scope.backend, scope.kernel, scope.precision, scope.notes) == (flavour, "function", "fp16", ())
            outcome = scope.run(random_batch(network, 3), 1.0)
    assert outcome.stages == ("fine",) * 3


def test_the_engine_of_this_gpu_is_taken(
    monkeypatch: pytest.MonkeyPatch, network: fakes.FakeNetwork, folder: Path
) -> None:
    for capability in ("sm_87", "sm_90", "sm_120"):
        fake_tensorrt.add_engines(folder, compute_capabilities=(capability,))
    for capability in ((8, 7), (12, 0)):
        fake_gpu.install(
            monkeypatch, network, FakeCuda(capability=capability), driver_library=FakeDriver(capability=capability)
        )
        with Scope.load(folder, backend="tensorrt") as scope:
            name = f"sm_{capability[0]}{capability[1]}"
            assert all(name in runner.path.name for runner in scope._runners.values())


def test_one_engine_for_several_gpus(gpu: dict[str, FakeTensorRT], folder: Path) -> None:
    fake_tensorrt.add_engines(folder, compute_capabilities=("sm_89", "sm_90"))
    Scope.load(folder, backend="tensorrt").close()


def test_another_gpu(gpu: dict[str, FakeTensorRT], folder: Path) -> None:
    fake_tensorrt.add_engines(folder, compute_capabilities=("sm_87",), gpu_name="Orin")
    said = refusal(folder)
    assert "coarse.fp16.sm_87.trt.engine was built with TensorRT 10.13.3.9 for sm_87 (Orin)" in said
    assert "here are TensorRT 10.13.3.9 and NVIDIA Fake (sm_90)" in said
    assert f"run 'mscope-export build --from {folder} --target trt'" in said


def test_another_version(gpu: dict[str, FakeTensorRT], folder: Path) -> None:
    fake_tensorrt.add_engines(folder, flavour="tensorrt-rtx", version="1.3.0.35")
    said = refusal(folder, backend="tensorrt-rtx")
    assert "TensorRT-RTX 1.3.0.35 for sm_90, here are TensorRT-RTX 1.7.1.116" in said
    assert said.count("--target trt-rtx") == 1


def test_auto_says_why_it_left_the_engines(
    gpu: dict[str, FakeTensorRT], folder: Path, network: fakes.FakeNetwork
) -> None:
    fake_tensorrt.add_engines(folder, compute_capabilities=("sm_75",))
    with Scope.load(folder, threads=None) as scope:
        assert scope.backend == "ort-cpu"
        (note,) = scope.notes
        assert re.match(r"not tensorrt: coarse\.fp16\.sm_75.* here are TensorRT", note)
        result = scope(random_batch(network, 1)[0], eta=1.0)
    assert result.to_dict()["notes"] == [note]


def test_no_engines_at_all(gpu: dict[str, FakeTensorRT], folder: Path) -> None:
    assert f"build them with 'mscope-export build --from {folder} --target trt'" in refusal(folder)
    with Scope.load(folder) as scope:
        assert (scope.backend, scope.notes) == ("ort-cpu", ())


def test_precision_is_kept_to(gpu: dict[str, FakeTensorRT], folder: Path) -> None:
    fake_tensorrt.add_engines(folder, precision="fp32")
    with Scope.load(folder, backend="tensorrt") as scope:
        assert scope.precision == "fp32"
    assert "the bundle has onnx fp32, tensorrt fp32" in refusal(folder, precision="fp16")


@pytest.mark.parametrize("content", [b"", b"ftrt" * 100], ids=["empty", "foreign"])
def test_a_foreign_engine_is_refused_by_the_library(gpu: dict[str, FakeTensorRT], folder: Path, content: bytes) -> None:
    engine = fake_tensorrt.add_engines(folder)[0]
    rewrite(folder, engine, content)
    said = refusal(folder)
    assert "cannot load coarse.fp16.sm_90.trt.engine (Error Code 2: magic tag does not match in readHeader)" in said
    assert "--target trt" in said
    assert gpu["tensorrt"].cuda.live == 0


def test_an_engine_whose_image_comes_out(
    gpu: dict[str, FakeTensorRT], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tensorrt.add_engines(folder)
    monkeypatch.setattr(fake_tensorrt.ICudaEngine, "get_tensor_mode", lambda self, name: TensorIOMode.OUTPUT)
    assert "inputs are [], expected ['image']: build the bundle again" in refusal(folder, BundleError)
    assert gpu["tensorrt"].cuda.live == 0


def test_a_truncated_engine_is_caught_before_it_is_read(gpu: dict[str, FakeTensorRT], folder: Path) -> None:
    engine = fake_tensorrt.add_engines(folder)[1]
    engine.write_bytes(engine.read_bytes()[:-5])
    assert "the manifest says" in refusal(folder, BundleError)


def test_an_engine_without_its_record(gpu: dict[str, FakeTensorRT], folder: Path) -> None:
    for engine in fake_tensorrt.add_engines(folder):
        manifest = load_manifest(folder, check_files=False)
        sidecar_of(engine).unlink()
        files = {name: record for name, record in manifest.files.items() if name != sidecar_of(engine).name}
        write_manifest(folder, manifest.model_copy(update={"files": files}))
    assert "not loaded without its record" in refusal(folder, BundleError)


def test_a_record_of_another_engine(gpu: dict[str, FakeTensorRT], folder: Path) -> None:
    engine = fake_tensorrt.add_engines(folder)[0]
    record = json.loads(sidecar_of(engine).read_text()) | {"precision": "fp32"}
    rewrite(folder, sidecar_of(engine), json.dumps(record).encode())
    assert "its record says tensorrt fp32, the manifest tensorrt fp16" in refusal(folder, BundleError)


def test_engines_of_the_stages_swapped(gpu: dict[str, FakeTensorRT], folder: Path) -> None:
    coarse, fine = fake_tensorrt.add_engines(folder)
    content = coarse.read_bytes()
    rewrite(folder, coarse, fine.read_bytes())
    rewrite(folder, fine, content)
    assert "coarse.fp16.sm_90.trt.engine: inputs are" in refusal(folder, BundleError)
    for engine in (coarse, fine):
        record = json.loads(sidecar_of(engine).read_text())
        record["stage"] = {"coarse": "fine", "fine": "coarse"}[record["stage"]]
        rewrite(folder, sidecar_of(engine), json.dumps(record).encode())
    assert "its record says stage fine, the manifest coarse" in refusal(folder, BundleError)


def test_an_engine_of_another_model(
    gpu: dict[str, FakeTensorRT], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vouched for by the manifest, read by TensorRT, and without our first input."""
    fake_tensorrt.add_engines(folder)
    made = fake_tensorrt.ICudaEngine.__init__

    def another(self: Any, *arguments: Any) -> None:
        made(self, *arguments)
        self.tensors["pixels"] = self.tensors.pop("image")

    monkeypatch.setattr(fake_tensorrt.ICudaEngine, "__init__", another)
    assert re.search(r"coarse.*: inputs are \[\], expected \['image'\]", refusal(folder, BundleError))


def test_profiles_of_the_stages_differ(gpu: dict[str, FakeTensorRT], folder: Path, network: fakes.FakeNetwork) -> None:
    """Batches that both take are run; where there is none, that is said."""
    fake_tensorrt.add_engines(folder, batch=(2, 4, 8))
    shutil.copytree(folder, folder.with_name("c"))
    fine = next(folder.glob("fine*.engine"))
    for smallest, largest in ((1, 6), (4, 5)):
        content = json.loads(fine.read_text()) | {"batch": [smallest, largest, largest]}
        rewrite(folder, fine, json.dumps(content).encode())
        with Scope.load(folder, backend="tensorrt") as scope:
            for count in (1, 3, 5, 6, 17):
                images = random_batch(network, count)
                for eta in (0.6, 1.0):
                    for _ in range(3):
                        outcome = scope.run(images, eta)
                coarse = fake_tensorrt.run_rows(network, "coarse", {"image": images})
                np.testing.assert_array_equal(outcome.coarse_logits, coarse["logits"])
                assert outcome.stages == ("fine",) * count
    rewrite(folder, fine, json.dumps(json.loads(fine.read_text()) | {"batch": [1, 1, 1]}).encode())
    assert "no batch fits all stages: one takes 2 or more, another at most 1" in refusal(folder)
    assert gpu["tensorrt"].cuda.live == 0


def test_the_stand_in_forgives_no_two_streams_on_one_scratch_memory(gpu: dict[str, FakeTensorRT], folder: Path) -> None:
    """What keeps every run of a runner one after the other: its contexts share their scratch memory."""
    fake_tensorrt.add_engines(folder)
    with Scope.load(folder, backend="tensorrt") as scope:
        runner = scope._runners["coarse"]
        assert isinstance(runner, DeviceRunner)
        memory = Memory(runner.device)
        first, second = Stream(runner.device), Stream(runner.device)
        every = (*runner.graph.inputs, *runner.graph.outputs)
        addresses = {tensor.name: DeviceTensor(memory, first, tensor, 1).address for tensor in every}
        runner.enqueue(1, addresses, first)
        with pytest.raises(Misuse, match="one scratch memory"):
            runner.enqueue(1, addresses, second)
        first.synchronize()
        runner.enqueue(1, addresses, second)
        for stream in (first, second):
            stream.close()
        memory.release()


def test_an_empty_batch_of_a_runner(gpu: dict[str, FakeTensorRT], folder: Path, network: fakes.FakeNetwork) -> None:
    fake_tensorrt.add_engines(folder, batch=(2, 4, 8))
    with Scope.load(folder, backend="tensorrt") as scope:
        outputs = scope._runners["coarse"].infer({"image": random_batch(network, 0)})
    assert {name: array.shape[0] for name, array in outputs.items()} == dict.fromkeys(outputs, 0)
    assert set(outputs) == {"logits", "importance", "features", "embeddings"}


def test_shapes_that_the_engine_cannot_infer_are_one_line(
    gpu: dict[str, FakeTensorRT], folder: Path, network: fakes.FakeNetwork
) -> None:
    """TensorRT's binding raises there, and returns names only of what was not set."""
    fake_tensorrt.add_engines(folder)
    gpu["tensorrt"].shapes_refused = True
    with (
        Scope.load(folder, backend="tensorrt") as scope,
        pytest.raises(BackendError, match=r"take the shapes \(Error Code 7: .*; infer_shapes error code: -1\)$"),
    ):
        scope.run(random_batch(network, 1), 1.0)


def test_an_engine_that_says_it_cannot_be_captured_is_not_tried(
    gpu: dict[str, FakeTensorRT], folder: Path, network: fakes.FakeNetwork
) -> None:
    """TensorRT-RTX answers before anything is captured; the engine runs kernel by kernel, which is told."""
    module = gpu["tensorrt-rtx"]
    module.capture_refused = True
    fake_tensorrt.add_engines(folder, flavour="tensorrt-rtx")
    with Scope.load(folder, backend="tensorrt-rtx") as scope:
        for _ in range(4):
            outcome = scope.run(random_batch(network, 1), 1.0)
    assert len(outcome.notes) == 2
    assert "no CUDA graph at batch 1 (the engine allocates or waits while it runs)" in outcome.notes[0]
    assert "cudaStreamBeginCapture" not in module.cuda.calls


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.setattr(importlib.import_module("gpu_timing"), "WARM_UP_S", 0.0)
    program = importlib.import_module("latency_gpu")
    monkeypatch.setattr(program, "FRAME", (80, 60))
    return program


def test_the_benchmark_times_every_stage(
    gpu: dict[str, FakeTensorRT], folder: Path, capsys: pytest.CaptureFixture[str], benchmark: Any
) -> None:
    fake_tensorrt.add_engines(folder)
    lines = benchmark.engine_lines(folder, "tensorrt", [1, 8, 64], 3)
    assert "its engines take no batch of 64" in capsys.readouterr().err
    assert [line["batch"] for line in lines] == [1, 8]
    for line in lines:
        for name in ("coarse", "fine", "run_exit", "run_refined"):
            assert 0 < line[name]["min_ms"] <= line[name]["p50_ms"] <= line[name]["p99_ms"]
        assert "coarse" in benchmark.shown(line)
        assert "run_exit_decided" not in line
        assert [note.split(":")[1].strip() for note in line["notes"]] == [
            "--decide device needs the CUDA kernels", "--preprocess device needs the CUDA kernels",
        ]  # fmt: skip
    assert gpu["tensorrt"].cuda.live == 0


def test_the_benchmark_times_no_zeros(
    gpu: dict[str, FakeTensorRT], folder: Path, benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take less power than other numbers, and leave the clocks higher."""
    seen, run_rows = [], fake_tensorrt.run_rows

    def noted(network: Any, stage: str, given: dict[str, Any]) -> dict[str, Any]:
        seen.append({name: array.copy() for name, array in given.items()})
        return run_rows(network, stage, given)

    monkeypatch.setattr(fake_tensorrt, "run_rows", noted)
    fake_tensorrt.add_engines(folder)
    benchmark.engine_lines(folder, "tensorrt", [2], 1)
    for given in seen:
        assert all(array.std() > 0 for array in given.values())
        if "selected" in given:
            regions = np.concatenate([given["selected"], given["remaining"]], axis=1)
            assert (np.sort(regions, axis=1) == np.arange(regions.shape[1])).all()


def test_the_benchmark_compares_the_devices_work_with_the_hosts(
    monkeypatch: pytest.MonkeyPatch, network: fakes.FakeNetwork, folder: Path, benchmark: Any
) -> None:
    cuda = FakeCuda(host_addresses=True)
    fake_gpu.install(monkeypatch, network, cuda)
    fake_gpu.install_kernels(monkeypatch, cuda)
    fake_tensorrt.add_engines(folder)
    monkeypatch.setattr(benchmark, "WARM_UP", 1)
    single, pair = benchmark.engine_lines(folder, "tensorrt", [1, 2], 2)
    for line in (single, pair):
        assert line["notes"] == []
        assert {"run_exit", "run_refined", "frame", "frame_scaled"} <= set(line)
    assert {"run_exit_decided", "run_refined_decided"} == set(single) - set(pair)
    assert cuda.live == 0


def test_the_command_says_what_it_left(
    gpu: dict[str, FakeTensorRT], folder: Path, tmp_path: Path, network: fakes.FakeNetwork,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    fake_tensorrt.add_engines(folder, compute_capabilities=("sm_75",))
    np.save(tmp_path / "x.npy", random_batch(network, 2))
    assert run_app(app, [str(tmp_path / "x.npy"), "--bundle", str(folder), "--json"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("note: not tensorrt: coarse.fp16.sm_75")
    assert all(json.loads(line)["backend"] == "ort-cpu" for line in said.out.splitlines())
    assert run_app(app, [str(tmp_path / "x.npy"), "--bundle", str(folder), "--backend", "tensorrt"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "for sm_75, here are TensorRT 10.13.3.9 and NVIDIA Fake (sm_90)" in said.err


# The plugin library


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A plugin library of sha256 aa...; the flavours that it was loaded into."""
    loaded: list[str] = []
    monkeypatch.setattr(plugin_library, "why_missing", lambda: "")
    monkeypatch.setattr(plugin_library, "path", lambda: "lib/libmscope_trt.so")
    monkeypatch.setattr(plugin_library, "sha256", lambda: "a" * 64)
    monkeypatch.setattr(plugin_library, "load", loaded.append)
    return loaded


def test_the_plugin_is_loaded_before_the_engine(gpu: dict[str, FakeTensorRT], folder: Path, plugin: list[str]) -> None:
    fake_tensorrt.add_engines(folder, plugin_sha256="a" * 64, plugin_version="1")
    with Scope.load(folder, backend="tensorrt") as scope:
        assert scope.kernel == "native"
    assert plugin == ["tensorrt", "tensorrt"]
    assert "--kernel function asks for one without" in refusal(folder, kernel="function")


def test_an_engine_without_the_plugin(gpu: dict[str, FakeTensorRT], folder: Path, plugin: list[str]) -> None:
    fake_tensorrt.add_engines(folder)
    Scope.load(folder, backend="tensorrt").close()
    assert plugin == []
    assert "was made without the plugin, --kernel native asks for it" in refusal(folder, kernel="native")


def test_another_plugin_library(gpu: dict[str, FakeTensorRT], folder: Path, plugin: list[str]) -> None:
    fake_tensorrt.add_engines(folder, plugin_sha256="b" * 64, plugin_version="7")
    said = refusal(folder)
    assert (
        "plugin library of version 7, sha256 bbbbbbbbbbbb, here is lib/libmscope_trt.so of sha256 aaaaaaaaaaaa" in said
    )
    assert "--target trt" in said
    assert plugin == []


def test_no_plugin_library(
    gpu: dict[str, FakeTensorRT], folder: Path, plugin: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin_library, "why_missing", lambda: "it is not built: build it")
    fake_tensorrt.add_engines(folder, plugin_sha256="a" * 64)
    assert refusal(folder) == (
        "coarse.fp16.sm_90.trt.engine needs the plugin library: it is not built: build it (and 1 more of its files)"
    )


def test_the_plugins_part_has_what_is_asked_of_it() -> None:
    from mscope.plugins import trt

    assert isinstance(trt.why_missing(), str)
    assert callable(trt.load)
    if not plugin_library.why_missing():
        assert Path(plugin_library.path()).is_file()
        assert re.fullmatch("[0-9a-f]{64}", plugin_library.sha256())
