"""What a SOURCE argument says of a video or a camera; nothing is opened here, and PyAV is not needed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv",
    ".ogv", ".mjpeg", ".mjpg",
})
# fmt: on
_CAMERA = re.compile(r"(?:camera|cam)(?::(\d{1,3}))?", re.IGNORECASE)
_DEVICE = re.compile(r"/dev/video\d{1,3}")
_NETWORK = re.compile(r"(rtsp|rtsps|rtmp|rtmps|udp|tcp)://.+", re.IGNORECASE)


@dataclass(frozen=True)
class Stream:
    """A video or a camera.

    Attributes:
        source: its name in results and errors, as it was given; without the password of an address.
        address: what is opened: a path, a device or a URL.
        live: frames come at their own pace and do not wait; only the newest is looked at.
        device: a camera of this machine.
    """

    source: str
    address: str
    live: bool = False
    device: bool = False


def live_stream(argument: str) -> Stream | None:
    """The camera or network stream that an argument names: camera:0, /dev/video0, rtsp://...; None if it names none."""
    camera = _CAMERA.fullmatch(argument)
    if camera:
        return Stream(argument, f"/dev/video{camera[1] or 0}", live=True, device=True)
    if _DEVICE.fullmatch(argument):
        return Stream(argument, argument, live=True, device=True)
    if _NETWORK.fullmatch(argument):
        return Stream(re.sub(r"//[^/@]*@", "//", argument), argument, live=True)
    return None


def is_video_name(path: Path) -> bool:
    """Whether a file is taken for a video, by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES
