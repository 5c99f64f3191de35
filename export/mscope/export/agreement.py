"""Whether a graph decides as the model does: the regions that it refines, the images that exit early."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mscope.core.cascade import confidence, exits_early, select_regions
from mscope.core.errors import ParityError

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def compare_selected(selected: Ints, importance: Array, tolerance: float) -> float:
    """Share of images with the same regions; others may differ by regions whose scores tolerance cannot tell apart.

    Args:
        selected: (n, K) what the graphs refined, in spatial order.
        importance: (n, Nc) the model's scores.
        tolerance: how far a score of the graph may be from the model's.

    Raises:
        ParityError: a region was refined that the model ranks lower by more than two such errors explain.
    """
    expected, _ = select_regions(importance, selected.shape[1])
    for row, (got, wanted) in enumerate(zip(selected, expected, strict=True)):
        scores, extra, missed = importance[row], np.setdiff1d(got, wanted), np.setdiff1d(wanted, got)
        if extra.size and scores[missed].max() - scores[extra].min() > 2 * tolerance:
            raise ParityError(
                f"the exported graph refines regions {extra.tolist()} of probe image {row} "
                f"where the model refines {missed.tolist()}"
            )
    return float((selected == expected).all(axis=1).mean())


def compare_exits(
    actual: npt.NDArray[Any], exact: Array, etas: tuple[float, ...], tolerance: float, *, between: bool = True
) -> float:
    """Share of images with the same exit decision at every eta, of coarse logits (n, classes) from graph and model.

    Compared at `etas` and, with `between`, between any two of the model's confidences.

    Raises:
        ParityError: a decision differs although the confidence is further from eta than errors of `tolerance` in the
            logits explain.
    """
    sure, expected = confidence(actual), confidence(exact)
    ranked = np.sort(expected)
    agreed = np.ones(len(sure), dtype=bool)
    for eta in (*etas, *(((ranked[1:] + ranked[:-1]) / 2).tolist() if between else ())):
        differs = exits_early(sure, eta) != exits_early(expected, eta)
        # A probability p moves by p (1 - p) <= 1/4 of what a difference of two logits does, and that by two errors.
        if np.any(differs & (np.abs(expected - eta) > tolerance / 2)):
            raise ParityError(f"the exported graph exits early on other images than the model at eta {eta:.4g}")
        agreed &= ~differs
    return float(agreed.mean())
