"""A runner whose tensors are addresses on a CUDA device; the arrays of `infer` are copied there and back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from mscope.core.contract import Graph
from mscope.core.errors import BackendError
from mscope.runtime.backends.base import Array, Arrays, Runner
from mscope.runtime.device.cuda import Device, Memory
from mscope.runtime.device.stream import Stream
from mscope.runtime.device.tensors import StagedTensor


class DeviceRunner(Runner):
    """Runs one graph on a CUDA device.

    Subclasses implement `enqueue`, `bucket` and the hooks of Runner, and set `smallest` and `largest` when they open.

    Attributes:
        smallest, largest: the batches that the graph takes.
        notes: what did not go as it should have, though the answers are right; lines for people.
    """

    smallest: int = 1
    largest: int = 1

    def __init__(self, graph: Graph, path: Path) -> None:
        super().__init__(graph, path)
        self.notes: list[str] = []
        self._opened_device: Device | None = None
        self._exchange: _Exchange | None = None

    @property
    def device(self) -> Device:
        """The device that it runs on. Raises BackendError before `activate`."""
        if self._opened_device is None:
            raise BackendError(f"{self.path.name}: used before activate() or after close()")
        return self._opened_device

    @abstractmethod
    def enqueue(self, batch: int, addresses: Mapping[str, int], stream: Stream) -> None:
        """Queues the graph on `stream`.

        Args:
            batch: images, in `smallest` ... `largest`.
            addresses: of each input and output, multiples of 256, of memory for `batch` rows that stays until the
                stream is synchronised.
            stream: where.
        """

    @abstractmethod
    def bucket(self, rows: int) -> int:
        """The batch to run `rows` images as, so that few sizes occur: in `smallest` ... `largest`, at least `rows`."""

    def recorder(self, batch: int, addresses: Mapping[str, int], stream: Stream) -> Callable[[Stream], None]:
        """What queues the graph on a stream that is being captured, any number of times; closed with the runner.

        The graph is queued on `stream` once, as capturing wants it. Arguments as of `enqueue`; addresses stay valid.

        Raises:
            BackendError: no CUDA graph can hold it.
        """
        raise BackendError(
            f"{self.path.name} runs on streams of its backend's own, which no CUDA graph can hold: "
            "leave --decide device out, or take engines"
        )

    def check_output(self, name: str, array: Array) -> None:
        """Raises BackendError where an output has another shape or dtype than the contract's, NaN or infinity."""
        tensor = next(tensor for tensor in self.graph.outputs if tensor.name == name)
        self._check_output(tensor, array, len(array))

    def _execute(self, feeds: Mapping[str, Array]) -> Arrays:
        rows = len(next(iter(feeds.values())))
        if not rows:  # not every engine takes an empty batch
            return {
                tensor.name: np.zeros((0, *(int(axis) for axis in tensor.axes[1:])), tensor.dtype)
                for tensor in self.graph.outputs
            }
        starts = range(0, rows, self.largest)
        with self.device.current():
            if self._exchange is None:
                self._exchange = _Exchange(self)
            parts = [
                self._exchange.run({name: array[start : start + self.largest] for name, array in feeds.items()})
                for start in starts
            ]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.graph.output_names}

    def _release(self) -> None:
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None
        self._opened_device = None


class _Exchange:
    """Page-locked memory for every input and output of a runner, and a stream of its own."""

    def __init__(self, runner: DeviceRunner) -> None:
        self._runner = runner
        self._memory = Memory(runner.device)
        self._stream = Stream(runner.device)
        try:
            self._tensors = {
                tensor.name: StagedTensor(runner.device, self._memory, self._stream, tensor, runner.largest)
                for tensor in (*runner.graph.inputs, *runner.graph.outputs)
            }
        except BaseException:
            self.close()
            raise

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        runner, rows = self._runner, len(next(iter(feeds.values())))
        try:
            for name, array in feeds.items():
                self._tensors[name].host[:rows] = array
                self._tensors[name].upload(rows)
            addresses = {name: tensor.address for name, tensor in self._tensors.items()}
            runner.enqueue(runner.bucket(rows), addresses, self._stream)
            for name in runner.graph.output_names:
                self._tensors[name].download(rows)
        finally:
            self._stream.synchronize()
        return {name: self._tensors[name].host[:rows].copy() for name in runner.graph.output_names}

    def close(self) -> None:
        self._stream.close()
        self._memory.release()
