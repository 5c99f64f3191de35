"""Both stages of one image as one CUDA graph, the exit decided on the device: no wait between the stages.

    coarse engine -> confidence, exit, ranking (one kernel) -> if it goes on: fine engine -> downloads

`core.cascade` keeps the last word. The kernel's confidence differs from the host's by roundings, so that its threshold
is raised by as much as they can differ: the fine engine runs wherever the host would have it run, and for an image
within some 4e-6 of eta perhaps in vain. The host then decides by its own confidence which logits are the answer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mscope.core.contract import Stage, Tensor
from mscope.core.errors import BackendError
from mscope.runtime.backends.device_runner import DeviceRunner
from mscope.runtime.device.branch import Branches, why_no_branches
from mscope.runtime.device.cuda import Device, Memory
from mscope.runtime.device.stream import Graph, Stream
from mscope.runtime.device.tensors import StagedTensor
from mscope.runtime.result import Ints

_LEAVE_IT_OUT = "leave --decide device out"


class DeviceDecision:
    """The graph of one image over memory that the cascade owns, and what the device reports of its decision.

    Args:
        device, stream: where.
        runners: of the coarse and the fine stage.
        addresses: by stage, of each of its inputs and outputs.
        downloads: of each launch, one row each.
        regions, count: Nc, and K that are refined.
        temperature: of the coarse softmax.

    Raises:
        BackendError: no CUDA kernels for this device, a driver or cuda-python too old, or engines that no graph holds.
    """

    def __init__(
        self,
        device: Device,
        stream: Stream,
        runners: Mapping[Stage, DeviceRunner],
        addresses: Mapping[Stage, Mapping[str, int]],
        downloads: Sequence[StagedTensor],
        *,
        classes: int,
        regions: int,
        count: int,
        temperature: float,
    ) -> None:
        from mscope.plugins import cuda
        from mscope.plugins.cuda_select import MOST_REGIONS, SelectParams, confidence_margin

        if reason := cuda.why_missing(device.index):
            raise BackendError(f"--decide device needs the CUDA kernels: {reason}")
        if reason := why_no_branches(device):
            raise BackendError(f"--decide device: {reason}, or {_LEAVE_IT_OUT}")
        if regions > MOST_REGIONS:
            raise BackendError(f"--decide device ranks up to {MOST_REGIONS} regions, got {regions}: {_LEAVE_IT_OUT}")
        self._device, self._stream, self._downloads = device, stream, (*downloads,)
        self._margin = confidence_margin(classes)
        self._memory = Memory(device)
        self._branches: Branches | None = None
        self._graph: Graph | None = None
        self._told: float | None = None
        self._closed = False
        try:
            self._threshold = self._staged("threshold", "float32", ())
            self._report = self._staged("report", "int64", (1 + count,))
            coarse, fine = addresses["coarse"], addresses["fine"]
            written = (fine["selected"], fine["remaining"], self._report.address)
            self._params = SelectParams(
                1, classes, regions, count, coarse["logits"], coarse["importance"], temperature,
                self._threshold.address, *written, 0,
            )  # fmt: skip
            self._branches = Branches(device, stream)
            self._graph = self._captured(runners, addresses, self._branches)
        except BaseException:
            self.close()
            raise

    def launch(self, eta: float, *, refine_all: bool) -> None:
        """Queues the image that lies in the cascade's memory; the downloads are done when the stream is synchronised.

        Args:
            eta: as for `core.cascade.exits_early`.
            refine_all: it goes on, however sure the coarse stage is.
        """
        assert self._graph is not None
        threshold = np.inf if refine_all else self.threshold(eta)
        if threshold != self._told:
            self._threshold.host[0] = threshold
            self._threshold.upload(1)
            self._told = threshold
        self._graph.launch(self._stream)

    def threshold(self, eta: float) -> float:
        """What the kernel compares its confidence with: above eta by as much as the two sides' roundings differ."""
        raised = np.float32(eta * (1.0 + self._margin))
        return float(np.nextafter(raised, np.float32(np.inf))) if eta > 0.0 else 0.0

    @property
    def went_on(self) -> bool:
        """Whether the fine engine ran at the last launch."""
        return bool(self._report.host[0, 0])

    @property
    def selected(self) -> Ints:
        """(1, K), the regions that the device chose."""
        chosen: Ints = self._report.host[:, 1:].copy()
        return chosen

    def close(self) -> None:
        """Waits for the work and gives everything back; further calls do nothing."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(BackendError):
            self._stream.synchronize()
        if self._graph is not None:
            self._graph.close()
        if self._branches is not None:
            self._branches.close()
        self._graph = self._branches = None
        self._memory.release()

    def _staged(self, name: str, dtype: Any, shape: tuple[int, ...]) -> StagedTensor:
        tensor = Tensor(name, dtype, ("batch", *shape))
        return StagedTensor(self._device, self._memory, self._stream, tensor, 1)

    def _captured(
        self,
        runners: Mapping[Stage, DeviceRunner],
        addresses: Mapping[Stage, Mapping[str, int]],
        branches: Branches,
    ) -> Graph:
        # Each runs once before it is captured; the first indices are the zeros that the memory was filled with.
        coarse = runners["coarse"].recorder(1, addresses["coarse"], self._stream)
        fine = runners["fine"].recorder(1, addresses["fine"], self._stream)
        self._select(0)
        self._stream.synchronize()

        def record() -> None:
            condition = branches.condition()
            coarse(self._stream)
            self._select(condition)
            branches.run_if(condition, fine)
            for tensor in (*self._downloads, self._report):
                tensor.download(1)

        try:
            # By itself first: what cannot be captured must not come up within the branch (Branches.run_if).
            self._stream.capture(lambda: fine(self._stream)).close()
            return self._stream.capture(record)
        except BackendError as error:
            what = "--decide device: the stages do not become one graph"
            raise BackendError(f"{what} ({error}): {_LEAVE_IT_OUT}") from None

    def _select(self, condition: int) -> None:
        from mscope.plugins.cuda_select import select

        self._params.condition = condition
        select(self._params, self._device.index, self._stream.handle)
