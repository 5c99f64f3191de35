"""The native build: errors that say what to do, rebuilds only after changes, refusal of foreign libraries, wheels."""

import ctypes
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mscope.core.errors import BackendError
from mscope.plugins import build, build_cuda, find
from mscope.plugins.trt_source import source_folder

ROOT = Path(__file__).parents[2]

DISPATCH = """
#define DECLARE(isa) namespace isa { int number(); }
MSCOPE_FOR_EACH_ISA(DECLARE)
#define ADD(isa) + isa::number()
extern "C" __attribute__((visibility("default"))) int mscope_toy_sum() { return 0 MSCOPE_FOR_EACH_ISA(ADD); }
extern "C" __attribute__((visibility("default"))) int stray() { return 0; }
"""
PER_ISA = "namespace MSCOPE_ISA_NAME { int number() { return 1; } }\n"


def compiler_missing() -> bool:
    try:
        build.find_compiler()
    except build.BuildError:
        return True
    return False


needs_compiler = pytest.mark.skipif(compiler_missing(), reason="no C++ compiler here")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source folder with a library "toy": one source per instruction set, a dispatcher and the real version.cpp."""
    root = tmp_path / "csrc"
    (root / "toy").mkdir(parents=True)
    shutil.copytree(ROOT / "plugins" / "csrc" / "abi", root / "abi", ignore=shutil.ignore_patterns("*.h"))
    (root / "toy" / "toy.cpp").write_text(DISPATCH)
    (root / "toy" / "toy_isa.cpp").write_text(PER_ISA)
    monkeypatch.setattr(build, "LIBRARIES", {"toy": ("abi/version.cpp", "toy/*.cpp")})
    monkeypatch.setattr(build, "sources_dir", lambda: root)
    monkeypatch.setattr(build, "OUTPUT", tmp_path / "native")
    monkeypatch.delenv(find.PLUGIN_DIR, raising=False)
    return root


def build_toy() -> Path:
    return build.build("toy", output=build.OUTPUT)


@needs_compiler
def test_every_instruction_set_is_compiled_and_declared(toy: Path) -> None:
    path = build_toy()
    library = ctypes.CDLL(str(path))
    assert library.mscope_toy_sum() == len(build.instruction_sets())
    assert not hasattr(library, "stray"), "only what EXPORTS names is to be seen outside"
    assert sorted(p.name for p in build.OUTPUT.iterdir()) == [path.name, f"{path.name}.stamp"], "scratch left behind"


@needs_compiler
def test_rebuilds_only_what_changed(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def built_again() -> bool:
        before = path.stat().st_ino, path.stat().st_mtime_ns
        build_toy()
        return (path.stat().st_ino, path.stat().st_mtime_ns) != before

    path = build_toy()
    assert not built_again()
    (toy / "toy" / "toy.cpp").touch()
    assert not built_again(), "a new date is no change"
    (toy / "toy" / "toy.h").write_text("// a header that a source may include\n")
    assert built_again()
    monkeypatch.setattr(build, "COMPILE_FLAGS", (*build.COMPILE_FLAGS, "-DSOMETHING"))
    assert built_again()
    monkeypatch.setattr(build, "ABI_VERSION", build.ABI_VERSION + 1)
    assert built_again()
    monkeypatch.setenv("CXX", f"{build.find_compiler().command[0]} -DANOTHER")
    assert built_again()
    assert not built_again()
    path.with_name(path.name + ".stamp").write_text("damaged")
    assert built_again()


@needs_compiler
def test_the_command_that_mends_a_damaged_library(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = build_toy()
    path.write_bytes(b"no library")
    with pytest.warns(RuntimeWarning, match="cannot be loaded"):
        assert find.library("toy") is None
    mend = find.why_missing("toy").rpartition("'python -m mscope.plugins.build")[2].removesuffix("'")
    assert build.main(["toy", *mend.split()]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert find.library("toy") == path


@pytest.mark.parametrize("main", [build.main, build_cuda.main])
def test_a_command_has_help_and_refuses_what_it_does_not_know(
    main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--help"])
    assert "--force" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["--no-such-option"])


@needs_compiler
def test_a_failing_compiler_is_quoted_and_the_old_library_stays(toy: Path) -> None:
    path = build_toy()
    before = path.read_bytes()
    (toy / "toy" / "toy.cpp").write_text(DISPATCH + "int broken() { return missing_name; }\n")
    with pytest.raises(build.BuildError, match="missing_name"):
        build_toy()
    assert path.read_bytes() == before
    assert len(list(build.OUTPUT.iterdir())) == 2


@needs_compiler
def test_an_undefined_symbol_fails_the_build_and_not_the_first_call(toy: Path) -> None:
    (toy / "toy" / "toy.cpp").write_text('int nowhere(); extern "C" int f() { return nowhere(); }\n')
    with pytest.raises(build.BuildError, match="nowhere"):
        build_toy()


@pytest.mark.parametrize("cxx", ["", "no-such-compiler -O2", "false"])
def test_no_compiler_says_what_to_do(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cxx: str) -> None:
    if not cxx:
        (tmp_path / "empty").mkdir()
        monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setenv("CXX", cxx)
    with pytest.raises(build.BuildError, match=r"no working C\+\+ compiler .*install g\+\+"):
        build_toy()
    assert not build.OUTPUT.exists()


def test_no_sources_and_unknown_names(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (toy / "toy" / "toy.cpp").unlink()
    (toy / "toy" / "toy_isa.cpp").unlink()
    with pytest.raises(build.BuildError, match=r"nothing matches toy/\*\.cpp"):
        build_toy()
    assert build.main(["other"]) == 1
    assert "choose from toy" in capsys.readouterr().err
    with pytest.raises(ValueError, match="one of toy"):
        find.library("other")


def test_instruction_sets_follow_the_machine() -> None:
    assert list(build.instruction_sets("x86_64")) == ["avx512", "avx2", "scalar"], "best first"
    assert list(build.instruction_sets("aarch64")) == ["neon", "scalar"]
    assert list(build.instruction_sets("riscv64")) == ["scalar"]


@needs_compiler
def test_find_takes_what_was_built(toy: Path) -> None:
    assert find.library("toy") is None
    assert "python -m mscope.plugins.build" in find.why_missing("toy")
    path = build_toy()
    assert find.library("toy") == find.require("toy") == path
    assert find.why_missing("toy") == ""


@needs_compiler
@pytest.mark.parametrize("foreign", ["another version", "no version", "no library"])
def test_foreign_libraries_are_refused(toy: Path, monkeypatch: pytest.MonkeyPatch, foreign: str) -> None:
    message = {
        "another version": f"ABI version {build.ABI_VERSION}, this package needs {build.ABI_VERSION + 1}",
        "no version": "no mscope_abi_version",
        "no library": "cannot be loaded",
    }[foreign]
    if foreign == "no version":
        (toy / "abi" / "version.cpp").write_text("\n")
    path = build_toy()
    if foreign == "another version":
        monkeypatch.setattr(build, "ABI_VERSION", build.ABI_VERSION + 1)
    elif foreign == "no library":
        path.write_text("text")
    find._refusal.cache_clear()
    with pytest.warns(RuntimeWarning, match=message):
        assert find.library("toy") is None
    assert message in find.why_missing("toy")
    with pytest.warns(RuntimeWarning), pytest.raises(BackendError, match="rebuild it"):
        find.require("toy")
    find._refusal.cache_clear()


@needs_compiler
def test_the_override_is_the_only_place_looked_at(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build_toy()
    monkeypatch.setenv(find.PLUGIN_DIR, str(tmp_path / "elsewhere"))
    assert find.library("toy") is None
    assert find.PLUGIN_DIR in find.why_missing("toy")
    shutil.copytree(built.parent, tmp_path / "elsewhere")
    assert find.library("toy") == tmp_path / "elsewhere" / built.name
    # A name without a folder is no path to a linker.
    monkeypatch.chdir(tmp_path / "elsewhere")
    for here in (".", "../elsewhere"):
        monkeypatch.setenv(find.PLUGIN_DIR, here)
        found = find.library("toy")
        assert found is not None
        assert (found.is_absolute(), found.samefile(tmp_path / "elsewhere" / built.name)) == (True, True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what a wheel is made of, with a small library in place of each real one."""
    pytest.importorskip("hatchling")
    copy = tmp_path / "project"
    ignored = shutil.ignore_patterns("_native", "__pycache__", "csrc")
    for part in ("core", "plugins", "model", "runtime", "export"):
        shutil.copytree(ROOT / part, copy / part, ignore=ignored)
    for name in ("pyproject.toml", "hatch_build.py", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    (copy / "README.md").write_text("# A copy\n")
    csrc = copy / "plugins" / "csrc"
    for folder in ("abi", "cuda", "scan", "trt"):
        shutil.copytree(ROOT / "plugins" / "csrc" / folder, csrc / folder)
    for patterns in build.LIBRARIES.values():
        for pattern in patterns[1:]:
            source = csrc / pattern.replace("*", "_toy")
            source.parent.mkdir(parents=True, exist_ok=True)
            source.write_text("[[maybe_unused]] static int toy;\n")
    return copy


def wheel(project: Path, **environment: str) -> tuple[zipfile.ZipFile, str]:
    """Builds a wheel as pip does, with hatchling as the backend; returns it and what was said."""
    out = project / "dist"
    clean = {k: v for k, v in os.environ.items() if k not in {"CXX", "MSCOPE_NATIVE"}}
    result = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=project, env={**clean, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path), result.stdout + result.stderr


def test_a_wheel_without_a_compiler_is_pure_and_says_so(project: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    stale = project / "plugins" / "mscope" / "plugins" / "_native" / f"libmscope_train{build.SUFFIX}"
    stale.parent.mkdir()
    stale.write_text("of some other sources")
    archive, said = wheel(project, PATH=str(tmp_path / "empty"))
    assert Path(str(archive.filename)).name.endswith("-py3-none-any.whl")
    names = archive.namelist()
    assert not [n for n in names if "_native" in n]
    assert "no working C++ compiler" in said
    assert "'train' was not built" in said
    assert {"mscope/plugins/csrc/abi/version.cpp", "mscope/plugins/build.py", "mscope/core/errors.py"} <= set(names)
    assert "mscope/__init__.py" not in names


@needs_compiler
def test_a_wheel_with_a_compiler_carries_libraries_that_load(project: Path, tmp_path: Path) -> None:
    archive, said = wheel(project)
    name = Path(str(archive.filename)).name
    assert "-py3-none-" in name
    assert not name.endswith("-any.whl")
    assert "was not built" not in said
    archive.extractall(tmp_path / "site")
    # As an installed package: the libraries are found, and the sources next to them can be built again.
    code = """
from mscope.plugins import build, build_cuda, find
for name in build.LIBRARIES:
    print(find.require(name))
print(build.sources_dir())
assert build.build("train", force=True) == find.require("train")
from pathlib import Path
from mscope.plugins.trt_source import write_source
write_source(Path("written"))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = result.stdout.split()
    assert len(lines) == len(build.LIBRARIES) + 1
    assert all(line.startswith(str(tmp_path / "site")) for line in lines), lines
    # What is written for a device without Python is what a checkout writes, the license included.
    written = {name: (tmp_path / "written" / name).read_bytes() for name in source_folder()}
    assert written == source_folder()


@needs_compiler
def test_an_editable_install_builds_in_place(project: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", "import hatchling.build as b; print(b.build_editable('dist'))"],
        cwd=project, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    native = project / "plugins" / "mscope" / "plugins" / "_native"
    for name in build.LIBRARIES:
        assert build.library_path(name, native).is_file()
    (path,) = (project / "dist").glob("*.whl")
    # Only what points back to the checkout: a folder mscope/ in site-packages would come before it.
    assert not [n for n in zipfile.ZipFile(path).namelist() if n.startswith("mscope/")]


def test_the_source_distribution_carries_the_native_sources(project: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", "dist"],
        cwd=project, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (path,) = (project / "dist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    assert {"hatch_build.py", "plugins/csrc/abi/version.cpp", "plugins/mscope/plugins/build.py"} <= names
    assert not [n for n in names if n.endswith(build.SUFFIX)]


def test_required_libraries_fail_the_build(project: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(AssertionError, match="no working C"):
        wheel(project, PATH=str(tmp_path / "empty"), MSCOPE_NATIVE="require")
