"""The real cuda-python over tests/fake_cuda.py: what the runtime hands over passes through NVIDIA's own conversions.

cuda-python has two layers: `cuda.bindings.runtime` turns Python's values into C's and back, and takes the functions
that it then calls from `cuda.bindings.cyruntime`, by name and C signature. Here a second copy of the first is loaded
over functions of ours, which do what FakeCuda does. So integers as pointers, handles, enumerations, structures, what is
written through pointers and what comes back are the real package's; only what lies below C is made up.

Of a signature that is not known here, or a handle that was never given out or is gone, the answer is Misuse.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import importlib.util
import itertools
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fake_cuda import FakeCuda
from fake_graphs import Misuse, cudaGraphNodeParams

_UNKNOWN = 999  # cudaErrorUnknown, while an error of ours is on its way

_NUMBERS = {
    "int": ctypes.c_int, "unsigned int": ctypes.c_uint, "size_t": ctypes.c_size_t, "float": ctypes.c_float,
    "unsigned PY_LONG_LONG": ctypes.c_ulonglong, "cudaGraphConditionalHandle": ctypes.c_ulonglong,
}  # fmt: skip
_ADDRESSES = ("void *", "void const *", "cudaStream_t")  # FakeCuda counts its streams itself
_OBJECTS = ("cudaEvent_t", "cudaGraph_t", "cudaGraphExec_t", "cudaGraphNode_t")
_EdgeData = ctypes.c_ubyte * 8  # cudaGraphEdgeData, which is all zeros where nothing is said
_RESULTS = ("void *", "cudaStream_t", *_OBJECTS, *_NUMBERS)


class _PointerAttributes(ctypes.Structure):
    """cudaPointerAttributes, as of CUDA 12; 13 reserves more behind it."""

    _fields_ = (
        ("type", ctypes.c_int), ("device", ctypes.c_int), ("devicePointer", ctypes.c_void_p),
        ("hostPointer", ctypes.c_void_p),
    )  # fmt: skip


class _NodeParams(ctypes.Structure):
    """cudaGraphNodeParams with the member of its union that is in use, cudaConditionalNodeParams."""

    _fields_ = (
        ("type", ctypes.c_int), ("reserved", ctypes.c_int * 3), ("handle", ctypes.c_ulonglong),
        ("kind", ctypes.c_int), ("size", ctypes.c_uint), ("bodies", ctypes.c_void_p),
    )  # fmt: skip


class Bindings:
    """The module `cuda.bindings.runtime` over one FakeCuda. Its classes and values are the real ones."""

    def __init__(self, fake: FakeCuda) -> None:
        self._fake, self._copy = fake, _copy()
        fake.runtime = pytest.importorskip("cuda.bindings.runtime").cudaRuntimeGetVersion()[1]
        self._handles = itertools.count(0x5000_0000, 16)
        self._objects: dict[int, Any] = {}
        self._kept: list[Any] = []  # arrays that are CUDA's

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._copy, name)
        if isinstance(value, type) or not callable(value):
            return value
        if name not in _PLACED:
            raise Misuse(f"{name} is called, which tests/fake_cuda.py does not have")

        def call(*arguments: Any) -> Any:
            # A ctypes callback cannot raise through C: it leaves its error here.
            _serving.bindings, _serving.error = self, None
            answer = value(*arguments)
            if _serving.error is not None:
                raise _serving.error
            return answer

        return call

    # What the functions of C do

    def serve(self, name: str, parameters: tuple[str, ...], given: tuple[Any, ...]) -> int:
        """One call: C's values to FakeCuda's, and what it answers to where C wants it."""
        special = getattr(self, "_" + name, None)
        if special is not None:
            return int(special(*given))
        taken: list[Any] = []
        results: list[tuple[str, int]] = []
        for kind, value in zip(parameters, given, strict=True):
            pointed_to = kind.removesuffix("*").strip() if kind.endswith("*") else ""
            if pointed_to in _RESULTS:
                results.append((pointed_to, value))
            else:
                taken.append(self._python(kind, value))
        status, *answers = getattr(self._fake, name)(*taken)
        if not int(status):
            for (kind, place), answer in zip(results, answers, strict=True):
                _store(place, _NUMBERS.get(kind, ctypes.c_void_p), self._number(kind, answer))
        if name in ("cudaEventDestroy", "cudaGraphDestroy", "cudaGraphExecDestroy"):
            del self._objects[given[0]]
        return int(status)

    def _python(self, kind: str, value: Any) -> Any:
        if kind in _OBJECTS:
            if value not in self._objects:
                raise Misuse(f"{value} is no {kind}, or is gone")
            return self._objects[value]
        if kind in _ADDRESSES:
            return value or 0
        if kind in _NUMBERS:
            return value
        try:
            return getattr(self._fake, kind)(value)
        except ValueError:
            raise Misuse(f"{value} is no {kind}") from None

    def _number(self, kind: str, answer: Any) -> Any:
        return self._handle(answer) if kind in _OBJECTS else answer

    def _handle(self, thing: Any) -> int:
        """Its handle: the same for as long as it is the same."""
        for handle, known in self._objects.items():
            if known is thing:
                return handle
        handle = next(self._handles)
        self._objects[handle] = thing
        return handle

    def _nodes(self, address: int | None, count: int) -> Any:
        if address is None:
            return None
        handles = (ctypes.c_void_p * count).from_address(address)
        return [self._python("cudaGraphNode_t", handle) for handle in handles]

    def _edges(self, address: int | None, count: int) -> Any:
        if address is None:
            return None
        edges = [bytes(edge) for edge in (_EdgeData * count).from_address(address)]
        if any(map(any, edges)):
            raise Misuse(f"edges of a kind that is not known here: {edges}")
        return edges

    def _cudaGetErrorString(self, error: int) -> int:
        text = ctypes.create_string_buffer(self._fake.cudaGetErrorString(self._fake.cudaError_t(error))[1])
        self._kept.append(text)
        return ctypes.addressof(text)

    def _cudaPointerGetAttributes(self, attributes: int, ptr: int | None) -> int:
        status, told = self._fake.cudaPointerGetAttributes(ptr or 0)
        written = _PointerAttributes.from_address(attributes)
        written.type, written.device, written.devicePointer = int(told.type), told.device, told.devicePointer
        return int(status)

    def _cudaStreamBeginCaptureToGraph(
        self, stream: int, graph: int, dependencies: int | None, data: int | None, count: int, mode: int
    ) -> int:
        nodes, edges = self._nodes(dependencies, count), self._edges(data, count)
        body, mode = self._python("cudaGraph_t", graph), self._python("cudaStreamCaptureMode", mode)
        return int(self._fake.cudaStreamBeginCaptureToGraph(stream, body, nodes, edges, count, mode)[0])

    def _cudaStreamGetCaptureInfo(
        self, stream: int, status: int, id_: int, graph: int, nodes: int, data: int, count: int
    ) -> int:
        answer = self._fake.cudaStreamGetCaptureInfo(stream)
        error, state, number, captured, last, _, length = answer
        _store(status, ctypes.c_int, int(state))
        if captured is not None:
            handles = (ctypes.c_void_p * length)(*(self._handle(node) for node in last or ()))
            edges = (_EdgeData * length)()
            self._kept += [handles, edges]
            _store(id_, ctypes.c_ulonglong, number)
            _store(graph, ctypes.c_void_p, self._handle(captured))
            _store(nodes, ctypes.c_void_p, ctypes.addressof(handles) if length else None)
            _store(data, ctypes.c_void_p, ctypes.addressof(edges) if length else None)
            _store(count, ctypes.c_size_t, length)
        return int(error)

    def _cudaStreamUpdateCaptureDependencies(
        self, stream: int, dependencies: int | None, data: int | None, count: int, flags: int
    ) -> int:
        nodes, edges = self._nodes(dependencies, count), self._edges(data, count)
        return int(self._fake.cudaStreamUpdateCaptureDependencies(stream, nodes, edges, count, flags)[0])

    def _cudaGraphAddNode(
        self, node: int, graph: int, dependencies: int | None, data: int | None, count: int, params: int
    ) -> int:
        fake, given = self._fake, _NodeParams.from_address(params)
        told = cudaGraphNodeParams()
        told.type = self._python("cudaGraphNodeType", given.type)
        told.conditional.handle, told.conditional.size = given.handle, given.size
        told.conditional.type = self._python("cudaGraphConditionalNodeType", given.kind)
        nodes, edges = self._nodes(dependencies, count), self._edges(data, count)
        status, added = fake.cudaGraphAddNode(self._python("cudaGraph_t", graph), nodes, edges, count, told)
        if not int(status):
            bodies = (ctypes.c_void_p * given.size)(*(self._handle(body) for body in told.conditional.phGraph_out))
            self._kept.append(bodies)
            given.bodies = ctypes.addressof(bodies)
            _store(node, ctypes.c_void_p, self._handle(added))
        return int(status)


_serving = threading.local()


@dataclass(frozen=True)
class _Placed:
    """A function of ours in the table; all of it must outlive the copy."""

    function: Any
    signature: ctypes.Array[ctypes.c_char]
    capsule: Any


_PLACED: dict[str, _Placed] = {}


@functools.cache
def _copy() -> Any:
    """A second `cuda.bindings.runtime`, over our functions; the first stays as it is."""
    real = pytest.importorskip("cuda.bindings.runtime")
    table = importlib.import_module("cuda.bindings.cyruntime")
    ours: Any = ModuleType("cuda.bindings.cyruntime")
    ours.__pyx_capi__ = dict(table.__pyx_capi__)
    for name, capsule in table.__pyx_capi__.items():
        plain = re.sub(r"_v\d+$", "", name)
        if hasattr(FakeCuda, plain):
            _PLACED[name] = _placed(plain, capsule)
            ours.__pyx_capi__[name] = _PLACED[name].capsule
    with tempfile.TemporaryDirectory() as folder:
        # From another file, for a module is loaded once from each.
        file = shutil.copy(real.__file__, Path(folder) / Path(real.__file__).name)
        loader = importlib.machinery.ExtensionFileLoader("cuda.bindings.runtime", str(file))
        spec = importlib.util.spec_from_loader("cuda.bindings.runtime", loader)
        assert spec is not None
        try:
            sys.modules["cuda.bindings.cyruntime"] = ours
            copy = importlib.util.module_from_spec(spec)
            loader.exec_module(copy)
        finally:
            sys.modules["cuda.bindings.cyruntime"] = table
    assert copy is not real
    return copy


def _placed(name: str, capsule: Any) -> _Placed:
    signature = _api("PyCapsule_GetName", ctypes.c_char_p, ctypes.py_object)(capsule)
    answer, parameters = _parsed(signature.decode())
    kinds = [_ctype(kind) for kind in parameters]

    def function(*given: Any) -> int:
        bindings = _serving.bindings
        try:
            return bindings.serve(name, parameters, given)  # type: ignore[no-any-return]
        except BaseException as error:
            _serving.error = error
            return 0 if answer is ctypes.c_void_p else _UNKNOWN

    callback = ctypes.CFUNCTYPE(answer, *kinds)(function)
    kept = ctypes.create_string_buffer(signature)
    address = ctypes.cast(callback, ctypes.c_void_p)
    new = _api("PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    return _Placed(callback, kept, new(address, ctypes.addressof(kept), None))


def _parsed(signature: str) -> tuple[Any, tuple[str, ...]]:
    """`cudaError_t (int *, enum cudaDeviceAttr, int)`: what comes back, and the parameters without struct and enum."""
    match = re.fullmatch(r"(cudaError_t|char const \*) ?\((.*)\)", signature)
    assert match, signature
    parameters = [re.sub(r"^(struct|enum) ", "", part) for part in match[2].split(", ") if part != "void"]
    return (ctypes.c_int if match[1] == "cudaError_t" else ctypes.c_void_p), tuple(parameters)


def _ctype(kind: str) -> Any:
    if kind.endswith("*") or kind in (*_ADDRESSES, *_OBJECTS):
        return ctypes.c_void_p
    return _NUMBERS.get(kind, ctypes.c_int)  # else an enumeration


def _store(place: int, kind: Any, value: Any) -> None:
    kind.from_address(place).value = value


def _api(name: str, restype: Any, *argtypes: Any) -> Callable[..., Any]:
    return ctypes.PYFUNCTYPE(restype, *argtypes)((name, ctypes.pythonapi))
