"""The part of tests/fake_cuda.py that captures streams into graphs: straight ones, and branches.

A branch must wait for the kernel that sets it, what follows must wait for the branch, its body holds no waits for other
streams, each handle belongs to one node, and a body is neither destroyed nor instantiated by itself. Nothing in a body
may be forbidden: real drivers do not survive that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Op = Callable[[], None]


class Misuse(AssertionError):
    """The program did what a real device would not forgive."""


@dataclass
class FakeStream:
    queue: list[Op] = field(default_factory=list)
    done: int = 0
    capture: FakeGraph | None = None
    broken: bool = False


@dataclass
class FakeGraph:
    """What was captured; `beside` is a node that was added and that the capture does not depend on yet."""

    ops: list[Op] = field(default_factory=list)
    alive: bool = True
    is_body: bool = False
    invalid: bool = False
    bodies: list[FakeGraph] = field(default_factory=list)
    handles: dict[int, _Handle] = field(default_factory=dict)
    beside: object = None
    wrong_kinds: list[str] = field(default_factory=list)


@dataclass
class _Handle:
    word: npt.NDArray[np.uint32]
    default: int | None
    nodes: int = 0


@dataclass
class FakeEvent:
    stream: int | None = None
    position: int = 0
    timing: bool = True
    ms: float | None = None


class _Conditional:
    """cudaConditionalNodeParams; `phGraph_out` is filled in when the node is added."""

    __slots__ = ("handle", "phGraph_out", "size", "type")


class cudaGraphNodeParams:
    __slots__ = ("conditional", "type")

    def __init__(self) -> None:
        self.conditional = _Conditional()


class CapturesStreams:
    """The runtime's functions of graphs, over FakeStreams."""

    cudaGraphNodeParams = cudaGraphNodeParams
    _streams: dict[int, FakeStream]
    _executables: int
    _graphs: int
    _device_ms: float
    host_ms: float
    log: list[str]

    def __getattr__(self, name: str) -> Any:  # what FakeCuda has beside
        raise AttributeError(name)

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Any]:
        target = self._stream(stream)
        if target.capture is not None:
            raise Misuse("a capture within a capture")
        target.capture, target.broken = FakeGraph(), False
        return (self.cudaError_t.cudaSuccess,)

    def cudaStreamBeginCaptureToGraph(
        self, stream: int, graph: FakeGraph, dependencies: Any, dependencyData: Any, numDependencies: int, mode: Any
    ) -> tuple[Any]:
        target = self._stream(stream)
        if target.capture is not None:
            raise Misuse("a capture within a capture")
        _check_edges(dependencyData, numDependencies)
        if dependencies is not None or numDependencies or graph.ops:
            raise Misuse("only bodies from their beginning are captured here")
        target.capture, target.broken = graph, False
        return (self.cudaError_t.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, Any]:
        target = self._stream(stream)
        graph, target.capture = target.capture, None
        if graph is not None and any(body.invalid for body in graph.bodies):
            raise Misuse("the driver dies: the body of a branch was invalidated (NVIDIA/cuda-python#2918)")
        if graph is None or target.broken:
            if graph is not None:
                graph.invalid = True
            return self.cudaError_t.cudaErrorStreamCaptureInvalidated, None
        if graph.beside is not None:
            return self.cudaError_t.cudaErrorStreamCaptureUnjoined, None
        self._graphs += not graph.is_body
        return self.cudaError_t.cudaSuccess, graph

    def cudaStreamGetCaptureInfo(self, stream: int) -> tuple[Any, Any, int, Any, Any, Any, int]:
        graph, statuses = self._stream(stream).capture, self.cudaStreamCaptureStatus
        if graph is None:
            none = statuses.cudaStreamCaptureStatusNone
            return self.cudaError_t.cudaSuccess, none, 0, None, None, None, 0
        # What comes next depends on the node that came last.
        last = [(graph, len(graph.ops))] if graph.ops else None
        active = statuses.cudaStreamCaptureStatusActive
        return self.cudaError_t.cudaSuccess, active, 1, graph, last, None, len(last or ())

    def cudaStreamUpdateCaptureDependencies(
        self, stream: int, dependencies: Any, dependencyData: Any, numDependencies: int, flags: int
    ) -> tuple[Any]:
        graph = self._stream(stream).capture
        if graph is None:
            return (self.cudaError_t.cudaErrorIllegalState,)
        _check_edges(dependencyData, numDependencies)
        replace = self.cudaStreamUpdateCaptureDependenciesFlags.cudaStreamSetCaptureDependencies
        if flags != int(replace) or dependencies != [graph.beside] or numDependencies != 1:
            raise Misuse("the capture does not come to depend on the branch alone")
        graph.beside = None
        return (self.cudaError_t.cudaSuccess,)

    def cudaGraphConditionalHandleCreate(
        self, graph: FakeGraph, defaultLaunchValue: int, flags: int
    ) -> tuple[Any, int]:
        word = np.zeros(1, np.uint32)
        handle = word.ctypes.data
        graph.handles[handle] = _Handle(word, defaultLaunchValue if flags else None)
        return self.cudaError_t.cudaSuccess, handle

    def cudaGraphAddNode(
        self, graph: FakeGraph, pDependencies: Any, dependencyData: Any, numDependencies: int, nodeParams: Any
    ) -> tuple[Any, Any]:
        _check_edges(dependencyData, numDependencies)
        conditional = nodeParams.conditional
        if nodeParams.type != self.cudaGraphNodeType.cudaGraphNodeTypeConditional:
            raise Misuse("only conditional nodes are added here")
        if conditional.type != self.cudaGraphConditionalNodeType.cudaGraphCondTypeIf or conditional.size != 1:
            raise Misuse("only IF nodes of one body are added here")
        if pDependencies != [(graph, len(graph.ops))] or numDependencies != 1:
            raise Misuse("the branch does not wait for the kernel that decides")
        handle = graph.handles.get(int(conditional.handle))
        if handle is None:
            return self.cudaError_t.cudaErrorInvalidValue, None
        handle.nodes += 1
        body, word = FakeGraph(is_body=True), handle.word
        conditional.phGraph_out = [body]
        graph.bodies.append(body)

        def branch() -> None:
            if word[0]:
                for op in body.ops:
                    op()

        graph.ops.append(branch)
        graph.beside = object()
        graph.wrong_kinds = body.wrong_kinds
        return self.cudaError_t.cudaSuccess, graph.beside

    def cudaGraphInstantiate(self, graph: FakeGraph, flags: int) -> tuple[Any, Any]:
        if not graph.alive:
            raise Misuse("instantiates a graph that was destroyed")
        if graph.is_body:
            raise Misuse("instantiates the body of a branch")
        if graph.wrong_kinds or any(handle.nodes != 1 for handle in graph.handles.values()):
            return self.cudaError_t.cudaErrorInvalidValue, None
        self._executables += 1
        return self.cudaError_t.cudaSuccess, FakeGraph(list(graph.ops), handles=dict(graph.handles))

    def cudaGraphDestroy(self, graph: FakeGraph) -> tuple[Any]:
        if graph.is_body:
            raise Misuse("destroys the body of a branch, which belongs to the graph around it")
        if not graph.alive:
            raise Misuse("destroys a graph twice")
        graph.alive = False
        self._graphs -= 1
        return (self.cudaError_t.cudaSuccess,)

    def cudaGraphLaunch(self, graphExec: FakeGraph, stream: int) -> tuple[Any]:
        if not graphExec.alive:
            raise Misuse("launches a graph that was destroyed")
        queue, queued = self._stream(stream).queue, self.host_ms

        def begin() -> None:
            self._device_ms = max(self._device_ms, queued)
            self.log.append("graph")
            for handle in graphExec.handles.values():
                if handle.default is not None:
                    handle.word[0] = handle.default

        queue.append(begin)
        queue.extend(graphExec.ops)
        return (self.cudaError_t.cudaSuccess,)

    def cudaGraphExecDestroy(self, graphExec: FakeGraph) -> tuple[Any]:
        self._check_idle("cudaGraphExecDestroy")
        if not graphExec.alive:
            raise Misuse("destroys a graph twice")
        graphExec.alive = False
        self._executables -= 1
        return (self.cudaError_t.cudaSuccess,)


def _check_edges(data: Any, count: int) -> None:
    """As cuda-python 12 has it, which takes nothing but one for each edge."""
    if len(data or ()) != count:
        raise RuntimeError(f"List is too small: {len(data or ())} < {count}")
