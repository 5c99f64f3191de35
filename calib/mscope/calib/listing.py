"""Labelled pictures on disk: a folder for each class, or a list file of paths and classes."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mscope.core.errors import InputError
from mscope.runtime.sources import PICTURE_SUFFIXES

_LIST_SUFFIXES = (".csv", ".txt")
_MAX_LIST_BYTES = 256 << 20
_HEADERS = {"path", "file", "filename", "image"}


@dataclass(frozen=True)
class Listing:
    """Pictures with the name of their class, in a fixed order, and what was left out, in words."""

    root: Path
    pictures: tuple[tuple[Path, str], ...]
    notes: tuple[str, ...] = ()


def list_folder(root: Path) -> Listing:
    """The pictures below the class folders of `root`, by class name, then by path.

    A class folder is searched with the folders in it. Hidden files are skipped; others that are no pictures by their
    suffix are counted in the notes.

    Raises:
        InputError: no class folders, or one without pictures.
    """
    try:
        entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
        folders = [entry for entry in entries if entry.is_dir()]
        loose = sum(_is_picture(entry) for entry in entries if entry.is_file())
        if not folders:
            if loose:
                raise InputError(
                    f"{root}: {loose} pictures but no folders: put each picture into a folder named by its class, "
                    "or give a list of 'path,class' lines"
                )
            raise InputError(f"{root}: the folder is empty: one folder for each class is expected in it")
        pictures: list[tuple[Path, str]] = []
        empty, others = [], 0
        for folder in folders:
            found = 0
            for path in _files_below(folder):
                if _is_picture(path):
                    pictures.append((path, folder.name))
                    found += 1
                else:
                    others += 1
            if not found:
                empty.append(folder.name)
    except OSError as error:
        raise InputError(f"{error.filename or root}: {error.strerror or error}") from None
    if empty:
        more = f" (and {len(empty) - 1} others)" if len(empty) > 1 else ""
        raise InputError(f"{root}: class '{empty[0]}'{more} has no pictures: add some, or remove its folder")
    notes = []
    if loose:
        notes.append(f"{loose} pictures beside the class folders have no class and are left out")
    if others:
        notes.append(f"{others} files are not pictures by their suffix and are left out")
    return Listing(root, tuple(pictures), tuple(notes))


def list_file(path: Path) -> Listing:
    """The pictures of a list: 'path,class' lines of a .csv, or 'path class' lines of a .txt; paths from its folder.

    Raises:
        InputError: unreadable, too large, no UTF-8, a line without both, or no lines.
    """
    try:
        if path.stat().st_size > _MAX_LIST_BYTES:
            raise InputError(f"{path}: larger than {_MAX_LIST_BYTES >> 20} MiB: not a list of pictures")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text: a list has one 'path,class' a line") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    pictures = []
    for number, row in _rows(path, text):
        if len(row) != 2 or not all(row):
            raise InputError(f"{path}: line {number} is not 'path,class'")
        if number == 1 and row[0].lower() in _HEADERS:
            continue
        if "\0" in row[0]:
            raise InputError(f"{path}: line {number} is not text")
        pictures.append((path.parent / row[0], row[1]))
    if not pictures:
        raise InputError(f"{path}: the list is empty: one 'path,class' a line is expected")
    return Listing(path.parent, tuple(pictures))


def is_list(path: Path) -> bool:
    """Whether a file is a list by its suffix."""
    return path.suffix.lower() in _LIST_SUFFIXES


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    if path.suffix.lower() == ".csv":
        reader = csv.reader(text.splitlines())
        try:
            for row in reader:
                if row:
                    yield reader.line_num, [cell.strip() for cell in row]
        except csv.Error as error:
            raise InputError(f"{path}: line {reader.line_num}: {error}") from None
    else:
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield number, line.strip().rsplit(maxsplit=1)


def _files_below(folder: Path) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        raise error

    for parent, folders, files in os.walk(folder, onerror=stop):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(parent, name)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES
