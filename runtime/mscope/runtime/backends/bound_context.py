"""An execution context with its shapes and addresses set for good, and the CUDA graph of what it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mscope.core.errors import BackendError
from mscope.runtime.device.stream import Graph, Stream

Complaints = Callable[[], str]


class BoundContext:
    """Runs one batch size over one set of addresses.

    The first run is launched kernel by kernel: TensorRT allocates at that, which a capture forbids, and a shape that
    comes once is not worth a graph. The second is too, and is captured; from the third on the graph is launched.

    Args:
        context: an execution context of its own; nobody else sets it.
        shapes: of the inputs, batch included.
        addresses: of every input and output.
        complaints: what the library said last.
        capture: False launches kernel by kernel for good, as a profiler of layers needs it.

    Raises:
        BackendError: the library refuses a shape or an address.
    """

    def __init__(
        self,
        context: Any,
        shapes: Mapping[str, tuple[int, ...]],
        addresses: Mapping[str, int],
        complaints: Complaints,
        *,
        capture: bool = True,
    ) -> None:
        self._context: Any = context
        self._complaints = complaints
        self._graph: Graph | None = None
        self._capture = capture
        self._runs = 0
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise BackendError(refused(f"TensorRT does not take '{name}' of shape {shape}", complaints()))
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise BackendError(refused(f"TensorRT does not take the memory of '{name}'", complaints()))
        try:
            unset = context.infer_shapes()
        except RuntimeError as error:  # the shapes are known, and do not go together
            raise BackendError(refused("TensorRT does not take the shapes", f"{complaints()}; {error}")) from None
        if unset:
            raise BackendError(refused(f"TensorRT wants to know more of {', '.join(unset)}", complaints()))

    def run(self, stream: Stream) -> str:
        """Queues one run. Returns why it could not be captured, at the time that this was tried; "" otherwise.

        Raises:
            BackendError: it could not be queued.
        """
        if self._graph is not None:
            self._graph.launch(stream)
            return ""
        self.enqueue(stream)
        self._runs += 1
        if self._runs != 2 or not self._capture:
            return ""
        if reason := self.why_not_captured(stream):
            return reason
        try:
            self._graph = stream.capture(lambda: self.enqueue(stream))
        except BackendError as error:
            return str(error)
        return ""

    def why_not_captured(self, stream: Stream) -> str:
        """Why a graph cannot hold it, which TensorRT-RTX says before anything is tried; "" where it can.

        TensorRT's word is what becomes of the attempt.
        """
        asked = getattr(self._context, "is_stream_capturable", None)
        if asked is None or asked(stream.handle):
            return ""
        return "the engine allocates or waits while it runs"

    def close(self) -> None:
        """Gives context and graph back; neither may be running."""
        if self._graph is not None:
            self._graph.close()
        self._graph = self._context = None

    def enqueue(self, stream: Stream) -> None:
        """Queues it kernel by kernel, or into what is being captured on the stream. Raises BackendError."""
        if not self._context.execute_async_v3(stream.handle):
            raise BackendError(refused("TensorRT did not run the engine", self._complaints()))


def refused(what: str, why: str) -> str:
    """One line; a lack of memory, which TensorRT tells in many ways, says what to do about it."""
    hint = ""
    if "out of memory" in why.lower() or "outofmemory" in why.lower().replace(" ", ""):
        hint = ": the GPU is out of memory, use a smaller batch, or end what else uses it"
    return f"{what} ({' '.join(why.split())}){hint}"
