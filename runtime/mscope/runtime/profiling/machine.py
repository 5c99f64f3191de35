"""The machine that a profile was taken on, from what its system says of itself."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mscope.runtime.profiling.power_state import power_mode
from mscope.runtime.profiling.schema import Machine

_PACKAGES = (
    "mambascope-deploy",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-python",
    "numpy",
    "pillow",
)
_ROOT = Path("/")


def describe_machine(
    device: str | None = None,
    load_before: float | None = None,
    throttled: tuple[str, ...] | None = None,
    root: Path = _ROOT,
) -> Machine:
    """This machine now; `device` is an accelerator's name, `load_before` the load when the run began.

    `throttled` is what held its clocks back since then.
    """
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        cpu=cpu_name(root),
        cores=usable_cores(),
        memory_bytes=memory_bytes(root),
        device=device,
        power_mode=power_mode(root),
        load_before=load_before,
        load_after=load(),
        throttled=throttled,
    )


def cpu_name(root: Path = _ROOT) -> str:
    """The processor as the system names it; on a board of an ARM chip, the board's name."""
    for line in _read(root / "proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    board = _read(root / "proc/device-tree/model").strip("\0\n ")
    return board or platform.processor() or platform.machine()


def usable_cores() -> int:
    """Logical cores that this process may use: in a container or under taskset fewer than the machine has."""
    with contextlib.suppress(AttributeError, OSError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes(root: Path = _ROOT, entry: str = "MemTotal") -> int | None:
    """An entry of the system's memory table, bytes; None where there is none."""
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == entry and value.split()[:1] and value.split()[0].isdigit():
            return int(value.split()[0]) << 10
    return None


def process_memory_bytes(entry: str, root: Path = _ROOT) -> int | None:
    """VmRSS (now) or VmHWM (peak) of this process, bytes; None where the system does not tell.

    Not getrusage: on Linux its peak may be that of the process that started this one.
    """
    for line in _read(root / "proc/self/status").splitlines():
        name, _, value = line.partition(":")
        if name == entry and value.split()[:1] and value.split()[0].isdigit():
            return int(value.split()[0]) << 10
    return None


def load() -> float | None:
    """The system's one-minute load; None where it has none."""
    with contextlib.suppress(AttributeError, OSError):
        return round(os.getloadavg()[0], 2)
    return None


def tool_versions() -> dict[str, str]:
    """Versions of Python and of the packages that the figures depend on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except OSError:
        return ""
