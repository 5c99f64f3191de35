"""The adaptive decision: confidence, early exit, ranking of the regions (4.1, 4.2.1). The one place of that logic."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mscope.core.errors import InputError

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def softmax(logits: Floats, temperature: float | Floats = 1.0) -> npt.NDArray[np.float32]:
    """Probabilities (B, classes) of logits (B, classes) / temperature, float32, safe for any finite input.

    A temperature above 1 makes them less sure, one below 1 surer; their order stays. It may be (B, 1), one an image. 1
    changes no bit.
    """
    scaled = logits.astype(np.float32) / np.asarray(temperature, np.float32)
    shifted = scaled - scaled.max(axis=-1, keepdims=True, initial=-np.inf)
    exps = np.exp(shifted)
    probabilities: npt.NDArray[np.float32] = exps / exps.sum(axis=-1, keepdims=True)
    return probabilities


def confidence(logits: Floats, temperature: float | Floats = 1.0) -> npt.NDArray[np.float32]:
    """The largest softmax probability of each row: (B,) from (B, classes); `temperature` as in `softmax`."""
    largest: npt.NDArray[np.float32] = softmax(logits, temperature).max(axis=-1, initial=0.0)
    return largest


def exits_early(coarse_confidence: Floats, eta: float) -> Bools:
    """Which images are accepted after the coarse stage: confidence >= eta, (B,). eta 0 accepts all of them."""
    return np.asarray(coarse_confidence >= np.float32(check_eta(eta)))


def check_eta(eta: float) -> float:
    """`eta` as Python's float, which JSON takes, if it is a threshold in [0, 1]; raises InputError otherwise."""
    if not 0.0 <= eta <= 1.0:
        raise InputError(f"eta is a confidence between 0 and 1, got {eta}")
    return float(eta)


def select_regions(importance: Floats, count: int) -> tuple[Ints, Ints]:
    """Ranks the regions of each image and splits them.

    Args:
        importance: (B, Nc) scores of the coarse tokens, class token excluded.
        count: K, the number of regions to refine.

    Returns:
        selected (B, K) and remaining (B, Nc - K), int64, each in spatial order. Of equal scores the lower index wins.
    """
    ranked = np.argsort(-importance, axis=-1, kind="stable")
    selected = np.sort(ranked[:, :count], axis=-1).astype(np.int64)
    remaining = np.sort(ranked[:, count:], axis=-1).astype(np.int64)
    return selected, remaining
