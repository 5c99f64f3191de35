"""The dependency arrows, the source roots and what an import may pull in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A part may import the parts it names here, and itself.
ARROWS = {
    "core": set(),
    "plugins": {"core"},
    "model": {"core", "plugins"},
    "runtime": {"core", "plugins"},
    "export": {"core", "plugins", "model", "runtime"},
    "calib": {"core", "plugins", "model", "runtime", "export"},
}
# The commands of mscope-export stand above all parts, wherever their folder lies: some of them drive calib.
COMMANDS = "export/mscope/export/commands"
# Packages that a part must never import, not even inside a function.
BANNED = {
    "core": {"torch", "onnx", "onnxruntime", "sklearn"},
    "plugins": {"onnx", "onnxruntime", "sklearn"},
    "model": {"onnx", "onnxruntime"},
    "runtime": {"torch", "onnx", "sklearn", "matplotlib"},
    "export": set(),
    "calib": set(),
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


@pytest.mark.parametrize("part", ARROWS)
def test_arrows(part: str) -> None:
    files = sorted((ROOT / part / "mscope" / part).rglob("*.py"))
    assert files, f"{part} has no Python files"
    for path in files:
        allowed = set(ARROWS) if path.is_relative_to(ROOT / COMMANDS) else ARROWS[part] | {part}
        for name in imports(path):
            pieces = name.split(".")
            if pieces[0] == "mscope" and len(pieces) > 1:
                assert pieces[1] in allowed, f"{path} imports {name}"
            assert pieces[0] not in BANNED[part], f"{path} imports {name}"


def test_source_roots_are_the_same_everywhere() -> None:
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    roots = list(settings["hatch"]["build"]["dev-mode-dirs"])
    assert sorted(roots) == sorted(ARROWS)
    assert settings["hatch"]["build"]["targets"]["wheel"]["packages"] == [f"{root}/mscope" for root in roots]
    assert settings["mypy"]["files"] == roots
    assert settings["mypy"]["mypy_path"] == roots
    assert [p for p in settings["pytest"]["ini_options"]["pythonpath"] if p != "tests"] == roots
    assert f"ROOTS := {' '.join(roots)}" in (ROOT / "Makefile").read_text()
    for root in roots:
        assert not (ROOT / root / "mscope" / "__init__.py").exists(), "mscope is a namespace package"
        assert (ROOT / root / "mscope" / root / "py.typed").exists()


def test_no_file_grows_past_400_lines() -> None:
    files = [*ROOT.glob("*/mscope/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("plugins/csrc/**/*.*")]
    long = {str(p.relative_to(ROOT)): n for p in files if (n := len(p.read_text().splitlines())) > 420}
    assert long == {}
    assert not [p for p in files if p.stem in {"utils", "helpers", "common"}]


@pytest.mark.parametrize(
    "module",
    [
        "mscope.runtime",
        "mscope.runtime.cli",
        "mscope.runtime.profiling.run",
        "mscope.runtime.doctor.examine",
        "mscope.export.cli",
        "mscope.core.manifest",
    ],
)
def test_the_bare_install_needs_no_torch_and_no_onnx(module: str) -> None:
    heavy = "{'torch', 'onnx', 'sklearn', 'matplotlib', 'onnxscript'}"
    code = f"import {module}, sys; bad = {heavy} & set(sys.modules); sys.exit(f'imported {{bad}}' if bad else 0)"
    paths = [str(ROOT / part) for part in ARROWS]
    code = f"import sys; sys.path[:0] = {paths!r}; {code}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
