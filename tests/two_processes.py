"""Two processes on one bundle at the same time: tests/runtime on the CPU, tests/gpu on one GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np


def check_two_at_once(bundle: Path, backend: str, folder: Path, shape: tuple[int, int, int]) -> None:
    """Both answer as one alone does, and the bundle is left as it was."""
    source = folder / "images.npy"
    np.save(source, np.random.default_rng(0).normal(size=(20, *shape)).astype(np.float32))
    before = _state(bundle)
    command = [
        sys.executable, "-m", "mscope.runtime.cli", str(source), "--bundle", str(bundle), "--backend", backend,
        "--json", "--eta", "0.5", "--batch", "3",
    ]  # fmt: skip

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    alone = _answers(start())
    assert len(alone) == 20
    pair = [start(), start()]
    for process in pair:
        assert _answers(process) == alone
    assert _state(bundle) == before


def _answers(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    said, complaints = process.communicate(timeout=300)
    assert process.returncode == 0, complaints[-2000:]
    answers = [json.loads(line) for line in said.splitlines()]
    return [{name: value for name, value in answer.items() if name != "latency_ms"} for answer in answers]


def _state(bundle: Path) -> dict[str, tuple[int, int]]:
    return {
        path.relative_to(bundle).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in bundle.rglob("*")
    }
