import errno
import json
import os
from pathlib import Path

import pytest

from mscope.core import bundle
from mscope.core.bundle import (
    latest_bundle,
    load_manifest,
    mark_latest,
    record_of,
    revising_bundle,
    write_manifest,
    writing_folder,
)
from mscope.core.config import config_for
from mscope.core.contract import OP_VERSION
from mscope.core.errors import BackendError, BundleError, InputError
from mscope.core.manifest import SCHEMA, Baseline, Manifest, Preprocessing, StageRecord, Variant, Weights


def write(folder: Path, content: bytes = b"graph") -> Manifest:
    for name in ("coarse.onnx", "fine.onnx"):
        (folder / name).write_bytes(content)
    manifest = Manifest(
        name="test",
        created="2026-01-01T00:00:00Z",
        config=config_for("digits"),
        params=1,
        weights=Weights(origin="random", seed=0),
        preprocessing=Preprocessing(mode="L", resize=64, mean=(0.5,), std=(0.5,)),
        stages={
            stage: StageRecord(variants=(Variant(file=f"{stage}.onnx"),), gmacs=1.0, tokens=17)
            for stage in ("coarse", "fine")
        },
        baseline=Baseline(gmacs=1.0, tokens=65),
        files={name: record_of(folder / name) for name in ("coarse.onnx", "fine.onnx")},
    )
    write_manifest(folder, manifest)
    return manifest


@pytest.fixture
def built(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    with writing_folder(folder) as work:
        write(work)
    return folder


def test_round_trip(built: Path) -> None:
    manifest = load_manifest(built)
    assert manifest.schema_version == SCHEMA
    assert manifest.config == config_for("digits")
    assert not manifest.weights.trained
    assert manifest.weights.describe() == "random (seed 0): untrained, its answers mean nothing"
    assert sorted(p.name for p in built.parent.iterdir()) == ["bundle"]


def test_a_failure_leaves_nothing_and_keeps_the_old_bundle(built: Path) -> None:
    for error in (RuntimeError, KeyboardInterrupt, OSError(28, "No space left on device")):
        with pytest.raises((RuntimeError, KeyboardInterrupt, OSError)), writing_folder(built) as work:
            (work / "coarse.onnx").write_bytes(b"half")
            raise error
        assert load_manifest(built).name == "test"
        with pytest.raises((RuntimeError, KeyboardInterrupt, OSError)), writing_folder(built.parent / "new"):
            raise error
        assert sorted(p.name for p in built.parent.iterdir()) == ["bundle"]


def test_a_bundle_with_as_long_a_name_as_may_be_is_replaced(built: Path) -> None:
    folder = built.rename(built.with_name("x" * 255))
    with writing_folder(folder) as work:
        (work / "new").write_text("")
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert list(built.parent.iterdir()) == [folder]


def test_a_bundle_is_replaced_whole(built: Path) -> None:
    (built / "stale.txt").write_text("old")
    with writing_folder(built) as work:
        write(work, b"second")
    assert (built / "coarse.onnx").read_bytes() == b"second"
    assert not (built / "stale.txt").exists()
    assert sorted(p.name for p in built.parent.iterdir()) == ["bundle"]


def test_a_failed_swap_puts_the_old_bundle_back(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".part"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="Input/output"), writing_folder(built) as work:
        write(work, b"second")
    assert (built / "coarse.onnx").read_bytes() == b"graph"


def test_what_is_not_a_bundle_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"x")
    for name in ("photos", "file"):
        with pytest.raises(InputError, match="not a bundle"), writing_folder(tmp_path / name):
            pass
    assert (tmp_path / "photos" / "a.jpg").exists()


def test_a_changed_byte_a_missing_and_a_cut_file_are_named(built: Path) -> None:
    graph = built / "fine.onnx"
    graph.write_bytes(b"grapH")
    with pytest.raises(BundleError, match=r"fine\.onnx has changed"):
        load_manifest(built)
    graph.write_bytes(b"gra")
    with pytest.raises(BundleError, match="3 bytes, the manifest says 5"):
        load_manifest(built)
    graph.unlink()
    with pytest.raises(BundleError, match="missing"):
        load_manifest(built)
    assert load_manifest(built, check_files=False).name == "test"


def test_a_file_that_cannot_be_read_is_named(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(bundle, "sha256_of", unreadable)
    with pytest.raises(BundleError, match=r"^cannot read .*coarse\.onnx: Permission denied$"):
        load_manifest(built)
    monkeypatch.setattr(Path, "read_text", lambda path, **_: unreadable(path))
    with pytest.raises(BundleError, match=r"^cannot read .*manifest\.json: Permission denied$"):
        load_manifest(built)


def test_a_folder_whose_name_is_not_utf_8_is_refused_at_once(built: Path) -> None:
    folder = built.rename(built.with_name(os.fsdecode(b"caf\xff")))
    with pytest.raises(BundleError, match="not UTF-8"):
        load_manifest(folder)
    with pytest.raises(BundleError, match="not UTF-8"), writing_folder(folder.with_name(os.fsdecode(b"new\xff"))):
        pass
    assert list(built.parent.iterdir()) == [folder]


def test_names_of_files_that_are_not_utf_8_are_text(built: Path) -> None:
    manifest = load_manifest(built)
    weights = Weights(origin="file", name=os.fsdecode(b"caf\xff\x1b[2J.pth"), sha256="0" * 64)
    write_manifest(built, manifest.model_copy(update={"weights": weights}))
    weights = load_manifest(built).weights
    assert weights.name == r"caf\udcff\x1b[2J.pth"
    assert weights.trained
    assert weights.describe() == rf"{weights.name} (sha256 {'0' * 12})"


STAGES = ("coarse", "fine")
STAGE = {"variants": [{"file": "coarse.onnx"}], "gmacs": 1.0, "tokens": 17}
CALIBRATION = {
    "data": "photos", "fingerprint": "0" * 64, "images": 1, "target": "accuracy>=0.5", "eta": 0.5, "accuracy": 0.5,
    "optimism": 0.0, "interval": (0.4, 0.6), "confidence_level": 0.95, "gmacs": 1.0, "exit_rate": 0.5,
    "precision": "fp32", "date": "2026-01-01T00:00:00Z",
}  # fmt: skip
PARITY = {"images": 1, "reference": "fp32", "max_abs": 0.0, "cosine": 1.0, "top1_agreement": 1.0}


def edit(built: Path, **changes: object) -> None:
    path = built / "manifest.json"
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": SCHEMA + 1}, "upgrade mambascope-deploy"),
        ({"schema_version": "1"}, "no schema_version"),
        ({"schema_version": 0}, "schema_version"),
        ({"params": 0}, "params"),
        *(
            ({"calibration": CALIBRATION | {name: value}}, rf"calibration\.{name}")
            for name, value in (("images", 0), ("skipped", -1), ("exit_rate", 1.1), ("confidence_level", 1))
        ),
        ({"op_version": OP_VERSION - 1}, f"version {OP_VERSION - 1} of the ops, .*has version {OP_VERSION}: build"),
        ({"op_version": "\x1b[2J" * 1000}, "its op_version is no number: not a manifest"),
        ({"weights": {"origin": "random", "seed": -1}}, r"weights\.seed"),
        ({"weights": {"origin": "random", "seed": 1 << 64}}, r"weights\.seed"),
        ({"surprise": 1}, "surprise"),
        ({"default_eta": 1.5}, "default_eta"),
        ({"default_eta": -0.5}, "default_eta"),
        *(
            ({"eta_curve": [{"eta": 0.5, "accuracy": 0.9, "exit_rate": 0.5, "gmacs": 1.0} | {name: value}]}, name)
            for name, value in (
                ("eta", 1.5),
                ("eta", -0.5),
                ("accuracy", 1.5),
                ("accuracy", -0.5),
                ("exit_rate", 1.5),
                ("exit_rate", -0.5),
                ("gmacs", -0.5),
                ("latency_ms", -0.5),
            )
        ),
        ({"labels": ["one"]}, "1 labels for 10 classes"),
        *(
            ({"files": {name: {"sha256": "0" * 64, "bytes": 1}}}, "files.*String should match pattern")
            for name in (
                "../evil.so",
                "evil\x1b[2J.so",
                "plugin/../../evil.so",
                "plugin/../evil.so",
                "plugin/./a.cu",
                "plugin//a.cu",
                "plugin/",
                "/plugin/a.cu",
                "plugin/.ssh/a",
                "plugin\\a.cu",
                "plugin/a.cu\n",
                "plugins/a.cu",
                "trt/a.cu",
                "plugin/a/b/c/d/e.cu",
            )
        ),
        (
            {"preprocessing": {"mode": "L", "resize": 64, "mean": [0.5, 0.5], "std": [0.5]}},
            r"preprocessing\.mean .* 1 chan",
        ),
        ({"preprocessing": {"mode": "L", "resize": 64, "mean": [0.5], "std": []}}, r"preprocessing\.std .* 1 channels"),
        ({"labels": [*"012345678", "9\x1b]0;owned\x07"]}, "labels.9: a text with a control character"),
        ({"tools": {"torch": "2.13\nkernel: native"}}, "tools.torch: a text with a control character"),
        ({"tools": {"\x9b2J": "1"}}, r"tools.\\x9b2J: a text with a control character"),
        (
            {"weights": {"origin": "random", "seed": 0, "derived": ["a\u2028"]}},
            "weights.derived.0: a text with a control",
        ),
        ({"files": {}}, "does not list"),
        ({"stages": {}}, "stages of mambascope"),
        ({"config": {"arch": "mambascope", "size": "x", "height": 65}}, "multiple of"),
        # What float32 makes zero or infinity of would make NaN of every confidence, or of every picture.
        *(({"temperature": {stage: value}}, rf"temperature\.{stage}") for stage in STAGES for value in (9e-4, 1001)),
        ({"preprocessing": {"resize": 0, "mode": "L", "mean": [0.5], "std": [0.5]}}, r"preprocessing\.resize"),
        ({"preprocessing": {"resize": 64, "mode": "L", "mean": [0.5], "std": [1e-300]}}, r"preprocessing\.std"),
        ({"preprocessing": {"resize": 64, "mode": "L", "mean": [float("nan")], "std": [1]}}, r"preprocessing\.mean"),
        ({"baseline": {"gmacs": float("inf"), "tokens": 65}}, r"baseline\.gmacs"),
        ({"baseline": {"gmacs": 0, "tokens": 65}}, r"baseline\.gmacs"),
        ({"baseline": {"gmacs": 1, "tokens": 0}}, r"baseline\.tokens"),
        *(
            ({"stages": {"coarse": STAGE | changes, "fine": STAGE}}, rf"stages\.coarse\.{name}")
            for name, changes in (
                ("tokens", {"tokens": 0}),
                ("gmacs", {"gmacs": -0.5}),
                ("variants", {"variants": []}),
                (r"variants\.0\.file", {"variants": [{"file": "../evil.onnx"}]}),
            )
        ),
        *(
            (
                {"stages": {"coarse": STAGE | {"variants": [variant]}, "fine": STAGE}},
                rf"stages\.coarse\.variants\.0\.parity\.{name}",
            )
            for name, value in (("images", 0), ("cosine", -1.1), ("cosine", 1.1), ("top1_agreement", 1.1))
            for variant in [{"file": "coarse.onnx", "parity": PARITY | {name: value}}]
        ),
    ],
)
def test_a_foreign_manifest_is_one_clear_line(built: Path, changes: dict[str, object], message: str) -> None:
    edit(built, **changes)
    with pytest.raises(BundleError, match=message) as caught:
        load_manifest(built)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("entries, size", [(257, 1), (2, 3 << 20)])
def test_a_source_of_the_plugin_that_is_none(built: Path, entries: int, size: int) -> None:
    files = json.loads((built / "manifest.json").read_text())["files"]
    files |= {f"plugin/{i}.cu": {"sha256": "0" * 64, "bytes": size} for i in range(entries)}
    edit(built, files=files)
    with pytest.raises(BundleError, match=rf"{entries} files, {entries * size} bytes below plugin/: not the source"):
        load_manifest(built)


@pytest.fixture
def with_source(built: Path) -> Path:
    """The bundle with two files of the plugin's source, which are no sources of it."""
    with revising_bundle(built) as (work, manifest):
        files = dict(manifest.files)
        for name in ("plugin/cuda/api.cu", "plugin/CMakeLists.txt"):
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_text(f"not {name}")
            files[name] = record_of(work / name)
        write_manifest(work, manifest.model_copy(update={"files": files}))
    return built


def test_the_source_of_the_plugin_is_checked_like_every_file(with_source: Path) -> None:
    assert set(load_manifest(with_source).files) > {"plugin/CMakeLists.txt", "plugin/cuda/api.cu"}
    path = with_source / "plugin" / "cuda" / "api.cu"
    path.write_text("not plugin/cuda/api.cU")
    with pytest.raises(BundleError, match=r"plugin/cuda/api\.cu has changed since it was built"):
        load_manifest(with_source)
    path.write_text("longer, and so of another size")
    with pytest.raises(BundleError, match=r"api\.cu has 30 bytes, the manifest says 22"):
        load_manifest(with_source)
    path.unlink()
    with pytest.raises(BundleError, match=r"api\.cu is missing"):
        load_manifest(with_source)


@pytest.mark.parametrize("links", [True, False])
def test_revising_keeps_the_source_of_the_plugin(
    with_source: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    before = load_manifest(with_source).files
    (with_source / "plugin" / "stray.cu").write_text("of nobody")
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(95, "Operation not supported")))
    with revising_bundle(with_source) as (work, manifest):
        write_manifest(work, manifest.model_copy(update={"default_eta": 0.7}))
    assert load_manifest(with_source).files == before
    assert not (with_source / "plugin" / "stray.cu").exists()


def test_a_bundle_from_before_the_manifest_named_the_ops_version(built: Path) -> None:
    path = built / "manifest.json"
    content = json.loads(path.read_text())
    del content["op_version"]
    path.write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"its graphs use version 1 of the ops.*build the bundle again"):
        load_manifest(built)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_a_manifest_that_is_no_json_object(built: Path, content: bytes) -> None:
    (built / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError):
        load_manifest(built)


def test_no_bundle_and_a_wrong_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="mscope-export build"):
        load_manifest(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="is not a bundle"):
        load_manifest(tmp_path)
    with pytest.raises(BundleError, match=r"^cannot read .*nnn: File name too long$"):
        load_manifest(tmp_path / ("n" * 300))


def test_latest(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSCOPE_HOME", str(tmp_path / "home"))
    with pytest.raises(BundleError, match="no bundle yet"):
        latest_bundle()
    mark_latest(built)
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["latest"]
    assert latest_bundle() == built
    os.rename(built, tmp_path / "moved")
    with pytest.raises(BundleError, match="is gone"):
        latest_bundle()
    (tmp_path / "home" / "latest").write_bytes(b"\xff")
    with pytest.raises(BundleError, match="is gone"):
        latest_bundle()


def test_data_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MSCOPE_HOME", raising=False)
    assert bundle.data_folder().name == "mambascope"


def test_revising_adds_to_a_copy_that_replaces_the_bundle(built: Path) -> None:
    with revising_bundle(built) as (work, manifest):
        (work / "extra.bin").write_bytes(b"more")
        files = {**manifest.files, "extra.bin": record_of(work / "extra.bin")}
        write_manifest(work, manifest.model_copy(update={"default_eta": 0.7, "files": files}))
        assert load_manifest(built).default_eta == 0.6
    revised = load_manifest(built)
    assert revised.default_eta == 0.7
    assert "extra.bin" in revised.files
    assert sorted(p.name for p in built.parent.iterdir()) == ["bundle"]


def test_a_failed_revision_keeps_the_bundle_as_it_was(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in built.iterdir()}
    # Also where the file system has no links.
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(95, "Operation not supported")))
    with pytest.raises(KeyboardInterrupt), revising_bundle(built) as (work, manifest):
        write_manifest(work, manifest.model_copy(update={"default_eta": 0.7}))
        raise KeyboardInterrupt
    assert {path.name: path.read_bytes() for path in built.iterdir()} == before
    assert sorted(p.name for p in built.parent.iterdir()) == ["bundle"]


def test_of_two_revisions_at_once_the_later_is_refused_and_not_the_earlier_lost(built: Path) -> None:
    with (
        pytest.raises(BundleError, match="bundle was changed by another program meanwhile and is left as it is"),
        revising_bundle(built) as (work, manifest),
    ):
        with revising_bundle(built) as (other, _):
            write_manifest(other, manifest.model_copy(update={"default_eta": 0.7}))
        write_manifest(work, manifest.model_copy(update={"default_eta": 0.8}))
    assert load_manifest(built).default_eta == 0.7
    assert sorted(p.name for p in built.parent.iterdir()) == ["bundle"]


def test_errors_name_the_bundle_and_not_the_folder_it_is_written_in(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(built.parent)
    given = Path(built.name)
    with pytest.raises(BackendError) as caught, revising_bundle(given) as (work, _):
        raise BackendError(f"cannot load {work / 'coarse.onnx'}")
    assert str(caught.value) == f"cannot load {given / 'coarse.onnx'}"
    with pytest.raises(OSError, match="No space") as full, revising_bundle(given) as (work, _):
        raise OSError(errno.ENOSPC, "No space left", str(work / "coarse.onnx"))
    assert full.value.filename == str(given / "coarse.onnx")
