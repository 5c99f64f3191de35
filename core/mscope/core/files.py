"""Files and folders that are written whole or not at all, and files that are read up to a limit."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from mscope.core.errors import InputError


def hidden_prefix(path: Path) -> str:
    """The begin of a temporary name beside `path`, cut, so that it is no longer than the 255 bytes that a name has."""
    return f".{path.name[:48]}."


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends well, and vanishes when it does not."""
    handle, name = tempfile.mkstemp(prefix=hidden_prefix(path), suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            # A full disk does not say which file it was full for.
            error.filename = str(path)
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def write_text_atomically(path: Path, text: str) -> None:
    """Writes a UTF-8 file under a temporary name, then renames it.

    A byte of a file's name that is not UTF-8 is written as `\\udcff`, which in a string of JSON is what it means.
    """
    with replacing(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def read_within(path: Path, most: int) -> bytes | None:
    """A file's content; None where that is more than `most` bytes, which of a pipe or a device no size tells."""
    with path.open("rb") as file:
        content = file.read(most + 1)
    return content if len(content) <= most else None


@contextlib.contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, to be renamed to it; what is left under its own name at the end goes.

    Raises:
        InputError: the parent of `target` cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=hidden_prefix(target), suffix=".part", dir=target.parent))
    except OSError as error:
        raise InputError(f"cannot write below {target.parent}: {error.strerror or error}") from None
    try:
        work.chmod(0o755)
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_new_folder(target: Path) -> None:
    """Raises InputError where `new_folder` would for what `target` is: for the start of work that ends in one."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists and is not an empty folder: name another one, or remove it")


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder that gets the name `target` when the block ends well, and vanishes when it does not.

    Raises:
        InputError: `target` exists and is no empty folder, or its parent cannot be written.
    """
    target = target.resolve()
    check_new_folder(target)
    with folder_beside(target) as work:
        yield work
        work.rename(target)
