"""Probes of the machine itself: Python, memory, disk, power mode, the bundle."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from pathlib import Path

from mscope.core.bundle import data_folder, latest_bundle
from mscope.core.errors import BundleError
from mscope.runtime.doctor.finding import Finding
from mscope.runtime.doctor.host import Host

_OLDEST_PYTHON = (3, 10)
_LITTLE_MEMORY = 1 << 30
_LITTLE_DISK = 2 << 30


def probe_python(host: Host) -> Finding:
    """The interpreter, and the version of this package."""
    ours = host.version("mambascope-deploy")
    detail = f"{platform.python_version()} ({sys.executable}), mambascope-deploy {ours or 'not installed'}"
    if sys.version_info[:2] < _OLDEST_PYTHON:
        return Finding("Python", "broken", detail, "install Python 3.10 or newer")
    if ours is None:
        return Finding("Python", "warning", detail, "pip install mambascope-deploy")
    return Finding("Python", "ok", detail)


def probe_memory(host: Host) -> Finding:
    """Memory that is free for a program, within the container's limit where there is one."""
    table = dict(re.findall(r"^(\w+):\s+(\d+) kB", host.read("/proc/meminfo") or "", re.MULTILINE))
    if "MemAvailable" not in table:
        return Finding("memory", "warning", "the system does not tell how much is free")
    free, total = int(table["MemAvailable"]) << 10, int(table.get("MemTotal", 0)) << 10
    limit, used = host.read("/sys/fs/cgroup/memory.max"), host.read("/sys/fs/cgroup/memory.current")
    if limit is not None and limit.isdecimal() and used is not None and used.isdecimal():
        free, total = min(free, max(0, int(limit) - int(used))), min(total, int(limit))
    detail = f"{free / 2**30:.1f} GiB free of {total / 2**30:.1f}"
    if free < _LITTLE_MEMORY:
        return Finding("memory", "warning", detail, "end other programs; building engines needs a few GiB")
    return Finding("memory", "ok", detail)


def probe_disk(host: Host) -> Finding:
    """Room where bundles go by default, and whether it can be written."""
    folder = data_folder()
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    detail = f"{free / 2**30:.1f} GiB free at {folder}"
    if not os.access(there, os.W_OK):
        return Finding("disk", "broken", f"{there} cannot be written", "set MSCOPE_HOME to a folder that can")
    if free < _LITTLE_DISK:
        return Finding("disk", "warning", detail, "free some space, or set MSCOPE_HOME to another disk")
    return Finding("disk", "ok", detail)


def probe_power(host: Host) -> Finding:
    """nvpmodel's mode on a Jetson, the frequency governor elsewhere."""
    configured, status = host.read("/etc/nvpmodel.conf"), host.read("/var/lib/nvpmodel/status")
    if configured is not None or status is not None:
        return _nvpmodel(configured or "", status or "")
    governor = host.read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor is None:
        return Finding("power mode", "ok", "the system sets the clocks (no governor to choose)")
    if governor == "performance":
        return Finding("power mode", "ok", "governor performance")
    return Finding(
        "power mode",
        "warning",
        f"governor {governor}: the first images after a pause are slow, latencies scatter",
        "sudo cpupower frequency-set -g performance",
    )


def _nvpmodel(configured: str, status: str) -> Finding:
    names = dict(re.findall(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", configured))
    found = re.search(r"pmode:(\d+)", status)
    number = str(int(found[1])) if found else None
    if number is None:
        known = ", ".join(f"{i} {name}" for i, name in names.items())
        return Finding("power mode", "warning", f"not known (modes: {known})", "sudo nvpmodel -q")
    name = names.get(number, "")
    detail = f"nvpmodel mode {number} {name}".rstrip()
    fastest = next((i for i, label in names.items() if label.startswith("MAXN")), None)
    if fastest is not None and fastest != number:
        return Finding(
            "power mode",
            "warning",
            f"{detail}: below the fastest, {names[fastest]}",
            f"sudo nvpmodel -m {fastest} && sudo jetson_clocks",
        )
    return Finding("power mode", "ok", detail)


def probe_bundle(host: Host) -> Finding:
    """The bundle that commands take when none is named."""
    try:
        folder = latest_bundle()
    except BundleError:
        return Finding("bundle", "missing", "none built yet", "mscope-export build --size digits")
    if not Path(folder / "manifest.json").is_file():
        return Finding("bundle", "broken", f"{folder} has no manifest.json", "mscope-export build --size digits")
    return Finding("bundle", "ok", str(folder))
