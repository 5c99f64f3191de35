"""Outputs against a reference's, measured by Polygraphy's Comparator. What each figure means: docs/precision.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mscope.core.console import OLDEST_POLYGRAPHY
from mscope.core.errors import MscopeError

_RUNNERS = ("variant", "reference")
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Distance:
    """How far an output is from the reference's.

    Attributes:
        max_abs: largest absolute difference.
        relative: that over the largest value of the reference.
        cosine: of each image's output with the reference's, the smallest.
        tolerance: what the precision explains; None where probes do not judge it (mscope.export.bounds.is_judged).
    """

    max_abs: float
    relative: float
    cosine: float
    tolerance: float | None


def check_comparator() -> None:
    """Raises MscopeError where Polygraphy is missing or too old; for the start of work that ends in a comparison."""
    try:
        from polygraphy.comparator import CosineSimilarityCompareFunc, SimpleCompareFunc  # noqa: F401
    except ImportError:
        raise MscopeError(
            f"variants are compared with Polygraphy {OLDEST_POLYGRAPHY} or newer, which is not installed: "
            f"pip install 'polygraphy>={OLDEST_POLYGRAPHY}'"
        ) from None


def compare_outputs(
    outputs: Mapping[str, tuple[Array, Array]], tolerance: Callable[[str, float], float | None]
) -> dict[str, Distance]:
    """The distance of every output from the reference's, by name.

    Args:
        outputs: by name what was computed and what the reference has: two arrays (n, ...) of one shape, n >= 1 the same
            for all.
        tolerance: gives an output's bound, by its name and the largest value of the reference.
    """
    from polygraphy.comparator import Comparator, CosineSimilarityCompareFunc, RunResults, SimpleCompareFunc
    from polygraphy.logger import G_LOGGER

    # One iteration an image, for each image's cosine. In float64, because Polygraphy computes in the type that it gets.
    results = RunResults()
    for column, runner in enumerate(_RUNNERS):
        exact = {name: pair[column].astype(np.float64) for name, pair in outputs.items()}
        rows = zip(*exact.values(), strict=True)
        results.add([dict(zip(exact, row, strict=True)) for row in rows], runner_name=runner)
    # Its log goes to stdout, where our report goes; what it says there is in the results.
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        simple, cosine = Comparator.compare_accuracy(
            results, compare_func=[SimpleCompareFunc(check_error_stat="max"), CosineSimilarityCompareFunc()]
        )
    distances = {}
    for name, (_, reference) in outputs.items():
        # numpy's extremes, which hand NaN on.
        largest = float(np.max([image[name].max_absdiff for image in simple[_RUNNERS]]))
        scale = float(np.abs(reference).max())
        distances[name] = Distance(
            max_abs=largest,
            # Polygraphy's own is each value's error over that value: of a value near 0 it says nothing.
            relative=largest / scale if scale else largest,
            cosine=float(np.min([image[name].cosine_similarity for image in cosine[_RUNNERS]])),
            tolerance=tolerance(name, scale),
        )
    return distances
