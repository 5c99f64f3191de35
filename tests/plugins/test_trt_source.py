"""The plugin's source as a folder: what is in it, and that cmake alone makes of it the library that Python makes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import trt_library
from mscope.core.console import run_app
from mscope.plugins import build, build_cuda, build_over_cuda, build_trt, find, trt, trt_check, trt_source
from shared_objects import symbols

#: Of the folder, what no compiler reads; and the header of the host run, which nvcc's own headers stand for here.
NOT_COMPILED = {"CMakeLists.txt", "README.md", "LICENSE"}
NOT_READ = NOT_COMPILED | {"trt/exports.map", "cuda/emulation.h"}


@pytest.fixture(scope="module")
def made() -> Path:
    """The library that cmake made."""
    return trt_library.built_by_cmake() / "libmscope_trt.so"


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# What is in it.


def test_everything_in_the_folder_is_in_the_stamp_of_the_library(tmp_path: Path) -> None:
    """What cmake compiles is what the Python build knows as the library's ingredients."""
    root = tmp_path / "csrc"
    shutil.copytree(build.sources_dir(), root)
    nvcc = build.Compiler(("nvcc",), "13.0")

    def identity() -> str:
        return build_trt.recipe(root, None).identity(nvcc, root, ("87",))

    names = sorted(trt_source.source_folder().keys() - NOT_COMPILED)
    assert len(names) > 40
    seen = {identity()}
    for name in names:
        with (root / name).open("a", encoding="utf-8") as file:
            file.write("// changed\n")
        seen.add(identity())
    assert len(seen) == len(names) + 1


def test_nothing_of_other_libraries_is_in_it() -> None:
    folders = {name.split("/")[0] for name in trt_source.source_folder() if "/" in name}
    assert folders == {"abi", "cuda", "scan", "trt"}
    names = " ".join(trt_source.source_folder())
    assert not re.search(r"onnxruntime|host_run|host_api|avx|neon|\.in\b", names)


@pytest.mark.slow
def test_the_compiler_reads_every_file_and_no_other_of_ours(made: Path) -> None:
    source = made.parents[1] / "the source"
    said = "".join(path.read_text(encoding="utf-8") for path in made.parent.rglob("*.d"))
    escaped = re.escape(str(source).replace(" ", "\\ "))
    read = set(re.findall(rf"{escaped}/(\S+)", said))
    assert read == files_below(source) - NOT_READ


def test_the_texts_name_no_placeholder_and_no_place_of_this_machine() -> None:
    folder = trt_source.source_folder()
    for name in NOT_COMPILED:
        text = folder[name].decode()
        assert not re.search(r"@[A-Z_]+@", text)
        assert str(build.sources_dir()) not in text
    assert b"Apache License" in folder["LICENSE"]


# What cmake makes of it.


@pytest.mark.slow
def test_the_flags_are_those_of_the_python_build(made: Path) -> None:
    commands = json.loads((made.parent / "compile_commands.json").read_text(encoding="utf-8"))
    assert len(commands) == len(build_cuda.sources(build.sources_dir())) + len(build_trt.sources(build.sources_dir()))
    for entry in commands:
        words = shlex.split(entry["command"])
        if entry["file"].endswith(".cu"):
            expected = {*build_cuda.KERNEL_FLAGS, f"-DMSCOPE_ABI_VERSION={build.ABI_VERSION}"}
            expected |= {f'-DMSCOPE_CUDA_TARGETS="{" ".join(trt_library.ARCHITECTURES)}"'}
        else:
            expected = {*build_over_cuda.FLAGS, *build_over_cuda.HOST_FLAGS, *build_trt.header_flags(None)}
        assert expected <= set(words), entry["command"]
    link = made.parent / "CMakeFiles" / "mscope_trt.dir" / "link.txt"
    expected = {*build_over_cuda.LINK_FLAGS, *(f"-Wl,{flag}" for flag in build_over_cuda.LINKER_FLAGS)}
    assert expected <= set(shlex.split(link.read_text(encoding="utf-8")))


@pytest.mark.slow
def test_it_exports_and_needs_what_the_python_built_one_does(made: Path) -> None:
    other = trt_library.built() / made.name
    assert symbols(made, "--defined-only") == symbols(other, "--defined-only")
    assert symbols(made, "--undefined-only") == symbols(other, "--undefined-only")
    assert trt._describe(made) == trt._describe(other)


@pytest.fixture
def in_place_of_ours(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the library that cmake made, as the package's own; TensorRT-RTX's name is of the Python build."""
    shutil.copy(made, tmp_path / made.name)
    shutil.copytree(build_trt.rtx_name_path(trt_library.built() / made.name).parent, tmp_path / "rtx")
    monkeypatch.setenv(find.PLUGIN_DIR, str(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_tensorrt_rtx_takes_the_same_creators_and_builds_an_engine(
    in_place_of_ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt_rtx", "onnx"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}: pip install 'mambascope-deploy[trt]'")
    assert trt.why_missing() == ""
    (loaded,) = (found for found in trt_check.check().flavours if found.flavour == "tensorrt-rtx")
    assert loaded.problem == ""
    assert len(loaded.creators) == len(trt.PLUGIN_NAMES) * len(trt.NAMESPACES)
    request = {"op": "BidirectionalSelectiveScan", "dtype": "float16", "capabilities": ["89"]}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    program = Path(__file__).parents[1] / "trt_rtx.py"
    done = subprocess.run(
        [sys.executable, str(program)], input=json.dumps(request) + "\n", env=environment, capture_output=True,
        text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
    assert answer["errors"] == []
    assert answer["plan_bytes"] > 10_000
    monkeypatch.setenv(find.PLUGIN_DIR, str(trt_library.built()))
    (ours,) = (found for found in trt_check.check().flavours if found.flavour == "tensorrt-rtx")
    assert loaded.creators == ours.creators


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name the GPUs: -DCMAKE_CUDA_ARCHITECTURES=87 (an Orin)"),
        (["-DCMAKE_CUDA_ARCHITECTURES=87", "-DTensorRT_INCLUDE_DIR=/nowhere"], "which has no NvInferRuntime.h"),
    ],
)
@pytest.mark.slow
def test_cmake_says_what_is_missing(made: Path, tmp_path: Path, options: list[str], message: str) -> None:
    said = trt_library.configure(made.parents[1] / "the source", tmp_path / "build", *options, fails=True)
    assert message in " ".join(said.split())


@pytest.mark.slow
def test_official_headers_and_several_gpus(made: Path, tmp_path: Path) -> None:
    (tmp_path / "NvInferRuntime.h").write_text("", encoding="utf-8")
    chosen = (f"-DTensorRT_INCLUDE_DIR={tmp_path}", "-DCMAKE_CUDA_ARCHITECTURES=80-real;86;90-virtual")
    trt_library.configure(made.parents[1] / "the source", tmp_path / "build", *chosen)
    for entry in json.loads((tmp_path / "build" / "compile_commands.json").read_text(encoding="utf-8")):
        words = shlex.split(entry["command"])
        if entry["file"].endswith(".cpp"):
            assert words[words.index(str(tmp_path)) - 1] == "-isystem"
            assert not set(build_trt.header_flags(None)) & set(words)
        else:
            assert '-DMSCOPE_CUDA_TARGETS="80 86 ptx86 ptx90"' in words


# The command.


class TestCommand:
    @pytest.fixture
    def app(self) -> Any:
        return pytest.importorskip("mscope.export.cli").app

    def test_writes_a_new_folder(self, app: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in ("new", "empty"):
            folder = tmp_path / "below" / name
            if name == "empty":
                folder.mkdir()
            assert run_app(app, ["plugins", "source", str(folder)]) == 0
            assert capsys.readouterr().out == f"{folder}\n"
            assert {name: (folder / name).read_bytes() for name in files_below(folder)} == trt_source.source_folder()

    def test_takes_no_folder_with_something_in_it(
        self, app: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
        for target in (tmp_path, tmp_path / "manifest.json"):
            assert run_app(app, ["plugins", "source", str(target)]) == 2
            captured = capsys.readouterr()
            assert captured.err.startswith(f"error: {target} exists and is not an empty folder: name another one")
            assert (captured.out, captured.err.count("\n")) == ("", 1)
        assert files_below(tmp_path) == {"manifest.json"}

    def test_sources_that_are_not_whole_leave_nothing(
        self, app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = tmp_path / "csrc"
        shutil.copytree(build.sources_dir(), root)
        (root / "scan" / "math.h").unlink()
        monkeypatch.setattr(build, "sources_dir", lambda: root)
        assert run_app(app, ["plugins", "source", str(tmp_path / "new")]) == 1
        captured = capsys.readouterr()
        assert "math.h" in captured.err
        assert "reinstall mambascope-deploy" in captured.err
        assert captured.err.count("\n") == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == ["csrc"]
