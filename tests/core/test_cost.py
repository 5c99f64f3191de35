"""Analytic cost against the paper's tables, and parameters against the networks themselves."""

from __future__ import annotations

import pytest

from mscope.core.config import config_for
from mscope.core.cost import break_even_exit_rate, describe_break_even, parameter_count, stage_cost
from mscope.core.geometry import token_counts


@pytest.mark.parametrize(("size", "printed"), [("ti", 1.5), ("s", 5.1), ("b", 18.9)])
def test_plain_vim_is_within_three_percent_of_the_paper(size: str, printed: float) -> None:
    assert stage_cost(config_for(size, "vim")).full == pytest.approx(printed, rel=0.03)


def off_interval(value: float, printed: float, half: float = 0.05) -> float:
    """Relative distance from what a printed figure, rounded to one decimal, can stand for; 0 inside."""
    low, high = printed - half, printed + half
    return max(low - value, value - high, 0.0) / printed


def test_coarse_s_is_within_six_percent_of_the_paper() -> None:
    assert off_interval(stage_cost(config_for("s")).coarse, 1.4) <= 0.06


@pytest.mark.parametrize(("alpha", "printed"), [(0.5, 3.2), (0.6, 3.5), (0.7, 3.9), (0.8, 4.4), (0.9, 4.7)])
def test_fine_s_is_within_six_percent_of_table_5(alpha: float, printed: float) -> None:
    assert off_interval(stage_cost(config_for("s", alpha=alpha)).fine, printed) <= 0.06


@pytest.mark.parametrize(
    ("size", "arch", "millions"),
    [
        ("ti", "vim", 7), ("s", "vim", 26), ("b", "vim", 98),
        ("s", "mambascope", 28), ("ti", "mambascope", 8), ("b", "mambascope", 102),
    ],
)  # fmt: skip
def test_parameters_are_those_of_table_1(size: str, arch: str, millions: int) -> None:
    # Table 1 rounds to whole millions and does not itemise what MambaScope adds.
    assert off_interval(parameter_count(config_for(size, arch)) / 1e6, millions, half=0.5) <= 0.02


def test_tokens_of_the_paper() -> None:
    tokens = token_counts(config_for("s"))
    assert (tokens.coarse, tokens.fine, tokens.full) == (50, 125, 197)


@pytest.mark.parametrize("size", ["ti", "digits"])
@pytest.mark.parametrize("arch", ["mambascope", "vim"])
@pytest.mark.parametrize("reuse", ["mlp", "linear", "none"])
def test_parameters_are_those_of_the_network(size: str, arch: str, reuse: str) -> None:
    from mscope.model.checkpoint import build_model

    config = config_for(size, arch, reuse=reuse, depth=2)
    assert parameter_count(config) == sum(parameter.numel() for parameter in build_model(config).parameters())


# ViM-ti by hand: d = 192, 384 inner channels, 16 states, rank 12, 4 taps. In a block and for a token: in_proj and
# out_proj, and for each direction x_proj, dt_proj, convolution and 3 for a state.
LAYER = 3 * 192 * 384 + 2 * 384 * ((12 + 2 * 16) + 12 + 4 + 3 * 16)
PATCH, HEAD = 16 * 16 * 3 * 192, 192 * 1000


def test_every_stage_of_ti_by_hand() -> None:
    cost = stage_cost(config_for("ti"))
    assert cost.coarse * 1e9 == pytest.approx(50 * 24 * LAYER + 49 * PATCH + HEAD, rel=1e-12)
    # 25 of 49 regions are refined; an MLP of 192 x 768 x 192 for each.
    assert cost.fine * 1e9 == pytest.approx(125 * 24 * LAYER + 100 * PATCH + 25 * 8 * 192**2 + HEAD, rel=1e-12)
    assert cost.full * 1e9 == pytest.approx(197 * 24 * LAYER + 196 * PATCH + HEAD, rel=1e-12)


@pytest.mark.parametrize(("reuse", "matrices"), [("mlp", 8), ("linear", 1), ("none", 0)])
@pytest.mark.parametrize("class_token", [False, True])
def test_what_reuse_adds_by_hand(reuse: str, matrices: int, class_token: bool) -> None:
    without = stage_cost(config_for("ti", reuse="none"))
    found = stage_cost(config_for("ti", reuse=reuse, reuse_class_token=class_token))
    assert (found.fine - without.fine) * 1e9 == pytest.approx((25 + class_token) * matrices * 192**2, abs=0.5)
    assert (found.coarse, found.full) == (without.coarse, without.full)


def test_merging_by_hand() -> None:
    """Eleven steps that take eleven of 196 tokens each, after every second block; every token is compared with some."""
    tokens, products = 196, 0
    for _ in range(11):
        sources, destinations = (tokens + 1) // 2, tokens // 2
        products += 192 * (sources * destinations + destinations * 11)
        tokens -= 11
    trunk = sum(197 - 11 * (block // 2) for block in range(24)) * LAYER
    full = stage_cost(config_for("ti", "vim", reduce="merge", keep=75 / 196)).full
    assert full * 1e9 == pytest.approx(trunk + products + 196 * PATCH + HEAD, rel=1e-12)
    pruned = stage_cost(config_for("ti", "vim", reduce="prune", keep=0.8**3)).full
    trunk = (197 * 5 + 158 * 5 + 127 * 5 + 102 * 9) * LAYER
    assert pruned * 1e9 == pytest.approx(trunk + 196 * PATCH + HEAD, rel=1e-12)


def test_cost_follows_alpha_and_resolution() -> None:
    fines = [stage_cost(config_for("ti", alpha=alpha)).fine for alpha in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)]
    assert fines == sorted(fines)
    assert stage_cost(config_for("ti", alpha=1.0)).fine > stage_cost(config_for("ti")).full
    assert stage_cost(config_for("ti", height=448)).full == pytest.approx(
        2 * stage_cost(config_for("ti")).full, rel=0.01
    )


def test_break_even() -> None:
    assert break_even_exit_rate(coarse=1.0, fine=3.0, full=4.0) == pytest.approx(0.0)
    assert break_even_exit_rate(coarse=1.0, fine=4.0, full=3.0) == pytest.approx(0.5)
    # A coarse pass that costs more than plain ViM can never pay.
    assert break_even_exit_rate(coarse=5.0, fine=3.0, full=4.0) > 1.0
    cost = stage_cost(config_for("s", alpha=0.9))
    rate = break_even_exit_rate(cost.coarse, cost.fine, cost.full)
    assert cost.adaptive(rate) == pytest.approx(cost.full)


def test_break_even_in_words() -> None:
    assert describe_break_even(-0.2).startswith("always pays")
    assert describe_break_even(0.0).startswith("always pays")
    assert "more than 43% of the images" in describe_break_even(0.43)
    assert describe_break_even(1.2).startswith("does not pay")
