"""What decides the figures of a GPU benchmark, written into each result: date, GPU, driver, versions, kernels."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = (
    "torch", "triton", "mamba-ssm", "tensorrt", "tensorrt-rtx", "cuda-python", "cuda-bindings", "onnxruntime-gpu",
    "numpy",
)  # fmt: skip


def heading() -> dict[str, Any]:
    """The head of a result; torch must see a GPU and the kernels must be built."""
    import torch

    from mscope.plugins import cuda

    return {
        "date": date.today().isoformat(),
        "gpu": torch.cuda.get_device_name(),
        "compute_capability": list(torch.cuda.get_device_capability()),
        "cuda": torch.version.cuda,
        "driver": driver(),
        "versions": versions(),
        "kernels": cuda.targets(),
    }


def save(report: dict[str, Any], path: Path) -> None:
    """Writes a result whole. After every line, so that a run which is cut short leaves what it had."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def versions() -> dict[str, str]:
    """Of Python and of the packages that are here."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def driver() -> str:
    """The driver's version, highest clocks and power limit as nvidia-smi gives them; "" without it (a Jetson).

    Of the GPU that is measured: nvidia-smi lists all, in another order than CUDA and whatever CUDA_VISIBLE_DEVICES
    hides. Of a slice of one (MIG) it tells the driver alone.
    """
    import torch

    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    uuid = getattr(torch.cuda.get_device_properties(0), "uuid", "")
    for asked in (
        [f"--id=GPU-{uuid}", "--query-gpu=driver_version,clocks.max.sm,clocks.max.mem,power.limit"],
        ["--query-gpu=driver_version"],
    ):
        command = [program, *asked, "--format=csv,noheader"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0 and (lines := result.stdout.strip().splitlines()):
            return lines[0]
    return ""
