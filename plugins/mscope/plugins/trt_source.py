"""The TensorRT plugin's sources as a folder that cmake and nvcc build without Python: `mscope-export plugins source`.

What is in it and how it is compiled follows from the recipe of build_trt.py, so that both make the same library.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mscope.plugins import build, build_cuda, build_over_cuda, build_trt
from mscope.plugins.build import BuildError

#: The first CMake that reads CUDAARCHS; Ubuntu 22.04, of JetPack 6, has 3.22.
OLDEST_CMAKE = "3.20"
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"', re.MULTILINE)


def source_folder() -> dict[str, bytes]:
    """Every file of the folder: its path in it, with slashes, and its content.

    Raises:
        BuildError: the package's own sources are not whole.
    """
    root = build.sources_dir()
    try:
        files = {path.relative_to(root).as_posix(): path.read_bytes() for path in _needed(root)}
        texts = {name: _filled(root, name) for name in ("CMakeLists.txt", "README.md")}
        license_text = _license(root).read_bytes()
    except OSError as error:
        raise BuildError(f"the plugin's sources are not whole ({error}): reinstall mambascope-deploy") from None
    return {**files, **{name: text.encode() for name, text in texts.items()}, "LICENSE": license_text}


def write_source(folder: Path) -> None:
    """Writes the files into `folder`, which holds none of them yet. Raises BuildError, OSError."""
    for name, content in source_folder().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _compiled(root: Path) -> list[Path]:
    return [*build_cuda.sources(root), *build_trt.sources(root)]


def _needed(root: Path) -> list[Path]:
    """What is compiled, what that includes, and the linker's script, sorted."""
    found: set[Path] = set()
    waiting = [*_compiled(root), build_trt.recipe(root, None).exports]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            # All of ours are named from the root.
            waiting += [root / name for name in _INCLUDE.findall(path.read_text(encoding="utf-8"))]
    return sorted(found)


def _filled(root: Path, name: str) -> str:
    """A file of csrc/trt/source with every @WORD@ replaced."""
    from mscope.core.contract import OP_VERSION  # needs pydantic, which a machine for GPU tests may lack

    exports = build_trt.recipe(root, None).exports.relative_to(root).as_posix()
    linker = [f'"LINKER:{flag}"' for flag in build_over_cuda.LINKER_FLAGS]
    words = {
        "CMAKE": OLDEST_CMAKE,
        "TOOLKIT": build_cuda.OLDEST_TOOLKIT,
        "ARCHITECTURES": ";".join(
            [*(f"{a}-real" for a in build_cuda.ARCHITECTURES), *(f"{a}-virtual" for a in build_cuda.PTX)]
        ),
        "SOURCES": "".join(f"  {path.relative_to(root).as_posix()}\n" for path in _compiled(root)).rstrip("\n"),
        "ABI_VERSION": str(build.ABI_VERSION),
        "OP_VERSION": str(OP_VERSION),
        "KERNEL_FLAGS": ";".join(build_cuda.KERNEL_FLAGS),
        "HOST_FLAGS": ";".join([*build_over_cuda.FLAGS, *build_over_cuda.HOST_FLAGS]),
        "MINIMAL_FLAGS": ";".join(build_trt.header_flags(None)),
        "LINK_FLAGS": " ".join([*build_over_cuda.LINK_FLAGS, *linker]),
        "EXPORTS": exports,
        "VERSION": _own_version(),
    }
    text = (root / "trt" / "source" / f"{name}.in").read_text(encoding="utf-8")
    return re.sub(r"@([A-Z_]+)@", lambda found: words[found[1]], text)


def _license(root: Path) -> Path:
    """Beside the sources in an installed wheel, at the top of a checkout."""
    beside = root / "LICENSE"
    return beside if beside.is_file() else root.parents[1] / "LICENSE"


def _own_version() -> str:
    try:
        return version("mambascope-deploy")
    except PackageNotFoundError:
        return "of a checkout"
