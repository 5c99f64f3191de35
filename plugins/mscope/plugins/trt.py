"""The TensorRT plugin library (libmscope_trt): where it is, what is in it, and how it gets into TensorRT's registry.

`mscope-export plugins build` builds it. One file serves TensorRT 10, 11 and TensorRT-RTX; docs/tensorrt-plugin.md has
the details, and what users of trtexec, Triton and DeepStream do with it.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mscope.core.errors import BackendError
from mscope.plugins import build_trt, find

if TYPE_CHECKING:
    from mscope.core.engine import Flavour

# As mscope.core.contract has them, which tests/plugins/test_trt_table.py holds: it needs pydantic, and this module must
# load where only a GPU's own software is.
PLUGIN_NAMES = ("CausalConv1dSiLU", "SelectiveScan", "BidirectionalSelectiveScan")
PLUGIN_VERSION = "1"
#: Every plugin is registered in both: parsers before TensorRT 10.10 look in the empty namespace only.
NAMESPACES = ("mambascope", "")

#: Flavour -> its Python module.
MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}

_lock = threading.Lock()
_loaded: set[Flavour] = set()
# What TensorRT holds on to until the process ends.
_kept: list[Any] = []


@dataclass(frozen=True)
class Description:
    """What the library says of itself.

    Attributes:
        version, namespaces: of its plugins.
        headers: TensorRT headers it was compiled against, "11.1" or "minimal" for this project's own.
        targets: what it holds code for, as "75 80 ... ptx120".
        types: element types of the tensors that docs/ops.md marks T.
        ops: for each op its "name", "inputs" and "outputs" ("name", "shape", "type", "optional") and "attributes"
            ("name", "default", "least", "most").
    """

    version: str
    namespaces: tuple[str, ...]
    headers: str
    targets: tuple[str, ...]
    types: tuple[str, ...]
    ops: tuple[dict[str, Any], ...]


def library_path() -> Path:
    """The library's file, checked. Raises BackendError: not built, or built for another version of this package."""
    return find.require("trt")


def why_missing() -> str:
    """Why there is no library and what to do about it; "" where there is one."""
    return find.why_missing("trt")


def describe() -> Description:
    """What is in the library; needs neither TensorRT nor a GPU. Raises BackendError as `library_path`."""
    return _describe(library_path())


def load(flavour: Flavour) -> None:
    """Registers the plugins with a flavour of TensorRT, in this process; a second call does nothing.

    Raises:
        BackendError: the library or the flavour is not here, or TensorRT does not take it.
    """
    with _lock:
        if flavour not in _loaded:
            _load(flavour)
            _loaded.add(flavour)


def import_flavour(flavour: Flavour) -> ModuleType:
    """The flavour's Python module. Raises BackendError where it cannot be imported."""
    try:
        return importlib.import_module(MODULES[flavour])
    except (ImportError, OSError) as error:
        raise BackendError(f"the package {MODULES[flavour]} cannot be imported ({error}): install it") from None


def registered(flavour: Flavour) -> tuple[tuple[str, str, str], ...]:
    """(name, namespace, version) of this project's plugins in the flavour's registry. Raises BackendError."""
    registry = import_flavour(flavour).get_plugin_registry()
    ours = tuple((name, space, PLUGIN_VERSION) for space in NAMESPACES for name in PLUGIN_NAMES)
    creators = registry.all_creators
    if creators is None:  # TensorRT's binding gives up where it meets a creator of a kind that it does not know
        return tuple(entry for entry in ours if registry.get_creator(entry[0], entry[2], entry[1]) is not None)
    # Else not get_creator(): asked for what is not there, it logs an error.
    there = {(creator.name, creator.plugin_namespace, creator.plugin_version) for creator in creators}
    return tuple(entry for entry in ours if entry in there)


def _load(flavour: Flavour) -> None:
    module, path = import_flavour(flavour), library_path()
    if flavour == "tensorrt-rtx":
        _provide_rtx_name(path)
    if len(registered(flavour)) == len(PLUGIN_NAMES) * len(NAMESPACES):
        return  # by the process itself, or for MSCOPE_TRT_REGISTER
    _kept.append(module.get_plugin_registry().load_library(str(path)))
    if len(registered(flavour)) != len(PLUGIN_NAMES) * len(NAMESPACES):
        raise BackendError(
            f"{module.__name__} {module.__version__} did not take the plugins of {path}: either another library has "
            f"plugins of the same names ({', '.join(PLUGIN_NAMES)}), or it is older than TensorRT 10"
        )


def _provide_rtx_name(library: Path) -> None:
    """Makes TensorRT-RTX's library known by the name under which its ONNX parser opens it (build_trt.rtx_name_path)."""
    path = build_trt.rtx_name_path(library)
    try:
        _kept.append(ctypes.CDLL(str(path)))
    except OSError as error:
        raise BackendError(
            f"{path} cannot be loaded ({error}): build it again with 'mscope-export plugins build'; it needs the "
            f"TensorRT-RTX of {build_trt.RTX_LIBRARY}"
        ) from None


@functools.cache
def _describe(path: Path) -> Description:
    library = ctypes.CDLL(str(path.resolve()))
    library.mscope_trt_describe.restype = ctypes.c_char_p
    content = json.loads(library.mscope_trt_describe())
    return Description(
        version=content["version"],
        namespaces=tuple(content["namespaces"]),
        headers=content["headers"],
        targets=tuple(content["targets"].split()),
        types=tuple(content["types"]),
        ops=tuple(content["ops"]),
    )
