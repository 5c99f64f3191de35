"""What can be asked of a build, and what this version cannot do yet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mscope.core.config import ModelConfig, config_for
from mscope.core.errors import InputError


@dataclass(frozen=True)
class BuildOptions:
    """One build.

    Attributes:
        config: the network.
        weights: a checkpoint file; None takes shipped weights, or random ones where none are shipped for the size.
        seed: random weights from this seed, even where some are shipped; None: 0 if it comes to that.
        out: the bundle's folder; None writes below the user's data folder and marks the bundle as the latest.
        labels: a file of class names, one a line; None takes the names that belong to the size.
        eta: the exit threshold that the bundle runs with when none is given; None: the default of the manifest.
        parity: check the written graphs against PyTorch.
        precision: of the graphs; `fp32` so far.
        target: what they are built for; `onnx` so far.
    """

    config: ModelConfig
    weights: Path | None = None
    seed: int | None = None
    out: Path | None = None
    labels: Path | None = None
    eta: float | None = None
    parity: bool = True
    precision: str = "fp32"
    target: str = "onnx"

    def check_supported(self) -> None:
        """Raises InputError for a precision or target that is not there yet: never accepted and ignored."""
        for value, only, option in (
            (self.precision, "fp32", f"--{self.precision}"),
            (self.target, "onnx", f"--target {self.target}"),
        ):
            if value != only:
                raise InputError(f"{option}: this version builds fp32 ONNX only; leave the option out")


def config_from_options(
    size: str,
    arch: str = "mambascope",
    alpha: float | None = None,
    resolution: str | None = None,
    classes: int | None = None,
) -> ModelConfig:
    """The configuration that command-line options describe. Raises InputError, also for alpha with plain ViM."""
    if arch not in ("mambascope", "vim"):
        raise InputError(f"unknown architecture '{arch}': choose mambascope or vim")
    changes: dict[str, Any] = {}
    if alpha is not None:
        if arch == "vim":
            raise InputError("--alpha belongs to mambascope: plain ViM refines no regions, leave it out")
        changes["alpha"] = alpha
    if resolution is not None:
        changes["height"], changes["width"] = parse_resolution(resolution)
    if classes is not None:
        changes["classes"] = classes
    return config_for(size, arch, **changes)


def parse_resolution(text: str) -> tuple[int, int]:
    """(height, width) of `224` or `256x192` (height first). Raises InputError."""
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text.strip().lower())
    if match is None:
        raise InputError(f"--resolution is H or HxW in pixels, such as 224 or 256x192, got '{text}'")
    return int(match[1]), int(match[2] or match[1])
