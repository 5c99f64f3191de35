"""Where tokens are reduced and how many are left."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from mscope.core.config import config_for
from mscope.core.cost import stage_cost
from mscope.core.errors import InputError
from mscope.core.geometry import block_tokens
from mscope.core.reduction import Reduction, default_blocks, reductions


def test_steps_of_the_originals() -> None:
    # Pruning Vim-S: after the 5th, 10th and 15th block 0.8 of the patch tokens stay.
    assert default_blocks("prune", 24) == (5, 10, 15)
    pruned = config_for("s", "vim", reduce="prune", keep=0.8**3)
    assert pruned.reductions == (Reduction(4, 196, 157), Reduction(9, 157, 126), Reduction(14, 126, 101))
    assert block_tokens(pruned) == (197,) * 5 + (158,) * 5 + (127,) * 5 + (102,) * 9
    # Merging Vim-S: eleven tokens before every second block.
    assert default_blocks("merge", 24) == tuple(range(2, 24, 2))
    merged = config_for("s", "vim", reduce="merge", keep=75 / 196)
    assert [step.before - step.after for step in merged.reductions] == [11] * 11
    assert block_tokens(merged)[-1] == 76


def test_a_shallow_network_is_pruned_where_a_block_follows() -> None:
    """The originals' 5, 10 and 15 of 24, scaled: 0.6, 1.2, 1.9 of 3 blocks, and 0.2, 0.4, 0.6 of one."""
    assert default_blocks("prune", 3) == (1, 2)
    assert default_blocks("prune", 2) == (1,)
    assert default_blocks("prune", 1) == ()


@pytest.mark.parametrize("steps", ["ratio", "count"])
@pytest.mark.parametrize("keep", [0.03, 0.07, 0.3, 0.5, 0.9, 0.99])
def test_what_is_left_after_the_last_step_follows_from_keep_alone(steps: Any, keep: float) -> None:
    found = reductions(100, keep, (1, 2, 3, 7), steps)
    assert found[0].before == 100
    assert found[-1].after == {0.03: 3, 0.07: 7}.get(keep, round(100 * keep))
    assert all(a.after == b.before and a.block < b.block for a, b in pairwise(found))
    assert all(step.after < step.before for step in found)


def test_count_takes_equal_numbers_and_ratio_equal_shares() -> None:
    assert [step.after for step in reductions(64, 0.25, (1, 2, 3), "count")] == [48, 32, 16]
    assert [step.after for step in reductions(64, 0.125, (1, 2, 3), "ratio")] == [32, 16, 8]


@pytest.mark.parametrize("method", ["prune", "merge"])
def test_keeping_all_is_plain(method: str) -> None:
    config = config_for("ti", "vim", reduce=method, keep=1.0)
    assert config.plain
    assert config.reductions == ()
    assert stage_cost(config) == stage_cost(config_for("ti", "vim"))
    assert not config_for("ti", "vim", reduce=method, keep=0.9).plain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reduce": "prune", "keep": 0.0}, "keep"),
        ({"reduce": "prune", "keep": 1.1}, "keep"),
        ({"keep": 0.5}, "go with reduce"),
        ({"arch": "mambascope", "reduce": "prune", "keep": 0.5}, "goes with arch vim"),
        ({"reduce": "merge", "keep": 0.2}, "merges 26 of 64 tokens .* at most half|at most half"),
        ({"reduce": "merge", "keep": 0.2, "reduce_after": (3,)}, "merges 51 of 64 tokens after block 3"),
        ({"reduce": "prune", "keep": 0.5, "reduce_after": (6,)}, "blocks from 1 to 5"),
        ({"reduce": "prune", "keep": 0.5, "reduce_after": (3, 2)}, "ascending"),
        ({"reduce": "prune", "keep": 0.5, "reduce_after": ()}, "leaves all tokens"),
        ({"reduce": "prune", "keep": 0.999}, "leaves all tokens"),
        ({"reduce": "prune", "keep": 0.5, "gated_importance": False}, "gated_importance must stay true"),
    ],
)
def test_what_cannot_be_reduced_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    settings = {"arch": "vim", **changes}
    with pytest.raises(InputError, match=message) as caught:
        config_for("digits", settings.pop("arch"), **settings)
    assert "\n" not in str(caught.value)
