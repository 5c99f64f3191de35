"""Outputs of a made-up cascade with known answers, and folders of pictures for the fake network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

import fakes
from mscope.calib.outputs import Outputs
from mscope.core.config import ModelConfig


def synthetic_outputs(images: int, classes: int = 10, seed: int = 0, plain: bool = False) -> Outputs:
    """Logits around the right class: weak for the coarse stage, strong for the fine one or plain ViM."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    hot = np.eye(classes)[labels]
    # Half of the images are easy for both stages.
    easy = rng.random((images, 1)) < 0.5

    def logits(strength: float) -> np.ndarray:
        return (hot * (strength + 2 * easy) + rng.normal(size=hot.shape)).astype(np.float32)

    coarse, fine, full = logits(1.0), logits(2.7), logits(2.5)
    regions = rng.random((images, 12)).astype(np.float32)
    return Outputs(
        labels=labels.astype(np.int64),
        indices=np.arange(images),
        coarse_logits=None if plain else coarse,
        fine_logits=None if plain else fine,
        full_logits=full if plain else None,
        importance=None if plain else regions,
        selected=None if plain else np.sort(np.argsort(-regions)[:, :6]),
        skipped=(),
    )


def write_class_folders(root: Path, config: ModelConfig, images: int, seed: int = 3) -> Path:
    """`images` pictures of the fake network's size in the folders "label 0" ... of the fake bundle, in turn."""
    pictures = fakes.random_images(config, images, seed)
    levels = np.clip((pictures * 0.3 + 0.5) * 255, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    for number, picture in enumerate(levels):
        folder = root / f"label {number % config.classes}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{number:04d}.png")
    return root
