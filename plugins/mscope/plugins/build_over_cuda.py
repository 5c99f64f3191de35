"""Libraries of host code over the CUDA kernels: the TensorRT plugins (build_trt.py), the ops for ONNX Runtime's CUDA
provider (build_ort_cuda.py).

Each is a few C++ files, compiled by nvcc's host compiler in seconds and linked with the objects of build_cuda.py and
the CUDA runtime, so that one file is all that is needed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mscope.plugins import build, build_cuda
from mscope.plugins.build import BuildError

log = logging.getLogger(__name__)

# Both nvcc and its host compiler take the first; CMakeLists.txt of trt_source.py has all of these too.
FLAGS = ("-O2", "-std=c++17", "-DMSCOPE_CUDA_BUILD")
HOST_FLAGS = ("-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-Wall", "-Wextra")
# The C++ runtime goes inside, hidden: TensorRT, torch and the system may each have another one in the process.
LINK_FLAGS = ("-static-libstdc++", "-static-libgcc")
# Without local symbols: nvcc's have the numbers of its processes in their names. An engine goes with the hash of the
# library, so that the same sources and compiler must give the same file.
LINKER_FLAGS = ("--no-undefined", "-s")


@dataclass(frozen=True)
class Recipe:
    """What such a library is made of.

    Attributes:
        sources: its C++ files.
        headers: what it includes beside the kernels' own.
        exports: the linker's version script.
        options: of the compiler: where the host's headers are.
    """

    sources: tuple[Path, ...]
    headers: tuple[Path, ...]
    exports: Path
    options: tuple[str, ...] = ()

    def identity(self, nvcc: build.Compiler, root: Path, only: Sequence[str]) -> str:
        """A hash of all that the library is made from."""
        digest = hashlib.sha256(build_cuda.identity(nvcc, root, only).encode())
        for path in sorted([*self.sources, *self.headers, self.exports]):
            data = path.read_bytes()
            digest.update(f"{path.name} {len(data)}\n".encode() + data)
        digest.update(json.dumps([FLAGS, HOST_FLAGS, LINK_FLAGS, LINKER_FLAGS, self.options]).encode())
        return digest.hexdigest()

    def link(self, nvcc: build.Compiler, root: Path, kernels: Path, scratch: Path) -> Path:
        """Compiles and links it with the archive `kernels`; all of it in `scratch`. Raises BuildError."""
        common = [*nvcc.command, *FLAGS, "-Xcompiler", ",".join(HOST_FLAGS), f"-I{root}", *self.options]
        jobs = [(scratch / f"{source.parent.name}-{source.stem}.o", source) for source in self.sources]
        with ThreadPoolExecutor(min(len(jobs), os.cpu_count() or 1)) as pool:
            list(pool.map(lambda job: run_nvcc([*common, "-c", str(job[1]), "-o", str(job[0])]), jobs))
        linked = scratch / f"linked{build.SUFFIX}"
        linker = ",".join([f"--version-script={self.exports}", *LINKER_FLAGS])
        link = [*nvcc.command, "-shared", *build_cuda.STATIC_RUNTIME, "-Xlinker", linker]
        link += ["-Xcompiler", ",".join(LINK_FLAGS)]
        run_nvcc([*link, *(str(target) for target, _ in jobs), str(kernels), "-o", str(linked)])
        return linked


def build_kernels(output: Path, only: Sequence[str]) -> Path:
    """The archive of the kernels' objects, built below `output` where it is not there yet. Raises BuildError."""
    folder = output / f"cuda-{'-'.join(only)}" if only else output
    return build_cuda.archive_path(build_cuda.build_cuda(folder, only=only))


def run_nvcc(command: Sequence[str]) -> None:
    """Runs nvcc; what it says is logged. Raises BuildError with its last lines."""
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    said = (result.stdout + result.stderr).strip()
    if result.returncode != 0:
        last = "\n".join(said.splitlines()[-20:])
        raise BuildError(f"nvcc failed ({result.returncode}): {' '.join(command)}\n{last}")
    if said:
        log.warning("%s", said)
