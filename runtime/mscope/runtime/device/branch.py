"""Work within a captured graph that the device runs or leaves out: a conditional node, set by a kernel before it.

The graph's handle is made while the graph is captured; a kernel that is captured after that sets it, and the node runs
its body where it was set to 1. A body may hold kernels, copies and memsets, as a captured engine does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mscope.core.errors import BackendError
from mscope.runtime.device.cuda import Device, cuda_version
from mscope.runtime.device.stream import Stream

# CUDA 12.4, in which the first conditional nodes came.
_NEEDED = 12040
# From CUDA 13 on these names stand for what 12 called so, with data of edges among the parameters.
_SUFFIXES = {
    "cudaStreamGetCaptureInfo": "_v3",
    "cudaStreamUpdateCaptureDependencies": "_v2",
    "cudaGraphAddNode": "_v2",
}


def why_no_branches(device: Device) -> str:
    """Why graphs cannot branch here, and what to do about it; "" where they can."""
    driver = int(device.call("cudaDriverGetVersion"))
    if driver < _NEEDED:
        needs = f"conditional nodes need {cuda_version(_NEEDED)} or newer: update it"
        return f"the driver is for CUDA {cuda_version(driver)}, {needs}"
    return ""


class Branches:
    """Adds branches to what is being captured on a stream. Needs `why_no_branches` to be ""."""

    def __init__(self, device: Device, stream: Stream) -> None:
        self._device, self._stream = device, stream
        self._bindings = int(device.call("cudaRuntimeGetVersion"))
        # A body is captured on a stream of its own, while the other capture goes on.
        self._side = Stream(device)

    def condition(self) -> int:
        """A handle, 0 at each launch until a kernel sets it. Raises BackendError outside a capture."""
        default = self._device.api.cudaGraphConditionalHandleFlags.cudaGraphCondAssignDefault
        graph, _ = self._captured()
        return int(self._device.call("cudaGraphConditionalHandleCreate", graph, 0, int(default), doing="a branch"))

    def run_if(self, condition: int, enqueue: Callable[[Stream], None]) -> None:
        """What `enqueue` queues on the stream that it is given runs where `condition` is not 0; what follows waits.

        It must have been captured by itself before: the driver crashes when the capture around a body ends in which
        something was forbidden, whatever the order (NVIDIA/cuda-python#2918, open in November 2026).

        Raises:
            BackendError: something in it cannot be in a branch.
        """
        device, api = self._device, self._device.api
        graph, before = self._captured()
        params = api.cudaGraphNodeParams()
        params.type = api.cudaGraphNodeType.cudaGraphNodeTypeConditional
        params.conditional.handle = condition
        params.conditional.type = api.cudaGraphConditionalNodeType.cudaGraphCondTypeIf
        params.conditional.size = 1
        node = self._call("cudaGraphAddNode", graph, before, self._plain(len(before)), len(before), params)
        replace = int(api.cudaStreamUpdateCaptureDependenciesFlags.cudaStreamSetCaptureDependencies)
        self._call("cudaStreamUpdateCaptureDependencies", self._stream.handle, [node], self._plain(1), 1, replace)
        mode = api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        body, side = params.conditional.phGraph_out[0], self._side.handle
        device.call("cudaStreamBeginCaptureToGraph", side, body, None, None, 0, mode, doing="a branch")
        try:
            enqueue(self._side)
        except BaseException:
            # The body belongs to the graph around it, and goes with that.
            api.cudaStreamEndCapture(side)
            api.cudaGetLastError()
            raise
        device.call("cudaStreamEndCapture", side, doing="a branch")

    def close(self) -> None:
        """Gives the stream back; further calls do nothing."""
        self._side.close()

    def _captured(self) -> tuple[Any, list[Any]]:
        """The graph being captured, and the nodes that what comes next depends on."""
        status, _, graph, before, *_ = self._call("cudaStreamGetCaptureInfo", self._stream.handle)
        active = self._device.api.cudaStreamCaptureStatus.cudaStreamCaptureStatusActive
        if int(status) != int(active):
            raise BackendError("a branch is added to a stream that is not being captured")
        return graph, list(before or ())

    def _plain(self, count: int) -> list[Any]:
        """Data of edges that have none: the kernel before ends before the branch begins. CUDA takes nothing at all for
        them, cuda-python 12 does not (NVIDIA/cuda-python#617)."""
        return [self._device.api.cudaGraphEdgeData() for _ in range(count)]

    def _call(self, name: str, *arguments: Any) -> Any:
        return self._device.call(named(self._bindings, name), *arguments, doing="a branch")


def named(bindings: int, name: str) -> str:
    """What cuda-python for a CUDA version calls a function that is `name` from 13 on."""
    return name if bindings >= 13000 else name + _SUFFIXES.get(name, "")
