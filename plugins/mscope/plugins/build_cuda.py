"""Compiles the CUDA kernels with nvcc: `python -m mscope.plugins.build_cuda`. Never required; no install does it.

The command also makes the ops for ONNX Runtime's CUDA provider over them (build_ort_cuda.py).

One library serves every GPU from Turing on: machine code for the architectures in ARCHITECTURES, and PTX, which the
driver compiles on first use, for what lies between and after them. An nvcc that does not know one of them leaves it
out. MSCOPE_CUDA_ARCHS="90" builds for that one only, to save time while developing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from mscope.plugins import build
from mscope.plugins.build import BuildError

log = logging.getLogger(__name__)

NAME = "cuda"
#: Environment variable: architectures to build for instead of all, as "75 90".
ARCHS = "MSCOPE_CUDA_ARCHS"
#: The first toolkit whose runtime has the conditional nodes that the selection sets.
OLDEST_TOOLKIT = "12.4"

ARCHITECTURES = ("75", "80", "86", "87", "89", "90", "120")
# 90 covers 100 to 110, which run no machine code of another major version; the newest covers what is to come.
PTX = ("90", "120")

# Of whatever nvcc links: one file is all that is needed.
STATIC_RUNTIME = ("-cudart", "static")
# What decides the code of the kernels; CMakeLists.txt of trt_source.py has the same.
KERNEL_FLAGS = (
    "-O3", "-std=c++17", "-DMSCOPE_CUDA_BUILD",
    # step.h's unroll pragma is meant for the device; the host's pass over that line need not say that it ignores it.
    "-Xcompiler=-fPIC,-fvisibility=hidden,-fvisibility-inlines-hidden,-Wall,-Wextra,-Wno-unknown-pragmas",
)  # fmt: skip
NVCC_FLAGS = (*KERNEL_FLAGS, *STATIC_RUNTIME, "-Xptxas", "-v")


@dataclass(frozen=True)
class Resources:
    """What the assembler reports of one kernel for one architecture; bytes where no unit is given."""

    kernel: str
    architecture: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int


def find_nvcc() -> build.Compiler:
    """$NVCC, nvcc on the PATH, or the one below $CUDA_HOME or /usr/local/cuda. Raises BuildError when there is none."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    chosen = os.environ.get("NVCC", "").strip()
    for candidate in [chosen] if chosen else ["nvcc", *(f"{home}/bin/nvcc" for home in homes if home)]:
        words = shlex.split(candidate)
        if shutil.which(words[0]) is None:
            continue
        result = subprocess.run([*words, "--version"], capture_output=True, text=True, check=False)
        if result.returncode == 0:
            return build.Compiler(tuple(words), result.stdout.strip())
    raise BuildError(
        f"no working nvcc: install the CUDA toolkit ({OLDEST_TOOLKIT} or newer), or set NVCC to its compiler"
    )


def architectures(only: Sequence[str] = ()) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Architectures that get machine code, and those that get PTX: `only` these, else what ARCHS names, else all."""
    chosen = tuple(only) or tuple(os.environ.get(ARCHS, "").split())
    unknown = sorted(set(chosen) - set(ARCHITECTURES))
    if unknown:
        source = "--arch" if only else ARCHS
        raise BuildError(f"{source} names {', '.join(unknown)}: choose from {', '.join(ARCHITECTURES)}")
    return (chosen, ()) if chosen else (ARCHITECTURES, PTX)


def known_architectures(nvcc: build.Compiler, only: Sequence[str] = ()) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those of `architectures` that this nvcc compiles for; CUDA 12.6, of JetPack 6.2, does not know 120.

    Raises:
        BuildError: one that was asked for by name is not among them.
    """
    real, virtual = architectures(only)
    result = subprocess.run([*nvcc.command, "--list-gpu-arch"], capture_output=True, text=True, check=False)
    known = {line.strip().removeprefix("compute_") for line in result.stdout.splitlines()}
    missing = ", ".join(name for name in real if name not in known)
    if not known or not missing:
        return real, virtual
    said = f"{nvcc.command[0]} does not know the architectures {missing}"
    if not virtual:
        raise BuildError(f"{said}: take a newer CUDA toolkit, or leave them out")
    log.warning("%s: the library is built without them", said)
    return tuple(name for name in real if name in known), tuple(name for name in virtual if name in known)


def sources(root: Path) -> list[Path]:
    """The CUDA files, sorted. Raises BuildError when there are none."""
    found = sorted((root / "cuda").glob("*.cu"))
    if not found:
        raise BuildError(f"no CUDA sources in {root / 'cuda'}")
    return found


def identity(nvcc: build.Compiler, root: Path, only: Sequence[str] = ()) -> str:
    """A hash of all that the library is made from."""
    digest = hashlib.sha256()
    files = [path for folder in ("cuda", "scan") for path in (root / folder).iterdir() if path.suffix != ".cpp"]
    for path in sorted(files):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(data)}\n".encode() + data)
    digest.update(json.dumps([build.ABI_VERSION, NVCC_FLAGS, architectures(only), nvcc.command, nvcc.version]).encode())
    return digest.hexdigest()


def build_cuda(output: Path | None = None, *, force: bool = False, only: Sequence[str] = ()) -> Path:
    """Builds the library if its sources, flags or compiler changed since the last time.

    Args:
        output: folder of the library, its stamp and its resource report; build.OUTPUT by default.
        force: build even when nothing changed.
        only: architectures, as "87", instead of all.

    Raises:
        BuildError: no nvcc, no sources, or the compiler failed. An older library, if any, stays in place.
    """
    root, nvcc = build.sources_dir(), find_nvcc()
    library = build.library_path(NAME, output or build.OUTPUT)
    stamp, expected, archive = _stamp_path(library), identity(nvcc, root, only), archive_path(library)
    built = library.is_file() and archive.is_file() and stamp.is_file()
    if not force and built and stamp.read_text(encoding="utf-8") == expected:
        return library
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=library.parent) as scratch:
            linked, resources = _compile_and_link(nvcc, root, Path(scratch), only)
            report = Path(scratch) / "resources"
            report.write_text(json.dumps([asdict(r) for r in resources], indent=1), encoding="utf-8")
            fresh = Path(scratch) / "stamp"
            fresh.write_text(expected, encoding="utf-8")
            os.replace(linked, library)
            os.replace(Path(scratch) / archive.name, archive)
            os.replace(report, resources_path(library))
            os.replace(fresh, stamp)
    except OSError as error:
        raise BuildError(f"cannot write {library}: {error}") from error
    return library


def archive_path(library: Path) -> Path:
    """The library's objects, for what is linked with them (build_over_cuda.py)."""
    return library.with_suffix(".a")


def resources_path(library: Path) -> Path:
    """Where the resources of each kernel are noted at a build."""
    return library.with_name(library.name + ".resources.json")


def read_resources(library: Path) -> list[Resources]:
    """The registers and memory of every kernel in a built library."""
    return [Resources(**entry) for entry in json.loads(resources_path(library).read_text(encoding="utf-8"))]


def parse_resources(report: str) -> list[Resources]:
    """Reads what `ptxas -v` prints: for each kernel its name, then its memory, then its registers."""
    found: list[Resources] = []
    kernel = architecture = ""
    memory = (0, 0, 0)
    for line in report.splitlines():
        if entry := re.search(r"Compiling entry function '(\S+)' for 'sm_(\w+)'", line):
            kernel, architecture = entry[1], entry[2]
        elif numbers := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            memory = (int(numbers[1]), int(numbers[2]), int(numbers[3]))
        elif used := re.search(r"Used (\d+) registers", line):
            found.append(Resources(kernel, architecture, int(used[1]), *memory))
    return found


def _compile_and_link(
    nvcc: build.Compiler, root: Path, scratch: Path, only: Sequence[str]
) -> tuple[Path, list[Resources]]:
    real, virtual = known_architectures(nvcc, only)
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in real]
    targets += [f"-gencode=arch=compute_{a},code=compute_{a}" for a in virtual]
    holds = " ".join([*real, *(f"ptx{a}" for a in virtual)])
    processors = os.cpu_count() or 1
    common = [
        *nvcc.command, *NVCC_FLAGS, *targets, f"-I{root}", f"-DMSCOPE_ABI_VERSION={build.ABI_VERSION}",
        f'-DMSCOPE_CUDA_TARGETS="{holds}"', "--threads", str(max(1, processors // 4)),
    ]  # fmt: skip
    jobs = [(scratch / f"{source.stem}.o", source) for source in sources(root)]
    with ThreadPoolExecutor(min(len(jobs), processors)) as pool:
        said = list(pool.map(lambda job: _run([*common, "-c", str(job[1]), "-o", str(job[0])]), jobs))
    linked = scratch / f"linked{build.SUFFIX}"
    exports = f"--version-script={root / 'cuda' / 'exports.map'}"
    objects = [str(target) for target, _ in jobs]
    _run([*nvcc.command, "-shared", *STATIC_RUNTIME, "-Xlinker", exports, *objects, "-o", str(linked)])
    archive = scratch / archive_path(build.library_path(NAME, scratch)).name
    _run([*nvcc.command, "-lib", *objects, "-o", str(archive)])
    return linked, [resource for text in said for resource in parse_resources(text)]


def _run(command: Sequence[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    said = result.stdout + result.stderr
    if result.returncode != 0:
        last = "\n".join(said.strip().splitlines()[-20:])
        raise BuildError(f"nvcc failed ({result.returncode}): {shlex.join(command)}\n{last}")
    warnings = [line for line in said.splitlines() if "warning" in line]
    if warnings:
        log.warning("%s", "\n".join(warnings))
    return said


def _stamp_path(library: Path) -> Path:
    return library.with_name(library.name + ".stamp")


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds the library, and that of the ops for ONNX Runtime over it; prints their paths. Returns the exit status."""
    from mscope.plugins.build_ort_cuda import build_ort_cuda

    logging.basicConfig(format="%(message)s")
    force = build.argument_parser("build_cuda", "Compiles the CUDA kernels with nvcc.").parse_args(arguments).force
    try:
        print(build_cuda(force=force))
        print(build_ort_cuda(force=force))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
