"""What calibration sees of a tensor. Both observers give the same answer whatever the order and size of the batches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mscope.core.errors import MscopeError

Floats = npt.NDArray[np.float32]
BINS = 2048


class ChannelMax:
    """The largest magnitude of each channel of a tensor.

    Attributes:
        name: the tensor, for errors.
        values: (C,) float32, zero before the first update.
        rows: how many vectors of C values were seen.
    """

    def __init__(self, name: str, channels: int) -> None:
        self.name = name
        self.values: Floats = np.zeros(channels, np.float32)
        self.rows = 0

    def update(self, tensor: Floats) -> None:
        """Takes in (..., C) float32. Raises MscopeError on NaN or infinity, which no range can hold."""
        rows = _finite(self.name, tensor).reshape(-1, len(self.values))
        self.rows += len(rows)
        np.maximum(self.values, np.abs(rows).max(axis=0, initial=0.0), out=self.values)


class Histogram:
    """How often each magnitude of a tensor occurs, between 0 and a limit known beforehand.

    The limit comes from a first pass over the same data: bins that grow as data arrive would depend on its order.

    Attributes:
        name: the tensor, for errors.
        limit: the largest magnitude there is; 0 for a tensor that is zero throughout.
        counts: (BINS,) int64.
    """

    def __init__(self, name: str, limit: float) -> None:
        self.name = name
        self.limit = limit
        self.counts: npt.NDArray[np.int64] = np.zeros(BINS, np.int64)

    def update(self, tensor: Floats) -> None:
        """Takes in a float32 tensor of any shape. Raises MscopeError on NaN, infinity or a value past the limit."""
        magnitudes = np.abs(_finite(self.name, tensor)).ravel()
        largest = float(magnitudes.max(initial=0.0))
        if largest > self.limit * (1 + 1e-4):
            raise MscopeError(
                f"calibration: {self.name} reached {largest:.6g} where the first pass over the data saw at most "
                f"{self.limit:.6g}: the data must not change between passes"
            )
        if self.limit > 0:
            bins = np.minimum((magnitudes * (BINS / self.limit)).astype(np.int64), BINS - 1)
            self.counts += np.bincount(bins, minlength=BINS)
        else:
            self.counts[0] += magnitudes.size


def _finite(name: str, tensor: Floats) -> Floats:
    if not np.isfinite(tensor).all():
        raise MscopeError(f"calibration: {name} holds NaN or infinity: the weights or an image are unfit")
    return tensor
