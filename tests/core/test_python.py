"""Children that run a module of this project do not run the files of the folder that they are started in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mscope.core.python import module_command

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("core", "model", "plugins", "runtime", "export", "calib")


def test_a_child_finds_what_its_parent_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = tmp_path / "\u00f6urs", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
    report = "print(json.dumps([__name__, sys.argv, wave.__file__]))"
    (ours / "asked.py").write_text(f"import json, sys, wave\n{report}\n")
    for name in ("asked", "wave", "runpy", "json"):
        (theirs / f"{name}.py").write_text("raise SystemExit('not meant')\n")
    monkeypatch.setattr(sys, "path", [str(ours), theirs, *sys.path])
    monkeypatch.chdir(theirs)
    result = subprocess.run(module_command("asked", "one", "two words"), capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    name, arguments, wave = json.loads(result.stdout)
    assert (name, arguments) == ("__main__", [str(ours / "asked.py"), "one", "two words"])
    assert Path(wave).is_file()
    assert theirs not in Path(wave).parents


def test_nothing_of_this_project_starts_python_by_m() -> None:
    sources = [path for part in PARTS for path in (ROOT / part / "mscope").rglob("*.py")]
    assert len(sources) > 100
    offenders = [os.fspath(path.relative_to(ROOT)) for path in sources if '"-m"' in path.read_text(encoding="utf-8")]
    assert offenders == []
