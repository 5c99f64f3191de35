"""The frames of a video file, every one or every n-th, decoded as they are asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from mscope.core.errors import InputError
from mscope.runtime.result import FrameStamp
from mscope.runtime.video.container import decoded, opened, reason_of
from mscope.runtime.video.frame import Frame
from mscope.runtime.video.stream import Stream

# A clip that ends earlier than its header says, by more than a tenth and half a second, was cut off.
_SHORT_SHARE, _SHORT_S = 0.9, 0.5


def clip_frames(stream: Stream, every: int = 1, limit: int | None = None) -> Iterator[Frame]:
    """Frames 0, `every`, 2 `every`, ... of a video file, at most `limit` of them. One is in memory at a time.

    Raises:
        InputError: at the beginning, not a video that can be read; at the end, after the frames that could be decoded:
            it has none, parts of it are damaged, or it is cut off.
        ModuleNotFoundError: PyAV is not installed.
    """
    import av

    damaged, index, given, end = 0, 0, 0, 0.0

    def on_damage() -> None:
        nonlocal damaged
        damaged += 1

    troubles: list[str] = []
    with opened(stream) as (container, video):
        begun = time.perf_counter()
        try:
            for picture in decoded(container, video, on_damage):
                at = _seconds(picture, video)
                end = max(end, (at or 0.0) + _length(picture))
                if index % every == 0:
                    given += 1
                    name = f"{stream.source}, frame {index}"
                    yield Frame(name, FrameStamp(index, at), (time.perf_counter() - begun) * 1e3, picture)
                    if given == limit:
                        return
                    begun = time.perf_counter()
                index += 1
        except av.FFmpegError as error:
            troubles.append(f"reading stopped ({reason_of(error)})")
        if not index:
            raise InputError(f"{stream.source}: no frame of it can be decoded" if damaged else _no_frames(stream))
        length = float(video.duration * video.time_base) if video.duration else 0.0
    if damaged:
        troubles.append(f"{damaged} damaged {'part was' if damaged == 1 else 'parts were'} left out")
    if end + _SHORT_S < length * _SHORT_SHARE:
        troubles.append(f"it ends after {end:.1f} of {length:.1f} s, as if cut off")
    if troubles:
        raise InputError(
            f"{stream.source}: {'; '.join(troubles)}; {given} {'frame is' if given == 1 else 'frames are'} done"
        )


def _no_frames(stream: Stream) -> str:
    return f"{stream.source}: has no frames in it"


def _seconds(picture: Any, video: Any) -> float | None:
    """When it is shown, from the beginning of the clip; None where the clip does not tell."""
    if picture.pts is None:
        return None
    return float((picture.pts - (video.start_time or 0)) * picture.time_base)


def _length(picture: Any) -> float:
    return float(picture.duration * picture.time_base) if picture.duration else 0.0
