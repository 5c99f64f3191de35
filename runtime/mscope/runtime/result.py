"""What a run gives back: arrays for programs (Outcome), one answer a picture for people and JSON (Result)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
StageName = Literal["coarse", "fine", "full"]


@dataclass(frozen=True)
class DeviceTimes:
    """What a device's own clock says of a batch, milliseconds.

    Attributes:
        parts: from one event on the stream to the next, in order: what the device did, or that it waited for the host.
        total: from the first event to the last.
    """

    parts: dict[str, float]
    total: float


@dataclass(frozen=True)
class Outcome:
    """The arrays of one batch. They are new and belong to the caller.

    Attributes:
        logits: (B, classes) float32, the final ones: of the coarse stage where an image exited, else of the fine one.
        confidence: (B,) float32, the largest softmax probability of `logits`.
        stages: for each image the stage that answered: "coarse", "fine", or "full" for a plain ViM.
        coarse_logits: (B, classes) float32; None for a plain ViM, as are the next three.
        coarse_confidence: (B,) float32, what eta is compared with.
        importance: (B, Nc) float32, the scores of the regions, in raster order; larger is more important.
        selected: (B, K) int64, the refined regions in raster order; a row of -1 where the image exited.
        stage_ms: wall time of each stage for the whole batch, milliseconds, host clock: "coarse", "select" (softmax,
            exit decision, ranking, compaction) and "fine", or "full"; "cascade" alone where the device decided.
        notes: lines for people on what did not go as it should have, though the numbers are right.
        device: of the device's own clock, where it was asked for (`Scope.time_on_device`) and there is one.
    """

    logits: Floats
    confidence: Floats
    stages: tuple[StageName, ...]
    coarse_logits: Floats | None
    coarse_confidence: Floats | None
    importance: Floats | None
    selected: Ints | None
    stage_ms: dict[str, float]
    notes: tuple[str, ...] = ()
    device: DeviceTimes | None = None

    def image_ms(self, row: int) -> dict[str, float]:
        """One image's share of `stage_ms`: each stage's time divided by the images that went through it.

        Summed over the batch this is the time of the batch again. A stage that the image skipped counts 0.
        """
        fine = self.stages.count("fine")
        share = {name: ms / len(self.stages) for name, ms in self.stage_ms.items()}
        if "fine" in self.stage_ms:
            share["fine"] = self.stage_ms["fine"] / fine if self.stages[row] == "fine" else 0.0
        return share


@dataclass(frozen=True)
class Guess:
    """One class and its probability in [0, 1]."""

    index: int
    label: str
    prob: float

    def to_dict(self) -> dict[str, Any]:
        return {"index": self.index, "label": self.label, "prob": round(self.prob, 6)}


@dataclass(frozen=True)
class DeadlineOutcome:
    """What a deadline did to one image.

    Attributes:
        ms: the deadline, from the first step on the image (reading it) to its result.
        elapsed_ms: what it took; in a batch, from the first step on its first image.
        met: whether the result was there in time.
        skipped_fine: the coarse answer was returned although eta asked for the fine one.
    """

    ms: float
    elapsed_ms: float
    met: bool
    skipped_fine: bool

    def to_dict(self) -> dict[str, Any]:
        return {
            "ms": self.ms,
            "elapsed_ms": round(self.elapsed_ms, 3),
            "met": self.met,
            "skipped_fine": self.skipped_fine,
        }


@dataclass(frozen=True)
class FrameStamp:
    """Where in a video, or in a camera's stream, an image comes from.

    Attributes:
        index: the frame's number, from 0, those left out counted.
        time_s: when it is shown, seconds from the beginning of the clip; of a live stream when it arrived, seconds from
            its first frame, host clock. None where the clip does not tell.
        dropped: of a live stream, how many frames since the last one were replaced by newer ones unseen; None for a
            clip, which waits.
        age_ms: of a live stream, how long the frame had lain ready when the work on it began; None for a clip.
    """

    index: int
    time_s: float | None
    dropped: int | None = None
    age_ms: float | None = None

    def to_dict(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"index": self.index, "time_s": None if self.time_s is None else round(self.time_s, 6)}
        if self.dropped is not None and self.age_ms is not None:
            fields |= {"dropped": self.dropped, "age_ms": round(self.age_ms, 3)}
        return fields


@dataclass(frozen=True, eq=False)
class Result:
    """The answer for one picture.

    Attributes:
        source: the file or camera, with the row's number for a tensor of several ("x.npy[3]").
        stage: which stage answered: "coarse" (left early), "fine", or "full" for a plain ViM.
        confidence: largest softmax probability of the final logits, in [0, 1].
        coarse_confidence: that of the coarse logits, which eta was compared with; None for a plain ViM.
        eta: the threshold in use; None for a plain ViM.
        topk: the likeliest classes, best first.
        coarse_answer: the coarse stage's best class; None for a plain ViM.
        gmacs: analytic cost of this image: coarse, or coarse + fine, 1e9 multiply-accumulates.
        tokens: tokens that went through the network: coarse, or coarse + fine.
        selected: refined regions in raster order; None when the image exited, or for a plain ViM.
        importance: (Nc,) float32 scores of the regions; None for a plain ViM.
        latency_ms: milliseconds, host clock; in a batch, this image's share (`Outcome.image_ms`). `preprocess` is
            reading, decoding and resizing; a live stream is read and decoded beside the network, and that is not in it.
        untrained: the weights are random, so that the answer means nothing.
        notes: `Outcome.notes`.
        deadline: what a deadline did to it; None without one, or for a plain ViM. In the JSON only when set.
        frame: its place in the video or stream `source`; None for a picture. In the JSON only when set.
    """

    source: str
    stage: StageName
    confidence: float
    coarse_confidence: float | None
    eta: float | None
    topk: tuple[Guess, ...]
    coarse_answer: Guess | None
    gmacs: float
    tokens: int
    selected: tuple[int, ...] | None
    importance: Floats | None
    latency_ms: dict[str, float]
    backend: str
    kernel: str
    precision: str
    untrained: bool
    notes: tuple[str, ...] = ()
    deadline: DeadlineOutcome | None = None
    frame: FrameStamp | None = None

    @property
    def answer(self) -> Guess:
        """The likeliest class."""
        return self.topk[0]

    def to_dict(self) -> dict[str, Any]:
        """The fields of the JSON line, in their order; `untrained` only when true, `notes` only when there are some."""
        fields: dict[str, Any] = {
            "source": self.source,
            **({} if self.frame is None else {"frame": self.frame.to_dict()}),
            "stage": self.stage,
            "confidence": round(self.confidence, 6),
            "coarse_confidence": None if self.coarse_confidence is None else round(self.coarse_confidence, 6),
            "eta": self.eta,
            "topk": [guess.to_dict() for guess in self.topk],
            "gmacs": round(self.gmacs, 9),
            "tokens": self.tokens,
            "selected": None if self.selected is None else list(self.selected),
            "latency_ms": {name: round(ms, 3) for name, ms in self.latency_ms.items()},
            "backend": self.backend,
            "kernel": self.kernel,
            "precision": self.precision,
        }
        fields |= {"untrained": True} if self.untrained else {}
        fields |= {"deadline": self.deadline.to_dict()} if self.deadline is not None else {}
        return fields | ({"notes": list(self.notes)} if self.notes else {})

    def to_json(self) -> str:
        """One line of strict JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)
