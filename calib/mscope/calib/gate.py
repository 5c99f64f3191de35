"""The accuracy gate: a variant's decisions beside those of fp32 on the same pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mscope.calib.chain import Chain, Models, opened
from mscope.calib.record import Comparison
from mscope.core.cascade import confidence, exits_early
from mscope.core.config import ModelConfig
from mscope.core.errors import InputError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
# Gives the same batches of pictures (B, C, H, W) float32 and labels (B,) int64 at every call.
LabelledBatches = Callable[[], Iterable[tuple[Floats, Ints]]]


@dataclass(frozen=True)
class Decisions:
    """What a network decides about n pictures, each of them run through all stages.

    Attributes:
        logits: by stage, (n, classes) float32.
        selected: (n, K) int64 refined regions; None for plain ViM.
        labels: (n,) int64.
    """

    logits: dict[str, Floats]
    selected: Ints | None
    labels: Ints

    def answers(self, eta: float | None, temperature: float = 1.0) -> dict[str, Ints]:
        """The class answered, (n,), by path: of each stage, and `adaptive` at `eta`."""
        found = {path: logits.argmax(axis=1).astype(np.int64) for path, logits in self.logits.items()}
        if eta is not None:
            early = self.exits(eta, temperature)
            found["adaptive"] = np.where(early, found["coarse"], found["fine"])
        return found

    def exits(self, eta: float, temperature: float = 1.0) -> npt.NDArray[np.bool_]:
        """Which pictures leave after the coarse stage, (n,)."""
        return exits_early(confidence(self.logits["coarse"], temperature), eta)


def decide(config: ModelConfig, models: Models, batches: LabelledBatches) -> Decisions:
    """Runs all pictures through the graphs. Raises InputError where there are none."""
    with opened(config, models) as chain:
        return decide_on(chain, batches)


def decide_on(chain: Chain, batches: LabelledBatches) -> Decisions:
    """The same on graphs that are open already."""
    logits: dict[str, list[Floats]] = {}
    selected: list[Ints] = []
    labels: list[Ints] = []
    for image, truth in batches():
        outputs = chain.run(image)
        for stage, arrays in outputs.items():
            logits.setdefault(stage, []).append(arrays["logits"])
        if "coarse" in outputs:
            selected.append(outputs["coarse"]["selected"])
        labels.append(truth)
    if not labels:
        raise InputError("no pictures to compare the variant with fp32 on: give --calib-data a folder of pictures")
    return Decisions(
        {stage: np.concatenate(rows) for stage, rows in logits.items()},
        np.concatenate(selected) if selected else None,
        np.concatenate(labels),
    )


def compare(
    variant: Decisions,
    reference: Decisions,
    *,
    eta: float | None,
    temperature: float = 1.0,
    held_out: bool,
    by_accuracy: bool = True,
) -> Comparison:
    """How far a variant's decisions are from those of fp32.

    Args:
        variant, reference: the decisions of both on the same pictures.
        eta: the exit threshold; None for plain ViM.
        temperature: what coarse logits are divided by before the confidence.
        held_out: whether calibration had not seen the pictures.
        by_accuracy: `drop` counts the accuracy lost, on the path that loses most; False, for untrained weights: the
            answers that changed.
    """
    assert np.array_equal(variant.labels, reference.labels)
    ours, theirs, labels = variant.answers(eta, temperature), reference.answers(eta, temperature), reference.labels
    accuracy = {path: float((answers == labels).mean()) for path, answers in ours.items()}
    before = {path: float((answers == labels).mean()) for path, answers in theirs.items()}
    changed = {path: float((ours[path] != theirs[path]).mean()) for path in ours}
    drops = [before[path] - accuracy[path] for path in ours] if by_accuracy else list(changed.values())
    flips = None
    if eta is not None:
        flips = float((variant.exits(eta, temperature) != reference.exits(eta, temperature)).mean())
    return Comparison(
        images=len(labels),
        held_out=held_out,
        eta=eta,
        accuracy=accuracy,
        reference=before,
        changed=changed,
        exit_flips=flips,
        selected_agreement=shared_regions(variant.selected, reference.selected),
        drop=round(100 * max(drops), 6),
        counted="accuracy" if by_accuracy else "answers",
    )


def shared_regions(ours: Ints | None, theirs: Ints | None) -> float | None:
    """The mean share of the refined regions (n, K) that both refine; None without regions."""
    if ours is None or theirs is None:
        return None
    common = (ours[:, :, None] == theirs[:, None, :]).any(axis=2)
    return float(common.mean())
