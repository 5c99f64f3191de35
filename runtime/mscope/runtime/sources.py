"""What SOURCE arguments stand for: pictures, folders, globs and .npy tensors, expanded into single images."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mscope.core.errors import InputError
from mscope.runtime.preprocess import check_tensor

# fmt: off
PICTURE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
    ".jp2", ".avif", ".tga", ".ico", ".mpo",
})
_VIDEO_SUFFIXES = frozenset({
    ".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".mjpeg",
})
# fmt: on
_CAMERA = re.compile(r"(\d{1,2}|cam(era)?(:.*)?|/dev/video\d+|(v4l2|csi|rtsp|rtmp)://.*)", re.IGNORECASE)


@dataclass(frozen=True)
class Item:
    """One image to run, or the reason why an argument stands for none.

    Attributes:
        source: its name in results and errors: the path, with the row's number for a tensor of several ("x.npy[3]").
        path: the file.
        row: the row of an .npy (B, C, H, W); None for a picture and for an .npy (C, H, W).
        problem: raised by `load`, so that one bad argument does not keep the others from being run.
    """

    source: str
    path: Path
    row: int | None = None
    problem: InputError | None = None

    def load(self) -> Path | npt.NDArray[np.float32]:
        """What `Scope` takes: the path of a picture, or a float32 (C, H, W) array that belongs to the caller.

        Raises:
            InputError: the problem, or the .npy has changed since it was looked at.
        """
        if self.problem:
            raise self.problem
        if self.path.suffix.lower() != ".npy":
            return self.path
        array = _mapped(self.path, self.source)
        if self.row is not None and self.row >= len(array):
            raise InputError(f"{self.source}: the file has changed while it was in use")
        return np.array(array if self.row is None else array[self.row])


def expand_sources(arguments: Sequence[str], tensor_shape: tuple[int, int, int]) -> list[Item]:
    """Single images from SOURCE arguments, in the order given.

    A folder stands for the pictures and .npy files directly in it, known by their suffixes and sorted by name, without
    hidden ones; a glob stands for those that it matches (`**` crosses folders). A file that is named itself is taken
    whatever its suffix.

    Args:
        arguments: paths and globs.
        tensor_shape: (C, H, W) of the network, which every .npy must have, with or without a batch axis in front.

    Returns:
        Items; an argument that stands for nothing yields one with its `problem`.
    """
    items: list[Item] = []
    for argument in arguments:
        try:
            for path in _paths(argument):
                items += _items(path, tensor_shape)
        except InputError as problem:
            items.append(Item(argument, Path(argument), problem=problem))
    return items


def _paths(argument: str) -> list[Path]:
    path = Path(argument)
    if not argument or "\0" in argument:
        raise InputError("an empty SOURCE: give a picture, a folder, a glob or an .npy file")
    try:
        if path.is_dir():
            found = sorted(entry for entry in path.iterdir() if _wanted(entry))
            if not found:
                raise InputError(
                    f"{argument}: no pictures or .npy files in this folder (folders in it are not searched)"
                )
            return found
        if path.exists():
            if _is_video(path):
                raise InputError(f"{argument}: video and camera sources are not supported yet: give pictures of it")
            return [path]
    except OSError as error:
        raise InputError(f"{argument}: {error.strerror or error}") from None
    if re.match(r"https?://", argument):
        raise InputError(f"{argument}: nothing is downloaded: save the picture and give its path")
    if _CAMERA.fullmatch(argument) or _is_video(path):
        raise InputError(f"{argument}: video and camera sources are not supported yet: give pictures of it")
    if glob.has_magic(argument):
        # Path.glob takes no absolute pattern.
        names = glob.glob(argument, recursive=True)  # noqa: PTH207
        matches = sorted(path for path in map(Path, names) if _wanted(path))
        if not matches:
            raise InputError(f"{argument}: the pattern matches no pictures or .npy files")
        return matches
    raise InputError(f"{argument}: no such file or folder")


def _wanted(path: Path) -> bool:
    suffix = path.suffix.lower()
    return (suffix in PICTURE_SUFFIXES or suffix == ".npy") and not path.name.startswith(".") and path.is_file()


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in _VIDEO_SUFFIXES or str(path).startswith("/dev/video")


def _items(path: Path, tensor_shape: tuple[int, int, int]) -> list[Item]:
    if path.suffix.lower() != ".npy":
        return [Item(str(path), path)]
    try:
        array = _mapped(path, str(path))
        check_tensor(array, tensor_shape, str(path), or_batch=True)
        if array.ndim == 3:
            return [Item(str(path), path)]
        if not len(array):
            raise InputError(f"{path}: got shape {array.shape}, which holds no image")
        return [Item(f"{path}[{row}]", path, row) for row in range(len(array))]
    except InputError as problem:
        return [Item(str(path), path, problem=problem)]


def _mapped(path: Path, source: str) -> npt.NDArray[Any]:
    """The array of an .npy without reading its data: a header that promises more than the file holds is an error."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, TypeError, SyntaxError, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{source}: not a readable .npy of numbers ({reason[:120]}); expected float32") from None
    except OSError as error:
        raise InputError(f"{source}: {error.strerror or error}") from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise InputError(f"{source}: an .npz archive, expected a single .npy array")
    return array
