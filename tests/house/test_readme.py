"""The README is run: its commands, its Python, its links."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    """The `mscope-...` lines of the README's shell blocks, in order, comments and continuations resolved."""
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.startswith("mscope-")]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README's commands name: a photograph, a folder of pictures."""
    folder = tmp_path_factory.mktemp("readme")
    sklearn = pytest.importorskip("sklearn", reason="scikit-learn has the photographs")
    images = Path(sklearn.__file__).parent / "datasets" / "images"
    shutil.copy(images / "china.jpg", folder / "image.jpg")
    (folder / "photos").mkdir()
    for name in ("china.jpg", "flower.jpg"):
        shutil.copy(images / name, folder / "photos" / name)
    return folder


@pytest.mark.slow
def test_every_command_and_the_python_run(desk: Path) -> None:
    if not (BIN / "mscope-run").exists():
        pytest.skip("the commands are not installed: run 'make setup'")
    environment = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(desk), "MSCOPE_HOME": str(desk / "home")}
    assert len(commands()) >= 5
    for command in commands():
        if command.startswith("mscope-train"):
            continue  # an hour; tests/model trains a tiny one
        result = subprocess.run(
            shlex.split(command), cwd=desk, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{command}\n{result.stderr}"
    for block in blocks("python"):
        result = subprocess.run(
            [sys.executable, "-c", block], cwd=desk, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{block}\n{result.stderr}"


def test_the_two_commands_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"README says make {target}"
    assert "make demo" in README
    assert "make test" in README


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_pictures_resolve(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://", "#")):
            assert (document.parent / target.split("#")[0]).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_named_in_the_documents_exist(document: Path) -> None:
    pattern = r"`((?:core|plugins|model|runtime|export|tests|benchmarks|docs)/[\w./-]+\.\w+)`"
    for name in re.findall(pattern, document.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), f"{document.name} names {name}"
