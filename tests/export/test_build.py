"""Bundles are built whole or not at all, say where their weights come from, and verify against that source."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mscope.core.bundle import latest_bundle, load_manifest
from mscope.core.config import ModelConfig, config_for
from mscope.core.contract import Stage
from mscope.core.errors import BundleError, CheckpointError, InputError, MscopeError, ParityError
from mscope.core.manifest import Manifest, Parity, Variant
from mscope.export import build as build_module
from mscope.export.build import build_bundle, bundle_name, warnings_about
from mscope.export.defaults import preprocessing_for
from mscope.export.engine.wish import EngineWish
from mscope.export.extend import new_file
from mscope.export.options import BuildOptions, config_from_options, parse_resolution
from mscope.export.verification import verify
from mscope.model import shipped
from mscope.model.backbone import Backbone
from mscope.model.checkpoint import model_from_seed

PARITY = Parity(images=1, logits_max_abs=0.0, tolerance=1.0)
Small = Callable[..., ModelConfig]


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("MSCOPE_HOME", str(home))
    return home


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.fixture(scope="module")
def built(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of random weights, seed 4; not to be modified."""
    out = tmp_path_factory.mktemp("built") / "bundle"
    build_bundle(BuildOptions(small(depth=1), seed=4, out=out))
    return out


def test_bundle_holds_what_the_runtime_needs(built: Path, small: Small) -> None:
    manifest = load_manifest(built)
    assert left_in(built) == ["coarse.onnx", "fine.onnx", "manifest.json"]
    assert manifest.config == small(depth=1)
    assert manifest.params == sum(p.numel() for p in model_from_seed(manifest.config, 0).model.parameters())
    assert manifest.parity is not None
    assert manifest.parity.logits_max_abs <= manifest.parity.tolerance
    assert manifest.stages["coarse"].tokens == 16
    assert {"torch", "onnx", "onnxruntime"} <= set(manifest.tools)
    assert manifest.preprocessing.mode == "RGB"


def test_random_weights_are_called_random(built: Path) -> None:
    manifest = load_manifest(built)
    assert manifest.weights.origin == "random"
    assert manifest.weights.seed == 4
    assert any("untrained" in line for line in warnings_about(manifest))


def test_a_built_bundle_runs(built: Path) -> None:
    from mscope.runtime import Scope

    with Scope.load(built) as scope:
        image = np.random.default_rng(0).standard_normal((3, 24, 40)).astype(np.float32)
        assert scope(image, eta=1.0).stage == "fine"
        assert scope(image, eta=0.0).stage == "coarse"


def test_verify_rebuilds_random_weights_from_their_seed(built: Path) -> None:
    report = verify(built)
    assert report.manifest.weights.origin == "random"
    assert report.parity == report.manifest.parity


def test_verify_refuses_a_weights_file_that_is_not_needed(built: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leave --weights out"):
        verify(built, tmp_path / "any.pth")


def test_verify_finds_a_changed_byte_first(built: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in built.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    content = bytearray((copy / "fine.onnx").read_bytes())
    content[-1000] ^= 1
    (copy / "fine.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"fine\.onnx has changed"):
        verify(copy)


def test_weights_from_a_file(small: Small, tmp_path: Path) -> None:
    config = small(arch="vim", depth=1)
    weights, other = tmp_path / "vim.pth", tmp_path / "other.pth"
    torch.save({"model": model_from_seed(config, 8).model.state_dict()}, weights)
    torch.save(model_from_seed(config, 9).model.state_dict(), other)
    out = tmp_path / "bundle"
    report = build_bundle(BuildOptions(config, weights=weights, out=out))
    assert (report.manifest.weights.origin, report.manifest.weights.name) == ("file", "vim.pth")
    assert report.break_even is None
    assert report.warnings == ()
    with pytest.raises(InputError, match=r"name that file with --weights"):
        verify(out)
    with pytest.raises(InputError, match=r"other\.pth is not the file"):
        verify(out, other)
    assert verify(out, weights).parity == report.manifest.parity


def test_derived_parameters_are_named(small: Small, tmp_path: Path, quick_parity: None) -> None:
    weights = tmp_path / "vim.pth"
    torch.save(model_from_seed(small(arch="vim", depth=1), 8).model.state_dict(), weights)
    report = build_bundle(BuildOptions(small(depth=1), weights=weights, out=tmp_path / "bundle"))
    assert "pos_embed_coarse" in report.manifest.weights.derived
    assert any("derived, not trained: pos_embed_coarse" in line for line in report.warnings)


def test_without_out_the_bundle_becomes_the_latest(small: Small, own_data_folder: Path, quick_parity: None) -> None:
    report = build_bundle(BuildOptions(small(depth=1, arch="vim", height=12), seed=0))
    assert report.folder == own_data_folder / "bundles" / "small-vim-12x40"
    assert latest_bundle() == report.folder


@pytest.fixture
def quick_parity(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of something else than parity."""
    monkeypatch.setattr(build_module, "check_parity", lambda *args, **options: PARITY)


@pytest.fixture
def quick_export(monkeypatch: pytest.MonkeyPatch, exported: dict[str, Any]) -> None:
    """For tests of what happens after an export."""
    monkeypatch.setattr(build_module, "onnx_from_model", lambda model, stage: exported[stage])


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*args: Any, **options: Any) -> Any:
        raise error

    return fail


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device"), MemoryError()]
)
@pytest.mark.parametrize("step", ["check_parity", "write_manifest", "load_weights", "record_of"])
def test_a_failure_in_the_middle_leaves_nothing(
    small: Small,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own_data_folder: Path,
    step: str,
    error: BaseException,
) -> None:
    monkeypatch.setattr(build_module, step, failing(error))
    out = tmp_path / "bundles" / "new"
    with pytest.raises(type(error)):
        build_bundle(BuildOptions(small(), seed=1, out=out))
    assert left_in(out.parent) == []
    assert not own_data_folder.exists()


@pytest.mark.usefixtures("quick_export")
def test_a_full_disk_leaves_nothing(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        write(path, content[:1000])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        build_bundle(BuildOptions(small(), seed=1, out=tmp_path / "out" / "new"))
    assert left_in(tmp_path / "out") == []


@pytest.mark.usefixtures("quick_export")
def test_a_failed_rebuild_keeps_the_old_bundle(built: Path, small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in built.iterdir()}
    monkeypatch.setattr(build_module, "check_parity", failing(ParityError("not the model")))
    with pytest.raises(ParityError):
        build_bundle(BuildOptions(small(), seed=1, out=built))
    assert {path.name: path.read_bytes() for path in built.iterdir()} == before
    assert left_in(built.parent) == ["bundle"]


@pytest.mark.usefixtures("quick_export")
def test_graphs_of_other_weights_leave_nothing(small: Small, tmp_path: Path) -> None:
    # The fixture exports seed 1 whatever it is asked for.
    with pytest.raises(ParityError, match="is not the model"):
        build_bundle(BuildOptions(small(), seed=2, out=tmp_path / "out" / "new"))
    assert left_in(tmp_path / "out") == []


@pytest.mark.usefixtures("quick_export", "quick_parity")
def test_something_else_in_the_place_is_left_alone(small: Small, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is not a bundle"):
        build_bundle(BuildOptions(small(), seed=1, out=tmp_path))
    assert "mine.txt" in left_in(tmp_path)


@pytest.mark.usefixtures("quick_export")
def test_without_parity_it_says_so(small: Small, tmp_path: Path) -> None:
    report = build_bundle(BuildOptions(small(), seed=1, out=tmp_path / "new", parity=False, eta=0.25))
    assert report.manifest.parity is None
    assert report.manifest.default_eta == 0.25
    assert any("parity was not checked" in line for line in report.warnings)
    json.dumps(report.to_json())


def test_shipped_weights_unless_a_seed_is_given(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Backbone
) -> None:
    from safetensors.torch import save_file

    from mscope.export import weights as weights_module

    # None for this size.
    assert weights_module.load_weights(small(), None, None).weights.origin == "random"
    path = tmp_path / "small.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    monkeypatch.setattr(weights_module, "shipped_weights", lambda size, arch: path)
    loaded = weights_module.load_weights(small(), None, None)
    assert (loaded.weights.origin, loaded.weights.trained) == ("shipped", True)
    assert weights_module.load_weights(small(), None, 5).weights.origin == "random"


def test_what_is_shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {arch: shipped.shipped_weights("digits", arch) for arch in ("mambascope", "vim")}
    assert [path and path.name for path in files.values()] == ["digits.safetensors", "digits-vim.safetensors"]
    assert shipped.shipped_weights("ti", "mambascope") is None
    # A threshold is of a cascade, and of weights that were measured with it.
    assert shipped.shipped_operating_point(config_for("digits")) is not None
    for config in (config_for("digits", "vim"), config_for("ti"), config_for("digits", alpha=0.5)):
        assert shipped.shipped_operating_point(config) is None
    # Nor is it an error where an install left the files out.
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path)
    assert shipped.shipped_weights("digits", "mambascope") is None


def test_a_file_and_a_seed_contradict_each_other(small: Small, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give one of the two"):
        build_bundle(BuildOptions(small(), weights=tmp_path / "w.pth", seed=0, out=tmp_path / "new"))


def test_missing_weights_leave_nothing(small: Small, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights file"):
        build_bundle(BuildOptions(small(), weights=tmp_path / "w.pth", out=tmp_path / "out" / "new"))
    assert left_in(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precisions": ("fp12",)}, "unknown precision 'fp12'"),
        ({"engines": EngineWish("tensorrt")}, "unknown target 'tensorrt'"),
        ({"engines": EngineWish("onnx", ("sm_89",))}, "--gpu belongs to engines"),
    ],
)
def test_what_cannot_be_asked_is_refused(small: Small, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        build_bundle(BuildOptions(small(), out=tmp_path / "new", **changes))
    assert left_in(tmp_path) == []


@pytest.mark.usefixtures("quick_export")
def test_what_was_asked_for_and_not_made_leaves_nothing(small: Small, tmp_path: Path) -> None:
    with pytest.raises(MscopeError, match="int8 was asked for and stage 'coarse' has no such file"):
        build_bundle(BuildOptions(small(), seed=1, out=tmp_path / "new", precisions=("int8",)))
    assert left_in(tmp_path) == []


@pytest.mark.usefixtures("quick_export")
def test_variants_are_part_of_the_build(small: Small, tmp_path: Path) -> None:
    told: list[str] = []

    def derive(folder: Path, manifest: Manifest, progress: Any) -> dict[Stage, Variant]:
        # The fp32 graphs are there and were checked, and so are the precisions that the build makes itself.
        assert manifest.parity is not None
        assert (folder / "fine.fp16.onnx").is_file()
        added: dict[Stage, Variant] = {}
        for stage in manifest.stages:
            new_file(folder, f"{stage}.int8.onnx").write_bytes((folder / f"{stage}.fp16.onnx").read_bytes())
            added[stage] = Variant(file=f"{stage}.int8.onnx", precision="int8")
        (folder / "int8.ranges.json").write_text("{}")
        return added

    options = BuildOptions(small(), seed=1, out=tmp_path / "new", precisions=("fp16", "int8"))
    report = build_bundle(options, told.append, derive=[derive])
    assert set(report.manifest.files) == set(left_in(tmp_path / "new")) - {"manifest.json"}
    assert "int8.ranges.json" in report.manifest.files
    assert [v.precision for v in report.manifest.stages["fine"].variants] == ["fp32", "fp16", "int8"]
    assert "typing fine.fp16.onnx" in told
    json.dumps(report.to_json())


def test_resolution_and_names() -> None:
    assert parse_resolution("224") == (224, 224)
    assert parse_resolution("256x192") == (256, 192)
    for text in ("", "0x", "224x", "axb", "224x224x3", "-224"):
        with pytest.raises(InputError, match="H or HxW"):
            parse_resolution(text)
    with pytest.raises(InputError, match="multiple of 32"):
        config_from_options("ti", resolution="240")
    with pytest.raises(InputError, match="plain ViM refines no regions"):
        config_from_options("ti", "vim", alpha=0.5)
    with pytest.raises(InputError, match="alpha"):
        config_from_options("ti", alpha=0.0)
    assert bundle_name(config_for("ti")) == "ti"
    assert bundle_name(config_from_options("s", alpha=0.7, resolution="256x192")) == "s-alpha0.7-256x192"
    assert bundle_name(config_for("digits", "vim")) == "digits-vim"


def test_preprocessing_of_imagenet_and_digits() -> None:
    usual = preprocessing_for(config_for("ti"))
    assert (usual.mode, usual.resize, usual.interpolation) == ("RGB", 256, "bicubic")
    assert usual.mean == (0.485, 0.456, 0.406)
    assert preprocessing_for(config_for("ti", height=448, width=224)).resize == 512
    digits = preprocessing_for(config_for("digits"))
    assert (digits.mode, digits.resize, len(digits.mean)) == ("L", 64, 1)


def test_adaptivity_that_does_not_pay_is_said(small: Small, tmp_path: Path) -> None:
    config = small(alpha=1.0)
    from mscope.core.manifest import Weights
    from mscope.export.build import make_manifest

    file = tmp_path / "coarse.onnx"
    file.write_bytes(b"x")
    fields = {"name": "n", "preprocessing": preprocessing_for(config)}
    trained = Weights(origin="file", name="w", sha256="0" * 64)
    manifest = make_manifest(config, trained, {"coarse": file, "fine": file}, PARITY, fields)
    assert any("pays only if more than" in line for line in warnings_about(manifest))
    dear = manifest.stages["coarse"].model_copy(update={"gmacs": 2 * manifest.baseline.gmacs})
    manifest = manifest.model_copy(update={"stages": manifest.stages | {"coarse": dear}})
    assert any("does not pay" in line for line in warnings_about(manifest))
