"""What belongs to a size beside its weights: preprocessing and class names."""

from __future__ import annotations

from pathlib import Path

from mscope.core.config import ModelConfig
from mscope.core.manifest import Preprocessing

# Vim's evaluation: the shorter side to 256 for a crop of 224, bicubic, ImageNet's statistics.
_IMAGENET_MARGIN = 256 / 224
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_IMAGENET_CLASSES = 1000


def preprocessing_for(config: ModelConfig) -> Preprocessing:
    """How pictures become tensors for a network: as its size was trained; ImageNet's way for colour of any size."""
    if config.size == "digits":
        from mscope.model.training.digits import PREPROCESSING

        return PREPROCESSING.model_copy(update={"resize": max(config.height, config.width)})
    # The longer side of the crop decides, so that the scaled picture covers all of it.
    resize = round(max(config.height, config.width) * _IMAGENET_MARGIN)
    if config.channels == 3:
        return Preprocessing(resize=resize, mean=_IMAGENET_MEAN, std=_IMAGENET_STD)
    count = config.channels
    return Preprocessing(mode="L", resize=resize, mean=(0.5,) * count, std=(0.5,) * count)


def labels_for(config: ModelConfig, path: Path | None) -> tuple[str, ...] | None:
    """Class names: from a file, else those that belong to the size, else None. Raises InputError for a misfit."""
    from mscope.runtime.labels import imagenet_labels, labels_from_file

    if path is not None:
        return labels_from_file(path, config.classes)
    if config.size == "digits" and config.classes == 10:
        return tuple(str(digit) for digit in range(10))
    if config.size in ("ti", "s", "b") and config.classes == _IMAGENET_CLASSES:
        return imagenet_labels()
    return None
