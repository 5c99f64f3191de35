import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import fake_gpu
import fake_tensorrt
import fakes
from mscope.core.bundle import load_manifest
from mscope.core.contract import graph_for
from mscope.core.errors import BackendError, BundleError, InputError
from mscope.core.manifest import Manifest, StageRecord, Variant
from mscope.runtime import Scope
from mscope.runtime.backends import ort_ops, registry
from mscope.runtime.backends.bound_context import refused
from mscope.runtime.backends.ort import OrtRunner
from mscope.runtime.backends.registry import Availability, Entry, available_backends, choose_backend, choose_variants
from mscope.runtime.backends.tensorrt_library import ErrorLog, plain_version
from two_processes import check_two_at_once


def faulty(network: fakes.FakeNetwork, folder: Path, stage: str, change: object) -> Path:
    """A bundle whose graph of `stage` was changed by `change(model)`."""
    fakes.write_fake_bundle(folder, network)
    model = network.onnx_model(stage)
    change(model)  # type: ignore[operator]
    fakes.replace_graph(folder, stage, model)
    return folder


def rename_output(model: onnx.ModelProto) -> None:
    model.graph.output[1].name = "weight"
    model.graph.node[4].output[0] = "weight"


def fix_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def wrong_channels(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4


def wrong_dtype(model: onnx.ModelProto) -> None:
    model.graph.output[1].type.tensor_type.elem_type = onnx.TensorProto.INT64
    model.graph.node[4].CopyFrom(onnx.helper.make_node("Cast", ["means"], ["importance"], to=onnx.TensorProto.INT64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_output, r"outputs are \['logits', 'weight'"),
        (wrong_dtype, "output 'importance' is int64, expected float32"),
        (fix_batch, r"input 'image' has shape \(1, 3, 64, 48\), expected \(batch, 3, 64, 48\)"),
        (wrong_channels, r"input 'image' has shape \(batch, 4, 64, 48\)"),
    ],
)
def test_a_graph_off_the_contract_is_refused(
    network: fakes.FakeNetwork, tmp_path: Path, change: object, message: str
) -> None:
    folder = faulty(network, tmp_path / "b", "coarse", change)
    with pytest.raises(BundleError, match=rf"^coarse\.onnx: .*{message}.*: build the bundle again$"):
        Scope.load(folder)


def test_nan_from_finite_input_is_the_graphs_fault(network: fakes.FakeNetwork, tmp_path: Path) -> None:
    def poison(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name == "fine_head":
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.full((4, 10), np.nan, np.float32), "fine_head"))

    folder = faulty(network, tmp_path / "b", "fine", poison)
    with Scope.load(folder) as scope:
        images = fakes.random_images(network.config, 1)
        assert scope.run(images, 0.0).stages == ("coarse",)
        with pytest.raises(BackendError, match=r"fine\.onnx: 'logits' came back with NaN"):
            scope.run(images, 1.0)


def no_model(path: Path) -> None:
    path.write_text("not a model")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def unknown_operator(path: Path) -> None:
    model = onnx.load(path)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, path)


def data_beside(path: Path) -> None:
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_model, "is not a whole ONNX file"),
        (empty, "is not a whole ONNX file"),
        (unknown_operator, r"ONNX Runtime .* cannot load .*NoSuchOperator"),
        (data_beside, "has data outside the file, which its hash does not cover"),
    ],
)
def test_a_file_that_is_no_model(
    bundle: Path, network: fakes.FakeNetwork, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    """The hashes of a foreign bundle may be right."""
    path = tmp_path / "coarse.onnx"
    path.write_bytes((bundle / "coarse.onnx").read_bytes())
    damage(path)
    with pytest.raises(BundleError, match=rf"{message}.*: build the bundle again$"):
        OrtRunner(graph_for(network.config, "coarse"), path).activate()


@pytest.mark.parametrize(
    ("kind", "why", "error"),
    [
        ("RuntimeException", "RUNTIME_EXCEPTION : std::bad_alloc", BackendError),
        ("RuntimeException", "RUNTIME_EXCEPTION : MSCOPE_ISA=x is no instruction set of this machine", BackendError),
        ("NotImplemented", "NOT_IMPLEMENTED : Could not find an implementation for Scan(16)", BackendError),
        ("RuntimeException", "RUNTIME_EXCEPTION : VimMixer 'x': A_b has shape (128, 4)", BundleError),
    ],
)
def test_what_this_machine_lacks_is_not_the_files_fault(
    bundle: Path, network: fakes.FakeNetwork, monkeypatch: pytest.MonkeyPatch, kind: str, why: str, error: type
) -> None:
    def session(*arguments: object, **options: object) -> None:
        raise getattr(onnxruntime.capi.onnxruntime_pybind11_state, kind)(why)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(error, match=r"cannot load .*coarse\.onnx \(") as caught:
        OrtRunner(graph_for(network.config, "coarse"), bundle / "coarse.onnx").activate()
    assert str(caught.value).endswith(": build the bundle again") == (error is BundleError)


@pytest.fixture
def fine(bundle: Path, network: fakes.FakeNetwork) -> OrtRunner:
    runner = OrtRunner(graph_for(network.config, "fine"), bundle / "fine.onnx", threads=1)
    runner.activate()
    return runner


def feeds(network: fakes.FakeNetwork) -> dict[str, np.ndarray]:
    image = fakes.random_images(network.config, 2)
    coarse = network.coarse(image)
    indices = np.arange(12)[None].repeat(2, 0)
    return {
        "image": image, "features": coarse["features"], "embeddings": coarse["embeddings"],
        "selected": indices[:, :6], "remaining": indices[:, 6:],
    }  # fmt: skip


def test_infer_takes_what_the_contract_says(fine: OrtRunner, network: fakes.FakeNetwork) -> None:
    good = feeds(network)
    expected = network.fine(good["image"], good["selected"], good["remaining"])
    np.testing.assert_allclose(fine.infer(good)["logits"], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("extra", np.zeros(1), "the fine graph takes"),
        ("selected", np.zeros((2, 6), np.int32), "'selected': got dtype int32, expected int64"),
        ("selected", np.zeros((2, 5), np.int64), r"'selected': got shape \(2, 5\)"),
        ("selected", np.zeros((1, 6), np.int64), r"'selected': got shape \(1, 6\)"),
        ("selected", np.full((2, 6), 12), "'selected' holds indices outside 0 ... 11"),
        ("remaining", np.full((2, 6), -1), "'remaining' holds indices outside"),
        ("features", np.full((2, 12, 4), np.nan, np.float32), "'features' holds NaN"),
    ],
)
def test_infer_checks_names_shapes_values(
    fine: OrtRunner, network: fakes.FakeNetwork, name: str, value: np.ndarray, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fine.infer(feeds(network) | {name: value})


def test_a_runner_lives_between_activate_and_close(bundle: Path, network: fakes.FakeNetwork) -> None:
    runner = OrtRunner(graph_for(network.config, "fine"), bundle / "fine.onnx")
    with pytest.raises(BackendError, match=r"before activate\(\)"):
        runner.infer(feeds(network))
    with runner:
        runner.activate()
        assert runner.infer(feeds(network))["logits"].shape == (2, 10)
    runner.close()
    with pytest.raises(BackendError, match=r"after close\(\)"):
        runner.infer(feeds(network))


def test_the_native_kernel_is_taken_or_refused_never_assumed(
    bundle: Path, network: fakes.FakeNetwork, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = pytest.importorskip("mscope.plugins.find")
    monkeypatch.setattr(find, "library", lambda name: None)
    monkeypatch.setattr(find, "why_missing", lambda name: f"{name} was not built: build it")
    with Scope.load(bundle) as scope:
        assert scope.kernel == "function"
    with pytest.raises(BackendError, match="native kernels for ONNX Runtime: ort was not built: build it"):
        Scope.load(bundle, kernel="native")
    # A library that is there and does not load is an error, not a fallback; unless it was not asked for.
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(find, "library", lambda name: broken)
    with pytest.raises(BackendError, match=r"refuses .*broken\.so"):
        Scope.load(bundle)
    with Scope.load(bundle, kernel="function") as scope:
        assert scope.kernel == "function"


def test_without_the_plugins_part(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mscope.plugins.find", None)
    monkeypatch.setitem(__import__("sys").modules, "mscope.plugins", None)
    assert ort_ops.find("ort")[0] is None
    with pytest.raises(BackendError, match="native kernels are not installed"):
        Scope.load(bundle, kernel="native")


def test_the_table_says_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu.set_driver(monkeypatch, None)
    found = {each.name: each for each in available_backends()}
    assert list(found) == ["tensorrt", "tensorrt-rtx", "ort-cpu", "ort-cuda"]
    assert (found["ort-cpu"].available, found["ort-cpu"].package) == (True, "onnxruntime")
    assert found["ort-cpu"].version == __import__("onnxruntime").__version__
    assert choose_backend("auto").name == "ort-cpu"
    for name in ("tensorrt", "tensorrt-rtx", "ort-cuda"):
        assert "no NVIDIA driver" in found[name].missing
        assert found[name].device == "no GPU"


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx", "ort-cuda"])
def test_a_gpu_asked_for_and_not_there_is_an_error(bundle: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    fake_gpu.set_driver(monkeypatch, None)
    with pytest.raises(BackendError, match=rf"backend {name} is not available: .*no NVIDIA driver"):
        Scope.load(bundle, backend=name)


@pytest.mark.parametrize(("version", "below"), [(12060, 13), (13020, 14)])
def test_each_missing_piece_is_named(version: int, below: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu.set_driver(monkeypatch, fake_gpu.FakeDriver(version=version))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = {each.name: each.missing for each in available_backends()}
    assert "package tensorrt is not installed: pip install tensorrt, or on a Jetson" in said["tensorrt"]
    assert "package tensorrt_rtx is not installed: pip install tensorrt-rtx" in said["tensorrt-rtx"]
    assert "onnxruntime-gpu is not installed" in said["ort-cuda"]
    for name in ("tensorrt", "tensorrt-rtx", "ort-cuda"):
        # Without a bound pip takes one that the driver may be too old for.
        assert f"pip install --upgrade 'cuda-python>=12.6.2,<{below}'" in said[name]
        assert "driver" not in said[name]


def test_threads_are_for_the_cpu(bundle: Path, network: fakes.FakeNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu.install(monkeypatch, network)
    with pytest.raises(InputError, match="leave --threads out with --backend tensorrt"):
        Scope.load(bundle, backend="tensorrt", threads=2)


def test_what_several_backends_lack_is_told_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, entry in registry.BACKENDS.items():
        missing = "no driver" if name == "tensorrt" else "the package x is not installed: pip install x; no driver"
        found = Availability(name, "x", "x", "no GPU", None, missing="" if name == "ort-cpu" else missing)
        monkeypatch.setitem(registry.BACKENDS, name, replace(entry, probe=lambda found=found: found))
    with pytest.raises(BackendError) as error:
        Scope.load(bundle, preprocess="device")
    assert str(error.value) == (
        "no backend runs this bundle here: tensorrt, tensorrt-rtx, ort-cuda: no driver; tensorrt-rtx, ort-cuda: the "
        "package x is not installed: pip install x; ort-cpu: it has no GPU for --preprocess device"
    )


def test_an_unknown_backend_names_the_known() -> None:
    with pytest.raises(
        InputError, match="unknown backend 'tpu': choose auto or one of tensorrt, tensorrt-rtx, ort-cpu, ort-cuda"
    ):
        choose_backend("tpu")


def test_an_unavailable_backend_is_an_error_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = Availability("x", "x", "x", "gpu", None, missing="the package x is not installed: pip install x")
    entry = Entry("x", "onnx", ("fp32",), lambda: lacking, registry.BACKENDS["ort-cpu"].runner)
    monkeypatch.setattr(registry, "BACKENDS", {"x": entry})
    for name in ("x", "auto"):
        with pytest.raises(BackendError, match="pip install x"):
            choose_backend(name)


def test_a_bundle_without_a_file_for_the_backend(network: fakes.FakeNetwork, tmp_path: Path) -> None:
    manifest = fakes.write_fake_bundle(tmp_path / "b", network)
    stages = {
        name: StageRecord(
            variants=(Variant(file=f"{name}.onnx", backend="tensorrt", precision="fp16"),), gmacs=1, tokens=1
        )
        for name in manifest.stages
    }
    fakes.write_fake_bundle(tmp_path / "b", network, stages=stages)
    with pytest.raises(BackendError, match="the bundle has tensorrt fp16"):
        Scope.load(tmp_path / "b")


@pytest.mark.parametrize(("argument", "value"), [("threads", 0), ("threads", 100000), ("kernel", "fast")])
def test_load_refuses(bundle: Path, argument: str, value: object) -> None:
    with pytest.raises(InputError, match=argument):
        Scope.load(bundle, **{argument: value})  # type: ignore[arg-type]


def test_the_files_of_one_precision_are_chosen_for_every_stage(manifest_with: Callable[..., Manifest]) -> None:
    entry = registry.BACKENDS["ort-cpu"]
    both = manifest_with("fp32", "int8")
    assert choose_variants(both, entry)[0] == "fp32"
    precision, files = choose_variants(both, entry, "int8")
    assert (precision, {stage: variant.file for stage, variant in files.items()}) == (
        "int8",
        {"coarse": "coarse.int8.onnx", "fine": "fine.int8.onnx"},
    )
    assert choose_variants(manifest_with("int8"), entry)[0] == "int8"
    with pytest.raises(BackendError, match=r"needs onnx fp16 files .* the bundle has onnx fp32, onnx int8"):
        choose_variants(both, entry, "fp16")
    with pytest.raises(BackendError, match="does not run fp8"):
        choose_variants(both, entry, "fp8")
    with pytest.raises(InputError, match="unknown precision 'half'"):
        choose_variants(both, entry, "half")


def test_a_precision_that_the_bundle_lacks_is_one_short_line(bundle: Path) -> None:
    for precision, more in (("fp16", ""), ("int8", " --calib-data PICTURES")):
        with pytest.raises(BackendError) as caught:
            Scope.load(bundle, precision=precision)
        command = f"'mscope-export build --from {bundle} --{precision}{more}'"
        assert str(caught.value) == f"the bundle has no {precision} files, it has fp32: build them with {command}"


@pytest.fixture
def manifest_with(tmp_path: Path) -> Callable[..., Manifest]:
    """Makes a manifest whose stages have ONNX files of the given precisions."""
    network = fakes.FakeNetwork(fakes.fake_config())
    fakes.write_fake_bundle(tmp_path / "b", network)
    fields = load_manifest(tmp_path / "b").model_dump()

    def make(*precisions: str) -> Manifest:
        files = dict(fields["files"])
        for stage, record in fields["stages"].items():
            record["variants"] = []
            for precision in precisions:
                name = f"{stage}.onnx" if precision == "fp32" else f"{stage}.{precision}.onnx"
                record["variants"].append({"file": name, "precision": precision})
                files[name] = fields["files"][f"{stage}.onnx"]
        return Manifest.model_validate(fields | {"files": files})

    return make


def test_two_processes_at_once(bundle: Path, network: fakes.FakeNetwork, tmp_path: Path) -> None:
    config = network.config
    check_two_at_once(bundle, "ort-cpu", tmp_path, (config.channels, config.height, config.width))


# TensorRT's words


def test_versions_are_compared_by_their_numbers() -> None:
    assert plain_version("10.13.3.9.post1") == "10.13.3.9"
    assert plain_version("10.3.0") == "10.3.0"


def test_complaints_become_one_line() -> None:
    log = ErrorLog(fake_tensorrt.FakeTensorRT)
    for severity, text in ((3, "hello"), (1, "first\n  cause"), (1, "first cause"), (0, "second"), (1, "third")):
        log.logger.log(severity, text)
    assert log.take() == "first cause; second"
    assert log.take() == "it gave no reason"


def test_lack_of_memory_is_told_in_every_way_that_it_is_said() -> None:
    for why in ("Error Code 2: OutOfMemory (no further information)", "CUDA error: out of memory"):
        assert refused("x cannot run", why).endswith("use a smaller batch, or end what else uses it")
    assert refused("x cannot run", "a\nb") == "x cannot run (a b)"


def test_auto_says_what_lacks_for_the_engines_where_a_gpu_is(
    monkeypatch: pytest.MonkeyPatch, network: fakes.FakeNetwork, tmp_path: Path
) -> None:
    """As on a Jetson whose environment does not see JetPack's TensorRT."""
    folder = tmp_path / "b"
    fakes.write_fake_bundle(folder, network)
    fake_tensorrt.add_engines(folder)
    for flavours, gpu, notes in (((), True, 1), (("tensorrt-rtx",), True, 1), ((), False, 0)):
        fake_gpu.install(monkeypatch, network, flavours=flavours)
        if not gpu:
            fake_gpu.set_driver(monkeypatch, None)
        with Scope.load(folder) as scope:
            assert (scope.backend, len(scope.notes)) == ("ort-cpu", notes)
            assert all(note.startswith("not tensorrt: the package tensorrt is not in") for note in scope.notes)
    fake_tensorrt.add_engines(folder, flavour="tensorrt-rtx")
    fake_gpu.install(monkeypatch, network, flavours=("tensorrt-rtx",))
    with Scope.load(folder) as scope:
        assert (scope.backend, scope.notes) == ("tensorrt-rtx", ())
