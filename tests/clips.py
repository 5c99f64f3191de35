"""Small videos, written by PyAV, and a server that sends one as a camera of the network would."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mscope.runtime.video.clip import clip_frames
from mscope.runtime.video.frame import Frame
from mscope.runtime.video.stream import Stream

av = pytest.importorskip("av", reason="videos need PyAV: pip install '.[video]'")

_MS = Fraction(1, 1000)
# (a, b, u, c, d, v, x, y, w) of an .mp4's track header: shown turned a quarter clockwise.
_CLOCKWISE = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)


def grey_frames(count: int, size: tuple[int, int] = (64, 48), step: int = 8) -> list[npt.NDArray[np.uint8]]:
    """Frames (H, W, 3) that tell themselves apart: frame n has the brightness n * step."""
    return [np.full((size[1], size[0], 3), n * step % 256, np.uint8) for n in range(count)]


def write_clip(
    path: Path,
    frames: Sequence[npt.NDArray[np.uint8]],
    *,
    times_ms: Sequence[int] | None = None,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    gop: int = 12,
) -> None:
    """A video of `frames` (H, W, 3), shown at `times_ms`, by default every 40 ms. ffv1 in an .mkv is lossless."""
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = width, height
        stream.pix_fmt = {"ffv1": "bgr0", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        stream.codec_context.time_base = _MS
        stream.codec_context.gop_size = gop
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = (40 * number if times_ms is None else times_ms[number]), _MS
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def stream(path: Path) -> Stream:
    """A video as a source."""
    return Stream(str(path), str(path))


def frames(path: Path, every: int = 1, limit: int | None = None) -> list[Frame]:
    """The frames of a video as the runtime reads them."""
    return list(clip_frames(stream(path), every, limit))


def turn_clockwise(path: Path) -> None:
    """Writes into an .mp4's track header that it is to be shown turned by 90 degrees, as phones do."""
    content = bytearray(path.read_bytes())
    header = content.index(b"tkhd")
    assert content[header + 4] == 0, "version 0 of the box"
    matrix = header + 4 + 40
    assert struct.unpack(">9i", content[matrix : matrix + 36])[0] == 1 << 16
    content[matrix : matrix + 36] = struct.pack(">9i", *_CLOCKWISE)
    path.write_bytes(content)


@contextlib.contextmanager
def served(path: Path, *, seconds: float, hold_open: bool = False) -> Iterator[str]:
    """The address of a server that sends the file evenly over `seconds`, once, to the first who asks.

    `hold_open`: it then sends nothing more and does not close, like a camera that hangs, until the block ends.
    """
    content = path.read_bytes()
    ended = threading.Event()

    def send() -> None:
        with contextlib.suppress(OSError):
            client, _ = server.accept()
            with client:
                pieces = 100
                size = -(-len(content) // pieces)
                for begin in range(0, len(content), size):
                    client.sendall(content[begin : begin + size])
                    time.sleep(seconds / pieces)
                if hold_open:
                    ended.wait(60)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        finally:
            ended.set()
    thread.join(10)
