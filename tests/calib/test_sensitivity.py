"""Sensitivity names the layer that was spoiled, in the stage where it was."""

from typing import Any

import numpy as np
import onnx
import pytest

from mscope.calib.calibrate import calibrate
from mscope.calib.sensitivity import sensitivity
from mscope.calib.sites import find_sites, groups_of
from mscope.core.config import config_for
from mscope.core.errors import InputError

CONFIG = config_for("digits")
Models = dict[Any, onnx.ModelProto]


def test_a_spoiled_layer_of_the_fine_stage_is_the_worst_and_the_coarse_ones_do_not_notice(
    digits_models: Models, digits_pictures: list[np.ndarray]
) -> None:
    few = [batch[:8] for batch in digits_pictures[:2]]
    seen = calibrate(CONFIG, digits_models, lambda: few, "minmax", None)
    limits = {stage: dict(ranges.limits) for stage, ranges in seen.stages.items()}
    limits["fine"]["reuse/norm"] *= 0.02
    told: list[str] = []
    blames = sensitivity(CONFIG, digits_models, "int8", limits, lambda: few, told.append)

    groups = {(stage, group) for stage, model in digits_models.items() for group in groups_of(find_sites(model))}
    assert {(blame.stage, blame.group) for blame in blames} == groups
    assert len(blames) == len(groups) == len(told)
    errors = [blame.error for blame in blames]
    assert errors == sorted(errors, reverse=True)
    assert (blames[0].stage, blames[0].group) == ("fine", "reuse.fc1")
    # One group at a time: the others do not suffer from it. Measured 0.001 to 0.1.
    assert all(0 < blame.error < 0.3 < 2 * blames[0].error for blame in blames[1:])
    assert all((blame.selected_agreement is not None) == (blame.stage == "coarse") for blame in blames)


def test_without_pictures_there_is_no_answer(digits_models: Models) -> None:
    with pytest.raises(InputError, match="sensitivity needs pictures"):
        sensitivity(CONFIG, digits_models, "int8", {"coarse": {}, "fine": {}}, list)
