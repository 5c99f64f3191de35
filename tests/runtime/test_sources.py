import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mscope.core.errors import InputError
from mscope.runtime.sources import Item, expand_pictures, expand_sources
from mscope.runtime.video.stream import Stream

SHAPE = (3, 64, 48)


def expand(*arguments: object) -> list[Item]:
    found = expand_sources([str(argument) for argument in arguments], SHAPE)
    return [item for item in found if isinstance(item, Item)]


def problem(*arguments: object) -> str:
    (item,) = expand(*arguments)
    with pytest.raises(InputError) as caught:
        item.load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.PNG", "c.jpeg", ".hidden.png", "sub/d.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, "PNG")
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "folder.png").mkdir()
    np.save(tmp_path / "e.npy", np.zeros((2, *SHAPE), np.float32))
    return tmp_path


def test_a_folder_is_what_is_directly_in_it_sorted(folder: Path) -> None:
    expected = [folder / "a.PNG", folder / "b.png", folder / "c.jpeg"]
    assert [item.source for item in expand(folder)] == [*map(str, expected), f"{folder}/e.npy[0]", f"{folder}/e.npy[1]"]


def test_a_glob(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [item.path.name for item in expand(f"{folder}/*.png")] == ["b.png"]
    assert [item.path.name for item in expand(f"{folder}/**/*.png")] == ["b.png", "d.png"]
    assert [item.path.name for item in expand(f"{folder}/[ab].*")] == ["a.PNG", "b.png"]
    monkeypatch.chdir(folder)
    assert [item.source for item in expand("su?/*")] == ["sub/d.png"]


def test_a_file_whose_name_looks_like_a_glob(folder: Path) -> None:
    shutil.copy(folder / "b.png", folder / "x[1].png")
    assert [item.path.name for item in expand(folder / "x[1].png")] == ["x[1].png"]


def test_several_keep_their_order_and_do_not_stop_each_other(folder: Path) -> None:
    items = expand(folder / "c.jpeg", folder / "missing.png", folder / "b.png")
    assert [item.path.name for item in items] == ["c.jpeg", "missing.png", "b.png"]
    assert [item.problem is None for item in items] == [True, False, True]


def test_a_named_file_is_taken_whatever_its_suffix(folder: Path) -> None:
    assert expand(folder / "notes.txt")[0].load() == folder / "notes.txt"


def test_tensors(tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32)
    np.save(tmp_path / "many.npy", images)
    np.save(tmp_path / "one.npy", images[1])
    np.save(tmp_path / "fortran.npy", np.asfortranarray(images))
    for name in ("many", "fortran"):
        items = expand(tmp_path / f"{name}.npy")
        assert [item.source for item in items] == [f"{tmp_path}/{name}.npy[{row}]" for row in range(3)]
        np.testing.assert_array_equal(np.stack([item.load() for item in items]), images)
    (item,) = expand(tmp_path / "one.npy")
    assert item.source == f"{tmp_path}/one.npy"
    loaded = item.load()
    np.testing.assert_array_equal(loaded, images[1])
    assert isinstance(loaded, np.ndarray)
    assert not isinstance(loaded, np.memmap), "the caller's array must not hang on the file"
    assert loaded.flags.writeable


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 48, 64), np.float32), "got shape (3, 48, 64), expected (3, 64, 48) or (B, 3, 64, 48)"),
        (np.zeros((2, 64, 48, 3), np.float32), "got shape (2, 64, 48, 3), expected"),
        (np.zeros((1, 1, *SHAPE), np.float32), "got shape (1, 1, 3, 64, 48), expected"),
        (np.float32(3), "got shape (), expected"),
        (np.zeros(SHAPE), "got dtype float64, expected float32"),
        (np.zeros(SHAPE, np.uint8), "got dtype uint8, expected float32"),
        (np.zeros(SHAPE, ">f4"), "got dtype >f4, expected float32"),
        (np.zeros((0, *SHAPE), np.float32), "holds no image"),
    ],
)
def test_wrong_tensors_say_got_and_expected(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "x.npy", array)
    assert message in problem(tmp_path / "x.npy")


def test_files_that_are_no_tensor(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.array([{"a": 1}], dtype=object))
    assert "expected float32" in problem(path)
    for content in (b"", b"text", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff"):
        path.write_bytes(content)
        assert "x.npy" in problem(path)
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))
    assert "an .npz archive" in problem(path)


def test_a_header_that_promises_more_than_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999, 3, 64, 48), }"
    header += " " * (117 - len(header)) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"\0" * 64)
    assert "not a readable .npy" in problem(path)


@pytest.mark.filterwarnings("error")
def test_a_header_whose_size_no_number_holds(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({1 << 62}, 3, 64, 48), }}"
    header += " " * (117 - len(header)) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"\0" * 64)
    assert "not a readable .npy" in problem(path)


def test_a_pipe_without_a_writer_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npy")
    assert problem(tmp_path / "x.npy").endswith("x.npy: not a regular file")


def test_a_file_that_shrinks_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((3, *SHAPE), np.float32))
    last = expand(path)[2]
    np.save(path, np.zeros((1, *SHAPE), np.float32))
    with pytest.raises(InputError, match="has changed"):
        last.load()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("", "empty SOURCE"),
        ("missing.png", "no such file or folder"),
        ("missing/*.png", "the pattern matches no pictures"),
        ("film.mp4", "no such file or folder"),
        ("missing/*.mp4", "the pattern matches no videos"),
        ("0", "a camera is camera:0"),
        ("https://host/cat.jpg", "nothing is downloaded"),
        ("x" * 5000, "too long|name"),
    ],
)
def test_arguments_that_stand_for_nothing(
    argument: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = problem(argument)
    assert any(part in said for part in message.split("|"))


def test_videos_and_cameras_are_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.mp4", "a.MOV", "c.png", "d.mp4"):
        Path(name).write_bytes(b"film")
    found = expand_sources(["a.MOV", "camera:1", "*.mp4"], SHAPE)
    assert found == [
        Stream("a.MOV", "a.MOV"),
        Stream("camera:1", "/dev/video1", live=True, device=True),
        Stream("b.mp4", "b.mp4"),
        Stream("d.mp4", "d.mp4"),
    ]
    assert [item.path.name for item in expand("*")] == ["c.png"], "a glob that does not ask for videos has none"
    assert [item.path.name for item in expand(".")] == ["c.png"]
    Path("c.png").unlink()
    assert "videos are taken by name" in problem(".")


def test_where_pictures_are_needed_a_video_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"film")
    film, camera = expand_pictures([str(tmp_path / "film.mp4"), "camera:0"], SHAPE)
    for item in (film, camera):
        with pytest.raises(InputError, match="where pictures are needed"):
            item.load()


def test_a_bundle_in_the_place_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    assert problem(tmp_path) == f"{tmp_path}: is a bundle, not pictures: name it with --bundle {tmp_path}"


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "no pictures or .npy files in this folder" in problem(tmp_path)
