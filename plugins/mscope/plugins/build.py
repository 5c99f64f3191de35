"""Compiles the native libraries with the system's C++ compiler: `python -m mscope.plugins.build [--force] [name...]`.

Standard library only and no imports of the project: hatch_build.py loads this file by its path, before anything is
installed.

Sources named `*_isa.cpp` are compiled once per instruction set, with MSCOPE_ISA_NAME defined to its name; the others
once, for the baseline of the machine's architecture. The list MSCOPE_FOR_EACH_ISA(X) tells dispatchers which names
exist, so that the set is spelled here only. Nothing is tuned to the building machine: the choice is made at run time.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

# Raised with every change of an exported function's signature or of a struct behind it; compiled into the libraries as
# `mscope_abi_version()`, and checked by find.py before one is used.
ABI_VERSION = 2

#: Environment variable: a folder with onnxruntime_c_api.h, to compile with instead of this project's slice of it.
ONNXRUNTIME_INCLUDE_DIR = "ONNXRUNTIME_INCLUDE_DIR"

HERE = Path(__file__).resolve().parent
OUTPUT = HERE / "_native"
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
JOBS = 2

# Sources of each library, as patterns below the source folder.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "train": ("abi/version.cpp", "cpu/training*.cpp"),
    "ort": ("abi/version.cpp", "ort/*.cpp", "ort/cpu/*.cpp", "cpu/inference*.cpp"),
}

# What the libraries export, all else being local: ours, and the entry point that ONNX Runtime looks for. (Hidden
# visibility alone lets instances of the standard library's templates out.)
EXPORTS = ("mscope_*", "RegisterCustomOps")

# Best first: dispatchers take the first that the processor has.
_X86: dict[str, tuple[str, ...]] = {
    "avx512": ("-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma", "-mf16c"),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "scalar": (),
}
_ARM: dict[str, tuple[str, ...]] = {"neon": (), "scalar": ()}
_OTHER: dict[str, tuple[str, ...]] = {"scalar": ()}

COMPILE_FLAGS = (
    "-O3", "-std=c++17", "-fPIC", "-pthread", "-fvisibility=hidden", "-fvisibility-inlines-hidden",
    "-fno-math-errno", "-Wall", "-Wextra",
)  # fmt: skip


class BuildError(RuntimeError):
    """No compiler, no sources, or a compiler that failed; the message ends with what it last said."""


@dataclass(frozen=True)
class Compiler:
    """A working C++ compiler: the command's first words, and what identifies it in a stamp."""

    command: tuple[str, ...]
    version: str


def instruction_sets(machine: str | None = None) -> dict[str, tuple[str, ...]]:
    """Instruction sets that are compiled for a machine name as of platform.machine(), with their flags."""
    machine = (machine or platform.machine()).lower()
    if machine in {"x86_64", "amd64"}:
        return _X86
    return _ARM if machine in {"aarch64", "arm64"} else _OTHER


def sources_dir() -> Path:
    """The C++ sources: inside the package in an installed wheel, plugins/csrc in a checkout."""
    for path in (HERE / "csrc", HERE.parents[1] / "csrc"):
        if (path / "abi" / "version.cpp").is_file():
            return path
    raise BuildError(f"no C++ sources next to {HERE}: reinstall mambascope-deploy, or work in a checkout")


def library_path(name: str, output: Path = OUTPUT) -> Path:
    """Where the named library lies once built."""
    return output / f"libmscope_{name}{SUFFIX}"


def find_compiler() -> Compiler:
    """$CXX if set, otherwise the first of c++, g++, clang++ on the PATH. Raises BuildError when there is none."""
    chosen = os.environ.get("CXX", "").strip()
    for candidate in [chosen] if chosen else ["c++", "g++", "clang++"]:
        words = shlex.split(candidate)
        if shutil.which(words[0]) is None:
            continue
        result = subprocess.run([*words, "--version"], capture_output=True, text=True, check=False)
        if result.returncode == 0:
            return Compiler(tuple(words), result.stdout.strip())
    tried = f"CXX={chosen}" if chosen else "c++, g++ and clang++"
    raise BuildError(f"no working C++ compiler ({tried}): install g++ (apt install g++), or set CXX to one")


def sources(name: str, root: Path) -> list[Path]:
    """The C++ files of the named library, sorted. Raises BuildError when there are none."""
    if name not in LIBRARIES:
        raise BuildError(f"unknown library {name!r}: choose from {', '.join(LIBRARIES)}")
    per_pattern = [sorted(root.glob(pattern)) for pattern in LIBRARIES[name]]
    if not all(per_pattern):
        missing = [p for p, found in zip(LIBRARIES[name], per_pattern, strict=True) if not found]
        raise BuildError(f"no sources for {name!r}: nothing matches {', '.join(missing)} in {root}")
    return sorted(path for found in per_pattern for path in found)


def sources_digest(name: str, root: Path) -> str:
    """A hash of all that the named library is made from, the compiler aside: files, flags, ABI, architecture."""
    digest = hashlib.sha256()
    # Any header may be included by any source: following #include lines would save a rebuild now and then, no more.
    for path in [*sources(name, root), *sorted(root.rglob("*.h"))]:
        data = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(data)}\n".encode() + data)
    settings = [platform.machine(), SUFFIX, ABI_VERSION, EXPORTS, COMPILE_FLAGS, instruction_sets(), LIBRARIES[name]]
    settings.append(os.environ.get(ONNXRUNTIME_INCLUDE_DIR))
    digest.update(json.dumps(settings).encode())
    return digest.hexdigest()


def is_current(name: str, root: Path, output: Path = OUTPUT, compiler: Compiler | None = None) -> bool:
    """Whether the built library comes from these sources, and from this compiler where one is given."""
    library = library_path(name, output)
    try:
        stamp = json.loads(_stamp_path(library).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not library.is_file() or stamp.get("sources") != sources_digest(name, root):
        return False
    return compiler is None or stamp.get("compiler") == _identity(compiler)


def build(name: str, *, output: Path | None = None, force: bool = False) -> Path:
    """Builds the named library if its sources, flags or compiler changed since the last time.

    Args:
        name: a key of LIBRARIES.
        output: folder of the library and its stamp; created. None: beside this file.
        force: build even when nothing changed.

    Returns:
        The library's path.

    Raises:
        BuildError: no compiler, no sources, or the compiler failed. An older library, if any, stays in place.
    """
    root, output = sources_dir(), output or OUTPUT
    # Stamped with the digest of before the compilation: an edit while it runs makes the next call build again.
    digest = sources_digest(name, root)
    compiler = find_compiler()
    library = library_path(name, output)
    if not force and is_current(name, root, output, compiler):
        return library
    try:
        output.mkdir(parents=True, exist_ok=True)
        # In the output folder, so that os.replace stays within one file system and is atomic.
        with tempfile.TemporaryDirectory(prefix=".build-", dir=output) as scratch:
            linked = _compile_and_link(compiler, name, root, Path(scratch))
            stamp = Path(scratch) / "stamp"
            stamp.write_text(json.dumps({"sources": digest, "compiler": _identity(compiler)}), encoding="utf-8")
            os.replace(linked, library)
            os.replace(stamp, _stamp_path(library))
    except OSError as error:
        raise BuildError(f"cannot write {library}: {error}") from error
    return library


def remove(name: str, output: Path = OUTPUT) -> None:
    """Removes the named library and its stamp, if they are there."""
    library = library_path(name, output)
    for path in (library, _stamp_path(library)):
        path.unlink(missing_ok=True)


def _compile_and_link(compiler: Compiler, name: str, root: Path, scratch: Path) -> Path:
    isas = instruction_sets()
    every = " ".join(f"X({isa})" for isa in isas)
    common = [
        *compiler.command, *COMPILE_FLAGS, f"-I{root}",
        f"-DMSCOPE_ABI_VERSION={ABI_VERSION}", f"-DMSCOPE_FOR_EACH_ISA(X)={every}",
    ]  # fmt: skip
    if os.environ.get(ONNXRUNTIME_INCLUDE_DIR):
        common.append(f"-I{os.environ[ONNXRUNTIME_INCLUDE_DIR]}")
    if "clang" not in compiler.version:
        # GCC 12 and older warn about their own AVX-512 header (GCC bug 105593); clang does not know the option.
        common.append("-Wno-maybe-uninitialized")
    jobs: list[tuple[Path, list[str]]] = []
    for source in sources(name, root):
        variants = isas.items() if source.stem.endswith("_isa") else [("", ())]
        for isa, flags in variants:
            target = scratch / f"{source.parent.name}-{source.stem}{isa}.o"
            named = [f"-DMSCOPE_ISA_NAME={isa}"] if isa else []
            jobs.append((target, [*common, *flags, *named, "-c", str(source), "-o", str(target)]))
    with ThreadPoolExecutor(JOBS) as pool:
        list(pool.map(lambda job: _run(job[1]), jobs))
    linked = scratch / f"linked{SUFFIX}"
    objects = [str(target) for target, _ in jobs]
    shared = [*compiler.command, "-shared", "-pthread", *objects, "-o", str(linked)]
    if sys.platform == "darwin":
        _run(shared)
        return linked
    exports = scratch / "exports"
    exports.write_text(f"{{ global: {' '.join(f'{name};' for name in EXPORTS)} local: *; }};\n", encoding="utf-8")
    shared += [f"-Wl,--version-script={exports}", "-Wl,--no-undefined"]
    # The C++ runtime goes inside, hidden, where the system has it as an archive: a wheel then runs on systems with an
    # older libstdc++, and next to another one in the process (torch brings its own).
    try:
        _run([*shared, "-static-libstdc++", "-static-libgcc"])
    except BuildError:
        _run(shared)
    return linked


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    said = (result.stderr or result.stdout).strip()
    if result.returncode != 0:
        last = "\n".join(said.splitlines()[-20:])
        raise BuildError(f"the compiler failed ({result.returncode}): {shlex.join(command)}\n{last}")
    if said:
        log.warning("%s", said)


def _identity(compiler: Compiler) -> str:
    return "\n".join([shlex.join(compiler.command), compiler.version])


def _stamp_path(library: Path) -> Path:
    return library.with_name(library.name + ".stamp")


def argument_parser(module: str, description: str) -> argparse.ArgumentParser:
    """Of the command that a module of this package is, with the option that all of them have."""
    parser = argparse.ArgumentParser(prog=f"python -m mscope.plugins.{module}", description=description)
    parser.add_argument("--force", action="store_true", help="build even where nothing changed since the last time")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds the named libraries, or all of them; prints their paths. Returns the exit status."""
    logging.basicConfig(format="%(message)s")
    parser = argument_parser("build", "Compiles the native libraries with the system's C++ compiler.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{' or '.join(LIBRARIES)}; by default all")
    options = parser.parse_args(arguments)
    status = 0
    for name in options.names or LIBRARIES:
        try:
            path = build(name, force=options.force)
        except BuildError as error:
            print(error, file=sys.stderr)
            status = 1
        else:
            with contextlib.suppress(BrokenPipeError):
                print(path)
    return status


if __name__ == "__main__":
    sys.exit(main())
