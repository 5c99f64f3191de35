"""Ctrl-C while a command is still importing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Of what every command imports, the package that it cannot do without: Ctrl-C comes as it is looked for.
INTERRUPT = """
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
"""


def entries() -> dict[str, str]:
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    scripts: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    return scripts


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_ctrl_c_during_the_imports_is_one_line() -> None:
    for command, entry in entries().items():
        module, function = entry.split(":")
        done = python(f"{INTERRUPT}\nfrom {module} import {function}\n{function}()", "--help")
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n"), command


def test_an_entry_imports_next_to_nothing() -> None:
    modules = ", ".join(entry.split(":")[0] for entry in entries().values())
    done = python(f"import sys; before = set(sys.modules); import {modules}; print(*(set(sys.modules) - before))")
    assert {name for name in done.stdout.split() if not name.startswith("mscope")} <= {"__future__"}
    assert "mscope.runtime.entry" in done.stdout


def test_an_entry_ends_as_its_command_does() -> None:
    for command, entry in entries().items():
        module, function = entry.split(":")
        done = python(f"from {module} import {function}; {function}()", "--no-such-option")
        assert done.returncode == 2, command
        assert done.stderr.startswith("error: "), command
