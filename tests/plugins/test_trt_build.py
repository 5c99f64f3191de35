"""Building the plugin library with nvcc, and the command that does: `mscope-export plugins`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import trt_library
from mscope.core.console import run_app
from mscope.core.errors import BackendError, InputError
from mscope.plugins import build, build_trt, find, trt, trt_check
from mscope.plugins.trt_options import PluginBuild
from shared_objects import symbols


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library of one architecture, as the package's own."""
    folder = trt_library.built()
    monkeypatch.setenv(find.PLUGIN_DIR, str(folder))
    return folder / "libmscope_trt.so"


def test_it_exports_what_tensorrt_looks_for_and_nothing_else(library: Path) -> None:
    exported = symbols(library, "--defined-only")
    assert exported == {"getCreators", "setLoggerFinder", "mscope_abi_version", "mscope_trt_describe"}


def test_it_needs_neither_tensorrt_nor_cuda_nor_a_c_plus_plus_runtime(library: Path) -> None:
    wanted = symbols(library, "--undefined-only")
    assert {name for name in wanted if name.startswith(("cu", "_Z", "__cxa_throw", "getPlugin", "getLogger"))} == set()
    said = subprocess.run(["ldd", str(library)], capture_output=True, text=True, check=True).stdout
    needed = {line.split()[0].split(".so")[0] for line in said.splitlines()}
    assert not {name for name in needed if "cuda" in name or "nvinfer" in name or "stdc++" in name}


def test_it_loads_alone_and_says_what_it_is(library: Path) -> None:
    code = "import ctypes, sys; l = ctypes.CDLL(sys.argv[1]); print(l.mscope_abi_version())"
    done = subprocess.run([sys.executable, "-c", code, str(library)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(build.ABI_VERSION), done.stderr
    assert trt.why_missing() == ""
    assert trt.library_path() == library
    description = trt.describe()
    assert description.targets == trt_library.ARCHITECTURES
    assert (description.headers == "minimal") == (not os.environ.get(build_trt.TENSORRT_INCLUDE_DIR))


def test_nothing_in_it_tells_where_and_when_it_was_built(library: Path) -> None:
    """Engines go with the hash of this file: the same sources and compiler must give the same again."""
    content = library.read_bytes()
    # nvcc's names of what it compiled: with the number of a process, and for unnamed namespaces a hash of the path.
    assert re.findall(rb"tmpxft_\w+|_GLOBAL__N__[0-9a-f]{8}_\w+", content) == []
    for folder in (build.sources_dir(), library.parent):
        assert os.fsencode(folder) not in content


def test_a_second_build_does_nothing(library: Path) -> None:
    before = library.stat().st_mtime_ns
    assert trt_library.built.__wrapped__() == library.parent
    assert library.stat().st_mtime_ns == before


def test_the_stamp_sees_every_ingredient(tmp_path: Path) -> None:
    """Sources, headers and architectures: a change of any makes another library."""
    root = tmp_path / "csrc"
    shutil.copytree(build.sources_dir(), root)
    nvcc = build.Compiler(("nvcc",), "13.0")

    def identity(only: str = "87", include: Path | None = None) -> str:
        return build_trt.recipe(root, include).identity(nvcc, root, (only,))

    before = identity()
    assert identity() == before
    seen = {before, identity("90"), identity(include=tmp_path)}
    for name in ("trt/ops.h", "abi/tensorrt_minimal.h", "abi/ops.h", "cuda/plan.h", "scan/math.h"):
        with (root / name).open("a", encoding="utf-8") as file:
            file.write("// changed\n")
        seen.add(identity())
    assert len(seen) == 8


def test_options_are_checked_before_anything_is_built(tmp_path: Path) -> None:
    assert PluginBuild.from_options("90,sm_75, 87").only == ("75", "87", "90")
    assert PluginBuild.from_options(None).only == ()
    with pytest.raises(InputError, match="--arch names '42': choose from 75, 80, 86, 87, 89, 90, 120"):
        PluginBuild.from_options("87,42")
    with pytest.raises(InputError, match=r"has no NvInferRuntime\.h: name TensorRT's include folder, or leave it out"):
        PluginBuild.from_options(None, include=tmp_path)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="is a file: name a folder"):
        PluginBuild.from_options(None, output=tmp_path / "file")


def test_headers_that_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build_trt.TENSORRT_INCLUDE_DIR, str(tmp_path))
    with pytest.raises(build.BuildError, match=r"TensorRT_INCLUDE_DIR names .*, which has no NvInferRuntime\.h"):
        build_trt.include_dir()
    (tmp_path / "NvInferRuntime.h").write_text("", encoding="utf-8")
    assert build_trt.include_dir() == tmp_path
    monkeypatch.delenv(build_trt.TENSORRT_INCLUDE_DIR)
    assert build_trt.include_dir() is None


def test_a_missing_library_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "OUTPUT", tmp_path)
    monkeypatch.delenv(find.PLUGIN_DIR, raising=False)
    assert "libmscope_trt.so is not built: install nvcc and run 'mscope-export plugins build'" in trt.why_missing()
    with pytest.raises(BackendError, match="mscope-export plugins build"):
        trt.library_path()


def test_a_damaged_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libmscope_trt.so").write_bytes(b"\x7fELF, but no more")
    monkeypatch.setenv(find.PLUGIN_DIR, str(tmp_path))
    assert "cannot be loaded" in trt.why_missing()
    assert "rebuild it with 'mscope-export plugins build --force'" in trt.why_missing()


class TestCommand:
    """As a user types it. The commands of mscope-export need Typer only, until they run."""

    @pytest.fixture
    def app(self) -> Any:
        return pytest.importorskip("mscope.export.cli").app

    def test_path(self, app: Any, library: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run_app(app, ["plugins", "path"]) == 0
        assert capsys.readouterr().out == f"{library}\n"

    def test_build_prints_the_path(self, app: Any, library: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arch = ",".join(trt_library.ARCHITECTURES)
        assert run_app(app, ["plugins", "build", "--arch", arch, "--out", str(library.parent)]) == 0
        assert capsys.readouterr().out == f"{library}\n"

    def test_without_nvcc_one_line(
        self, app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("NVCC", "no-such-compiler")
        assert run_app(app, ["plugins", "build", "--out", str(tmp_path / "new")]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: no working nvcc: install the CUDA toolkit")
        assert captured.err.count("\n") == 1
        assert not (tmp_path / "new").exists()

    def test_check_as_json(self, app: Any, library: Path, capsys: pytest.CaptureFixture[str]) -> None:
        status = run_app(app, ["plugins", "check", "--json"])
        report = json.loads(capsys.readouterr().out)
        assert report["library"] == str(library)
        assert [op["name"] for op in report["ops"]] == list(trt.PLUGIN_NAMES)
        found = {entry["flavour"]: entry for entry in report["flavours"]}
        assert set(found) == {"tensorrt", "tensorrt-rtx"}
        for entry in found.values():
            if entry["version"]:
                assert entry["problem"] == ""
                assert len(entry["creators"]) == len(trt.PLUGIN_NAMES) * len(trt.NAMESPACES)
            else:
                assert any(entry["flavour"].replace("-", "_") in line for line in report["missing"])
        assert status == (0 if any(entry["version"] for entry in found.values()) else 1)
        assert report["passed"] == (status == 0)

    def test_check_without_a_library(
        self, app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv(find.PLUGIN_DIR, str(tmp_path))
        assert run_app(app, ["plugins", "check"]) == 1
        said = capsys.readouterr().out
        assert said.startswith("library     none\n")
        assert "does not exist" in said


def test_a_tensorrt_that_ends_the_process_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    loaded = trt_check._try("tensorrt")
    assert loaded.problem.startswith("loading ended the process with status 1")
    assert not trt_check.Report("x", None, (loaded,)).passed
