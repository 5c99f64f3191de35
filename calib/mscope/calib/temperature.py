"""Temperature scaling: the one number that makes a stage's confidence mean what it says (Guo et al. 2017)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mscope.core.errors import InputError

# Beyond these the logits are not those of a trained classifier.
LOWEST, HIGHEST = 0.05, 50.0
_TOLERANCE = 1e-6
_STEPS = 60


def fit_temperature(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], name: str = "logits") -> float:
    """The T > 0 that minimises the mean negative log-likelihood of softmax(logits / T).

    The loss is convex in 1 / T, so that its derivative has one zero: found by Newton's method inside a bracket.

    Args:
        logits: (n, classes) float32.
        labels: (n,) int64.
        name: of the logits, in errors.

    Raises:
        InputError: no minimum within [0.05, 50]: every answer is right, so that the surest is the best, or the logits
            say nothing about the labels.
    """
    centred = logits.astype(np.float64)
    centred -= centred.max(axis=1, keepdims=True)
    own = centred[np.arange(len(labels)), labels]

    def slope(beta: float) -> tuple[float, float]:
        """First and second derivative of the loss by beta = 1 / T: mean of E[z] - z_label, and of Var[z]."""
        weights = np.exp(beta * centred)
        weights /= weights.sum(axis=1, keepdims=True)
        mean = (weights * centred).sum(axis=1)
        square = (weights * centred * centred).sum(axis=1)
        return float((mean - own).mean()), float((square - mean * mean).mean())

    low, high = 1 / HIGHEST, 1 / LOWEST
    if not slope(low)[0] < 0 < slope(high)[0]:
        raise InputError(
            f"temperature of the {name}: {len(labels)} images give it no optimum between {LOWEST:g} and {HIGHEST:g} "
            "(all answers right, or none better than chance): use more images, or leave --temperature out"
        )
    beta = 1.0
    for _ in range(_STEPS):
        first, second = slope(beta)
        low, high = (beta, high) if first < 0 else (low, beta)
        step = beta - first / second if second > 0 else high
        following = step if low < step < high else (low * high) ** 0.5
        if abs(following - beta) <= _TOLERANCE * beta:
            return 1 / following
        beta = following
    return 1 / beta
