"""Where results go: looked at before the measuring, so that nothing is measured in vain; and written there."""

from __future__ import annotations

import os
from pathlib import Path

from mscope.core.errors import InputError
from mscope.core.files import write_text_atomically


def check_destination(option: str, path: Path | None) -> None:
    """Raises InputError where a file cannot be written at `path`; `option` is named in it. None is nowhere."""
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"{option} {path}: is a folder: give the name of a file")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"{option} {path}: there is no folder {folder}: make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{option} {path}: no permission to write into {folder}")


def write_report(path: Path, text: str) -> None:
    """Writes a report, whole or not at all. Raises InputError where it cannot be written."""
    try:
        write_text_atomically(path, text)
    except OSError as error:
        raise InputError(f"{path}: the report cannot be written: {error.strerror or error}") from None
