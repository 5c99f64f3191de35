import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fakes
from mscope.core.errors import InputError
from mscope.core.manifest import Preprocessing
from mscope.runtime.preprocess import MAX_PIXELS, Preprocessor

HEIGHT, WIDTH = 64, 48
RNG = np.random.default_rng(0)


def preprocessor(mode: str = "RGB", resize: int = 48, **recipe: object) -> Preprocessor:
    channels = len(mode)
    fields = {"mode": mode, "resize": resize, "mean": (0.0,) * channels, "std": (1.0,) * channels} | recipe
    return Preprocessor(Preprocessing.model_validate(fields), fakes.fake_config(channels=channels))


def flat(value: tuple[int, ...] | int, mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    return Image.new(mode, size, value)


def levels(image: object, mode: str = "RGB") -> list[int]:
    """The 8-bit levels of the centre pixel after preprocessing."""
    tensor = preprocessor(mode)(image).tensor
    assert tensor.shape == (len(mode), HEIGHT, WIDTH)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    return [round(float(v) * 255) for v in tensor[:, HEIGHT // 2, WIDTH // 2]]


def test_resize_then_crop_then_normalise() -> None:
    picture = Image.fromarray(RNG.integers(0, 256, (150, 203, 3), np.uint8))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    prepared = preprocessor(resize=70, mean=mean, std=std)(picture)
    # The slow way: all of it to 70 pixels on the shorter side, then the middle 48 x 64 cut out.
    scaled = picture.resize((int(70 * 203 / 150), 70), Image.Resampling.BICUBIC)
    left, top = round((scaled.width - WIDTH) / 2), round((70 - HEIGHT) / 2)
    crop = np.asarray(scaled.crop((left, top, left + WIDTH, top + HEIGHT)), np.float32) / 255
    expected = ((crop - np.array(mean)) / np.array(std)).transpose(2, 0, 1)
    # Pillow rounds once on the way: one level of 255, divided by std.
    np.testing.assert_allclose(prepared.tensor, expected, atol=1.01 / 255 / min(std))
    assert np.abs(prepared.tensor - expected).mean() < 0.1 / 255
    assert prepared.size == (203, 150)
    np.testing.assert_allclose(prepared.box, (left * 203 / 94, top * 150 / 70, (left + 48) * 203 / 94, 67 * 150 / 70))


def test_the_box_maps_the_crop_back_onto_the_picture() -> None:
    picture = np.zeros((300, 400, 3), np.uint8)
    picture[100:120, 180:200] = 255
    prepared = preprocessor(resize=100)(picture)
    row, col = (float(v.mean()) for v in np.nonzero(prepared.tensor[0] > 0.5))
    left, top, right, bottom = prepared.box
    assert left + (col + 0.5) * (right - left) / WIDTH == pytest.approx(190, abs=1.5)
    assert top + (row + 0.5) * (bottom - top) / HEIGHT == pytest.approx(110, abs=1.5)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray(RNG.integers(0, 256, (8, 6, 3), np.uint8)).resize((60, 80), Image.Resampling.NEAREST)
    transpose = Image.Transpose
    stored = {
        1: upright, 2: upright.transpose(transpose.FLIP_LEFT_RIGHT), 3: upright.transpose(transpose.ROTATE_180),
        4: upright.transpose(transpose.FLIP_TOP_BOTTOM), 5: upright.transpose(transpose.TRANSPOSE),
        6: upright.transpose(transpose.ROTATE_90), 7: upright.transpose(transpose.TRANSVERSE),
        8: upright.transpose(transpose.ROTATE_270),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    prepared = preprocessor()(tmp_path / "x.png")
    assert prepared.size == (60, 80)
    np.testing.assert_array_equal(prepared.tensor, preprocessor()(upright).tensor)


def test_a_pil_image_is_not_modified() -> None:
    picture = flat(7, "L", (20, 10))
    exif = picture.getexif()
    exif[0x0112] = 6
    preprocessor()(picture)
    assert picture.size == (20, 10)


def palette_picture(transparent: bool) -> Image.Image:
    picture = flat(1, "P")
    picture.putpalette([0, 0, 0, 200, 100, 50])
    if transparent:
        picture.info["transparency"] = 1
    return picture


def rgb_with_key() -> Image.Image:
    picture = flat((200, 100, 50))
    picture.info["transparency"] = (200, 100, 50)
    return picture


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (flat((200, 100, 50)), [200, 100, 50]),
        (flat(100, "L"), [100, 100, 100]),
        (flat(1, "1"), [255, 255, 255]),
        (flat((200, 100, 50, 255), "RGBA"), [200, 100, 50]),
        (flat((200, 100, 50, 0), "RGBA"), [255, 255, 255]),
        (flat((200, 100, 50, 128), "RGBA"), [227, 177, 152]),
        (flat((100, 0), "LA"), [255, 255, 255]),
        (flat((100, 128), "LA").convert("La"), [177, 177, 177]),
        (flat((200, 100, 50, 128), "RGBA").convert("RGBa"), [227, 177, 152]),
        (palette_picture(transparent=False), [200, 100, 50]),
        (palette_picture(transparent=True), [255, 255, 255]),
        (rgb_with_key(), [255, 255, 255]),
        (flat((0, 255, 255, 0), "CMYK"), [255, 0, 0]),
        (flat(65535, "I"), [255, 255, 255]),
        (flat(25700, "I"), [100, 100, 100]),
        (Image.fromarray(np.full((HEIGHT, WIDTH), 25700, np.uint16)), [100, 100, 100]),
        (Image.fromarray(np.full((HEIGHT, WIDTH), 0.5, np.float32)), [128, 128, 128]),
    ],
    ids=lambda value: f"{value.mode}" if isinstance(value, Image.Image) else None,
)
def test_modes(picture: Image.Image, expected: list[int]) -> None:
    assert levels(picture) == pytest.approx(expected, abs=1)


def test_colour_to_grey() -> None:
    assert levels(flat((200, 100, 50)), "L") == [round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)]
    assert levels(flat((0, 0, 0, 0), "RGBA"), "L") == [255]


@pytest.mark.parametrize(
    ("suffix", "mode", "colour", "expected"),
    [
        ("png", "I;16", 25700, [100] * 3),
        ("tiff", "I;16", 25700, [100] * 3),
        ("png", "P", 0, [0] * 3),
        ("gif", "L", 90, [90] * 3),
        ("bmp", "RGB", (200, 100, 50), [200, 100, 50]),
        ("ppm", "RGB", (200, 100, 50), [200, 100, 50]),
        ("jpg", "L", 100, [100] * 3),
        ("jpg", "CMYK", (0, 255, 255, 0), [255, 0, 0]),
        ("webp", "RGBA", (200, 100, 50, 0), [255] * 3),
    ],
)
def test_files(tmp_path: Path, suffix: str, mode: str, colour: object, expected: list[int]) -> None:
    path = tmp_path / f"x.{suffix}"
    if mode == "I;16":
        Image.fromarray(np.full((HEIGHT, WIDTH), colour, np.uint16)).save(path)
    else:
        flat(colour, mode).save(path)  # type: ignore[arg-type]
    # JPEG rounds its colours.
    assert levels(path) == pytest.approx(expected, abs=3 if suffix in ("jpg", "webp") else 0)


def test_arrays() -> None:
    pixels = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:] = (200, 100, 50)
    assert levels(pixels) == [200, 100, 50]
    assert levels(pixels[..., 0]) == [200] * 3
    assert levels(pixels[..., :1]) == [200] * 3
    assert levels(pixels[:, ::-1]) == [200, 100, 50]
    assert levels(np.dstack([pixels, np.zeros((HEIGHT, WIDTH), np.uint8)])) == [255] * 3


def test_a_tensor_is_taken_as_it_is() -> None:
    tensor = RNG.normal(size=(3, HEIGHT, WIDTH)).astype(np.float32)
    prepared = preprocessor(mean=(0.5,) * 3)(tensor, keep_view=True)
    np.testing.assert_array_equal(prepared.tensor, tensor)
    assert not np.shares_memory(prepared.tensor, tensor)
    assert prepared.view is not None
    assert prepared.view.size == (WIDTH, HEIGHT)


def test_the_view_of_a_tensor_is_the_picture_it_was_made_of() -> None:
    pixels = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    make = preprocessor(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    view = make(make(pixels).tensor, keep_view=True).view
    np.testing.assert_array_equal(np.asarray(view), pixels)


def test_every_level_of_16_bits_that_8_bits_have_is_that_level() -> None:
    wanted = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 256
    tensor = preprocessor("L")(Image.fromarray((wanted * 257).astype(np.uint16))).tensor
    np.testing.assert_allclose(tensor[0] * 255, wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2)])
def test_tiny_and_narrow_pictures(size: tuple[int, int]) -> None:
    prepared = preprocessor()(flat((10, 20, 30), size=size), keep_view=True)
    np.testing.assert_allclose(prepared.tensor[:, 0, 0] * 255, (10, 20, 30), rtol=1e-5)
    assert prepared.view is not None
    assert 0 <= prepared.box[0] < prepared.box[2] <= size[0]


def test_a_huge_jpeg_is_decoded_small(tmp_path: Path) -> None:
    path = tmp_path / "huge.jpg"
    picture = Image.fromarray(RNG.integers(0, 256, (12, 10, 3), np.uint8)).resize(
        (5000, 6000), Image.Resampling.BICUBIC
    )
    picture.save(path, quality=95)
    prepared = preprocessor()(path, keep_view=True)
    assert max(prepared.size) < 6000, "decoded in full"
    assert prepared.view is not None
    assert max(prepared.view.size) <= 512
    assert np.abs(prepared.tensor - preprocessor()(picture).tensor).mean() < 3 / 255


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of some dozen bytes that says it is this large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (80, 80, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"this is a text file\n" * 50, "not a picture"),
        (jpeg()[:900], "damaged"),
        (jpeg()[:20], "not a picture|damaged"),
        (png_claiming(64, 64), "damaged"),
        (png_claiming(30000, 30000), "decompression bomb"),
        (png_claiming(13400, 13400), "decompression bomb"),
        (png_claiming(2**31 - 1, 2**31 - 1), "decompression bomb"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (b"GIF89a" + b"\xff" * 20, "damaged|not a picture|bomb"),
    ],
)
def test_bad_files_are_one_line_that_names_them(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        preprocessor()(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_picture_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may read everything, so the refusal is played.
    path = tmp_path / "x.jpg"
    path.write_bytes(jpeg())

    def refused(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(InputError) as caught:
        preprocessor()(path)
    assert str(caught.value) == f"{path}: permission denied"


def test_every_truncation_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (9, 9, 3), np.uint8)).save(buffer, "PNG")
    whole = buffer.getvalue()
    for length in range(0, len(whole) - 30, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            preprocessor()(path)


def test_the_limit_is_pillows() -> None:
    assert 2 * (Image.MAX_IMAGE_PIXELS or 0) == MAX_PIXELS


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Path("/nowhere/x.png"), "no such file"),
        (Path("/"), "not a regular file"),
        (np.zeros((3, 5, 5), np.uint8), r"uint8 array of shape \(3, 5, 5\)"),
        (np.zeros((0, 5, 3), np.uint8), "uint8 array of shape"),
        (np.zeros((5, 5, 2), np.uint8), "uint8 array of shape"),
        (np.zeros((3, HEIGHT, WIDTH)), "got dtype float64, expected float32"),
        (np.zeros((3, WIDTH, HEIGHT), np.float32), r"got shape \(3, 48, 64\), expected \(3, 64, 48\)"),
        (np.zeros((1, 3, HEIGHT, WIDTH), np.float32), r"got shape \(1, 3, 64, 48\), expected \(3, 64, 48\)$"),
        (np.full((3, HEIGHT, WIDTH), np.nan, np.float32), "NaN or infinite"),
        (17, "a path, a PIL image or a numpy array is needed, got int"),
        (flat(-5, "I"), "32-bit pixels"),
        (flat(70000, "I"), "32-bit pixels"),
        (Image.fromarray(np.full((4, 4), 1.5, np.float32)), "floating-point pixels"),
        (Image.fromarray(np.full((4, 4), np.nan, np.float32)), "floating-point pixels"),
        (Image.new("RGB", (0, 4)), "no pixels"),
    ],
)
def test_bad_images(image: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        preprocessor()(image)


def test_an_unreadable_recipe() -> None:
    with pytest.raises(InputError, match="3 channels"):
        recipe = Preprocessing(mode="L", resize=48, mean=(0.0,), std=(1.0,))
        Preprocessor(recipe, fakes.fake_config(channels=3))
