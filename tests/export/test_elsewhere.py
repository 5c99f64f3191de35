"""GPUs that nothing here builds for: a bundle with the plugin's source, and what is said of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mscope.core.bundle import load_manifest
from mscope.core.config import ModelConfig
from mscope.core.console import run_app
from mscope.core.errors import BackendError, BundleError, InputError
from mscope.export.build import build_bundle
from mscope.export.cli import app
from mscope.export.engine import flavour, plan
from mscope.export.engine.device import Gpu
from mscope.export.engine.wish import EngineWish
from mscope.export.options import BuildOptions
from mscope.plugins.build import BuildError
from mscope.plugins.trt_source import source_folder

SOURCE = {f"plugin/{name}" for name in source_folder()}


@pytest.fixture
def bundle(one_block: Path, tmp_path: Path) -> Path:
    shutil.copytree(one_block, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets which libraries are installed and which GPU is here. TensorRT-RTX knows two GPUs."""

    def make(*installed: str, here: str = "") -> None:
        rtx = SimpleNamespace(
            __name__="tensorrt_rtx", __version__="1.7", ComputeCapability=SimpleNamespace(
                __members__={"SM89": 1, "SM120": 2, "CURRENT": 0}
            ),
        )  # fmt: skip
        found = Gpu("a GPU", here) if here else None
        monkeypatch.setattr(flavour.Library, "installed", property(lambda self: self.module in installed))
        for module in (flavour, plan):
            monkeypatch.setattr(module, "load", lambda library: rtx)
        for name in ("plan", "derive"):
            monkeypatch.setattr(f"mscope.export.engine.{name}.gpu_here", lambda: found)
        monkeypatch.setattr("mscope.plugins.trt.why_missing", lambda: "it is not built")

    return make


# What is decided.


def test_what_tensorrt_rtx_knows_it_builds_and_the_rest_is_left_to_the_device(machine: Callable[..., None]) -> None:
    machine("tensorrt_rtx", "tensorrt")
    known = plan.plan_engines(EngineWish("auto", ("sm_89",)))
    assert known.options is not None
    assert (known.options.library.target, known.options.gpus, known.elsewhere) == ("trt-rtx", ("sm_89",), None)
    orin = plan.plan_engines(EngineWish("auto", ("sm_87",)))
    assert (orin.options, orin.note) == (None, "no engines for sm_87")
    assert orin.warnings == (
        "no engines for sm_87: tensorrt_rtx 1.7 builds for sm_89, sm_120; on the device run "
        "'mscope-export plugins build --arch 87', then 'mscope-export build --from BUNDLE --target trt --ops plugin'; "
        "plugin/README.md is for a device without Python",
    )
    both = plan.plan_engines(EngineWish("auto", ("sm_87", "sm_89", "sm_90"), (1, 2, 4)))
    assert both.options is not None
    assert both.options.gpus == ("sm_89",)
    assert both.elsewhere is not None
    assert both.elsewhere.gpus == ("sm_87", "sm_90")
    assert both.elsewhere.commands == (
        "mscope-export plugins build --arch 87,90",
        "mscope-export build --from BUNDLE --target trt --ops plugin --batch 1,2,4",
    )
    assert len(both.warnings) == 2
    # Between the architectures that there is code for: all of them are built, and one serves it.
    odd = plan.plan_engines(EngineWish("auto", ("sm_88",)))
    assert odd.elsewhere is not None
    assert odd.elsewhere.commands[0] == "mscope-export plugins build"


def test_on_the_device_itself_tensorrt_builds(machine: Callable[..., None]) -> None:
    for installed in (("tensorrt",), ("tensorrt", "tensorrt_rtx")):
        machine(*installed, here="sm_87")
        here = plan.plan_engines(EngineWish("auto", ("sm_87",)))
        assert here.options is not None
        assert (here.options.library.target, here.options.gpus, here.elsewhere) == ("trt", ("sm_87",), None)
        other = plan.plan_engines(EngineWish("auto", ("sm_90",)))
        assert other.options is None
    machine(here="sm_87")
    without = plan.plan_engines(EngineWish("auto", ("sm_87",)))
    assert without.elsewhere is not None
    assert without.elsewhere.why.startswith("tensorrt_rtx is not installed: pip install tensorrt-rtx")


@pytest.mark.parametrize("installed", [(), ("tensorrt", "tensorrt_rtx")])
def test_a_target_that_was_insisted_on_is_not_replaced(
    machine: Callable[..., None], installed: tuple[str, ...]
) -> None:
    """Exit status 2: a request that cannot be met does not look met."""
    machine(*installed)
    remedy = "leave out --target for a bundle that goes to the device, and run .*--from BUNDLE --target trt' there"
    with pytest.raises(InputError, match=f"sm_87: TensorRT builds for the GPU it runs on only; {remedy}"):
        plan.plan_engines(EngineWish("trt", ("sm_87",)))
    if installed:
        with pytest.raises(InputError, match=f"sm_87: tensorrt_rtx 1.7 builds for sm_89, sm_120; {remedy}"):
            plan.plan_engines(EngineWish("trt-rtx", ("sm_87", "sm_89")))


def test_a_gpu_that_the_installed_library_does_not_know(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an H100 with TensorRT-RTX: "auto" builds no engines, and says so before anything is exported."""
    machine("tensorrt_rtx", here="sm_90")
    auto = plan.plan_engines(EngineWish("auto"))
    assert (auto.options, auto.note) == (None, "no engines: tensorrt_rtx 1.7 builds for sm_89, sm_120, here is sm_90")
    with pytest.raises(BackendError, match=r"^--target trt-rtx: tensorrt_rtx 1\.7 builds for sm_89, sm_120, here is s"):
        plan.plan_engines(EngineWish("trt-rtx"))
    machine("tensorrt_rtx", here="sm_120")
    for target in ("auto", "trt-rtx"):
        here = plan.plan_engines(EngineWish(target))
        assert here.options is not None
        assert (here.options.library.target, here.options.gpus) == ("trt-rtx", ())

    # One that is installed and cannot be used stands in nobody's way.
    machine("tensorrt", "tensorrt_rtx", here="sm_89")
    original = flavour.load

    def broken(library: flavour.Library) -> object:
        if library.target == "trt":
            raise BackendError("tensorrt cannot be imported (libnvinfer.so.10)")
        return original(library)

    for module in (flavour, plan):
        monkeypatch.setattr(module, "load", broken)
    other = plan.plan_engines(EngineWish("auto"))
    assert other.options is not None
    assert other.options.library.target == "trt-rtx"
    with pytest.raises(BackendError, match=r"^--target trt: tensorrt cannot be imported \(libnvinfer\.so\.10\)$"):
        plan.plan_engines(EngineWish("trt"))
    monkeypatch.setattr("mscope.export.engine.plan.gpu_here", lambda: Gpu("an Orin", "sm_87"))
    both = plan.plan_engines(EngineWish("auto"))
    assert both.note == (
        "no engines: tensorrt cannot be imported (libnvinfer.so.10); "
        "tensorrt_rtx 1.7 builds for sm_89, sm_120, here is sm_87"
    )
    named = plan.plan_engines(EngineWish("auto", ("sm_87",)))
    assert named.elsewhere is not None
    assert named.elsewhere.why == (
        "tensorrt_rtx 1.7 builds for sm_89, sm_120; tensorrt cannot be imported (libnvinfer.so.10)"
    )


# What is written.


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_bundle_for_an_orin(
    bundle: Path, machine: Callable[..., None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    machine()
    before = files_of(bundle)
    assert run_app(app, ["build", "--from", str(bundle), "--gpu", "sm_87", "--no-parity"]) == 0
    captured = capsys.readouterr()
    assert "engines  no engines for sm_87\n" in captured.out
    (line,) = captured.err.splitlines()
    assert line.startswith("warning: no engines for sm_87: tensorrt_rtx is not installed")
    assert "'mscope-export build --from BUNDLE --target trt --ops plugin'" in line
    after = files_of(bundle)
    assert {name for name in after if name.startswith("plugin/")} == SOURCE
    assert {name: after[f"plugin/{name}"] for name in source_folder()} == source_folder()
    kept = before.keys() - {"manifest.json"}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    manifest = load_manifest(bundle)
    assert set(manifest.files) == kept | SOURCE
    assert {variant.backend for record in manifest.stages.values() for variant in record.variants} == {"onnx"}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    # The next one that adds something keeps it; the next one for a device writes it anew.
    (bundle / "plugin" / "README.md").unlink()
    with pytest.raises(BundleError, match=r"README\.md is missing"):
        load_manifest(bundle)
    (bundle / "plugin" / "README.md").write_bytes(after["plugin/README.md"])
    assert run_app(app, ["build", "--from", str(bundle), "--bf16", "--target", "onnx", "--no-parity"]) == 0
    assert set(load_manifest(bundle).files) == kept | SOURCE | {"coarse.bf16.onnx", "fine.bf16.onnx"}


def test_an_older_source_is_replaced_whole(bundle: Path, machine: Callable[..., None]) -> None:
    machine()
    command = ["build", "--from", str(bundle), "--gpu", "sm_87", "--no-parity"]
    assert run_app(app, command) == 0
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["plugin/cuda/older.cu"] = manifest["files"]["plugin/README.md"]
    shutil.copy(bundle / "plugin" / "README.md", bundle / "plugin" / "cuda" / "older.cu")
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert "plugin/cuda/older.cu" in load_manifest(bundle).files
    assert run_app(app, command) == 0
    assert {name for name in load_manifest(bundle).files if name.startswith("plugin/")} == SOURCE
    assert {name for name in files_of(bundle) if name.startswith("plugin/")} == SOURCE


def test_a_changed_source_is_refused_before_anything_is_built(bundle: Path, machine: Callable[..., None]) -> None:
    machine()
    assert run_app(app, ["build", "--from", str(bundle), "--gpu", "sm_87", "--no-parity"]) == 0
    path = bundle / "plugin" / "CMakeLists.txt"
    path.write_bytes(path.read_bytes().replace(b"-O3", b"-O0"))
    before = files_of(bundle)
    assert run_app(app, ["build", "--from", str(bundle), "--gpu", "sm_87", "--no-parity"]) == 2
    assert files_of(bundle) == before


def test_a_package_without_its_sources_leaves_the_bundle_as_it_was(
    bundle: Path, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(folder: Path) -> None:
        raise BuildError("the plugin's sources are not in this package")

    machine()
    monkeypatch.setattr("mscope.export.engine.elsewhere.write_source", nothing)
    before = files_of(bundle)
    assert run_app(app, ["build", "--from", str(bundle), "--gpu", "sm_87", "--no-parity"]) == 1
    assert capsys.readouterr().err == "error: the plugin's sources are not in this package\n"
    assert files_of(bundle) == before


def test_function_bodies_need_no_source(
    bundle: Path, machine: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    machine()
    command = ["build", "--from", str(bundle), "--gpu", "sm_87", "--ops", "function", "--no-parity", "--json"]
    assert run_app(app, command) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["on_device"] == {
        "gpus": ["sm_87"], "why": told["on_device"]["why"], "source": None,
        "commands": ["mscope-export build --from BUNDLE --target trt --ops function"],
    }  # fmt: skip
    assert told["engines"] == {}
    assert told["engines_note"] == told["warnings"][0]
    assert not (bundle / "plugin").exists()


def test_a_new_bundle_has_it_too(
    small: Callable[..., ModelConfig], tmp_path: Path, machine: Callable[..., None]
) -> None:
    machine()
    out = tmp_path / "new"
    report = build_bundle(BuildOptions(small(depth=1), seed=1, out=out, engines=EngineWish("auto", ("sm_87",))))
    assert set(load_manifest(out).files) == {"coarse.onnx", "fine.onnx"} | SOURCE
    assert report.to_json()["on_device"]["source"] == "plugin"
    assert any(line.startswith("no engines for sm_87") for line in report.warnings)
