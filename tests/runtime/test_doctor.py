"""The doctor's probes on machines made of files, and the command on this one."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mscope.core.errors import BackendError
from mscope.plugins import find
from mscope.plugins import ort as ort_plugin
from mscope.runtime.backends.availability import Availability
from mscope.runtime.backends.registry import BACKENDS
from mscope.runtime.doctor import examine as examination
from mscope.runtime.doctor import nvidia, software, system
from mscope.runtime.doctor.examine import PROBES, examine
from mscope.runtime.doctor.finding import Finding
from mscope.runtime.doctor.host import Host

ORIN = "NVIDIA Jetson Orin Nano Developer Kit\0"
R36 = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025"
R39 = "# R39 (release), REVISION: 2.0, GCID: 1, BOARD: generic, EABI: aarch64, DATE: Mon Jun  1 00:00:00 UTC 2026"
NVPMODEL = """
< PM_CONFIG DEFAULT=1 >
< POWER_MODEL ID=0 NAME=15W >
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
"""
DLA = "usr/lib/aarch64-linux-gnu/nvidia/libnvdla_compiler.so"


class FakeDriver:
    """libcuda.so.1, as far as the doctor asks it."""

    def __init__(self, version: int, status: int = 0) -> None:
        self._version, self._status = version, status

    def cuDriverGetVersion(self, pointer: Any) -> int:
        pointer._obj.value = self._version
        return self._status


@dataclass(frozen=True)
class FakeHost(Host):
    """A machine: files below `root`, packages with versions and files, libraries, programs."""

    packages: Mapping[str, str] = field(default_factory=dict)
    files_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    libraries: Mapping[str, Any] = field(default_factory=dict)
    programs: Mapping[str, str] = field(default_factory=dict)

    def version(self, *distributions: str) -> str | None:
        return next((self.packages[name] for name in distributions if name in self.packages), None)

    def package_files(self, distribution: str, suffix: str) -> list[Path]:
        return [Path(name) for name in self.files_of.get(distribution, ()) if suffix in Path(name).name]

    def library(self, name: str) -> ctypes.CDLL | None:
        return self.libraries.get(name)

    def which(self, program: str) -> str | None:
        return self.programs.get(program)


@pytest.fixture
def bare(tmp_path: Path) -> FakeHost:
    """A machine with nothing."""
    return FakeHost(root=tmp_path, environment={})


def put(host: Host, path: str, content: str = "x") -> None:
    target = host.root / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(content)


def jetson(host: FakeHost, release: str = R36) -> FakeHost:
    put(host, "/etc/nv_tegra_release", release)
    put(host, "/proc/device-tree/model", ORIN)
    return host


def test_nothing_is_there(bare: FakeHost) -> None:
    for probe, level in (
        (nvidia.probe_driver, "missing"),
        (nvidia.probe_toolkit, "missing"),
        (nvidia.probe_tensorrt, "missing"),
        (nvidia.probe_tensorrt_rtx, "missing"),
        (nvidia.probe_cuda_python, "missing"),
        (nvidia.probe_jetpack, "missing"),
        (software.probe_onnxruntime, "broken"),
        (software.probe_export, "missing"),
        (software.probe_polygraphy, "missing"),
        (software.probe_video, "missing"),
        (system.probe_memory, "warning"),
        (system.probe_power, "ok"),
        (system.probe_python, "warning"),
    ):
        found = probe(bare)
        assert found.level == level, found
        assert found.usable == (level in ("ok", "warning"))
        assert found.detail
    assert nvidia.probe_dla_compiler(bare) is None
    assert nvidia.probe_tensorrt(bare).mend == "pip install tensorrt"


def test_video_and_the_cameras_that_are_here(bare: FakeHost) -> None:
    assert software.probe_video(bare).mend == "pip install 'mambascope-deploy[video]'"
    put(bare, "/dev/video0")
    put(bare, "/dev/video2")
    found = software.probe_video(dataclasses.replace(bare, packages={"av": "18.1.0"}))
    assert found == Finding("video", "ok", "PyAV 18.1.0; cameras: camera:0, camera:2")


def test_polygraphy_and_whether_it_is_new_enough(bare: FakeHost) -> None:
    for version, level in (("0.49.26", "broken"), ("0.53.4", "ok"), ("0.54.0", "ok")):
        found = software.probe_polygraphy(dataclasses.replace(bare, packages={"polygraphy": version}))
        assert (found.level, version in found.detail) == (level, True)
        assert found.mend == ("" if level == "ok" else "pip install 'polygraphy>=0.53.4'")


def test_driver(bare: FakeHost) -> None:
    put(bare, "/proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27")
    put(bare, "/proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ: 5")
    container = nvidia.probe_driver(bare)
    assert (container.level, "--gpus all" in container.mend) == ("broken", True)
    here = dataclasses.replace(bare, libraries={"libcuda.so.1": FakeDriver(13000)})
    assert nvidia.probe_driver(here) == Finding(
        "CUDA driver", "ok", "for CUDA 13.0, module 580.65.06: NVIDIA H100 80GB HBM3"
    )
    for library in (FakeDriver(0), FakeDriver(12060, status=999), object()):
        assert nvidia.probe_driver(dataclasses.replace(bare, libraries={"libcuda.so.1": library})).level == "broken"


def test_cuda_python_newer_than_the_driver(bare: FakeHost) -> None:
    host = dataclasses.replace(bare, packages={"cuda-python": "13.1.0"}, libraries={"libcuda.so.1": FakeDriver(12060)})
    found = nvidia.probe_cuda_python(host)
    assert (found.level, found.mend) == ("warning", "pip install --upgrade 'cuda-python>=12.6.2,<13'")
    for version, level in (("12.9.0", "ok"), ("12.6.2.post1", "ok"), ("12.6.0", "broken"), ("11.8.7", "broken")):
        found = nvidia.probe_cuda_python(dataclasses.replace(host, packages={"cuda-python": version}))
        assert found.level == level
        assert found.mend in ("", "pip install --upgrade 'cuda-python>=12.6.2,<13'")
    # Of all versions pip would take the newest, which is not for this driver.
    found = nvidia.probe_cuda_python(dataclasses.replace(host, packages={}))
    assert (found.level, found.mend) == ("missing", "pip install --upgrade 'cuda-python>=12.6.2,<13'")
    assert nvidia.probe_cuda_python(bare).mend == "pip install --upgrade 'cuda-python>=12.6.2'"


def test_toolkit(bare: FakeHost) -> None:
    assert nvidia.probe_toolkit(dataclasses.replace(bare, programs={"nvcc": "/opt/nvcc"})).detail == "nvcc at /opt/nvcc"
    put(bare, "/usr/local/cuda/bin/nvcc")
    for content, version in (('{"cuda": {"version": "12.8.1"}}', "12.8.1"), ("{}", "unknown"), ("[", "unknown")):
        put(bare, "/usr/local/cuda/version.json", content)
        found = nvidia.probe_toolkit(bare)
        assert found.level == "ok"
        assert version in found.detail


@pytest.mark.parametrize(
    "release, known",
    [
        (R36, "JetPack 6.1 or 6.2, L4T 36.4.3"),
        (R39, "JetPack 7.2, L4T 39.2.0"),
        (R39.replace("R39", "R42"), "a JetPack that this program does not know, L4T 42.2.0"),
    ],
)
def test_jetpack(bare: FakeHost, release: str, known: str) -> None:
    assert nvidia.probe_jetpack(jetson(bare, release)).detail == f"{known}, {ORIN[:-1]}"


def test_a_jetson_whose_container_hides_it(bare: FakeHost) -> None:
    put(bare, "/proc/device-tree/model", ORIN)
    found = nvidia.probe_jetpack(bare)
    assert (found.level, "/etc/nv_tegra_release" in found.mend) == ("warning", True)
    put(bare, "/etc/nv_tegra_release", "garbage")
    assert nvidia.l4t_release(bare) is None


def test_tensorrt(bare: FakeHost) -> None:
    assert "python3-libnvinfer" in nvidia.probe_tensorrt(jetson(bare)).mend
    put(bare, "/usr/lib/aarch64-linux-gnu/libnvinfer.so.10.3.0")
    found = nvidia.probe_tensorrt(bare)
    assert (found.level, "--system-site-packages" in found.mend) == ("warning", True)
    assert nvidia.probe_tensorrt(dataclasses.replace(bare, packages={"tensorrt": "10.3.0"})).detail == "10.3.0"


def test_the_dla_compiler_trap(bare: FakeHost) -> None:
    host = jetson(bare)
    found = nvidia.probe_dla_compiler(host)
    assert found is not None
    assert (found.level, "nvidia-l4t-dla-compiler" in found.mend) == ("broken", True)
    put(host, DLA, "")
    found = nvidia.probe_dla_compiler(host)
    assert found is not None
    assert (found.level, found.detail.startswith("empty")) == ("broken", True)
    put(host, DLA, "ELF")
    found = nvidia.probe_dla_compiler(host)
    assert found is not None
    assert found.level == "ok"
    (host.root / DLA).unlink()
    found = nvidia.probe_dla_compiler(jetson(host, R39))
    assert found is not None
    assert found.level == "warning", "JetPack 7 ships none and needs none"


def test_the_unversioned_name_of_tensorrt_rtx(bare: FakeHost, tmp_path: Path) -> None:
    packages = {"tensorrt-rtx": "1.7.1"}
    without = dataclasses.replace(bare, packages=packages)
    assert nvidia.probe_tensorrt_rtx(without).level == "broken"
    files = {"tensorrt-rtx-cu13-libs": ("/site/tensorrt_rtx_libs/libtensorrt_rtx.so.1",)}
    wheel = dataclasses.replace(without, files_of=files)
    found = nvidia.probe_tensorrt_rtx(wheel)
    assert found.level == "ok"
    assert "ln -s libtensorrt_rtx.so.1 /site/tensorrt_rtx_libs/libtensorrt_rtx.so" in found.mend
    put(bare, "links/libtensorrt_rtx.so")
    linked = dataclasses.replace(wheel, environment={"LD_LIBRARY_PATH": f"/none:{tmp_path / 'links'}"})
    assert nvidia.probe_tensorrt_rtx(linked) == Finding("TensorRT-RTX", "ok", "1.7.1")


@pytest.mark.parametrize(
    "status, level, text",
    [("pmode:0002 fmode:0", "ok", "2 MAXN_SUPER"), ("pmode:0001", "warning", "1 25W: below"), ("", "warning", "0 15W")],
)
def test_power_mode_of_a_jetson(bare: FakeHost, status: str, level: str, text: str) -> None:
    put(bare, "/etc/nvpmodel.conf", NVPMODEL)
    put(bare, "/var/lib/nvpmodel/status", status)
    found = system.probe_power(bare)
    assert (found.level, text in found.detail) == (level, True)
    assert ("nvpmodel -m 2" in found.mend) == (status == "pmode:0001")


def test_governor(bare: FakeHost) -> None:
    for governor, level in (("performance", "ok"), ("powersave", "warning"), ("schedutil", "warning")):
        put(bare, "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", f"{governor}\n")
        assert system.probe_power(bare).level == level


def test_memory_counts_the_containers_limit(bare: FakeHost) -> None:
    put(bare, "/proc/meminfo", "MemTotal:  16777216 kB\nMemFree: 100 kB\nMemAvailable:  8388608 kB\n")
    assert system.probe_memory(bare) == Finding("memory", "ok", "8.0 GiB free of 16.0")
    put(bare, "/sys/fs/cgroup/memory.max", "2147483648\n")
    put(bare, "/sys/fs/cgroup/memory.current", "1610612736\n")
    found = system.probe_memory(bare)
    assert (found.level, found.detail) == ("warning", "0.5 GiB free of 2.0")
    put(bare, "/sys/fs/cgroup/memory.max", "max\n")
    assert system.probe_memory(bare).level == "ok"


def test_disk(bare: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSCOPE_HOME", str(tmp_path / "not" / "yet"))
    assert system.probe_disk(bare).usable
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1 << 29})())
    assert system.probe_disk(bare).level == "warning"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert system.probe_disk(bare).level == "broken"


def test_bundle(bare: FakeHost, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSCOPE_HOME", str(tmp_path))
    assert system.probe_bundle(bare).level == "missing"
    (tmp_path / "latest").write_text(str(bundle))
    assert system.probe_bundle(bare) == Finding("bundle", "ok", str(bundle))
    (tmp_path / "latest").write_text(str(tmp_path))
    assert system.probe_bundle(bare).level == "broken"


def test_onnxruntime(bare: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    one = dataclasses.replace(bare, packages={"onnxruntime": "1.32.0", "numpy": "2.4.6"})
    assert software.probe_onnxruntime(one).level == "ok"
    assert "CPU" in software.probe_onnxruntime(one).detail
    both = dataclasses.replace(bare, packages={"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.0"})
    assert software.probe_onnxruntime(both).mend.startswith("pip uninstall -y onnxruntime onnxruntime-gpu")
    gpu = dataclasses.replace(bare, packages={"onnxruntime-gpu": "1.32.0"})
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "without its CUDA provider" in software.probe_onnxruntime(gpu).detail
    monkeypatch.setattr(onnxruntime, "__version__", "1.18.1")
    assert "made for numpy 1" in software.probe_onnxruntime(one).detail
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert software.probe_onnxruntime(one).level == "broken"


def test_native_ops(bare: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(find.PLUGIN_DIR, str(tmp_path))
    assert software.probe_native_ops(bare).level == "missing"
    (tmp_path / "libmscope_ort.so").write_text("no library")
    assert software.probe_native_ops(bare).level == "broken"
    monkeypatch.setattr(find, "library", lambda name: Path("/x/libmscope_ort.so"))
    for isa, level in (("avx512", "ok"), ("neon", "ok"), ("scalar", "warning")):
        monkeypatch.setattr(ort_plugin, "instruction_set", lambda isa=isa: isa)
        found = software.probe_native_ops(bare)
        assert (found.level, isa in found.detail) == (level, True)
    monkeypatch.setattr(find, "library", lambda name: (_ for _ in ()).throw(BackendError("no")))
    assert software.probe_native_ops(bare).level == "broken"


def test_libraries_that_are_built_on_request(bare: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(find.PLUGIN_DIR, raising=False)
    monkeypatch.setattr("mscope.plugins.build.OUTPUT", tmp_path)
    found = software.probe_library(bare, "TensorRT plugins", "trt", "without them")
    assert (found.level, found.mend) == ("missing", "mscope-export plugins build")
    (tmp_path / "libmscope_trt.so").write_text("no library")
    assert software.probe_library(bare, "TensorRT plugins", "trt", "without them").level == "broken"


def test_a_probe_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def ill(host: Host) -> Finding:
        raise RuntimeError("line one\nline two")

    def broken_backend() -> Availability:
        raise OSError("no such device")

    monkeypatch.setitem(PROBES, "memory", ill)
    entry = dataclasses.replace(BACKENDS["ort-cpu"], probe=broken_backend)
    monkeypatch.setitem(BACKENDS, "ort-cpu", entry)
    found = examine()
    (memory,) = [finding for finding in found.components if finding.component == "memory"]
    assert (memory.level, memory.detail) == ("broken", "looking at it failed: RuntimeError: line one line two")
    (cpu,) = [finding for finding in found.backends if "no such device" in finding.detail]
    assert (cpu.component, cpu.level) == ("ort-cpu", "broken")


def test_one_line_a_backend() -> None:
    found = examine()
    assert [finding.component for finding in found.backends] == list(BACKENDS)
    (cpu,) = [finding for finding in found.backends if finding.component == "ort-cpu"]
    assert cpu.level == "ok"
    for finding in found.backends:
        assert finding.usable or finding.mend, finding
    assert {"Python", "ONNX Runtime", "native ops", "CUDA driver", "memory", "disk"} <= {
        finding.component for finding in found.components
    }
    assert examination.Examination((), ()).usable is False


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {'torch', 'onnx', 'onnxscript', 'sklearn', 'matplotlib', 'psutil', 'safetensors',
                                  'tensorrt', 'tensorrt_rtx'}:
            raise ImportError(f'{name} is not installed')
sys.meta_path.insert(0, Block())
from mscope.core.console import run_app
from mscope.export.cli import app
sys.exit(run_app(app, ['doctor', *sys.argv[1:]]))
"""


def cpu_seconds() -> float:
    """What the processes that this one started and that ended have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_command_runs_in_a_bare_install_and_quickly(tmp_path: Path) -> None:
    environment = os.environ | {"MSCOPE_HOME": str(tmp_path)}
    times = []
    for _ in range(3):
        before = cpu_seconds()
        done = subprocess.run(
            [sys.executable, "-c", BLOCK, "--json"], capture_output=True, text=True, check=False, env=environment
        )
        times.append(cpu_seconds() - before)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["usable"] is True
    for finding in (*found["backends"], *found["components"]):
        assert set(finding) == {"component", "level", "usable", "detail", "mend"}
        assert finding["level"] in ("ok", "warning", "missing", "broken")
        assert "\n" not in finding["detail"] + finding["mend"]
    # 0.45 s here, all of it the processor's: what other programs take does not count.
    assert min(times) < 1.0
    done = subprocess.run([sys.executable, "-c", BLOCK], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 2 + len(found["backends"]) + len(found["components"]), "one line each, under two titles"
