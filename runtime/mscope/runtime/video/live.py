"""A camera or a network stream: read in a thread of its own, of which the newest frame is looked at.

A network slower than the camera would fall behind by more and more if it looked at every frame. So the reader puts
each frame into one place, over the one that still lies there; what was replaced unseen is counted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mscope.core.errors import InputError
from mscope.runtime.result import FrameStamp
from mscope.runtime.video.container import decoded, opened, reason_of
from mscope.runtime.video.frame import Frame
from mscope.runtime.video.stream import Stream

Clock = Callable[[], float]

# Ctrl-C is answered between two looks at the lock.
_PATIENCE_S = 0.2
_JOIN_S = 1.0


@dataclass(frozen=True)
class Arrived:
    """A frame: its number in the stream, when it was decoded (seconds), how many were replaced before it."""

    index: int
    at: float
    dropped: int
    picture: Any


class LatestFrame:
    """One place for one frame, between the thread that reads and the one that looks."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._here: tuple[int, float, Any] | None = None
        self._dropped = 0
        self._ended = False
        self._error: BaseException | None = None

    def put(self, index: int, at: float, picture: Any) -> None:
        """Lays a frame down; one that still lies here is dropped."""
        with self._changed:
            self._dropped += self._here is not None
            self._here = index, at, picture
            self._changed.notify()

    def end(self, error: BaseException | None = None) -> None:
        """No more frames come, because of `error` if there is one."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify()

    def take(self) -> Arrived | None:
        """Waits for a frame and takes it; None when the stream has ended. Raises the error that ended it."""
        with self._changed:
            while self._here is None and not self._ended:
                self._changed.wait(_PATIENCE_S)
            if self._here is None:
                if self._error is not None:
                    raise self._error
                return None
            (index, at, picture), dropped = self._here, self._dropped
            self._here, self._dropped = None, 0
            return Arrived(index, at, dropped, picture)


def live_frames(
    stream: Stream,
    every: int = 1,
    limit: int | None = None,
    *,
    on_note: Callable[[str], None] = lambda note: None,
    clock: Clock = time.perf_counter,
) -> Iterator[Frame]:
    """The newest frame whenever one is asked for, until the stream ends or `limit` frames were taken.

    Args:
        stream: a live one.
        every: only each n-th frame of the camera counts; the others are not dropped, they are not wanted.
        limit: of frames; None goes on until the stream ends.
        on_note: told in the end how many frames were dropped, and how many could not be decoded.
        clock: seconds, rising.

    Raises:
        InputError: it cannot be opened, or breaks off.
        ModuleNotFoundError: PyAV is not installed.
    """
    latest, stop, damage = LatestFrame(), threading.Event(), _Damage()
    reader = threading.Thread(
        target=_read, args=(stream, every, latest, stop, damage, clock), name=stream.source, daemon=True
    )
    reader.start()
    given = dropped = 0
    first: float | None = None
    try:
        while given != limit and (frame := latest.take()) is not None:
            given += 1
            dropped += frame.dropped
            first = frame.at if first is None else first
            age = (clock() - frame.at) * 1e3
            stamp = FrameStamp(frame.index, frame.at - first, dropped=frame.dropped, age_ms=age)
            yield Frame(f"{stream.source}, frame {frame.index}", stamp, 0.0, frame.picture)
        if not given:
            raise InputError(f"{stream.source}: ended before its first frame")
    finally:
        stop.set()
        # It closes the stream itself, which must not happen under its hands. One that hangs in a read ends with the
        # process.
        reader.join(_JOIN_S)
        if given:
            frames = "1 frame" if given == 1 else f"{given} frames"
            told = f"{frames} looked at, {dropped} dropped because a newer one was there"
            on_note(f"{stream.source}: {told}" + (f", {damage.parts} damaged parts left out" if damage.parts else ""))


class _Damage:
    """Counts what could not be decoded."""

    parts = 0

    def count(self) -> None:
        self.parts += 1


def _read(
    stream: Stream, every: int, latest: LatestFrame, stop: threading.Event, damage: _Damage, clock: Clock
) -> None:
    # Whatever goes wrong, PyAV missing among it, goes to the one who waits, who would else wait for ever.
    try:
        import av

        try:
            with opened(stream) as (container, video):
                for index, picture in enumerate(decoded(container, video, damage.count)):
                    if stop.is_set():
                        break
                    if index % every == 0:
                        latest.put(index, clock(), picture)
        except av.FFmpegError as error:
            raise InputError(f"{stream.source}: broke off ({reason_of(error)})") from error
    except BaseException as error:
        latest.end(error)
    else:
        latest.end()
