"""Files that are whole or not there, and errors that name them."""

import errno
import json
from pathlib import Path

import pytest

from mscope.core.errors import InputError
from mscope.core.files import new_folder, read_within, replacing, write_text_atomically


def test_a_file_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    for text in ("old", "new"):
        write_text_atomically(path, text)
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o644, "others may read it, unlike a temporary file"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="No space") as caught, replacing(path) as file:
        file.write(b"half")
        # Beside it: from another file system it could not be renamed.
        assert len(list(tmp_path.iterdir())) == 2
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="other") as caught, replacing(path):
        raise OSError(errno.EIO, "other", "another file")
    assert caught.value.filename == "another file"


@pytest.mark.parametrize("name", ["x" * 251 + ".npz", "\U0001f600" * 63 + "abc"], ids=["ascii", "emoji"])
def test_a_name_as_long_as_one_may_be(tmp_path: Path, name: str) -> None:
    assert len(name.encode()) == 255
    write_text_atomically(tmp_path / name, "whole")
    assert (tmp_path / name).read_text() == "whole"
    with new_folder(tmp_path / "below" / name):
        pass
    assert [path.name for path in (tmp_path / "below").iterdir()] == [name]


def test_a_new_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "below" / "new"
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), new_folder(target) as work:
            (work / "half").write_text("")
            raise error
        assert list(target.parent.iterdir()) == []
    target.mkdir()
    with new_folder(target) as work:
        (work / "a").write_text("whole")
        assert list(target.iterdir()) == []
    assert [path.name for path in target.parent.iterdir()] == ["new"]
    assert (target / "a").read_text() == "whole"
    assert target.stat().st_mode & 0o777 == 0o755


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("mine")
    (tmp_path / "link").symlink_to("full")
    for name in ("full", "full/a", "link"):
        with pytest.raises(InputError, match="is not an empty folder"), new_folder(tmp_path / name):
            raise AssertionError("not to be reached")
    with pytest.raises(InputError, match="cannot write below"), new_folder(tmp_path / "full" / "a" / "b"):
        raise AssertionError("not to be reached")
    assert (tmp_path / "full" / "a").read_text() == "mine"


def test_a_file_name_that_is_no_unicode_is_written_as_json_spells_it(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_text_atomically(path, json.dumps({"source": "\u00e9\udcff"}, ensure_ascii=False))
    assert path.read_bytes() == b'{"source": "\xc3\xa9\\udcff"}'
    assert json.loads(path.read_text(encoding="utf-8"))["source"] == "\u00e9\udcff"


def test_a_device_without_an_end_is_read_no_further_than_allowed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert read_within(path, 3) == b"abc"
    assert read_within(path, 2) is None
    assert read_within(Path("/dev/zero"), 1 << 16) is None
