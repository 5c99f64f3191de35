from pathlib import Path

import pytest

from mscope.core.errors import InputError
from mscope.runtime.labels import imagenet_labels, labels_from_file


def test_imagenet() -> None:
    labels = imagenet_labels()
    assert len(labels) == len({label.lower() for label in labels}) == 1000
    # Spread over the list, so that a name lost anywhere shows.
    known = {
        0: "tench", 1: "goldfish", 99: "goose", 134: "crane bird", 207: "golden retriever", 281: "tabby",
        285: "Egyptian cat", 340: "zebra", 388: "giant panda", 404: "airliner", 463: "bucket", 517: "crane",
        555: "fire engine", 609: "jeep", 638: "maillot", 652: "military uniform", 717: "pickup", 779: "school bus",
        817: "sports car", 859: "toaster", 901: "whiskey jug", 954: "banana", 963: "pizza", 980: "volcano",
        999: "toilet tissue",
    }  # fmt: skip
    assert {index: labels[index] for index in known} == known


def test_a_file_of_labels(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("cat\r\n dog \nÖl\n\n", encoding="utf-8")
    assert labels_from_file(path, 3) == ("cat", "dog", "Öl")
    path.write_bytes(b"\xef\xbb\xbfcat\n")
    assert labels_from_file(str(path), 1) == ("cat",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\n", "2 labels, the model has 3 classes"),
        (b"", "0 labels"),
        (b"a\n\nc\n", "line 2 is empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"a\nb\x1b[2J\nc\n", "line 2 has a control character"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        labels_from_file(path, 3)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the labels"):
        labels_from_file(tmp_path / "none.txt", 3)


def test_a_device_without_an_end() -> None:
    with pytest.raises(InputError, match="larger than 64 MiB"):
        labels_from_file("/dev/zero", 2)


def test_line_ends_of_other_systems(tmp_path: Path) -> None:
    for ends in (b"\n", b"\r\n", b"\r"):
        (tmp_path / "labels.txt").write_bytes(ends.join([b"one", b"two", b""]))
        assert labels_from_file(tmp_path / "labels.txt", 2) == ("one", "two")
