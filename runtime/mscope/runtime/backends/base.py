"""A runner executes one graph. The base class holds it to the contract; a backend fills in the hooks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from mscope.core.contract import BATCH, Graph, Tensor
from mscope.core.errors import BackendError, BundleError, InputError

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
Kernel = Literal["auto", "native", "function"]
KERNELS: tuple[Kernel, ...] = ("auto", "native", "function")


@dataclass(frozen=True)
class Declared:
    """One input or output as an opened graph declares it; an axis that it leaves open is a name or None."""

    name: str
    dtype: str
    axes: tuple[int | str | None, ...]


class Runner(ABC):
    """One graph on one backend. A context manager; nothing touches a device before `activate`.

    Subclasses implement `_open`, `_declared`, `_execute` and `_release`.
    """

    def __init__(self, graph: Graph, path: Path) -> None:
        self.graph = graph
        self.path = path
        self._active = False

    @property
    @abstractmethod
    def kernel(self) -> str:
        """Which implementation of the custom ops runs: "native" or "function". Known once active."""

    def __enter__(self) -> Self:
        self.activate()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def activate(self) -> None:
        """Opens the graph and checks its interface; does nothing when active already.

        Raises:
            BackendError: it cannot be opened here.
            BundleError: it is no graph that can be run, has data outside its file, or its names, dtypes or shapes are
                not those that the bundle's manifest makes of it.
        """
        if self._active:
            return
        try:
            self._open()
        except BaseException:
            self._release()
            raise
        self._active = True
        try:
            inputs, outputs = self._declared()
            self._check_declared("input", self.graph.inputs, inputs)
            self._check_declared("output", self.graph.outputs, outputs)
        except BaseException:
            self.close()
            raise

    def infer(self, feeds: Mapping[str, Array]) -> Arrays:
        """Runs the graph once.

        Args:
            feeds: an array for each input of the graph; not modified and not kept.

        Returns:
            An array for each output. They are new at each call and belong to the caller.

        Raises:
            InputError: a feed has a wrong name, dtype or shape, or holds NaN, infinity or an index out of range.
            BackendError: not active, the execution failed, or an output is misshapen or not finite.
        """
        if not self._active:
            raise BackendError(f"{self.path.name}: used before activate() or after close()")
        self._check_feeds(feeds)
        results = self._execute(feeds)
        batch = next(iter(feeds.values())).shape[0]
        for tensor in self.graph.outputs:
            self._check_output(tensor, results[tensor.name], batch)
        return results

    def close(self) -> None:
        """Releases everything; further calls do nothing."""
        if self._active:
            self._active = False
            self._release()

    @abstractmethod
    def _open(self) -> None:
        """Loads the graph. Raises BackendError, or BundleError, with the backend's own reason."""

    @abstractmethod
    def _declared(self) -> tuple[Sequence[Declared], Sequence[Declared]]:
        """Inputs and outputs of the loaded graph, in its order."""

    @abstractmethod
    def _execute(self, feeds: Mapping[str, Array]) -> Arrays:
        """Runs the loaded graph on checked feeds; outputs by name, in memory of their own."""

    @abstractmethod
    def _release(self) -> None:
        """Lets go of the loaded graph, or of what `_open` had made when it failed."""

    def _check_declared(self, kind: str, wanted: Sequence[Tensor], got: Sequence[Declared]) -> None:
        expected, found = [tensor.name for tensor in wanted], [tensor.name for tensor in got]
        if sorted(expected) != sorted(found):
            raise BundleError(f"{self.path.name}: {kind}s are {found}, expected {expected}: build the bundle again")
        by_name = {tensor.name: tensor for tensor in got}
        for tensor in wanted:
            declared = by_name[tensor.name]
            if declared.dtype != tensor.dtype:
                raise BundleError(
                    f"{self.path.name}: {kind} '{tensor.name}' is {declared.dtype}, expected {tensor.dtype}: "
                    "build the bundle again"
                )
            if not _axes_fit(tensor.axes, declared.axes):
                raise BundleError(
                    f"{self.path.name}: {kind} '{tensor.name}' has shape {_shown(declared.axes)}, "
                    f"expected {_shown(tensor.axes)}: build the bundle again"
                )

    def _check_feeds(self, feeds: Mapping[str, Array]) -> None:
        if set(feeds) != set(self.graph.input_names):
            raise InputError(f"the {self.graph.stage} graph takes {list(self.graph.input_names)}, got {sorted(feeds)}")
        batch = feeds[self.graph.input_names[0]].shape[:1]
        for tensor in self.graph.inputs:
            array = feeds[tensor.name]
            if array.dtype != np.dtype(tensor.dtype):
                raise InputError(f"'{tensor.name}': got dtype {array.dtype}, expected {tensor.dtype}")
            if array.shape != batch + tensor.axes[1:]:
                raise InputError(f"'{tensor.name}': got shape {array.shape}, expected {_shown(tensor.axes)}")
        for tensor in self.graph.inputs:
            self._check_values(tensor, feeds)

    def _check_values(self, tensor: Tensor, feeds: Mapping[str, Array]) -> None:
        array = feeds[tensor.name]
        if tensor.dtype == "float32":
            if not np.isfinite(array).all():
                raise InputError(f"'{tensor.name}' holds NaN or infinity")
        elif array.size:
            regions = feeds["embeddings"].shape[1]
            if array.min() < 0 or array.max() >= regions:
                raise InputError(f"'{tensor.name}' holds indices outside 0 ... {regions - 1}")

    def _check_output(self, tensor: Tensor, array: Array, batch: int) -> None:
        if array.dtype != np.dtype(tensor.dtype):
            raise BackendError(f"{self.path.name}: '{tensor.name}' came back as {array.dtype}, not {tensor.dtype}")
        expected = tuple(batch if axis == BATCH else axis for axis in tensor.axes)
        # A name other than the batch's stands for any size: calibration watches tensors of (2, 50*batch, C).
        fits = (axis == size or isinstance(axis, str) for axis, size in zip(expected, array.shape, strict=False))
        if len(expected) != array.ndim or not all(fits):
            raise BackendError(
                f"{self.path.name}: '{tensor.name}' came back with shape {array.shape}, "
                f"expected {_shown(expected)}: build the bundle again"
            )
        if not np.isfinite(array).all():
            raise BackendError(
                f"{self.path.name}: '{tensor.name}' came back with NaN or infinity from finite input: "
                "the weights or the precision are unfit ('mscope-export verify' compares them with PyTorch)"
            )


def _axes_fit(wanted: tuple[int | str, ...], got: tuple[int | str | None, ...]) -> bool:
    # An axis left open where the contract has a size is checked with each output; a fixed batch never fits.
    return len(wanted) == len(got) and all(
        declared == size or not isinstance(declared, int) for size, declared in zip(wanted, got, strict=True)
    )


def _shown(axes: Sequence[int | str | None]) -> str:
    return f"({', '.join('?' if axis is None else str(axis) for axis in axes)})"
