"""The cascade with everything on the device but the decision."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mscope.core.cascade import confidence, exits_early, select_regions
from mscope.core.contract import Stage, Tensor
from mscope.core.errors import BackendError, InputError
from mscope.core.geometry import coarse_grid
from mscope.core.manifest import Manifest
from mscope.runtime.backends.cascade import Cascade, MayRefine, Rows, Seen
from mscope.runtime.backends.device_runner import DeviceRunner
from mscope.runtime.device.arrays import DeviceArray, device_array
from mscope.runtime.device.buckets import runs
from mscope.runtime.device.clock import EventClock
from mscope.runtime.device.cuda import Memory
from mscope.runtime.device.decision import DeviceDecision
from mscope.runtime.device.pictures import Pictures, PictureStage
from mscope.runtime.device.stream import Stream
from mscope.runtime.device.tensors import DeviceTensor, StagedTensor
from mscope.runtime.preprocess import Preprocessor, check_finite
from mscope.runtime.resampling import Crop
from mscope.runtime.result import Floats, Ints, Outcome

Batch = Floats | DeviceArray | Pictures

# What the fine stage takes from the coarse one.
_CARRIED = ("image", "features", "embeddings")
# Arrays of the caller's that are known when they come again: an engine keeps a context for each, of 32 in all.
_MOST_KNOWN = 16


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

    Args:
        manifest: the bundle's.
        runners: of its stages; activated.
        scales: it takes `Pictures`, which the device scales.
        decides: a single image goes through as one graph, in which the device decides (`DeviceDecision`).
    """

    def __init__(
        self,
        manifest: Manifest,
        runners: Mapping[Stage, DeviceRunner],
        *,
        scales: bool = False,
        decides: bool = False,
    ) -> None:
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
        self._closed = False
        self._memory = Memory(self._device)
        with self._device.current():
            self._stream = Stream(self._device)
        self._clock = EventClock(self._device, self._stream)
        self._tensors: dict[tuple[str, str], DeviceTensor] = {}
        self._known: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._pictures: PictureStage | None = None
        self._decision: DeviceDecision | None = None
        try:
            with self._device.current():
                self._allocate()
                self._stream.synchronize()
                if scales:
                    shape = (self.config.channels, self.config.height, self.config.width)
                    levels = Preprocessor(manifest.preprocessing, manifest.config).levels
                    self._pictures = PictureStage(self._device, self._stream, shape, levels)
                if decides:
                    self._decision = self._decision_graph()
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
        with self._lock, self._device.current():
            self._check_open()
            return device_array(array, shape, self._device, self._stream)

    def run(
        self, image: Any, eta: float | None, *, refine_all: bool = False, may_refine: MayRefine | None = None
    ) -> Outcome:
        with self._lock, self._device.current():
            self._check_open()
            try:
                if self._decision is not None and len(image) == 1 and may_refine is None and eta is not None:
                    return self._run_decided(self._decision, image, eta, refine_all=refine_all)
                return super().run(image, eta, refine_all=refine_all, may_refine=may_refine)
            except BaseException:
                # Nothing may still be running on memory that the next batch writes.
                with contextlib.suppress(BackendError):
                    self._stream.synchronize()
                raise

    def time_on_device(self, on: bool) -> bool:
        self._clock.on = on
        return on

    def close(self) -> None:
        with self._lock:  # another thread's batch is let finish
            if self._closed:
                return
            self._closed = True
            with contextlib.suppress(BackendError):
                self._stream.synchronize()
            if self._decision is not None:
                self._decision.close()
            if self._pictures is not None:
                self._pictures.close()
            self._clock.close()
            self._stream.close()
            self._memory.release()
            self._tensors = {}

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("the bundle is used after close()")

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

    def _decision_graph(self) -> DeviceDecision:
        if self._smallest > 1:
            raise BackendError(
                f"--decide device is for single images, these engines take {self._smallest} or more: build them again "
                "with --batch 1, or leave it out"
            )
        image = self._tensors["image", "image"].address
        coarse = {name: self._tensors["coarse", name].address for name in self._graphs["coarse"].output_names}
        fine = {name: self._tensors["fine", name].address for name in ("selected", "remaining", "logits")}
        carried = {name: coarse[name] for name in _CARRIED if name != "image"}
        return DeviceDecision(
            self._device,
            self._stream,
            self._runners,
            {"coarse": {"image": image, **coarse}, "fine": {"image": image, **carried, **fine}},
            [self._staged("coarse", "logits"), self._staged("coarse", "importance"), self._staged("fine", "logits")],
            classes=self.config.classes,
            regions=coarse_grid(self.config).count,
            count=self._count,
            temperature=self.temperature.coarse,
        )

    def _run(self, image: Any, eta: float | None, refine_all: bool, may_refine: MayRefine | None) -> Outcome:
        if not len(image):
            return super()._run(image, eta, refine_all, may_refine)
        self._clock.start()
        outcome = super()._run(image, eta, refine_all, may_refine)
        return replace(outcome, device=self._clock.times())

    def _run_decided(self, decision: DeviceDecision, image: Batch, eta: float, *, refine_all: bool) -> Outcome:
        """One image through the graph; `core.cascade` says which of its logits are the answer."""
        started = time.perf_counter()
        self._clock.start()
        address, _ = self._place(image, "coarse", in_place=False)
        decision.launch(eta, refine_all=refine_all)
        self._clock.mark("cascade")
        self._stream.synchronize()
        seen = self._seen(image, address, 1)
        sure = confidence(seen.logits, self.temperature.coarse)
        refined = np.flatnonzero(~exits_early(sure, eta) | refine_all)
        chosen, logits = decision.selected[: refined.size], seen.logits[:0]
        if refined.size and decision.went_on:
            logits = self._fine_answer(1)
        elif refined.size:
            # Only if the kernel's confidence were off by more than roundings: the answer is right all the same.
            chosen, remaining = select_regions(seen.importance, self._count)
            logits = self._run_fine(seen.kept, chosen, remaining)
        outcome = self._outcome(seen, sure, refined, chosen, logits)
        elapsed = {"cascade": (time.perf_counter() - started) * 1e3}
        return replace(outcome, stage_ms=elapsed, device=self._clock.times())

    def _run_full(self, image: Batch) -> Floats:
        address, batch = self._place(image, "full")
        logits = self._staged("full", "logits")
        self._runners["full"].enqueue(batch, {"image": address, "logits": logits.address}, self._stream)
        self._clock.mark("full")
        logits.download(len(image))
        self._clock.mark("download")
        self._stream.synchronize()
        answer = self._read("full", "logits", len(image))
        self._check("full", {"logits": answer}, image)
        return answer

    def _run_coarse(self, image: Batch) -> Seen:
        address, batch = self._place(image, "coarse")
        outputs = {name: self._tensors["coarse", name] for name in self._graphs["coarse"].output_names}
        addresses = {"image": address} | {name: tensor.address for name, tensor in outputs.items()}
        self._runners["coarse"].enqueue(batch, addresses, self._stream)
        self._clock.mark("coarse")
        for name in ("logits", "importance"):
            self._staged("coarse", name).download(len(image))
        self._clock.mark("download")
        self._stream.synchronize()
        return self._seen(image, address, batch)

    def _seen(self, image: Batch, address: int, batch: int) -> Seen:
        """What the coarse stage left, once the stream is synchronised."""
        answers = {name: self._read("coarse", name, len(image)) for name in ("logits", "importance")}
        self._check("coarse", answers, image)
        kept = {name: self._tensors["coarse", name].address for name in _CARRIED if name != "image"}
        return Seen(answers["logits"], answers["importance"], _Kept({"image": address, **kept}, len(image), batch))

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
        # From the coarse answers' arrival to here the device waited for the host, or moved rows.
        self._clock.mark("decision")
        logits = self._staged("fine", "logits")
        self._runners["fine"].enqueue(kept.batch, addresses | {"logits": logits.address}, self._stream)
        self._clock.mark("fine")
        logits.download(kept.rows)
        self._clock.mark("download")
        self._stream.synchronize()
        return self._fine_answer(kept.rows)

    def _fine_answer(self, rows: int) -> Floats:
        answer = self._read("fine", "logits", rows)
        self._runners["fine"].check_output("logits", answer)
        return answer

    def _place(self, image: Batch, stage: Stage, *, in_place: bool = True) -> tuple[int, int]:
        """The address of the images on the device and the batch that they are run as.

        Args:
            image: the batch.
            stage: the one that takes it first.
            in_place: another library's array may be read where it is.
        """
        ours, rows = self._staged("image", "image"), len(image)
        if isinstance(image, DeviceArray):
            if in_place and image.aligned and rows >= self._smallest and self._comes_again(image):
                # Read in place: exactly as many rows as there are, for behind them lies someone else's memory.
                return image.address, rows
            self._stream.copy(ours.address, image.address, rows * ours.row_bytes, "DeviceToDevice")
            self._clock.mark("upload")
        elif isinstance(image, Pictures):
            self._scale(image, ours)
            self._clock.mark("preprocess")
        else:
            ours.host[:rows] = image
            ours.upload(rows)
            self._clock.mark("upload")
        return ours.address, self._bucket(stage, rows)

    def _comes_again(self, image: DeviceArray) -> bool:
        """Whether an array of that size was at that address lately.

        Read in place, one needs an execution context of its own, which takes milliseconds to make and longer to run for
        the first time. A copy takes microseconds, and what follows it is captured already.
        """
        key = (image.address, image.rows)
        again = key in self._known
        self._known[key] = None
        self._known.move_to_end(key)
        if len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
        return again

    def _scale(self, image: Pictures, ours: StagedTensor) -> None:
        assert self._pictures is not None, "Scope gives pictures only where they are scaled"
        crops, addresses = [], []
        for row, item in enumerate(image.items):
            if isinstance(item, Crop):
                crops.append(item)
                addresses.append(ours.address + row * ours.row_bytes)
            else:
                ours.host[row] = item
                ours.upload(1, first=row)
        if crops:
            self._pictures.place(crops, addresses)

    def _bucket(self, stage: Stage, rows: int) -> int:
        # The stages' profiles may differ: what one stage leaves must do for the next.
        return min(max(self._runners[stage].bucket(rows), self._smallest), self.largest)

    def _read(self, owner: str, name: str, rows: int) -> Floats:
        answer: Floats = self._staged(owner, name).host[:rows].copy()
        return answer

    def _check(self, stage: Stage, answers: Mapping[str, Floats], image: Batch) -> None:
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
