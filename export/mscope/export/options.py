"""What can be asked of a build."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from mscope.core.config import ModelConfig, config_for
from mscope.core.errors import InputError
from mscope.core.manifest import Precision
from mscope.export.engine.wish import EngineWish


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
        precisions: what is wanted beside fp32, which is always written: fp16 and bf16 are derived from it here, int8
            and fp8 by a derivation that the caller gives. What is asked for and not there at the end is an error.
        engines: which engines; of the precisions asked for, of fp32 where none is.
    """

    config: ModelConfig
    weights: Path | None = None
    seed: int | None = None
    out: Path | None = None
    labels: Path | None = None
    eta: float | None = None
    parity: bool = True
    precisions: tuple[Precision, ...] = ()
    engines: EngineWish = field(default_factory=EngineWish)

    def check(self) -> None:
        """Raises InputError for what cannot be asked."""
        for precision in self.precisions:
            if precision not in get_args(Precision):
                raise InputError(f"unknown precision '{precision}': choose from {', '.join(get_args(Precision))}")
        self.engines.check()


def config_from_options(
    size: str,
    arch: str = "mambascope",
    alpha: float | None = None,
    resolution: str | None = None,
    classes: int | None = None,
    reduce: str | None = None,
    keep: float | None = None,
    reduce_after: str | None = None,
) -> ModelConfig:
    """The configuration that command-line options describe. Raises InputError, also for what does not go together.

    `reduce` with no `keep` is refused: no fraction is right for every network. `reduce_after`: blocks, as in "5,10,15".
    """
    if arch not in ("mambascope", "vim"):
        raise InputError(f"unknown architecture '{arch}': choose mambascope or vim")
    changes: dict[str, Any] = {}
    if alpha is not None:
        if arch == "vim":
            raise InputError("--alpha belongs to mambascope: plain ViM refines no regions, leave it out")
        changes["alpha"] = alpha
    if resolution is not None:
        changes["height"], changes["width"] = parse_resolution(resolution)
    if reduce is not None:
        if reduce not in ("prune", "merge"):
            raise InputError(f"--reduce is prune or merge, got '{reduce}'")
        if arch != "vim":
            raise InputError(f"--reduce {reduce} goes with --arch vim: mambascope chooses its tokens itself")
        if keep is None:
            raise InputError(f"--reduce {reduce} needs --keep, the fraction of patch tokens left at the end: try 0.7")
        changes |= {"reduce": reduce, "keep": keep}
        if reduce_after is not None:
            changes["reduce_after"] = parse_blocks(reduce_after)
    elif keep is not None or reduce_after is not None:
        raise InputError("--keep and --reduce-after go with --reduce prune or --reduce merge")
    if classes is not None:
        changes["classes"] = classes
    return config_for(size, arch, **changes)


def parse_blocks(text: str) -> tuple[int, ...]:
    """Blocks, counted from 1, of `5,10,15`. Raises InputError."""
    if re.fullmatch(r"\d{1,4}(,\d{1,4})*", text.replace(" ", "")) is None:
        raise InputError(f"--reduce-after is a list of blocks, such as 5,10,15, got '{text}'")
    return tuple(int(part) for part in text.split(","))


def parse_resolution(text: str) -> tuple[int, int]:
    """(height, width) of `224` or `256x192` (height first). Raises InputError."""
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text.strip().lower())
    if match is None:
        raise InputError(f"--resolution is H or HxW in pixels, such as 224 or 256x192, got '{text}'")
    return int(match[1]), int(match[2] or match[1])
