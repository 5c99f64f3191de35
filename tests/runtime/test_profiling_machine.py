"""What a machine says of itself, read from made-up file systems."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mscope.runtime.profiling.machine import (
    cpu_name,
    describe_machine,
    memory_bytes,
    process_memory_bytes,
    tool_versions,
    usable_cores,
)


def put(root: Path, path: str, content: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(content)


def test_a_pc_and_a_board(tmp_path: Path) -> None:
    put(tmp_path, "proc/device-tree/model", "NVIDIA Jetson Orin NX\0")
    put(tmp_path, "proc/cpuinfo", "processor\t: 0\nCPU implementer\t: 0x41\n")
    assert cpu_name(tmp_path) == "NVIDIA Jetson Orin NX"
    put(tmp_path, "proc/cpuinfo", "processor\t: 0\nmodel name\t: AMD EPYC: fast\n")
    assert cpu_name(tmp_path) == "AMD EPYC: fast"


def test_memory(tmp_path: Path) -> None:
    assert memory_bytes(tmp_path) is None
    assert process_memory_bytes("VmHWM", tmp_path) is None
    put(tmp_path, "proc/meminfo", "MemTotal:       1024 kB\nMemAvailable:    512 kB\nHugePages_Total:       0\n")
    assert memory_bytes(tmp_path) == 1 << 20
    assert memory_bytes(tmp_path, "MemAvailable") == 1 << 19
    put(tmp_path, "proc/self/status", "Name:\tpython\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n")
    assert process_memory_bytes("VmHWM", tmp_path) == 2 << 20
    put(tmp_path, "proc/self/status", "VmHWM:\n")
    assert process_memory_bytes("VmHWM", tmp_path) is None


def test_this_machine() -> None:
    found = describe_machine("A GPU", 0.5)
    assert found.cores == usable_cores() >= 1
    assert (found.device, found.load_before) == ("A GPU", 0.5)
    assert found.cpu
    now, peak = process_memory_bytes("VmRSS"), process_memory_bytes("VmHWM")
    if peak is None or now is None:
        pytest.skip("this system has no /proc/self/status")
    # Linux counts pages in batches for each thread: the two may be a few MiB apart.
    assert 0 < now <= 1.1 * peak
    assert {"python", "numpy", "onnxruntime"} <= set(tool_versions())


def test_cores_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 7}, raising=False)
    assert usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == (os.cpu_count() or 1)
