"""What a run leaves on disk: an .npz of the arrays, one overlay a picture; each file complete or not there."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mscope.core.errors import InputError
from mscope.core.files import replacing
from mscope.runtime.result import Outcome

if TYPE_CHECKING:
    from PIL import Image

_ROWS = ("logits", "coarse_logits", "importance", "selected")


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
    importance (n, Nc) float32, selected (n, K) int64 with -1 where the image exited, and sources (n,) text; `untrained`
    () bool. A plain ViM has no coarse_logits, importance and selected.
    """

    def __init__(self, path: Path, *, untrained: bool) -> None:
        """Raises InputError where `path` cannot be written, before anything is run."""
        if path.is_dir():
            raise InputError(f"{path}: is a folder: --save-outputs takes the name of an .npz file")
        writable_folder(path.parent)
        self._path = path
        self._untrained = untrained
        self._outcomes: list[Outcome] = []
        self._sources: list[str] = []

    def add(self, outcome: Outcome, sources: list[str]) -> None:
        """Appends the rows of one batch."""
        self._outcomes.append(outcome)
        self._sources += sources

    def write(self) -> None:
        """Writes the file; does nothing when no image was run."""
        if not self._sources:
            return
        arrays = {
            name: np.concatenate([getattr(outcome, name) for outcome in self._outcomes])
            for name in _ROWS
            if getattr(self._outcomes[0], name) is not None
        }
        with replacing(self._path) as file:
            np.savez(
                file,
                allow_pickle=False,
                **arrays,
                sources=np.array(self._sources),
                untrained=np.array(self._untrained),
            )


class OverlayFolder:
    """Writes overlays for `--save-vis` as NAME.overlay.png; a second NAME becomes NAME-2, and so on."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError where `folder` cannot be written."""
        self._folder = writable_folder(folder)
        self._taken: set[str] = set()

    def write(self, source: str, picture: Image.Image) -> Path:
        """Writes one PNG and returns its path. Files of an earlier run with the same name are replaced."""
        # "digits.npy[3]" becomes digits-3; a picture's name loses its suffix.
        row = re.search(r"\.npy\[(\d+)\]$", source)
        stem = f"{Path(source[: row.start()]).name}-{row[1]}" if row else Path(source).stem
        stem = (stem or "image")[:120]
        name, number = stem, 1
        while name.lower() in self._taken:
            number += 1
            name = f"{stem}-{number}"
        self._taken.add(name.lower())
        path = self._folder / f"{name}.overlay.png"
        with replacing(path) as file:
            picture.save(file, format="PNG")
        return path
