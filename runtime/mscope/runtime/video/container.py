"""Videos and cameras opened with PyAV: what is let in, how long is waited, and errors as one line."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mscope.core.errors import InputError
from mscope.runtime.video.frame import MAX_FRAME_PIXELS, check_frame_size
from mscope.runtime.video.stream import Stream

if TYPE_CHECKING:
    from av import VideoFrame

# Files and streams are untrusted. FFmpeg also reads playlists, which name other files and addresses, and hundreds of
# formats that nobody films in: only these containers, and nothing but the file or the stream itself.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpeg", "mpegvideo", "mpegts", "asf", "flv", "ogg", "mjpeg",
    "h264", "hevc", "m4v", "ivf",
)  # fmt: skip
_FILE_OPTIONS = {"format_whitelist": ",".join(_CONTAINERS), "protocol_whitelist": "file"}
# Nothing is held back: what is seen late is of no use.
_LIVE_OPTIONS = {
    "format_whitelist": ",".join((*_CONTAINERS, "rtsp", "rtp", "sdp", "live_flv", "mpjpeg")),
    "protocol_whitelist": "rtsp,rtsps,rtp,srtp,rtmp,rtmps,udp,tcp,tls",
    "fflags": "nobuffer", "flags": "low_delay", "rtsp_transport": "tcp",
    # Microseconds of the stream that are looked at before the first frame is handed out; FFmpeg takes 5 s.
    "analyzeduration": "1000000",
}  # fmt: skip
_TIMEOUT_S = 10.0
# What FFmpeg says when PyAV's time-out ends it.
_TIMED_OUT = "Immediate exit requested"


@contextlib.contextmanager
def opened(stream: Stream) -> Iterator[tuple[Any, Any]]:
    """PyAV's container and its video stream, closed when the block ends.

    Raises:
        InputError: it cannot be opened, is of no known kind, or has no video.
        ModuleNotFoundError: PyAV is not installed.
    """
    import av

    # FFmpeg's own messages: what matters becomes an error, a note or a count here.
    av.logging.set_level(av.logging.PANIC)
    try:
        container = _open(av, stream)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(_why_not(stream, error)) from None
    try:
        video = container.streams.best("video")
        if video is None:
            raise InputError(f"{stream.source}: has no video in it")
        try:
            check_frame_size(video.width or 1, video.height or 1, stream.source)
            # Holds where the size changes on the way, too.
            video.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
        except AttributeError:
            raise InputError(f"{stream.source}: its video is of a kind that FFmpeg cannot decode") from None
        yield container, video
    finally:
        container.close()


def _open(av: Any, stream: Stream) -> Any:
    if stream.device:
        return av.open(stream.address, format="v4l2", timeout=_TIMEOUT_S)
    if stream.live:
        return av.open(stream.address, options=_LIVE_OPTIONS, timeout=_TIMEOUT_S)
    path = Path(stream.address)
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{stream.source}: not a regular file")
    if found.st_size == 0:
        raise InputError(f"{stream.source}: the file is empty (0 bytes)")
    # Or a name with a colon would be taken for an address.
    return av.open(f"file:{path.absolute()}", options=_FILE_OPTIONS)


def reason_of(error: Exception) -> str:
    """Why FFmpeg failed, without its number in front, and without the address behind, which may hold a password."""
    reason = str(getattr(error, "strerror", None) or error)
    return f"nothing came for {_TIMEOUT_S:g} s" if reason == _TIMED_OUT else reason


def _why_not(stream: Stream, error: Exception) -> str:
    reason = reason_of(error)
    if stream.device:
        if isinstance(error, FileNotFoundError):
            there = sorted(str(path) for path in Path("/dev").glob("video*"))
            return f"{stream.source}: no such camera; this machine has {', '.join(there) or 'none'}"
        if isinstance(error, PermissionError):
            return f"{stream.source}: no permission: add yourself to the group of {stream.address} (usually video)"
        return f"{stream.source}: the camera cannot be opened ({reason}); another program may be using it"
    if stream.live:
        return f"{stream.source}: cannot be opened ({reason})"
    return f"{stream.source}: not a video that can be read, or its index is cut off ({reason})"


def decoded(container: Any, video: Any, on_damage: Callable[[], None]) -> Iterator[VideoFrame]:
    """The frames in the order in which they are shown; calls `on_damage` for each packet that cannot be decoded.

    Raises:
        av.FFmpegError: reading failed.
    """
    import av

    for packet in container.demux(video):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            on_damage()
            continue
        yield from frames
