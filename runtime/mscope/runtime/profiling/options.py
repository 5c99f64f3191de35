"""What can be asked of a profile, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from mscope.core.cascade import check_eta
from mscope.core.errors import InputError
from mscope.runtime.backends.base import Kernel
from mscope.runtime.backends.registry import Place

_MAX_DURATION_S = 3600.0
_MAX_BATCH = 4096
_MAX_GAP_S = 600.0
_MAX_COLD_STARTS = 100


@dataclass(frozen=True)
class ProfileOptions:
    """One profile.

    Attributes:
        bundle: its folder; None takes the one built last.
        compare: a plain ViM bundle that is measured in turn with it.
        data: a folder of pictures, at any depth: they are what is measured, their confidences give the exit rates.
        limit: of the pictures of `data`, that many are looked at, spread evenly over them.
        exit_rate: the share of images that exit, where it is known otherwise.
        etas: thresholds to tell about; none: the bundle's default.
        batches: sizes to measure.
        duration_s: seconds of measuring for each batch size, all paths together.
        backend, kernel, precision, threads, preprocess: as `Scope.load` takes them.
        decide: likewise; with "device" the same paths are measured in turn with the exit decided on the host.
        idle_gaps_s: pauses after which the first image is timed; empty: none.
        cold_starts: fresh processes to start; 0: none.
        layers: take the graphs apart by node.
        power: measure energy, where the machine has a sensor.
    """

    bundle: Path | None = None
    compare: Path | None = None
    data: Path | None = None
    limit: int = 1000
    exit_rate: float | None = None
    etas: tuple[float, ...] = ()
    batches: tuple[int, ...] = (1,)
    duration_s: float = 10.0
    backend: str = "auto"
    kernel: Kernel = "auto"
    precision: str = "auto"
    threads: int | None = None
    preprocess: Place = "host"
    decide: Place = "host"
    idle_gaps_s: tuple[float, ...] = (0.1, 1.0)
    cold_starts: int = 3
    layers: bool = False
    power: bool = False

    def check(self) -> None:
        """Raises InputError for what cannot be measured, before anything is loaded."""
        if not 0.0 < self.duration_s <= _MAX_DURATION_S:
            raise InputError(
                f"--duration is seconds of measuring, above 0 and up to {_MAX_DURATION_S:g}, got {self.duration_s:g}"
            )
        if not self.batches or not all(1 <= batch <= _MAX_BATCH for batch in self.batches):
            raise InputError(f"--batch takes sizes from 1 to {_MAX_BATCH}, got {_listed(self.batches)}")
        if len(set(self.batches)) != len(self.batches):
            raise InputError(f"--batch names a size twice: {_listed(self.batches)}")
        if self.decide == "device" and self.batches != (1,):
            raise InputError(f"--decide device is for single images: leave it or --batch {_listed(self.batches)} out")
        for eta in self.etas:
            check_eta(eta)
        if self.exit_rate is not None:
            if not 0.0 <= self.exit_rate <= 1.0:
                raise InputError(f"--exit-rate is a share between 0 and 1, got {self.exit_rate:g}")
            if self.data is not None:
                raise InputError("--data and --exit-rate both say how many images exit: give one of them")
            if self.etas:
                raise InputError("--exit-rate stands for itself: leave --eta out, or give --data in its place")
        if not all(math.isfinite(gap) and 0.0 < gap <= _MAX_GAP_S for gap in self.idle_gaps_s):
            raise InputError(f"--idle takes pauses above 0 and up to {_MAX_GAP_S:g} s, got {_listed(self.idle_gaps_s)}")
        if not 0 <= self.cold_starts <= _MAX_COLD_STARTS:
            raise InputError(f"--cold-starts is between 0 and {_MAX_COLD_STARTS}, got {self.cold_starts}")
        if self.limit < 1:
            raise InputError(f"--limit is 1 or more, got {self.limit}")


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "none"
