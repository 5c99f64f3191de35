"""The real CUDA provider of onnxruntime-gpu without a GPU: over stand-ins for CUDA's libraries, in a process apart.

What it shows: which nodes the provider takes, that it finds the native ops, and what it hands to them (device, stream,
memory of its arena). What it cannot: its own kernels are not run, so that only a graph of our ops alone has numbers.

MSCOPE_ORT_GPU_PYTHON names the Python of an environment that has onnxruntime-gpu, where this one has not.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

PYTHON = "MSCOPE_ORT_GPU_PYTHON"
STAND_IN = Path(__file__).parent / "plugins" / "cuda_stand_in.cpp"
_FIND = """
import importlib.util, pathlib
found = importlib.util.find_spec("onnxruntime")
print(*(pathlib.Path(found.origin).parent.glob("capi/*providers_cuda*") if found else ()), sep="\\n")
"""
#: The provider is linked with what these names begin with; other libraries are the system's.
_OURS = ("libcu", "libnv")


def python() -> str:
    return os.environ.get(PYTHON) or sys.executable


def provider() -> Path | None:
    """The provider's library, where there is one."""
    result = subprocess.run([python(), "-c", _FIND], capture_output=True, text=True, check=False)
    lines = result.stdout.split()
    return Path(lines[0]) if lines else None


def why_not() -> str:
    """Why this cannot be done here; ""."""
    if provider() is None:
        return f"no onnxruntime-gpu: install it into an environment and set {PYTHON} to its Python"
    missing = [tool for tool in ("nm", "readelf", "g++") if shutil.which(tool) is None]
    if missing:
        return f"no {', '.join(missing)} on this machine"
    return "" if toolkit() else "no headers of the CUDA toolkit: set CUDA_HOME"


def toolkit() -> Path | None:
    """The include folder of the CUDA toolkit."""
    for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if home and (Path(home) / "include" / "cuda_runtime.h").is_file():
            return Path(home) / "include"
    return None


def make_stand_ins(folder: Path) -> None:
    """Every library of CUDA's that the provider is linked with, with every function that it wants of it."""
    library = provider()
    assert library is not None
    said = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    needed = [name for name in re.findall(r"\[(lib[^\]]+)\]", said) if name.startswith(_OURS)]
    said = subprocess.run(
        ["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True
    ).stdout
    wanted = [line.split()[-1].split("@") for line in said.splitlines()]
    defined = set(re.findall(r"\b(\w+)\(", STAND_IN.read_text(encoding="utf-8")))
    for name in needed:
        own = {symbol for symbol, *version in wanted if version[-1:] == [name]}
        if name == "libcuda.so.1":
            own |= {symbol for symbol, *version in wanted if not version and re.match(r"cu[A-Z]", symbol)}
        stubs, exports = folder / "stubs.c", folder / "exports"
        rest = sorted(own - defined)
        stubs.write_text("".join(f"int {symbol}(void) {{ return 0; }}\n" for symbol in rest) or "int none;\n", "utf-8")
        exports.write_text(
            f"{name} {{ global: {' '.join(f'{s};' for s in sorted(own)) or 'none;'} local: *; }};\n", "utf-8"
        )
        subprocess.run(["gcc", "-c", "-w", "-fPIC", str(stubs), "-o", str(folder / "stubs.o")], check=True)
        command = [
            "g++",
            "-shared",
            "-w",
            "-fPIC",
            "-std=c++17",
            f"-I{toolkit()}",
            str(STAND_IN),
            str(folder / "stubs.o"),
        ]
        versioned = [f"-Wl,--version-script={exports}"] if any(version for _, *version in wanted) else []
        subprocess.run([*command, *versioned, f"-Wl,-soname,{name}", "-o", str(folder / name)], check=True)


def run(folder: Path, library: Path, jobs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Opens a session for each job: "model" (bytes), "feeds" or none to open it only.

    Returns, for each: "providers", "kernels" that were created, "nodes" (provider -> op -> count), "outputs", and
    "workspaces", how many different ones its runs were given.
    """
    make_stand_ins(folder)
    (folder / "jobs").write_bytes(pickle.dumps(jobs))
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    environment.pop("PYTHONPATH", None)
    command = [python(), str(Path(__file__).resolve()), str(folder), str(library)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    if result.returncode:
        raise RuntimeError(result.stdout + result.stderr)
    answers: dict[str, dict[str, Any]] = pickle.loads((folder / "answers").read_bytes())
    return answers


def _child(folder: Path, library: str) -> None:
    import ctypes

    import onnxruntime

    host = ctypes.CDLL(library)
    host.mscope_ort_kernels.restype = ctypes.c_uint64
    host.host_expect_any_stream(0)
    answers = {}
    for name, job in pickle.loads((folder / "jobs").read_bytes()).items():
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.register_custom_ops_library(library)
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        before = host.mscope_ort_kernels()
        providers = [("CUDAExecutionProvider", job["options"]), "CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(job["model"], options, providers=providers)
        session.disable_fallback()
        nodes: dict[str, dict[str, int]] = {}
        for part in session.get_provider_graph_assignment_info():
            for node in part.get_nodes():
                counts = nodes.setdefault(part.ep_name, {})
                counts[node.op_type] = counts.get(node.op_type, 0) + 1
        host.host_workspaces()
        runs = [session.run(None, job["feeds"]) for _ in range(2 if job["feeds"] else 0)]
        answers[name] = {
            "providers": session.get_providers(),
            "kernels": host.mscope_ort_kernels() - before,
            "nodes": nodes,
            "outputs": runs,
            "workspaces": host.host_workspaces(),
        }
    (folder / "answers").write_bytes(pickle.dumps(answers))


if __name__ == "__main__":
    _child(Path(sys.argv[1]), sys.argv[2])
