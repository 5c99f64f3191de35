"""Sensitivity names the layer that was spoiled, in the stage where it was."""

import copy
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mscope.calib.calibrate import calibrate
from mscope.calib.chain import opened
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


def test_the_figures_where_one_class_always_wins(
    digits_models: Models, digits_pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [batch[:8] for batch in digits_pictures[:2]]
    with opened(CONFIG, digits_models) as chain:
        runs = [chain.run(batch) for batch in few]
    winner = int(runs[0]["fine"]["logits"][0].argmax())

    def biased(model: onnx.ModelProto, *_: object) -> onnx.ModelProto:
        changed = copy.deepcopy(model)
        (bias,) = [tensor for tensor in changed.graph.initializer if tensor.name == "head.bias"]
        value = numpy_helper.to_array(bias).copy()
        value[winner] += 100
        bias.CopyFrom(numpy_helper.from_array(value, bias.name))
        return changed

    monkeypatch.setattr("mscope.calib.sensitivity.quantized", biased)
    for blame in sensitivity(CONFIG, digits_models, "int8", {"coarse": {}, "fine": {}}, lambda: few):
        logits = np.concatenate([outputs[blame.stage]["logits"] for outputs in runs])
        # 100 for one of ten classes.
        assert blame.error == pytest.approx(100 / np.sqrt(10) / logits.std(), rel=1e-4)
        assert 0 < blame.changed < 1
        assert blame.changed == np.mean(logits.argmax(axis=1) != winner)
        assert blame.selected_agreement == (1.0 if blame.stage == "coarse" else None)


def test_without_pictures_there_is_no_answer(digits_models: Models) -> None:
    with pytest.raises(InputError, match="sensitivity needs pictures"):
        sensitivity(CONFIG, digits_models, "int8", {"coarse": {}, "fine": {}}, list)
