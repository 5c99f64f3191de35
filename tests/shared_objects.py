"""What a shared library exports and needs, by nm."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def symbols(library: Path, option: str) -> set[str]:
    """Names of its dynamic symbols; `option` is --defined-only or --undefined-only, as nm has it. Skips without nm."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm on this machine")
    said = subprocess.run([nm, "-D", option, str(library)], capture_output=True, text=True, check=True).stdout
    # A weak symbol may stay without a definition.
    return {line.split()[-1].split("@")[0] for line in said.splitlines() if line.split()[-2] != "w"}
