"""Class folders, lists and digits: order, labels, limits, and every bad input in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fakes
from mscope.calib.classes import map_classes
from mscope.calib.dataset import Dataset, open_dataset, prepared_batches
from mscope.core.errors import InputError
from mscope.core.manifest import Manifest
from mscope.runtime.labels import imagenet_labels
from mscope.runtime.preprocess import Preprocessor

LABELS = tuple("abcdefghij")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return fakes.write_fake_bundle(
        tmp_path_factory.mktemp("bundle") / "fake", fakes.FakeNetwork(fakes.fake_config()), labels=LABELS
    )


@pytest.fixture
def make(tmp_path: Path) -> Callable[[dict[str, int]], Path]:
    """Makes class folders with so many pictures each, no two alike."""

    def folders(counts: dict[str, int]) -> Path:
        rng = np.random.default_rng(0)
        root = tmp_path / "data"
        root.mkdir()
        for name, count in counts.items():
            (root / name).mkdir()
            for number in range(count):
                pixels = rng.integers(0, 256, (64, 48, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / name / f"{number}.png")
        return root

    return folders


def read(data: Dataset, manifest: Manifest, size: int = 4, **span: Any) -> tuple[list[Any], list[tuple[int, str]]]:
    problems: list[tuple[int, str]] = []
    preprocess = Preprocessor(manifest.preprocessing, manifest.config)
    batches = prepared_batches(
        data, preprocess, size, on_problem=lambda index, error: problems.append((index, str(error))), **span
    )
    return list(batches), problems


def test_folders_are_read_in_order_with_the_labels_of_the_bundle(make: Any, manifest: Manifest) -> None:
    root = make({"c": 3, "a": 2})
    (root / "c" / "deeper").mkdir()
    (root / "c" / "0.png").rename(root / "c" / "deeper" / "x.png")
    (root / "c" / ".hidden.png").write_bytes(b"")
    data = open_dataset(str(root), manifest)
    names = [Path(data.example(i).source).relative_to(root).as_posix() for i in range(len(data))]
    assert names == ["a/0.png", "a/1.png", "c/1.png", "c/2.png", "c/deeper/x.png"]
    assert [data.example(i).label for i in range(5)] == [0, 0, 2, 2, 2]
    assert "2 of the network's 10 classes" in " ".join(data.notes)
    batches, problems = read(data, manifest, 2)
    assert not problems
    assert [batch.indices.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    preprocess = Preprocessor(manifest.preprocessing, manifest.config)
    np.testing.assert_array_equal(batches[1].tensor[1], preprocess(root / "c" / "2.png").tensor)
    assert read(data, manifest, 9, start=1, stop=3)[0][0].labels.tolist() == [0, 2]


def test_broken_pictures_are_told_of_and_left_out(make: Any, manifest: Manifest) -> None:
    root = make({"a": 3, "b": 1})
    (root / "a" / "1.png").write_bytes((root / "a" / "1.png").read_bytes()[:40])
    (root / "b" / "note.txt").write_text("no picture")
    (root / "loose.png").write_bytes(b"x")
    data = open_dataset(str(root), manifest)
    batches, problems = read(data, manifest)
    assert [index for index, _ in problems] == [1]
    assert "1.png" in problems[0][1]
    assert batches[0].indices.tolist() == [0, 2, 3]
    assert "1 files are not pictures" in " ".join(data.notes)
    assert "1 pictures beside the class folders" in " ".join(data.notes)


def test_the_fingerprint_is_of_content_labels_and_order_not_of_the_place(make: Any, manifest: Manifest) -> None:
    root = make({"a": 2, "b": 2})
    first = open_dataset(str(root), manifest).fingerprint
    moved = root.rename(root.parent / "moved")
    assert open_dataset(str(moved), manifest).fingerprint == first
    assert open_dataset(str(moved), manifest, limit=3).fingerprint != first
    changed = bytearray((moved / "a" / "0.png").read_bytes())
    changed[-20] ^= 1
    (moved / "a" / "0.png").write_bytes(changed)
    second = open_dataset(str(moved), manifest).fingerprint
    assert second != first
    (moved / "a" / "1.png").rename(moved / "b" / "2.png")
    assert open_dataset(str(moved), manifest).fingerprint not in (first, second)


def test_a_limit_spreads_over_the_classes_and_is_repeatable(make: Any, manifest: Manifest) -> None:
    root = make({"a": 12, "b": 2, "c": 6})
    data = open_dataset(str(root), manifest, limit=7)
    labels = [data.example(i).label for i in range(7)]
    assert (labels.count(0), labels.count(1), labels.count(2)) in {(3, 2, 2), (2, 2, 3)}
    assert labels == sorted(labels)
    assert data.fingerprint == open_dataset(str(root), manifest, limit=7).fingerprint
    assert data.fingerprint != open_dataset(str(root), manifest, limit=7, seed=1).fingerprint
    assert len(open_dataset(str(root), manifest, limit=999)) == 20
    assert {open_dataset(str(root), manifest, limit=3).example(i).label for i in range(3)} == {0, 1, 2}


def test_lists(make: Any, manifest: Manifest) -> None:
    root = make({"x": 3})
    (root / "by_index.csv").write_text("path,class\nx/0.png,7\nx/2.png, 0\n")
    data = open_dataset(str(root / "by_index.csv"), manifest)
    assert [data.example(i).label for i in range(2)] == [7, 0]
    assert len(read(data, manifest)[0][0].labels) == 2
    (root / "by_name.txt").write_text("x/0.png j\nx/1.png b\n")
    data = open_dataset(str(root / "by_name.txt"), manifest)
    assert [data.example(i).label for i in range(2)] == [9, 1]
    (root / "gone.csv").write_text("x/9.png,a\n")
    batches, problems = read(open_dataset(str(root / "gone.csv"), manifest), manifest)
    assert not batches
    assert "no such file" in problems[0][1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the list is empty"),
        ("x/0.png\n", "line 1 is not 'path,class'"),
        ("x/0.png,1\nx/1.png,10\n", "index 10, the network has outputs 0 to 9"),
        ("x/0.png,a\nx/1.png,zebra\n", "'zebra' (1 of 2 names) is not among the bundle's labels"),
        ("x/0.png,zebra\n", "1 classes ('zebra', ...), the network has 10 outputs"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_bad_lists(tmp_path: Path, manifest: Manifest, content: str | bytes, message: str) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        open_dataset(str(path), manifest)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_folders(tmp_path: Path, make: Any, manifest: Manifest) -> None:
    def refused(spec: Path | str, message: str, **options: Any) -> None:
        with pytest.raises(InputError) as caught:
            open_dataset(str(spec), manifest, **options)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    refused(tmp_path / "nothing", "no such folder or list")
    refused("a\0b", "no such folder or list")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "the folder is empty")
    (tmp_path / "x.bin").write_bytes(b"x")
    refused(tmp_path / "x.bin", "DATA is a folder")
    root = make({"a": 1, "b": 0, "c": 0})
    refused(root, "class 'b' (and 1 others) has no pictures")
    for name in ("b", "c"):
        (root / name).rmdir()
    refused(root, "--limit is a number of pictures", limit=0)
    (root / "a").rename(root / "zebra")
    refused(root, "1 classes ('zebra', ...), the network has 10 outputs")
    (root / "zebra" / "0.png").rename(root / "0.png")
    (root / "zebra").rmdir()
    refused(root, "1 pictures but no folders")


def test_names_that_fit_in_two_ways_are_not_guessed() -> None:
    ten = [str(number) for number in range(12)]
    with pytest.raises(InputError, match=r"two orders \(class 2 is '10' as text, '2' by value\)"):
        map_classes(ten, 12, None, "data")
    padded = [f"{number:02d}" for number in range(12)]
    assert map_classes(padded, 12, None, "data").indices["11"] == 11
    # The bundle's own labels settle it.
    assert map_classes(ten, 12, ten, "data").indices["10"] == 10
    with pytest.raises(InputError, match="several classes named 'crane'"):
        map_classes(["crane", "dog"], 3, ["crane", "dog", "crane"], "data")
    with pytest.raises(InputError, match="has no labels"):
        map_classes(["a", "b"], 3, None, "data")


def test_wordnet_ids_are_taken_when_all_are_there() -> None:
    ids = [f"n{number:08d}" for number in range(1440764, 1441764)]
    assert map_classes(ids[::-1], 1000, imagenet_labels(), "val").indices[ids[285]] == 285
    with pytest.raises(InputError, match="WordNet ids are taken when all 1000 are there"):
        map_classes(ids[:10], 1000, imagenet_labels(), "val")


def test_the_built_in_digits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    config = fakes.fake_config(channels=1, height=64, width=64)
    network = fakes.FakeNetwork(config)
    manifest = fakes.write_fake_bundle(tmp_path / "digits", network, labels=tuple("0123456789"))
    data = open_dataset("digits", manifest, limit=5)
    assert (len(data), data.name) == (5, "digits:test")
    assert len(open_dataset("digits", manifest)) == 4000
    other = open_dataset("digits:validation", manifest, limit=5)
    assert data.fingerprint != other.fingerprint != open_dataset("digits:validation:1", manifest, limit=5).fingerprint
    batches, _ = read(data, manifest)
    assert batches[0].tensor.shape == (4, 1, 64, 64)
    with pytest.raises(InputError, match="choose digits:test or digits:validation"):
        open_dataset("digits:train", manifest)
    letters = fakes.write_fake_bundle(tmp_path / "letters", network, labels=LABELS)
    with pytest.raises(InputError, match="digits has the classes 0 to 9"):
        open_dataset("digits", letters)
