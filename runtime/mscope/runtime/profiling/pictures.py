"""The pictures of --data: found at any depth, spread over the folder, looked at once for their confidences."""

from __future__ import annotations

import glob
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mscope.core.errors import InputError
from mscope.core.text import readable
from mscope.runtime.scope import Scope
from mscope.runtime.sources import expand_pictures
from mscope.runtime.video.stream import is_video_name, live_stream

# Pictures that the measuring loop takes in turn.
_POOL = 128


@dataclass(frozen=True)
class Pictures:
    """Readable pictures, and what the coarse stage makes of them.

    Attributes:
        pool: some of them, as `Scope` takes them, for the measuring loop.
        confidences: (n,) float32, the coarse stage's, of every one; None for a plain ViM, whose pictures are not run.
        count: how many are readable.
        skipped: lines on those that are not.
    """

    pool: list[Any]
    confidences: npt.NDArray[np.float32] | None
    count: int
    skipped: tuple[str, ...]

    def describe_skipped(self) -> tuple[str, ...]:
        """A line for people on the pictures that could not be read; none where all could."""
        if not self.skipped:
            return ()
        count = len(self.skipped)
        were = "picture was" if count == 1 else "pictures were"
        return (f"{count} {were} left out as unreadable; the first: {self.skipped[0]}",)


def look_at_pictures(
    scope: Scope, folder: Path, limit: int, on_progress: Callable[[float], None] = lambda share: None
) -> Pictures:
    """Reads up to `limit` pictures, evenly spread over the sorted names, and runs the coarse stage on each.

    Raises:
        InputError: no such folder, no pictures in it or below, or none that can be read.
    """
    if live_stream(str(folder)) is not None or (is_video_name(folder) and not folder.is_dir()):
        raise InputError(f"--data {folder}: a video or camera; the profiler measures on a folder of pictures")
    if not folder.is_dir():
        raise InputError(f"--data {folder}: no such folder")
    shape = (scope.config.channels, scope.config.height, scope.config.width)
    items = expand_pictures([f"{glob.escape(str(folder))}/**/*"], shape)
    if items[0].problem is not None and len(items) == 1:
        raise InputError(f"--data {folder}: no pictures or .npy files in this folder or below")
    chosen = [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(limit, len(items))).astype(int))]
    pool: list[Any] = []
    confidences: list[float] = []
    skipped: list[str] = []
    read = 0
    for done, item in enumerate(chosen):
        try:
            image = item.load()
            prepared = scope.preprocess(image, item.source)
        except InputError as problem:
            skipped.append(readable(str(problem)))
            continue
        read += 1
        if len(pool) < _POOL:
            pool.append(image)
        if scope.config.arch != "vim":
            outcome = scope.run(scope.stack([prepared]), 0.0)
            assert outcome.coarse_confidence is not None
            confidences.append(float(outcome.coarse_confidence[0]))
        on_progress((done + 1) / len(chosen))
    if not pool:
        raise InputError(f"--data {folder}: none of {len(chosen)} pictures can be read; the first: {skipped[0]}")
    sure = None if scope.config.arch == "vim" else np.array(confidences, np.float32)
    return Pictures(pool, sure, read, tuple(skipped))
