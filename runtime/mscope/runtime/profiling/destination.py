"""Where results go: looked at before the measuring, so that nothing is measured in vain."""

from __future__ import annotations

import os
from pathlib import Path

from mscope.core.errors import InputError


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
