"""What a run leaves on disk: an .npz of the arrays, overlays as pictures and videos; each file whole or not there."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import Self

from mscope.core.errors import InputError
from mscope.core.files import replacing
from mscope.runtime.result import Outcome, Result
from mscope.runtime.video.stream import live_stream
from mscope.runtime.video.writer import OverlayVideo

if TYPE_CHECKING:
    from PIL import Image

_ROWS = ("logits", "coarse_logits", "importance", "selected")
# Bytes of an overlay's name before "-2.overlay.png": a file system takes 255 in all.
_LONGEST_STEM = 200


def writable_folder(folder: Path) -> Path:
    """`folder`, made if it is not there. Raises InputError if it cannot be, or cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{folder}: is in the way of a folder: choose another one") from None
    except OSError as error:
        raise InputError(f"{folder}: cannot make this folder: {error.strerror or error}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: no permission to write here")
    return folder


class OutputArrays:
    """Collects the outcomes of a run for `--save-outputs`.

    The .npz holds, one row an image that was run, in order: logits (final) and coarse_logits (n, classes) float32,
    importance (n, Nc) float32, selected (n, K) int64 with -1 where the image exited, sources (n,) text and, where
    there are videos, frames (n,) int64 with -1 for a picture; `untrained` () bool. A plain ViM has no coarse_logits,
    importance and selected.
    """

    def __init__(self, path: Path, *, untrained: bool) -> None:
        """Raises InputError where `path` cannot be written, before anything is run."""
        writable_folder(path.parent)
        try:
            is_folder = path.is_dir()
        except OSError as error:  # such as a name that is too long
            raise InputError(f"{path}: cannot write this file: {error.strerror or error}") from None
        if is_folder:
            raise InputError(f"{path}: is a folder: --save-outputs takes the name of an .npz file")
        self._path = path
        self._untrained = untrained
        self._outcomes: list[Outcome] = []
        self._sources: list[str] = []
        self._frames: list[int] = []

    def add(self, outcome: Outcome, sources: list[str], frames: list[int]) -> None:
        """Appends the rows of one batch; `frames` are the numbers in a video, -1 for a picture."""
        self._outcomes.append(outcome)
        self._sources += sources
        self._frames += frames

    def write(self) -> None:
        """Writes the file; does nothing when no image was run."""
        if not self._sources:
            return
        arrays = {
            name: np.concatenate([getattr(outcome, name) for outcome in self._outcomes])
            for name in _ROWS
            if getattr(self._outcomes[0], name) is not None
        }
        if max(self._frames) >= 0:
            arrays["frames"] = np.array(self._frames, np.int64)
        with replacing(self._path) as file:
            np.savez(
                file,
                allow_pickle=False,
                **arrays,
                sources=np.array(self._sources),
                untrained=np.array(self._untrained),
            )


class OverlayFolder:
    """Writes overlays for `--save-vis`; a context manager, whose end completes the last video.

    A picture becomes NAME.overlay.png, a video or stream NAME.overlay.mp4 of the frames that were looked at. A second
    NAME becomes NAME-2, and so on. Files of an earlier run with the same name are replaced.
    """

    def __init__(self, folder: Path) -> None:
        """Raises InputError where `folder` cannot be written."""
        self._folder = writable_folder(folder)
        self._taken: set[str] = set()
        self._video: OverlayVideo | None = None
        self._video_of = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_video()

    def write(self, result: Result, picture: Image.Image) -> None:
        """Writes the overlay of one result, or adds it to the video of its source. Frames come source by source."""
        if result.frame is not None:
            if self._video is None or self._video_of != result.source:
                self._end_video()
                self._video = OverlayVideo(self._path(result.source, ".overlay.mp4"))
                self._video_of = result.source
            self._video.write(picture, result.frame.time_s)
            return
        path = self._path(result.source, ".overlay.png")
        with replacing(path) as file:
            picture.save(file, format="PNG")

    def _end_video(self) -> None:
        video, self._video = self._video, None
        if video is not None:
            video.close()

    def _path(self, source: str, ending: str) -> Path:
        # "digits.npy[3]" becomes digits-3; a file's name loses its suffix, an address what does not go into a name.
        row = re.search(r"\.npy\[(\d+)\]$", source)
        stem = f"{Path(source[: row.start()]).name}-{row[1]}" if row else Path(source).stem
        if live_stream(source) is not None:
            stem = re.sub(r"[^\w.]+", "-", source).strip("-")
        stem = (stem or "image")[:120]
        while len(os.fsencode(stem)) > _LONGEST_STEM:
            stem = stem[:-1]
        name, number = stem, 1
        while f"{name}{ending}".lower() in self._taken:
            number += 1
            name = f"{stem}-{number}"
        self._taken.add(f"{name}{ending}".lower())
        return self._folder / f"{name}{ending}"
