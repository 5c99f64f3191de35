"""The overlays of a video's frames as a video."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mscope.core.files import replacing

if TYPE_CHECKING:
    from PIL import Image

_TIME_BASE = Fraction(1, 1000)
# Where a clip does not tell when its frames are shown.
_STEP = 40
# In the order of preference; a build of FFmpeg under the LGPL has the second alone.
_ENCODERS = ("libx264", "mpeg4")


class OverlayVideo:
    """An .mp4 at the pace of its source; it is there when it is closed, and not at all when writing failed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = contextlib.ExitStack()
        self._container: Any = None
        self._stream: Any = None
        self._last = -1

    def write(self, picture: Image.Image, time_s: float | None) -> None:
        """Adds a frame, shown at `time_s` seconds. All have the size of the first.

        Raises:
            OSError: it cannot be written; what was written is gone.
        """
        import av

        try:
            if self._container is None:
                self._open(picture.size)
            frame = av.VideoFrame.from_ndarray(np.asarray(_even(picture.convert("RGB"))), format="rgb24")
            at = self._last + _STEP if time_s is None else round(time_s / _TIME_BASE)
            # Time that stands still or runs back would be refused.
            self._last = max(self._last + 1, int(at))
            frame.pts, frame.time_base = self._last, _TIME_BASE
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        except BaseException as error:
            self._give_up(error)
            raise

    def close(self) -> None:
        """Completes the file; does nothing where there was no frame. Raises OSError as `write` does."""
        if self._container is None:
            return
        try:
            for packet in self._stream.encode():
                self._container.mux(packet)
            self._container.close()
        except BaseException as error:
            self._give_up(error)
            raise
        self._container = None
        self._stack.close()

    def _open(self, size: tuple[int, int]) -> None:
        import av

        file = self._stack.enter_context(replacing(self._path))
        self._container = av.open(file, "w", format="mp4")
        encoder = next(name for name in _ENCODERS if name in av.codecs_available)
        self._stream = self._container.add_stream(encoder)
        self._stream.width, self._stream.height = (side + side % 2 for side in size)
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = _TIME_BASE

    def _give_up(self, error: BaseException) -> None:
        container, self._container = self._container, None
        with contextlib.suppress(Exception):
            if container is not None:
                container.close()
        # `replacing` raises it again when it has removed its file.
        with contextlib.suppress(BaseException):
            self._stack.__exit__(type(error), error, error.__traceback__)


def _even(picture: Image.Image) -> Image.Image:
    """With even sides, which the pixel format needs: a black column or row is added where one is odd."""
    from PIL import Image

    width, height = picture.size
    if width % 2 == height % 2 == 0:
        return picture
    padded = Image.new("RGB", (width + width % 2, height + height % 2))
    padded.paste(picture, (0, 0))
    return padded
