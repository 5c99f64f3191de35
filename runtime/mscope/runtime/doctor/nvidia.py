"""Probes of NVIDIA's side: Jetson, driver, toolkit, TensorRT's flavours, Python bindings, and known traps."""

from __future__ import annotations

import ctypes
import json
import re
from pathlib import Path

from mscope.runtime.device.cuda import OLDEST_CUDA_PYTHON, install_cuda_python
from mscope.runtime.doctor.finding import Finding
from mscope.runtime.doctor.host import Host, numbers_of

# JetPack of the L4T releases (R36.4.3 is "36.4"); newer ones are named by their L4T alone.
_JETPACK = {
    "35.1": "5.0.2", "35.2": "5.1", "35.3": "5.1.1", "35.4": "5.1.2", "35.5": "5.1.3", "35.6": "5.1.4",
    "36.2": "6.0 preview", "36.3": "6.0", "36.4": "6.1 or 6.2", "36.5": "6.2.2",
    "38.2": "7.0", "38.4": "7.1", "39.2": "7.2",
}  # fmt: skip
_SYSTEM_FOLDERS = ("usr/lib/aarch64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/lib")
_JETSON_FOLDERS = ("usr/lib/aarch64-linux-gnu/nvidia", "usr/lib/aarch64-linux-gnu/tegra", *_SYSTEM_FOLDERS)
_TRT_DISTRIBUTIONS = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
_RTX_LIBRARIES = ("tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu12-libs")
_DLA = "libnvdla_compiler.so"


def l4t_release(host: Host) -> str | None:
    """L4T of a Jetson, such as "36.4.3"; None elsewhere."""
    text = host.read("/etc/nv_tegra_release") or ""
    found = re.search(r"R(\d+)\s+\(release\),\s*REVISION:\s*([\d.]+)", text)
    return f"{found[1]}.{found[2]}" if found else None


def probe_jetpack(host: Host) -> Finding:
    """JetPack and L4T, by the file that NVIDIA's BSP leaves."""
    release = l4t_release(host)
    board = host.read("/proc/device-tree/model")
    if release is None:
        if board is not None and "Jetson" in board:
            return Finding(
                "JetPack",
                "warning",
                f"{board}, but no /etc/nv_tegra_release (a container?)",
                "docker run --runtime nvidia -v /etc/nv_tegra_release:/etc/nv_tegra_release:ro ...",
            )
        return Finding("JetPack", "missing", "not a Jetson")
    jetpack = _JETPACK.get(".".join(release.split(".")[:2]))
    known = f"JetPack {jetpack}" if jetpack else "a JetPack that this program does not know"
    return Finding("JetPack", "ok", f"{known}, L4T {release}" + (f", {board}" if board else ""))


def probe_driver(host: Host) -> Finding:
    """The CUDA driver library, its version, and the GPUs that the kernel module lists."""
    name = "CUDA driver"
    library = host.library("libcuda.so.1")
    module = host.read("/proc/driver/nvidia/version")
    if library is None:
        if module is not None or host.exists("/dev/nvidia0"):
            return Finding(
                name,
                "broken",
                "the kernel has the NVIDIA module, but there is no libcuda.so.1 (a container without the GPU?)",
                "docker run --gpus all ... (with the NVIDIA Container Toolkit), or reinstall the driver",
            )
        return Finding(name, "missing", "no libcuda.so.1: no NVIDIA driver here; backends on the CPU do not need it")
    version = ctypes.c_int(0)
    try:
        status = int(library.cuDriverGetVersion(ctypes.byref(version)))
    except AttributeError:
        return Finding(name, "broken", "libcuda.so.1 is not the driver's library", "reinstall the NVIDIA driver")
    if status != 0 or version.value <= 0:
        return Finding(name, "broken", f"libcuda.so.1 does not answer (CUDA error {status})", "nvidia-smi")
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Finding(name, "ok", f"for CUDA {cuda}{_module_version(module)}{_gpus(host)}")


def _module_version(module: str | None) -> str:
    found = re.search(r"Kernel Module\D*?(\d+\.\d+(?:\.\d+)?)", module or "")
    return f", module {found[1]}" if found else ""


def _gpus(host: Host) -> str:
    models = []
    for path in host.files("proc/driver/nvidia/gpus", "*/information"):
        found = re.search(r"Model:\s*(.+)", path.read_text(errors="replace"))
        if found:
            models.append(found[1].strip())
    return f": {', '.join(models)}" if models else ""


def probe_toolkit(host: Host) -> Finding:
    """nvcc, which builds the CUDA kernels and the TensorRT plugins."""
    for home in (host.environment.get("CUDA_HOME", ""), "/usr/local/cuda"):
        text = host.read(f"{home}/version.json") if home else None
        if text is None or not host.exists(f"{home}/bin/nvcc"):
            continue
        try:
            version = json.loads(text)["cuda"]["version"]
        except (ValueError, KeyError, TypeError):
            version = "of unknown version"
        return Finding("CUDA toolkit", "ok", f"{version} ({home})")
    nvcc = host.environment.get("NVCC") or host.which("nvcc")
    if nvcc:
        return Finding("CUDA toolkit", "ok", f"nvcc at {nvcc}")
    return Finding(
        "CUDA toolkit",
        "missing",
        "no nvcc: needed only to build the CUDA kernels and the TensorRT plugins",
        "install the CUDA toolkit 12.4 or newer, or set CUDA_HOME",
    )


def probe_tensorrt(host: Host) -> Finding:
    """TensorRT: the Python package, or JetPack's or Debian's libraries, and what they need on a Jetson."""
    version = host.version(*_TRT_DISTRIBUTIONS)
    places = [path for folder in _SYSTEM_FOLDERS for path in host.files(folder, "libnvinfer.so.*")]
    if version is None and not places:
        how = "sudo apt-get install tensorrt python3-libnvinfer" if l4t_release(host) else "pip install tensorrt"
        return Finding("TensorRT", "missing", "not installed", how)
    if version is None:
        return Finding(
            "TensorRT",
            "warning",
            f"{places[-1].name} is there, its Python package is not visible",
            "python3 -m venv --system-site-packages .venv (after sudo apt-get install python3-libnvinfer)",
        )
    return Finding("TensorRT", "ok", version)


def probe_dla_compiler(host: Host) -> Finding | None:
    """On a Jetson: the library without which importing TensorRT 10 fails. None elsewhere."""
    release = l4t_release(host)
    if release is None:
        return None
    name = _DLA
    folders = (
        "usr/lib/aarch64-linux-gnu/nvidia",
        "usr/lib/aarch64-linux-gnu/tegra",
        "usr/lib/aarch64-linux-gnu",
        "usr/lib",
    )
    found = [path for folder in folders for path in host.files(folder, name)]
    # The container runtime mounts the host's file over an empty one.
    whole = [path for path in found if path.stat().st_size > 0]
    if whole:
        return Finding(name, "ok", str(whole[0]))
    detail = "empty: the host has none to mount into this container" if found else "not there"
    if int(release.split(".")[0]) >= 38:
        return Finding(
            name,
            "warning",
            f"{detail}: JetPack 7 does without it; only a TensorRT made for JetPack 6 (in a container) still needs it",
            "use a container made for this JetPack",
        )
    return Finding(
        name,
        "broken",
        f"{detail}: 'import tensorrt' fails, and ONNX Runtime falls back to the CPU without a word",
        "sudo apt-get install nvidia-l4t-dla-compiler (on the host, then start the container again)",
    )


def probe_tensorrt_rtx(host: Host) -> Finding:
    """TensorRT-RTX, and the unversioned name that its parser opens and its wheel does not ship."""
    name = "TensorRT-RTX"
    version = host.version("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12")
    if version is None:
        return Finding(name, "missing", "not installed", "pip install tensorrt-rtx (x86_64, desktop GPUs)")
    plain = "libtensorrt_rtx.so"
    libraries = [path for package in _RTX_LIBRARIES for path in host.package_files(package, plain)]
    if not libraries:
        return Finding(
            name, "broken", f"{version}, without its libraries", "pip install --force-reinstall tensorrt-rtx"
        )
    if any(path.name == plain for path in libraries) or _on_loader_path(host, plain):
        return Finding(name, "ok", version)
    return Finding(
        name,
        "ok",
        f"{version}; ships only libtensorrt_rtx.so.1: mscope-export makes the plain name for its own builds",
        f"for other programs that parse plugins: ln -s libtensorrt_rtx.so.1 {libraries[0].parent / plain}",
    )


def _on_loader_path(host: Host, name: str) -> bool:
    folders = host.environment.get("LD_LIBRARY_PATH", "").split(":")
    return any(Path(folder, name).exists() for folder in folders if folder)


def probe_cuda_python(host: Host) -> Finding:
    """cuda-python, whether it is new enough, and the driver for it."""
    version = host.version("cuda-python", "cuda-bindings")
    found = re.search(r"for CUDA (\d+)\.", probe_driver(host).detail)
    mend = install_cuda_python(int(found[1]) if found else None)
    if version is None:
        return Finding("cuda-python", "missing", "not installed", mend)
    if numbers_of(version) < numbers_of(OLDEST_CUDA_PYTHON):
        said = f"{version} is too old: {OLDEST_CUDA_PYTHON} is the first with cuda.bindings"
        return Finding("cuda-python", "broken", said, mend)
    major = int(version.split(".")[0])
    if found and int(found[1]) < major:
        said = f"{version} is for CUDA {major}, the driver for CUDA {found[1]}"
        return Finding("cuda-python", "warning", said, mend)
    return Finding("cuda-python", "ok", version)
