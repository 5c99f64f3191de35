"""The cascade with everything on the device but the decision."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mscope.core.contract import Stage, Tensor
from mscope.core.errors import BackendError, InputError
from mscope.core.manifest import Manifest
from mscope.runtime.backends.cascade import Cascade, MayRefine, Rows, Seen
from mscope.runtime.backends.device_runner import DeviceRunner
from mscope.runtime.device.arrays import DeviceArray, device_array
from mscope.runtime.device.buckets import runs
from mscope.runtime.device.cuda import Memory
from mscope.runtime.device.stream import Stream
from mscope.runtime.device.tensors import DeviceTensor, StagedTensor
from mscope.runtime.preprocess import check_finite
from mscope.runtime.result import Floats, Ints, Outcome

# What the fine stage takes from the coarse one.
_CARRIED = ("image", "features", "embeddings")


@dataclass(frozen=True)
class _Kept:
    """The fine stage's first inputs on the device: their addresses, the rows in use and the batch they run as."""

    addresses: dict[str, int]
    rows: int
    batch: int


class DeviceCascade(Cascade):
    """Both stages on one stream of one device, over memory that is allocated once.

    The image goes up once. Features and embeddings stay; logits and importance come down, which is the only time that
    the host waits before the end; the chosen indices go up. Images that go on are moved together on the device, a copy
    for each unbroken stretch of rows: at most rows / 2 stretches, and none at batch 1 or where all go on. (A gather
    kernel would be one launch, but needs nvrtc or a compiled library that every install must then have.)

    One batch at a time: calls from several threads wait for each other.
    """

    def __init__(self, manifest: Manifest, runners: Mapping[Stage, DeviceRunner]) -> None:
        super().__init__(manifest)
        self._runners = runners
        self._device = next(iter(runners.values())).device
        self._smallest = max(runner.smallest for runner in runners.values())
        self.largest: int = min(runner.largest for runner in runners.values())
        if self._smallest > self.largest:
            raise BackendError(
                f"no batch fits all stages: one takes {self._smallest} or more, another at most {self.largest}: "
                "build the engines again with one --batch"
            )
        self._lock = threading.Lock()
        self._memory = Memory(self._device)
        self._device.make_current()
        self._stream = Stream(self._device)
        self._tensors: dict[tuple[str, str], DeviceTensor] = {}
        try:
            self._allocate()
        except BaseException:
            self.close()
            raise

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(note for runner in self._runners.values() for note in runner.notes))

    def take(self, array: Any) -> DeviceArray:
        """Another library's batch on the device, to be given to `run`. Raises InputError where it does not fit."""
        shape = (self.config.channels, self.config.height, self.config.width)
        # The lock, for what another thread is capturing on the stream must not take this wait in.
        with self._lock:
            self._device.make_current()
            return device_array(array, shape, self._device, self._stream)

    def run(
        self, image: Any, eta: float | None, *, refine_all: bool = False, may_refine: MayRefine | None = None
    ) -> Outcome:
        with self._lock:
            self._device.make_current()
            try:
                return super().run(image, eta, refine_all=refine_all, may_refine=may_refine)
            except BaseException:
                # Nothing may still be running on memory that the next batch writes.
                with contextlib.suppress(BackendError):
                    self._stream.synchronize()
                raise

    def close(self) -> None:
        self._stream.close()
        self._memory.release()
        self._tensors = {}

    def _allocate(self) -> None:
        for stage, graph in self._graphs.items():
            for tensor in graph.inputs:
                if tensor.name == "image" and stage != "fine":
                    self._stage("image", tensor)
                elif tensor.name in ("selected", "remaining"):
                    self._stage(stage, tensor)
            for tensor in graph.outputs:
                if tensor.name in ("logits", "importance"):
                    self._stage(stage, tensor)
                else:
                    self._tensors[stage, tensor.name] = DeviceTensor(self._memory, self._stream, tensor, self.largest)

    def _stage(self, owner: str, tensor: Tensor) -> None:
        self._tensors[owner, tensor.name] = StagedTensor(self._device, self._memory, self._stream, tensor, self.largest)

    def _staged(self, owner: str, name: str) -> StagedTensor:
        tensor = self._tensors[owner, name]
        assert isinstance(tensor, StagedTensor)
        return tensor

    def _compacted(self, name: str) -> DeviceTensor:
        """Memory for the images that go on, which only mixed batches need."""
        if ("compact", name) not in self._tensors:
            tensor = next(tensor for tensor in self._graphs["fine"].inputs if tensor.name == name)
            self._tensors["compact", name] = DeviceTensor(self._memory, self._stream, tensor, self.largest)
        return self._tensors["compact", name]

    def _run_full(self, image: Floats | DeviceArray) -> Floats:
        address, batch = self._place(image, "full")
        logits = self._staged("full", "logits")
        self._runners["full"].enqueue(batch, {"image": address, "logits": logits.address}, self._stream)
        logits.download(len(image))
        self._stream.synchronize()
        answer = self._read("full", "logits", len(image))
        self._check("full", {"logits": answer}, image)
        return answer

    def _run_coarse(self, image: Floats | DeviceArray) -> Seen:
        address, batch = self._place(image, "coarse")
        outputs = {name: self._tensors["coarse", name] for name in self._graphs["coarse"].output_names}
        addresses = {"image": address} | {name: tensor.address for name, tensor in outputs.items()}
        self._runners["coarse"].enqueue(batch, addresses, self._stream)
        for name in ("logits", "importance"):
            self._staged("coarse", name).download(len(image))
        self._stream.synchronize()
        answers = {name: self._read("coarse", name, len(image)) for name in ("logits", "importance")}
        self._check("coarse", answers, image)
        kept = _Kept({name: addresses[name] for name in _CARRIED}, len(image), batch)
        return Seen(answers["logits"], answers["importance"], kept)

    def _compact(self, kept: _Kept, rows: Rows) -> _Kept:
        if rows.size == kept.rows:
            return kept
        stretches = list(runs(rows.tolist()))
        addresses = {}
        for name in _CARRIED:
            target = self._compacted(name)
            for source, place, count in stretches:
                self._stream.copy(
                    target.address + place * target.row_bytes,
                    kept.addresses[name] + source * target.row_bytes,
                    count * target.row_bytes,
                    "DeviceToDevice",
                )
            addresses[name] = target.address
        return _Kept(addresses, rows.size, self._bucket("fine", rows.size))

    def _run_fine(self, kept: _Kept, selected: Ints, remaining: Ints) -> Floats:
        addresses = dict(kept.addresses)
        for name, indices in (("selected", selected), ("remaining", remaining)):
            tensor = self._staged("fine", name)
            tensor.host[: kept.rows] = indices
            tensor.upload(kept.rows)
            addresses[name] = tensor.address
        logits = self._staged("fine", "logits")
        self._runners["fine"].enqueue(kept.batch, addresses | {"logits": logits.address}, self._stream)
        logits.download(kept.rows)
        self._stream.synchronize()
        answer = self._read("fine", "logits", kept.rows)
        self._runners["fine"].check_output("logits", answer)
        return answer

    def _place(self, image: Floats | DeviceArray, stage: Stage) -> tuple[int, int]:
        """The address of the images on the device and the batch that they are run as."""
        ours, rows = self._staged("image", "image"), len(image)
        if isinstance(image, DeviceArray):
            if image.aligned and rows >= self._smallest:
                # Read in place: exactly as many rows as there are, for behind them lies someone else's memory.
                return image.address, rows
            self._stream.copy(ours.address, image.address, rows * ours.row_bytes, "DeviceToDevice")
        else:
            ours.host[:rows] = image
            ours.upload(rows)
        return ours.address, self._bucket(stage, rows)

    def _bucket(self, stage: Stage, rows: int) -> int:
        # The stages' profiles may differ: what one stage leaves must do for the next.
        return min(max(self._runners[stage].bucket(rows), self._smallest), self.largest)

    def _read(self, owner: str, name: str, rows: int) -> Floats:
        answer: Floats = self._staged(owner, name).host[:rows].copy()
        return answer

    def _check(self, stage: Stage, answers: Mapping[str, Floats], image: Floats | DeviceArray) -> None:
        try:
            for name, answer in answers.items():
                self._runners[stage].check_output(name, answer)
        except BackendError:
            if isinstance(image, DeviceArray):
                self._check_given(image)
            raise

    def _check_given(self, image: DeviceArray) -> None:
        """An array on the device is not read beforehand; where the answer is NaN, its numbers may be the reason."""
        ours = self._staged("image", "image")
        self._stream.copy(ours.address, image.address, len(image) * ours.row_bytes, "DeviceToDevice")
        ours.download(len(image))
        self._stream.synchronize()
        for row in range(len(image)):
            try:
                check_finite(ours.host[row], f"tensor, image {row}")
            except InputError as error:
                raise error from None
