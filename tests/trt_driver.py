"""TensorRT played by a test (plugins/trt_driver.cpp), and the plugin over the kernels' host run for it to drive.

What is compiled is kept below build/, named after a hash of all that it is made from.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import cuda_host
from mscope.plugins import build
from mscope.plugins.trt import PLUGIN_NAMES

CSRC = cuda_host.CSRC
KEPT = CSRC.parents[1] / "build" / "test-trt"
OP_CONV, OP_SCAN, OP_BIDIRECTIONAL_SCAN = PLUGIN_NAMES
#: TensorRT's DataType.
TYPES = {"float32": 0, "float16": 1, "bfloat16": 7, "int32": 3, "int64": 8}
BUILD, RUNTIME = 0, 1
#: driver_build's steps.
STEPS = ("", "getNbOutputs", "getOutputDataTypes", "getOutputShapes", "supportsFormatCombination", "configurePlugin")

#: Inputs of each op, by their names in op_cases.Inputs where those differ from the op's.
OP_INPUTS = {
    OP_CONV: ("xz", "weight", "bias", "weight_b", "bias_b"),
    OP_SCAN: ("x", "delta", "A", "B", "C", "D", "z", "dt_bias"),
    OP_BIDIRECTIONAL_SCAN: (
        "xz", "x_both", "dbc", "dt_weight", "dt_bias", "A", "D", "dt_weight_b", "dt_bias_b", "A_b", "D_b",
    ),
}  # fmt: skip


class Tensor(ctypes.Structure):
    """DriverTensor."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("type", "rank", "format")),
        *((name, ctypes.c_int64 * 8) for name in ("least", "size", "most")),
        ("data", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Given:
    """A tensor handed to the plugin: an address, and what it says of itself.

    `dynamic` axes are settled at run time; `most` has the largest sizes, twice the present ones and one where empty.
    """

    shape: tuple[int, ...]
    dtype: str
    address: int = 0
    dynamic: tuple[int, ...] = ()
    most: tuple[int, ...] = ()
    owner: Any = field(default=None, compare=False)

    def tensor(self) -> Tensor:
        sizes = tuple(self.shape)
        least = tuple(min(size, 1) if axis in self.dynamic else size for axis, size in enumerate(sizes))
        most = self.most or tuple(2 * size + 1 if axis in self.dynamic else size for axis, size in enumerate(sizes))
        filled = ((ctypes.c_int64 * 8)(*values) for values in (least, sizes, most))
        return Tensor(TYPES[self.dtype], len(sizes), 0, *filled, self.address)


def given(stored: np.ndarray, tokens: tuple[int, ...] | None = None, *, dynamic: bool = True) -> Given:
    """A numpy array, bfloat16 as uint16. Dynamic are B and L of (B, L, any), or with `tokens` B L of (K, B L, any)."""
    stored = np.ascontiguousarray(stored)
    dtype = "bfloat16" if stored.dtype == np.uint16 else stored.dtype.name
    axes, most = dynamic_axes(stored.shape, tokens) if dynamic else ((), ())
    return Given(stored.shape, dtype, stored.ctypes.data, axes, most, stored)


def dynamic_axes(shape: tuple[int, ...], tokens: tuple[int, ...] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Given.dynamic and Given.most."""
    if len(shape) != 3:
        return (), ()
    if tokens is None:
        return (0, 1), ()
    return (1,), (shape[0], (2 * tokens[0] + 1) * (2 * tokens[1] + 1), shape[2])


def all_given(
    op: str, arrays: Sequence[Any], results: Sequence[Any], make: Callable[..., Given] = given
) -> tuple[list[Given], list[Given]]:
    """An op's inputs and outputs, as `make` gives them."""
    tokens = tuple(arrays[0].shape[:2])
    stacked = (1, 2) if op == OP_BIDIRECTIONAL_SCAN else ()
    inputs = [make(array, tokens if i in stacked else None) for i, array in enumerate(arrays)]
    return inputs, [make(array, tokens if op == OP_CONV else None) for array in results]


class Refused(Exception):
    """The plugin refused; `step` says where, the message is its log."""

    def __init__(self, step: str, log: str) -> None:
        super().__init__(f"{step}: {log}")
        self.step, self.log = step, log


class Driver:
    """TensorRT, for one plugin library."""

    def __init__(self, library: Path) -> None:
        self._calls = _driver()
        self._library = ctypes.CDLL(str(library))
        self._handle = ctypes.c_void_p(self._library._handle)

    def exported(self, name: str) -> Any:
        return getattr(self._library, name)

    def set_logger(self, version: int) -> None:
        """A logger as of TensorRT 10 or 11, none (0), or one that no TensorRT has (1)."""
        self._calls.driver_set_logger(self._handle, version)

    def messages(self) -> str:
        """What was logged since the last call, a line each: "[severity] text"."""
        return str(self._calls.driver_messages().decode())

    def creator(self, op: str, space: str = "") -> int:
        found = self._calls.driver_creator(self._handle, op.encode(), space.encode())
        assert found, f"no creator of {op} in namespace {space!r}"
        return int(found)

    def create(
        self, op: str, attributes: Mapping[str, Any] | None = None, *, space: str = "", phase: int = BUILD
    ) -> int:
        """A plugin; attributes are int (32 bits), np.int64, float or str. Raises Refused."""
        arrays, types = [], []
        for value in (attributes or {}).values():
            array, code = _field(value)
            arrays.append(array)
            types.append(code)
        count = len(arrays)
        names = (ctypes.c_char_p * count)(*(name.encode() for name in attributes or {}))
        values = (ctypes.c_void_p * count)(*(array.ctypes.data for array in arrays))
        kinds, lengths = (ctypes.c_int32 * count)(*types), (ctypes.c_int32 * count)(*(a.size for a in arrays))
        made = self._calls.driver_create(self.creator(op, space), b"layer", count, names, values, kinds, lengths, phase)
        if not made:
            raise Refused("createPlugin", self.messages())
        return int(made)

    def destroy(self, plugin: int) -> None:
        self._calls.driver_destroy(plugin)

    def build(self, plugin: int, inputs: Sequence[Given], outputs: Sequence[Given]) -> int:
        """The build phase; returns the workspace's bytes. Raises Refused."""
        workspace = ctypes.c_int64(-1)
        step = self._calls.driver_build(plugin, *_tensors(inputs), *_tensors(outputs), ctypes.byref(workspace))
        if step:
            raise Refused(STEPS[step], self.messages())
        return workspace.value

    def serialized(self, plugin: int) -> str:
        return str(self._calls.driver_serialized(plugin).decode())

    def identity(self, plugin: int) -> str:
        return str(self._calls.driver_identity(plugin).decode())

    def clone(self, plugin: int) -> int:
        return int(self._calls.driver_clone(plugin))

    def reload(self, op: str, plugin: int) -> int:
        """Through an engine and back; the plugin that was given is gone. Raises Refused."""
        made = self._calls.driver_reload(self.creator(op), plugin)
        if not made:
            raise Refused("createPlugin", self.messages())
        return int(made)

    def run(
        self, plugin: int, inputs: Sequence[Given], outputs: Sequence[Given], *,
        workspace: int = 0, stream: int = 0, announce: bool = True,
    ) -> None:  # fmt: skip
        """onShapeChange and enqueue. Raises Refused."""
        step = self._calls.driver_run(plugin, *_tensors(inputs), *_tensors(outputs), workspace, stream, int(announce))
        if step:
            raise Refused(("", "onShapeChange", "enqueue")[step], self.messages())


def compile_cached(name: str, sources: Sequence[Path], flags: Sequence[str]) -> Path:
    """A shared library, or a program where the name does not end in .so. Raises RuntimeError with what was said."""
    digest = hashlib.sha256(repr([*map(str, sources), *flags, cuda_host.compiler()]).encode())
    for path in sorted(p for p in (*CSRC.rglob("*"), *sources) if p.is_file()):
        digest.update(path.name.encode() + path.read_bytes())
    stem, suffix = Path(name).stem, Path(name).suffix
    target = KEPT / f"{stem}-{digest.hexdigest()[:16]}{suffix}"
    if target.is_file():
        return target
    KEPT.mkdir(parents=True, exist_ok=True)
    for old in KEPT.glob(f"{stem}-*{suffix}"):
        old.unlink(missing_ok=True)
    shared = ["-shared", "-fPIC", "-fvisibility=hidden"] if suffix == ".so" else []
    with tempfile.TemporaryDirectory(prefix=".build-", dir=KEPT) as scratch:
        fresh = Path(scratch) / target.name
        command = [cuda_host.compiler() or "c++", "-std=c++17", *shared, f"-I{CSRC}", *flags]
        result = subprocess.run(
            [*command, *map(str, sources), "-o", str(fresh), "-ldl"], capture_output=True, text=True, check=False
        )
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{result.stderr[-3000:]}")
        os.replace(fresh, target)
    return target


def compile_checked(name: str, sources: Sequence[Path], flags: Sequence[str]) -> Path:
    """As `compile_cached`, with what cuda_host.CHECKED finds ending the process, where the compiler can do that."""
    try:
        return compile_cached(name, sources, [*flags, *cuda_host.CHECKED])
    except RuntimeError:
        return compile_cached(name, sources, flags)


def host_plugin(header: Sequence[str] = ("-DMSCOPE_TENSORRT_MINIMAL",), name: str = "plugin.so") -> Path:
    """The plugin over the kernels' host run; `header` chooses TensorRT's headers, `name` keeps several apart."""
    sources = [p for p in sorted((CSRC / "trt").glob("*.cpp")) if p.name != "device.cpp"]
    sources += [CSRC / "cuda" / "host_run.cpp", CSRC / "cuda" / "host_api.cpp", CSRC / "abi" / "version.cpp"]
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", f"-DMSCOPE_ABI_VERSION={build.ABI_VERSION}", "-DMSCOPE_CUDA_BUILD"]
    flags += header
    return compile_checked(name, sources, flags)


@functools.cache
def _driver() -> ctypes.CDLL:
    source = Path(__file__).parent / "plugins" / "trt_driver.cpp"
    path = compile_cached("driver.so", [source], ["-O1", "-Wall", "-Wextra", "-Werror", "-DMSCOPE_TENSORRT_MINIMAL"])
    calls = ctypes.CDLL(str(path))
    pointer, integer, text = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p
    tensors = [ctypes.POINTER(Tensor), integer]
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "set_logger": (None, [pointer, integer]),
        "messages": (text, []),
        "creator": (pointer, [pointer, text, text]),
        "create": (pointer, [pointer, text, integer, *[pointer] * 4, integer]),
        "destroy": (None, [pointer]),
        "build": (integer, [pointer, *tensors, *tensors, pointer]),
        "serialized": (text, [pointer]),
        "identity": (text, [pointer]),
        "reload": (pointer, [pointer, pointer]),
        "clone": (pointer, [pointer]),
        "run": (integer, [pointer, *tensors, *tensors, pointer, pointer, integer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(calls, f"driver_{name}")
        function.restype, function.argtypes = result, arguments
    return calls


def _tensors(tensors: Sequence[Given]) -> tuple[Any, int]:
    return (Tensor * max(1, len(tensors)))(*(t.tensor() for t in tensors)), len(tensors)


def _field(value: Any) -> tuple[np.ndarray, int]:
    """An attribute's array and its PluginFieldType."""
    if isinstance(value, str):
        return np.frombuffer(value.encode() or b"\0", np.uint8), 6
    if isinstance(value, np.int64):
        return np.array([value]), 10
    if isinstance(value, float):
        return np.array([value], np.float32), 1
    return np.array(value, np.int32).reshape(-1), 5
