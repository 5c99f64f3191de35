"""Frames of any stream, in the order in which a run looks at them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mscope.core.errors import InputError
from mscope.runtime.video.clip import clip_frames
from mscope.runtime.video.frame import Frame
from mscope.runtime.video.live import live_frames
from mscope.runtime.video.stream import Stream


def frames_of(
    stream: Stream,
    every: int = 1,
    limit: int | None = None,
    *,
    on_note: Callable[[str], None] = lambda note: None,
) -> Iterator[Frame]:
    """The frames of a video file (all of them in turn) or of a live stream (always the newest).

    Args:
        stream: what to read.
        every: each n-th frame only.
        limit: of frames; None: to the end.
        on_note: told what a person should know of the stream when it is over.

    Raises:
        InputError: see `clip_frames` and `live_frames`; or `every` or `limit` below 1.
        ModuleNotFoundError: PyAV is not installed (extra `video`).
    """
    if every < 1 or (limit is not None and limit < 1):
        raise InputError(f"every {every} frames, at most {limit}: both are 1 or more")
    if stream.live:
        return live_frames(stream, every, limit, on_note=on_note)
    return clip_frames(stream, every, limit)
