"""Grids, index maps and token counts of the two stages (4.2, eqs. 13, 15, 16)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mscope.core.config import ModelConfig


@dataclass(frozen=True)
class Grid:
    """Rows and columns of patches, in raster order."""

    rows: int
    cols: int

    @property
    def count(self) -> int:
        return self.rows * self.cols


def fine_grid(config: ModelConfig) -> Grid:
    """The grid of patches of the full-size image: 14 x 14 at 224."""
    return Grid(config.height // config.patch, config.width // config.patch)


def coarse_grid(config: ModelConfig) -> Grid:
    """The grid of regions, 2 x 2 fine patches each: 7 x 7 at 224."""
    fine = fine_grid(config)
    return Grid(fine.rows // 2, fine.cols // 2)


def regions_refined(alpha: float, regions: int) -> int:
    """K = ceil(alpha * regions), eq. 13. alpha 0 refines none, 1 all."""
    # 0.07 * 100 is 7.000000000000001 in floating point and must not become 8.
    return min(regions, math.ceil(alpha * regions - 1e-9))


def class_row(tokens: int) -> int:
    """Where Vim puts the class token among `tokens` patches: in the middle (index 98 of 197, 24 of 50)."""
    return tokens // 2


def fine_indices(selected: npt.NDArray[np.int64], coarse: Grid) -> npt.NDArray[np.int64]:
    """Fine patches of coarse regions, eqs. 15 and 16.

    Args:
        selected: (..., K) int64 coarse indices.
        coarse: the grid of regions; the fine grid is twice as large both ways.

    Returns:
        (..., 4K) int64: the four patches of each region in turn, (2r, 2c), (2r, 2c+1), (2r+1, 2c), (2r+1, 2c+1).
    """
    row, col = np.divmod(selected, coarse.cols)
    first = 2 * row * (2 * coarse.cols) + 2 * col
    offsets = np.array([0, 1, 2 * coarse.cols, 2 * coarse.cols + 1], dtype=np.int64)
    indices: npt.NDArray[np.int64] = first[..., None] + offsets
    return indices.reshape(*selected.shape[:-1], 4 * selected.shape[-1])


@dataclass(frozen=True)
class Tokens:
    """Sequence lengths, class token included. `fine` is the fine stage's alone, without the coarse pass before it."""

    coarse: int
    fine: int
    full: int


def token_counts(config: ModelConfig) -> Tokens:
    """Tokens of each stage: at 224 and alpha 0.5, 50 coarse, 125 fine, 197 for plain ViM (eq. 13)."""
    regions = coarse_grid(config).count
    refined = regions_refined(config.alpha, regions)
    return Tokens(coarse=1 + regions, fine=1 + 4 * refined + (regions - refined), full=1 + fine_grid(config).count)


def describe_reduction(config: ModelConfig) -> str:
    """The static token reduction in words, such as "prune: 196 patch tokens, 157 after block 5, 126 after block 10"."""
    steps = [f"{step.after} after block {step.block + 1}" for step in config.reductions]
    return f"{config.reduce}: {', '.join([f'{fine_grid(config).count} patch tokens', *steps])}"


def vim_name(config: ModelConfig) -> str:
    """What tables call a ViM: "plain ViM", or by its reduction, such as "ViM, merged to 0.7" of its patch tokens."""
    if not config.reductions:
        return "plain ViM"
    return f"ViM, {'pruned' if config.reduce == 'prune' else 'merged'} to {config.keep:g}"


def block_tokens(config: ModelConfig) -> tuple[int, ...]:
    """Tokens that each block of the full stage works on, class token included: 197 in all of them without reduction."""
    tokens, lengths = 1 + fine_grid(config).count, []
    after = {step.block: step.after for step in config.reductions}
    for block in range(config.depth):
        lengths.append(tokens)
        tokens = 1 + after.get(block, tokens - 1)
    return tuple(lengths)
