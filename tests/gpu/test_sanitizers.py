"""compute-sanitizer over every kernel: accesses out of bounds, races in shared memory, misused barriers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_clean(tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    # Without torch's pool every tensor is an allocation of its own, so that one element past its end is found.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    paths = [*sys.path, *(str(ROOT / part) for part in ("core", "plugins", "tests"))]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9"]
    if tool == "memcheck":  # calls that fail are told by statuses; torch makes some that may
        command += ["--report-api-errors", "no"]
    command += [sys.executable, str(ROOT / "tests" / "gpu" / "sanitized_run.py")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=500)
    said = result.stdout + result.stderr
    if "not supported" in said and "ERROR SUMMARY" not in said:
        pytest.skip(f"compute-sanitizer does not work on this machine: {said[-300:]}")
    assert result.returncode == 0, said[-4000:]
    assert "ERROR SUMMARY: 0 errors" in said or "RACECHECK SUMMARY: 0 hazards" in said, said[-4000:]
    assert "all ops ran" in said
