"""What SOURCE arguments stand for: pictures, folders, globs and .npy tensors, as single images; videos and cameras."""

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
from mscope.core.manifest import MANIFEST
from mscope.runtime.preprocess import check_tensor
from mscope.runtime.video.stream import Stream, is_video_name, live_stream

# fmt: off
PICTURE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
    ".jp2", ".avif", ".tga", ".ico", ".mpo",
})
# fmt: on


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


def expand_sources(arguments: Sequence[str], tensor_shape: tuple[int, int, int]) -> list[Item | Stream]:
    """Single images and streams from SOURCE arguments, in the order given.

    A folder stands for the pictures and .npy files directly in it, known by their suffixes and sorted by name, without
    hidden ones; a glob stands for those that it matches (`**` crosses folders), and for videos where it ends in the
    suffix of one. A file that is named itself is taken whatever its suffix, as a video if it has one's, else as a
    picture. `camera:0`, `/dev/video0` and `rtsp://...` are live streams.

    Args:
        arguments: paths and globs.
        tensor_shape: (C, H, W) of the network, which every .npy must have, with or without a batch axis in front.

    Returns:
        Items and streams; an argument that stands for nothing yields an item with its `problem`.
    """
    items: list[Item | Stream] = []
    for argument in arguments:
        live = live_stream(argument)
        if live is not None and not (live.device and Path(argument).is_file()):
            items.append(live)
            continue
        try:
            for path in _paths(argument):
                items += [Stream(str(path), str(path))] if is_video_name(path) else _items(path, tensor_shape)
        except InputError as problem:
            items.append(Item(argument, Path(argument), problem=problem))
    return items


def expand_pictures(arguments: Sequence[str], tensor_shape: tuple[int, int, int]) -> list[Item]:
    """As `expand_sources`, where videos and cameras will not do: each yields an item with its `problem`."""
    items = expand_sources(arguments, tensor_shape)
    return [
        item
        if isinstance(item, Item)
        else Item(
            item.source,
            Path(item.address),
            problem=InputError(f"{item.source}: a video or camera, where pictures are needed: save frames of it"),
        )
        for item in items
    ]


def _paths(argument: str) -> list[Path]:
    path = Path(argument)
    if not argument or "\0" in argument:
        raise InputError("an empty SOURCE: give a picture, a folder, a glob or an .npy file")
    try:
        if path.is_dir():
            found = sorted(entry for entry in path.iterdir() if _wanted(entry))
            if not found and (path / MANIFEST).is_file():
                raise InputError(f"{argument}: is a bundle, not pictures: name it with --bundle {path}")
            if not found:
                videos = any(is_video_name(entry) for entry in path.iterdir())
                hint = f"videos are taken by name, or as '{path}/*.mp4'" if videos else "folders in it are not searched"
                raise InputError(f"{argument}: no pictures or .npy files in this folder ({hint})")
            return found
        if path.exists():
            return [path]
    except OSError as error:
        raise InputError(f"{argument}: {error.strerror or error}") from None
    if re.match(r"https?://", argument):
        raise InputError(f"{argument}: nothing is downloaded: save the picture and give its path")
    if re.fullmatch(r"\d{1,3}", argument):
        raise InputError(f"{argument}: no such file or folder; a camera is camera:{int(argument)}")
    if glob.has_magic(argument):
        # Path.glob takes no absolute pattern.
        names = glob.glob(argument, recursive=True)  # noqa: PTH207
        videos = is_video_name(path)
        matches = sorted(found for found in map(Path, names) if _wanted(found, videos=videos))
        if not matches:
            raise InputError(f"{argument}: the pattern matches no {'videos' if videos else 'pictures or .npy files'}")
        return matches
    raise InputError(f"{argument}: no such file or folder")


def _wanted(path: Path, *, videos: bool = False) -> bool:
    suffix = path.suffix.lower()
    known = suffix in PICTURE_SUFFIXES or suffix == ".npy" or (videos and is_video_name(path))
    return known and not path.name.startswith(".") and path.is_file()


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
        if not path.is_file():
            # Or opening a pipe would wait for its writer.
            raise InputError(f"{source}: not a regular file")
        # A header's shape may be of any size; what does not fit is an error below.
        with np.errstate(all="ignore"):
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
