"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends well, and vanishes when it does not."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
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
    """Writes a UTF-8 file under a temporary name, then renames it."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))
