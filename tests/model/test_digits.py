"""The cluttered-digits data set: determinism, disjoint splits, ranges, sample files."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mscope.core.errors import InputError
from mscope.model.training import digits
from mscope.model.training.digits import Digits, write_samples


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_picture_does_not_depend_on_batch_or_order(split: digits.Split) -> None:
    whole = Digits(split, seed=5).batch(100, 12)
    Digits(split, seed=5).batch(7, 3)
    parts = [Digits(split, seed=5).batch(start, 3) for start in (109, 106, 103, 100)][::-1]
    for name in whole._fields:
        np.testing.assert_array_equal(getattr(whole, name), np.concatenate([getattr(part, name) for part in parts]))


def test_seeds_splits_and_indices_give_different_pictures() -> None:
    pictures = [
        Digits("train", 0).batch(0, 1),
        Digits("train", 0).batch(1, 1),
        Digits("train", 1).batch(0, 1),
        Digits("validation", 0).batch(0, 1),
        Digits("test", 0).batch(0, 1),
    ]
    for one, other in itertools.combinations(pictures, 2):
        assert not np.array_equal(one.images, other.images)


def test_pictures_are_the_ones_the_shipped_weights_were_trained_on() -> None:
    batch = Digits("test", 0).batch(0, 16)
    assert batch.labels.tolist() == [5, 5, 0, 0, 5, 5, 9, 1, 0, 3, 4, 6, 7, 0, 8, 8]
    assert batch.sizes[:4] == pytest.approx([29.332, 24.055, 31.393, 21.691], abs=0.001)


def test_no_source_image_is_in_two_splits() -> None:
    ids = {split: set(Digits(split).source_ids.tolist()) for split in ("train", "validation", "test")}
    for one, other in itertools.combinations(ids.values(), 2):
        assert not one & other
    assert sum(map(len, ids.values())) == len(set().union(*ids.values())) == 1797


def test_no_handwriting_is_in_two_splits_up_to_duplicates_in_the_source() -> None:
    # Compared by content, not by index: what is drawn from must really be what source_ids says.
    contents = {
        split: {image.tobytes() for image in digits._sources(split)[0]} for split in ("train", "validation", "test")
    }
    for one, other in itertools.combinations(contents.values(), 2):
        assert not one & other


def test_ranges_and_metadata() -> None:
    batch = Digits("train", 3).batch(0, 300)
    assert batch.images.shape == (300, 64, 64)
    assert batch.images.dtype == np.uint8
    assert batch.sizes.min() >= 16
    assert batch.sizes.max() <= 44
    assert set(batch.labels.tolist()) == set(range(10))
    assert batch.boxes.min() >= 0
    assert batch.boxes.max() <= 64
    widths = batch.boxes[:, 2] - batch.boxes[:, 0]
    assert (widths >= 0.95 * batch.sizes).all()
    scaled = batch.images / 255.0
    assert scaled.mean() == pytest.approx(digits.MEAN, abs=0.02)
    assert scaled.std() == pytest.approx(digits.STD, abs=0.02)


def test_test_digits_stand_upright() -> None:
    batch = Digits("test").batch(0, 50)
    np.testing.assert_allclose(batch.boxes[:, 2] - batch.boxes[:, 0], batch.sizes, rtol=1e-5)


def test_the_digit_lies_in_its_box() -> None:
    # Without clutter, as the very first pictures are in the easy-first mode, ink outside the box would be a bug.
    for index in range(5):
        easy = Digits("train", 1, easy_first=10**9).batch(index, 1)
        x0, y0, x1, y1 = easy.boxes[0]
        inside = np.zeros((64, 64), dtype=bool)
        inside[max(0, int(y0) - 3) : int(y1) + 4, max(0, int(x0) - 3) : int(x1) + 4] = True
        image = easy.images[0].astype(float)
        background = image[~inside]
        assert background.std() < 0.1 * 255
        assert image[inside].mean() > background.mean() + 10


def test_easy_first_ends_in_the_full_task() -> None:
    assert Digits("train", 0, easy_first=50).batch(0, 50).sizes.min() > Digits("train", 0).batch(0, 50).sizes.min()
    np.testing.assert_array_equal(
        Digits("train", 0, easy_first=50).batch(50, 5).images, Digits("train", 0).batch(50, 5).images
    )


def test_the_smallest_digit_is_a_matter_of_training_only() -> None:
    assert Digits("train", 0, smallest=12.0).batch(0, 60).sizes.min() < 16
    assert Digits("test", 0, smallest=12.0).batch(0, 60).sizes.min() >= 16


def test_unknown_split_and_seed_are_refused() -> None:
    with pytest.raises(InputError, match="unknown split 'dev'"):
        Digits("dev")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="seed"):
        Digits("train", -1)


def test_write_samples(tmp_path: Path) -> None:
    paths = write_samples(tmp_path / "pictures", 5)
    assert [path.name for path in paths] == [
        "easy-00-label0.png", "easy-01-label1.png", "easy-02-label2.png", "hard-00-label0.png", "hard-01-label1.png",
    ]  # fmt: skip
    for path in paths:
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (64, 64))
    again = write_samples(tmp_path / "again", 5)
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]


def test_write_samples_into_a_file_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="cannot write pictures into"):
        write_samples(tmp_path / "taken", 2)
