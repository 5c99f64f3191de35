"""What a configuration may hold."""

from typing import Any

import pytest
from pydantic import ValidationError

from mscope.core.config import config_for, make_config
from mscope.core.errors import InputError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("d_model", 0), ("d_model", 8193), ("depth", 0), ("depth", 257), ("d_state", 0), ("d_state", 257),
        ("d_conv", 1), ("d_conv", 5), ("expand", 0), ("expand", 9), ("patch", 0), ("patch", 257), ("channels", 0),
        ("channels", 17), ("height", 1), ("width", 1), ("height", 8193), ("width", 8193), ("classes", 0),
        ("classes", 1_000_001), ("alpha", 0.0), ("alpha", 1.01), ("metric_topk", 0), ("beta", -0.1), ("beta", 1.1),
        ("importance_from", 0), ("importance_every", 0), ("keep", 0.0), ("keep", 1.1), ("colour", 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("arch", ["mambascope", "vim"])
def test_what_is_out_of_range_is_named(arch: str, name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^model configuration: {name}: .*"):
        config_for("ti", arch, **{name: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"d_model": 1, "depth": 1, "d_state": 1, "d_conv": 2, "expand": 1, "channels": 1, "classes": 1, "beta": 0.0},
        {"d_model": 8192, "depth": 256, "d_state": 256, "d_conv": 4, "expand": 8, "channels": 16, "beta": 1.0},
        {"patch": 1, "height": 2, "width": 8192, "alpha": 1.0, "importance_from": 24},
        {"patch": 256, "height": 8192, "width": 512, "classes": 1_000_000},
    ],
)
def test_the_ends_of_the_ranges(changes: dict[str, Any]) -> None:
    config = config_for("ti", **changes)
    assert {name: getattr(config, name) for name in changes} == changes


@pytest.mark.parametrize("name", ["height", "width"])
def test_sides_are_whole_regions_or_patches(name: str) -> None:
    # 15 patches: seven regions and a half.
    assert getattr(config_for("ti", "vim", **{name: 240}), name) == 240
    with pytest.raises(InputError, match=f"{name} 240 is not a multiple of 32 pixels"):
        config_for("ti", **{name: 240})
    with pytest.raises(InputError, match=f"{name} 232 is not a multiple of 16 pixels"):
        config_for("ti", "vim", **{name: 232})


def test_what_is_scored_is_a_layer() -> None:
    assert config_for("digits", importance_from=6).importance_layers == (5,)
    with pytest.raises(InputError, match="importance_from 7 is past the last layer, 6"):
        config_for("digits", importance_from=7)


def test_a_changed_copy() -> None:
    config = config_for("digits")
    changed = config.replace(alpha=0.5)
    assert (changed.alpha, changed.replace(alpha=0.75)) == (0.5, config)
    assert make_config({}) == config_for("ti")
    with pytest.raises(InputError, match="alpha"):
        config.replace(alpha=2.0)
    with pytest.raises(ValidationError, match="frozen"):
        config.alpha = 0.5  # type: ignore[misc]
