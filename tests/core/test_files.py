"""Files that are whole or not there, and errors that name them."""

import errno
from pathlib import Path

import pytest

from mscope.core.files import replacing, write_text_atomically


def test_a_file_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    for text in ("old", "new"):
        write_text_atomically(path, text)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="No space") as caught, replacing(path) as file:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="other") as caught, replacing(path):
        raise OSError(errno.EIO, "other", "another file")
    assert caught.value.filename == "another file"
