"""Static token reduction of a plain ViM: after which blocks tokens go, and how many are left. Counts only, no tensors.

Two ways of thinning a sequence out are baselines for the adaptive cascade: pruning drops the least important patch
tokens (after Zhan et al., arXiv 2409.18962), merging averages the most similar ones (after R-MeeTo, arXiv 2412.12496).
Every count depends on the configuration alone, so that shapes are static.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Method = Literal["none", "prune", "merge"]
Steps = Literal["ratio", "count"]

# The original prunes Vim-S of 24 blocks after the 5th, 10th and 15th.
_PRUNED_BLOCKS, _PRUNED_EVERY, _OF_DEPTH = 3, 5, 24
# The original merges between every second block and the next.
_MERGED_EVERY = 2


@dataclass(frozen=True)
class Reduction:
    """One step.

    Attributes:
        block: 0-based; the step follows it.
        before: patch tokens that it finds, the class token not counted.
        after: patch tokens that it leaves.
    """

    block: int
    before: int
    after: int


def default_blocks(method: Method, depth: int) -> tuple[int, ...]:
    """The blocks (1-based) after which tokens are reduced where none are named, as the originals do at depth 24."""
    if method == "prune":
        spread = (round(i * _PRUNED_EVERY * depth / _OF_DEPTH) for i in range(1, _PRUNED_BLOCKS + 1))
        return tuple(sorted({block for block in spread if 1 <= block < depth}))
    if method == "merge":
        return tuple(range(_MERGED_EVERY, depth, _MERGED_EVERY))
    return ()


def reductions(patches: int, keep: float, blocks: tuple[int, ...], steps: Steps) -> tuple[Reduction, ...]:
    """The steps for `patches` patch tokens; those that would remove nothing are left out.

    Args:
        patches: n, patch tokens at the start.
        keep: after the last step ceil(keep * n) are left.
        blocks: 1-based, ascending.
        steps: "ratio": after step i of m ceil(n * keep^(i/m)) are left, each step keeps the same share. "count": after
            it n - round(i/m * (n - ceil(keep * n))), each step removes the same number.
    """
    found, before = [], patches
    # 0.07 * 100 is 7.000000000000001 in floating point and must not become 8.
    last = math.ceil(keep * patches - 1e-9)
    for i, block in enumerate(blocks, start=1):
        if steps == "ratio":
            after = last if i == len(blocks) else math.ceil(patches * keep ** (i / len(blocks)) - 1e-9)
        else:
            after = patches - (2 * i * (patches - last) + len(blocks)) // (2 * len(blocks))
        if after < before:
            found.append(Reduction(block - 1, before, after))
        before = after
    return tuple(found)
