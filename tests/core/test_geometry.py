import itertools
import math

import numpy as np
import pytest

from mscope.core.config import config_for
from mscope.core.geometry import (
    Grid,
    class_row,
    coarse_grid,
    fine_grid,
    fine_indices,
    regions_refined,
    token_counts,
    vim_name,
)

GRIDS = [Grid(1, 1), Grid(2, 2), Grid(3, 5), Grid(4, 4), Grid(7, 7), Grid(8, 3), Grid(16, 16)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_fine_indices_by_drawing_the_grid(grid: Grid) -> None:
    # Brute force: paint every fine patch with its region's number, then look which patches bear it.
    painted = np.zeros((2 * grid.rows, 2 * grid.cols), dtype=int)
    for row, col in itertools.product(range(2 * grid.rows), range(2 * grid.cols)):
        painted[row, col] = (row // 2) * grid.cols + col // 2
    for region in range(grid.count):
        expected = np.flatnonzero(painted.reshape(-1) == region)
        np.testing.assert_array_equal(fine_indices(np.array([region]), grid), expected)


def test_fine_indices_of_all_regions_cover_every_patch_once() -> None:
    for grid in GRIDS:
        indices = fine_indices(np.arange(grid.count)[None], grid)
        assert indices.shape == (1, 4 * grid.count)
        np.testing.assert_array_equal(np.sort(indices[0]), np.arange(4 * grid.count))


@pytest.mark.parametrize("regions", [1, 4, 16, 49, 100, 256])
@pytest.mark.parametrize("percent", [1, 7, 10, 25, 33, 50, 60, 75, 90, 99, 100])
def test_regions_refined_is_the_exact_ceiling(regions: int, percent: int) -> None:
    # -(-a // b) is the ceiling in integers, free of rounding.
    assert regions_refined(percent / 100, regions) == -(-percent * regions // 100)


@pytest.mark.parametrize("height,width", [(224, 224), (64, 192), (512, 512), (32, 32)])
@pytest.mark.parametrize("alpha", [0.01, 0.3, 0.5, 0.77, 1.0])
def test_token_counts(height: int, width: int, alpha: float) -> None:
    config = config_for("ti", height=height, width=width, alpha=alpha)
    regions = (height // 32) * (width // 32)
    refined = math.ceil(round(alpha * regions, 6))
    counts = token_counts(config)
    assert counts.coarse == 1 + regions
    assert counts.fine == 1 + 4 * refined + regions - refined
    assert counts.full == 1 + 4 * regions
    assert fine_grid(config).count == 4 * coarse_grid(config).count


def test_the_paper_s_counts() -> None:
    counts = token_counts(config_for("s"))
    assert (counts.coarse, counts.fine, counts.full) == (50, 125, 197)
    assert token_counts(config_for("s", alpha=1.0)).fine == 197
    assert class_row(196) == 98
    assert class_row(49) == 24


def test_what_a_vim_is_called() -> None:
    assert vim_name(config_for("ti", "vim")) == "plain ViM"
    assert vim_name(config_for("ti", "vim", reduce="merge", keep=1.0)) == "plain ViM"
    assert vim_name(config_for("ti", "vim", reduce="merge", keep=0.7)) == "ViM, merged to 0.7"
    assert vim_name(config_for("ti", "vim", reduce="prune", keep=0.5)) == "ViM, pruned to 0.5"
