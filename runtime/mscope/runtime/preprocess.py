"""From a picture to the tensor that the graphs take, and back to something to look at."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mscope.core.config import ModelConfig
from mscope.core.errors import InputError
from mscope.core.manifest import Preprocessing
from mscope.runtime.resampling import Crop, plan

if TYPE_CHECKING:
    from PIL import Image

# Pillow's own limit for a decompression bomb, so that none of its settings need changing: about 179 megapixels.
MAX_PIXELS = 178_956_970
# Formats whose decoders Pillow builds in. Not EPS and PDF, for example, which start other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA", "ICO", "MPO")
# JPEG, PNG, GIF and BMP, whose decoders Pillow always loads.
_COMMON_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM")
# A JPEG of more pixels is decoded at 1/2, 1/4 or 1/8: below it, every pixel counts as in training.
_DRAFT_PIXELS = 24_000_000
_DRAFT_MARGIN = 4
_VIEW_SIDE = 512


def pillow_version() -> str:
    """Of the installed Pillow, which decodes and scales pictures on the host: versions may differ in pixels."""
    # Not the metadata of a distribution: pillow-simd and system packages have this too.
    import PIL

    return PIL.__version__


@dataclass(frozen=True)
class Prepared:
    """A picture made ready.

    Attributes:
        tensor: (C, H, W) float32, normalised, contiguous; belongs to the caller.
        box: left, top, right, bottom of what the network sees, in pixels of the upright picture of `size`.
        size: width and height of the upright picture. An .npy tensor is its own picture.
        view: what the network sees, in colour, at up to 512 pixels a side and without upscaling; None if not asked for.
    """

    tensor: npt.NDArray[np.float32]
    box: tuple[float, float, float, float]
    size: tuple[int, int]
    view: Image.Image | None


@dataclass(frozen=True)
class Unscaled:
    """A picture decoded and cut out, for a device to scale: `Prepared` without the tensor, which takes the same bits.

    Attributes:
        crop: the pixels, of the network's number of channels, and what becomes of them; belongs to the caller.
        box, size, view: as of `Prepared`.
    """

    crop: Crop
    box: tuple[float, float, float, float]
    size: tuple[int, int]
    view: Image.Image | None


class Preprocessor:
    """Turns pictures into tensors as a bundle's manifest says.

    EXIF orientation is applied, transparent parts are put on white, the first frame of an animation is taken, 16-bit
    grey is scaled from its full range, colour profiles are ignored.

    Attributes:
        levels: (C, 256) float32, what each scaled byte becomes.
    """

    def __init__(self, recipe: Preprocessing, config: ModelConfig) -> None:
        # Loaded here, so that the first picture's time is its own.
        from PIL import Image, ImageOps  # noqa: F401

        Image.preinit()
        self._recipe = recipe
        self._height, self._width = config.height, config.width
        self._shape = (config.channels, config.height, config.width)
        if {"RGB": 3, "L": 1}[recipe.mode] != config.channels:
            raise InputError(
                f"the bundle turns pictures into {recipe.mode}, its network takes {config.channels} channels"
            )
        self._mean = np.array(recipe.mean, np.float32)[:, None, None]
        self._std = np.array(recipe.std, np.float32)[:, None, None]
        every = np.arange(256, dtype=np.uint8).reshape(1, 1, 256).repeat(config.channels, axis=0)
        self.levels = self._normalised(every).reshape(config.channels, 256)

    def __call__(self, image: Any, source: str | None = None, *, keep_view: bool = False) -> Prepared:
        """Prepares one image.

        Args:
            image: a path; a PIL image; a uint8 array (H, W), (H, W, 3) or (H, W, 4), a picture; or a float32 array
                (C, H, W) of exactly the network's size, which is taken as already normalised. Not modified.
            source: what to call it in errors; by default the path, or "image".
            keep_view: keep a picture of the crop, for the overlay.

        Raises:
            InputError: not a picture, damaged, too large, a wrong shape or dtype, NaN or infinity; names the source.
        """
        if isinstance(image, np.ndarray) and image.dtype != np.uint8:
            return self._from_tensor(image, source or "image", keep_view)
        from PIL import Image

        colour, box = self._decoded(image, source)
        kernel = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
        # Scaling just the crop gives the same pixels as scaling all and cropping, and a 1 x 60000 picture stays small.
        crop = colour.convert(self._recipe.mode).resize(
            (self._width, self._height), kernel[self._recipe.interpolation], box=box
        )
        pixels = np.asarray(crop).reshape(self._height, self._width, -1).transpose(2, 0, 1)
        return Prepared(self._normalised(pixels), box, colour.size, _view(colour, box) if keep_view else None)

    def unscaled(self, image: Any, source: str | None = None, *, keep_view: bool = False) -> Prepared | Unscaled:
        """Like a call, but a picture is only decoded and cut out, for `PictureStage` to scale; a tensor stays one.

        Raises:
            InputError: as a call. BackendError: the installed Pillow scales in a way that no device can follow.
        """
        if isinstance(image, np.ndarray) and image.dtype != np.uint8:
            return self._from_tensor(image, source or "image", keep_view)
        shape, interpolation = (self._height, self._width), self._recipe.interpolation
        if isinstance(image, np.ndarray) and image.shape[2:] == self._given_channels and not keep_view:
            # A camera's frame: nothing of Pillow is needed, and no copy but that of the crop.
            _check_array(image, source or "image")
            size = image.shape[1], image.shape[0]
            box = self._box(size)
            how = plan(image.shape[:2], box, shape, interpolation)
            left, top, right, bottom = how.region
            pixels = np.array(image[top:bottom, left:right], order="C")
            return Unscaled(Crop(pixels.reshape(*pixels.shape[:2], -1), how), box, size, None)
        colour, box = self._decoded(image, source)
        how = plan(colour.size[::-1], box, shape, interpolation)
        part = np.array(colour.crop(how.region).convert(self._recipe.mode), order="C")
        crop = Crop(part.reshape(*part.shape[:2], -1), how)
        return Unscaled(crop, box, colour.size, _view(colour, box) if keep_view else None)

    @property
    def _given_channels(self) -> tuple[int, ...]:
        return (3,) if self._recipe.mode == "RGB" else ()

    def _decoded(self, image: Any, source: str | None) -> tuple[Image.Image, tuple[float, float, float, float]]:
        """The upright picture, RGB or L, and the box of it that the network sees."""
        from PIL import Image

        if isinstance(image, (str, Path)):
            source = source or str(image)
            picture = _open(Path(image), source, self._recipe.resize)
        elif isinstance(image, Image.Image):
            picture = _upright(image, source or "image")
        elif isinstance(image, np.ndarray):
            picture = _from_array(image, source or "image")
        else:
            source = source or "image"
            raise InputError(f"{source}: a path, a PIL image or a numpy array is needed, got {type(image).__name__}")
        source = source or "image"
        colour = _decoded(lambda: _without_alpha(picture, source), source)
        if colour.width * colour.height == 0:
            raise InputError(f"{source}: the picture has no pixels ({colour.width} x {colour.height})")
        return colour, self._box(colour.size)

    def _normalised(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(C, H, W) float32 of (C, H, W) bytes; each number depends on one byte only."""
        return np.ascontiguousarray((pixels.astype(np.float32) / 255.0 - self._mean) / self._std, np.float32)

    def _box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        width, height = size
        scale = self._recipe.resize / min(size)
        # Whole pixels of the scaled picture, rounded as torchvision does it; never less than the crop.
        scaled_width = max(self._width, int(scale * width + 1e-6))
        scaled_height = max(self._height, int(scale * height + 1e-6))
        left = round((scaled_width - self._width) / 2)
        top = round((scaled_height - self._height) / 2)
        across, down = width / scaled_width, height / scaled_height
        right, bottom = (left + self._width) * across, (top + self._height) * down
        return left * across, top * down, min(right, float(width)), min(bottom, float(height))

    def _from_tensor(self, array: npt.NDArray[Any], source: str, keep_view: bool) -> Prepared:
        check_tensor(array, self._shape, source)
        tensor = np.array(array, np.float32, order="C")
        check_finite(tensor, source)
        whole = (0.0, 0.0, float(self._width), float(self._height))
        view = self._picture_of(tensor) if keep_view else None
        return Prepared(tensor, whole, (self._width, self._height), view)

    def _picture_of(self, tensor: npt.NDArray[np.float32]) -> Image.Image:
        from PIL import Image

        levels = np.clip((tensor * self._std + self._mean) * 255.0 + 0.5, 0, 255).astype(np.uint8)
        return Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)).convert("RGB")


def check_tensor(array: npt.NDArray[Any], wanted: tuple[int, int, int], source: str, *, or_batch: bool = False) -> None:
    """Raises InputError unless `array` is float32 and of the shape `wanted`, or (B, *wanted) where `or_batch`."""
    if array.dtype != np.float32:
        raise InputError(f"{source}: got dtype {array.dtype}, expected float32 (a normalised tensor)")
    if array.shape != wanted and not (or_batch and array.ndim == 4 and array.shape[1:] == wanted):
        batch = f" or (B, {str(wanted)[1:]}" if or_batch else ""
        raise InputError(f"{source}: got shape {array.shape}, expected {wanted}{batch}")


def check_finite(tensor: npt.NDArray[np.float32], source: str) -> None:
    """Raises InputError if a value is NaN or infinite; says how many and which comes first."""
    finite = np.isfinite(tensor)
    if not finite.all():
        first = tuple(int(i) for i in np.argwhere(~finite)[0])
        count = int(tensor.size - finite.sum())
        raise InputError(f"{source}: {count} value(s) are NaN or infinite, the first at {first}: clean the input")


def _open(path: Path, source: str, resize: int) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        if not path.is_file():
            raise InputError(f"{source}: {'not a regular file' if path.exists() else 'no such file'}")
        if path.stat().st_size == 0:
            raise InputError(f"{source}: the file is empty (0 bytes)")
        with path.open("rb") as file:
            formats = _formats_for(file.read(16))
        with warnings.catch_warnings():
            # Pillow warns of large pictures and odd metadata; what matters here is an error below.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=formats) as picture:
                _check_pixels(picture.size, source)
                if picture.width * picture.height > _DRAFT_PIXELS:
                    picture.draft(None, (_DRAFT_MARGIN * resize, _DRAFT_MARGIN * resize))
                return _upright(picture, source)
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(f"{source}: {_too_large()}") from None
    except UnidentifiedImageError:
        raise InputError(f"{source}: not a picture (its content is none of {', '.join(_FORMATS[:8])})") from None
    except PermissionError:
        raise InputError(f"{source}: permission denied") from None
    except Exception as error:
        raise _undecodable(error, source) from None


def _formats_for(start: bytes) -> list[str]:
    """The formats to try on a file that begins so. Loading the decoders of all of them takes a tenth of a second."""
    from PIL import Image

    Image.preinit()
    if not start.startswith(_COMMON_STARTS):
        Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _upright(picture: Image.Image, source: str) -> Image.Image:
    from PIL import ImageOps

    _check_pixels(picture.size, source)

    def load() -> Image.Image:
        picture.load()
        return ImageOps.exif_transpose(picture)

    return _decoded(load, source)


def _decoded(step: Any, source: str) -> Image.Image:
    # The one place beside _open where anything may be raised: Pillow's decoders answer a damaged file with whatever
    # their parsing runs into (OSError, ValueError, SyntaxError, struct.error, IndexError, KeyError, ...).
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture: Image.Image = step()
            return picture
    except InputError:
        raise
    except Exception as error:
        raise _undecodable(error, source) from None


def _undecodable(error: Exception, source: str) -> InputError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"{source}: the picture is damaged or of an unknown kind ({reason[:120]})")


def _too_large() -> str:
    return f"more than {MAX_PIXELS / 1e6:.0f} megapixels, perhaps a decompression bomb: make the picture smaller first"


def _check_pixels(size: tuple[int, int], source: str) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise InputError(f"{source}: {size[0]} x {size[1]} pixels are {_too_large()}")


def _check_array(array: npt.NDArray[np.uint8], source: str) -> None:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or array.size == 0:
        raise InputError(f"{source}: got a uint8 array of shape {array.shape}, expected (H, W), (H, W, 3) or (H, W, 4)")
    _check_pixels((array.shape[1], array.shape[0]), source)


def _from_array(array: npt.NDArray[np.uint8], source: str) -> Image.Image:
    from PIL import Image

    _check_array(array, source)
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2:] == (1,) else array))


def _without_alpha(picture: Image.Image, source: str) -> Image.Image:
    """RGB or L: deep grey scaled to 8 bits, transparent parts on white, palettes, CMYK and the rest as RGB."""
    from PIL import Image

    if picture.mode.startswith("I") or picture.mode == "F":
        return Image.fromarray(_to_8_bits(picture, source))
    if picture.mode in ("1", "L", "RGB") and "transparency" not in picture.info:
        return picture.convert("L") if picture.mode == "1" else picture
    if picture.has_transparency_data or picture.mode in ("La", "RGBa"):
        if picture.mode == "La":
            picture = picture.convert("LA")
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def _to_8_bits(picture: Image.Image, source: str) -> npt.NDArray[np.uint8]:
    values = np.asarray(picture)
    if picture.mode == "F":
        if not (np.isfinite(values).all() and values.min() >= 0.0 and values.max() <= 1.0):
            raise InputError(f"{source}: floating-point pixels outside [0, 1]: save it with 8 or 16 bits a channel")
        return (values * 255.0 + 0.5).astype(np.uint8)
    if values.min() < 0 or values.max() > 65535:
        raise InputError(f"{source}: 32-bit pixels, whose range is unknown: save it with 8 or 16 bits a channel")
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _view(colour: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    from PIL import Image

    across, down = box[2] - box[0], box[3] - box[1]
    shrink = min(1.0, _VIEW_SIDE / max(across, down))
    size = max(1, math.ceil(across * shrink)), max(1, math.ceil(down * shrink))
    return colour.convert("RGB").resize(size, Image.Resampling.LANCZOS, box=box)
