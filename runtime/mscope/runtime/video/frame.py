"""One frame, as it comes out of a video or a camera."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mscope.core.errors import InputError
from mscope.runtime.result import FrameStamp

if TYPE_CHECKING:
    from av import VideoFrame

# More than 8K; a decoder keeps several frames of that size.
MAX_FRAME_PIXELS = 1 << 26
# "unspecified" in the numbering of ITU-T H.273 that FFmpeg uses.
_UNSPECIFIED = 2
_HD_HEIGHT = 720


@dataclass(frozen=True)
class Frame:
    """A decoded frame.

    Attributes:
        name: for errors: the source and the frame's number.
        stamp: its place in the stream.
        read_ms: what reading and decoding it took, with those left out since the last one; 0 for a live stream, which
            is decoded beside the network.
        picture: PyAV's frame, still in the video's own pixel format.
    """

    name: str
    stamp: FrameStamp
    read_ms: float
    picture: VideoFrame

    def pixels(self) -> npt.NDArray[np.uint8]:
        """(H, W, 3) uint8, RGB, upright: the rotation that the file asks for is applied in quarter turns.

        Raises:
            InputError: more than MAX_FRAME_PIXELS, or pixels that cannot be converted.
        """
        return pixels_of(self.picture, self.name)


def pixels_of(picture: Any, name: str) -> npt.NDArray[np.uint8]:
    """As `Frame.pixels`, of PyAV's frame; `name` is for errors."""
    import av

    check_frame_size(picture.width, picture.height, name)
    # Players take untagged video of HD size for BT.709, FFmpeg for BT.601.
    untagged = picture.colorspace == _UNSPECIFIED and picture.height >= _HD_HEIGHT
    try:
        pixels = picture.reformat(format="rgb24", src_colorspace="ITU709" if untagged else None).to_ndarray()
    except (av.FFmpegError, ValueError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{name}: its pixels cannot be converted ({reason[:120]})") from None
    # Counter-clockwise, as in np.rot90.
    upright: npt.NDArray[np.uint8] = np.rot90(pixels, round(picture.rotation / 90) % 4)
    return upright


def check_frame_size(width: int, height: int, name: str) -> None:
    """Raises InputError for frames without pixels or with more than MAX_FRAME_PIXELS."""
    if not 0 < width * height <= MAX_FRAME_PIXELS:
        raise InputError(
            f"{name}: {width} x {height} pixels; frames of up to {MAX_FRAME_PIXELS / 1e6:.0f} megapixels are taken"
        )
