"""The two libraries that build engines. Their Python API is one; what differs is written down here."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from mscope.core.engine import Flavour
from mscope.core.errors import BackendError, InputError

AUTO = "auto"
ONNX_ONLY = "onnx"
TARGETS = (AUTO, ONNX_ONLY, "trt", "trt-rtx")
#: What to do about a GPU that is not here and that was insisted on with --target.
ON_THE_DEVICE = (
    "leave out --target for a bundle that goes to the device, and run 'mscope-export build --from BUNDLE --target trt' "
    "there"
)
_OLDEST = 10


@dataclass(frozen=True)
class Library:
    """One flavour: as `--target` names it, as a bundle's variants name it, and the Python module that it is."""

    target: str
    flavour: Flavour
    module: str
    how_to_get: str

    @property
    def installed(self) -> bool:
        """Whether the module is there; does not import it."""
        return importlib.util.find_spec(self.module) is not None


LIBRARIES: dict[str, Library] = {
    "trt": Library(
        "trt",
        "tensorrt",
        "tensorrt",
        "on a Jetson it comes with JetPack (docs/jetson.md), elsewhere: pip install tensorrt, from NVIDIA's index",
    ),
    "trt-rtx": Library("trt-rtx", "tensorrt-rtx", "tensorrt_rtx", "pip install tensorrt-rtx (x86_64, desktop GPUs)"),
}


def library_for(target: str) -> Library:
    """The library of a `--target` that names one, installed.

    Raises:
        InputError: no such target. BackendError: its module is not installed; says how to get it.
    """
    if target not in LIBRARIES:
        raise InputError(f"unknown target '{target}': choose one of {', '.join(TARGETS)}")
    library = LIBRARIES[target]
    if not library.installed:
        raise BackendError(f"--target {target}: the Python module {library.module} is not here: {library.how_to_get}")
    return library


def choose_library(target: str, *, here: str) -> tuple[Library | None, str]:
    """What a `--target` stands for on this machine, and a line that says why where "auto" builds no engines.

    "auto" takes the first that builds for the GPU `here`, "" without one; where GPUs are named see `choose_for_gpus`.

    Raises:
        InputError: unknown. BackendError: named and not installed.
    """
    if target == ONNX_ONLY:
        return None, ""
    if target != AUTO:
        return library_for(target), ""
    if not here:
        return None, "no engines: no NVIDIA GPU here (--gpu sm_XX names one for TensorRT-RTX to build for)"
    reasons = []
    for library in LIBRARIES.values():
        if not library.installed:
            continue
        if not (reason := why_not_here(library, here)):
            return library, ""
        reasons.append(reason)
    neither = f"neither {' nor '.join(library.module for library in LIBRARIES.values())} is installed"
    return None, f"no engines: {'; '.join(reasons) or neither}"


def why_not_here(library: Library, here: str) -> str:
    """Why an installed library builds nothing for the GPU of this machine, such as "sm_87"; "" where it does."""
    try:
        module = load(library)
    except BackendError as error:
        return str(error)
    known = _capabilities(module) if library.flavour == "tensorrt-rtx" else {}
    return f"{_builds_for(module)}, here is {here}" if known and here not in known else ""


def choose_for_gpus(gpus: tuple[str, ...], here: str) -> tuple[Library | None, tuple[str, ...], str]:
    """What "auto" stands for where GPUs are named: the library, which of them it builds for, and why not for the rest.

    TensorRT-RTX for those that it knows; where it knows none, TensorRT for the GPU `here`, which is all that it builds
    for; else none.
    """
    full, rtx = LIBRARIES["trt"], LIBRARIES["trt-rtx"]
    known: tuple[str, ...] = ()
    why = f"{rtx.module} is not installed: {rtx.how_to_get}"
    if rtx.installed:
        try:
            module = load(rtx)
        except BackendError as error:
            why = str(error)
        else:
            known = tuple(name for name in gpus if name in _capabilities(module))
            why = _builds_for(module)
    if not known and gpus == (here,) and full.installed:
        if not (reason := why_not_here(full, here)):
            return full, gpus, ""
        why = f"{why}; {reason}"
    return (rtx if known else None), known, why


def load(library: Library) -> ModuleType:
    """Imports the library. Raises BackendError where that fails or where it is older than TensorRT 10."""
    try:
        module = importlib.import_module(library.module)
    except (ImportError, OSError) as error:
        raise BackendError(f"{library.module} cannot be imported ({error}): {library.how_to_get}") from None
    if library.flavour == "tensorrt" and major(module) < _OLDEST:
        raise BackendError(f"TensorRT {module.__version__} is too old: strongly typed plugins need {_OLDEST} or newer")
    return module


def major(module: ModuleType) -> int:
    """The library's major version."""
    return int(str(module.__version__).split(".")[0])


def network_flags(module: ModuleType) -> int:
    """Flags for create_network: STRONGLY_TYPED where the library knows the flag.

    TensorRT 11 has no other networks, and keeps the flag for those who name it. TensorRT 10 would otherwise choose
    types on its own.
    """
    flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def check_gpus(module: ModuleType, gpus: tuple[str, ...]) -> dict[str, Any]:
    """The library's names of compute capabilities, by ours. Raises InputError where it lacks one of `gpus`."""
    members = _capabilities(module)
    missing = [name for name in gpus if name not in members]
    if missing:
        raise InputError(f"--gpu {','.join(missing)}: {_builds_for(module)}; {ON_THE_DEVICE}")
    return members


def _capabilities(module: ModuleType) -> dict[str, Any]:
    known: Any = getattr(module, "ComputeCapability", None)
    names = [] if known is None else [name for name in known.__members__ if name[2:].isdigit()]
    return {f"sm_{name[2:]}": known.__members__[name] for name in names}


def _builds_for(module: ModuleType) -> str:
    able = ", ".join(sorted(_capabilities(module), key=lambda name: int(name[3:]))) or "the GPU it runs on"
    return f"{module.__name__} {module.__version__} builds for {able}"
