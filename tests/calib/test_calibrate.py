"""Calibration is held to what it saw: which pictures, how often, through which stages, in whatever order."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest

from mscope.calib.calibrate import calibrate
from mscope.calib.chain import opened
from mscope.calib.quantize import quantized
from mscope.calib.sites import find_sites
from mscope.core.cascade import select_regions
from mscope.core.config import config_for
from mscope.core.errors import InputError, MscopeError

CONFIG = config_for("digits")
Models = dict[Any, onnx.ModelProto]


def digest(image: np.ndarray) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


@pytest.mark.parametrize("method, passes", [("minmax", 1), ("percentile", 2)])
def test_every_picture_is_seen_once_in_each_pass(
    digits_models: Models, digits_pictures: list[np.ndarray], method: Any, passes: int
) -> None:
    seen: Counter[str] = Counter()

    def batches() -> Iterator[np.ndarray]:
        for batch in digits_pictures:
            seen.update(digest(image) for image in batch)
            yield batch

    result = calibrate(CONFIG, digits_models, batches, method, 0.5)
    assert (result.images, result.batches) == (48, 3)
    assert len(seen) == 48, "the pictures are distinct"
    assert set(seen.values()) == {passes}


def test_the_ranges_are_those_of_the_tensors_in_both_stages(
    digits_models: Models, digits_pictures: list[np.ndarray]
) -> None:
    result = calibrate(CONFIG, digits_models, lambda: digits_pictures, "minmax", None)
    watched = {stage: tuple({site.activation for site in find_sites(model)}) for stage, model in digits_models.items()}
    largest: dict[tuple[Any, str], float] = {}
    with opened(CONFIG, digits_models, watched) as chain:
        for batch in digits_pictures:
            coarse = chain.run_stage("coarse", {"image": batch})
            # What the runtime hands to the fine stage: the twelve best of sixteen regions.
            chosen, others = select_regions(coarse["importance"], 12)
            fine = chain.run_stage("fine", {
                "image": batch, "features": coarse["features"], "embeddings": coarse["embeddings"],
                "selected": chosen, "remaining": others,
            })  # fmt: skip
            for stage, outputs in (("coarse", coarse), ("fine", fine)):
                for name in watched[stage]:
                    key = (stage, name)
                    largest[key] = max(largest.get(key, 0.0), float(np.abs(outputs[name]).max()))
    for stage, ranges in result.stages.items():
        assert set(ranges.maxima) == set(watched[stage])
        assert ranges.limits == ranges.maxima
        assert not ranges.exponents
        for name, value in ranges.maxima.items():
            assert value == largest[stage, name]
    shared = set(watched["coarse"]) & set(watched["fine"])
    different = [name for name in shared if result.stages["coarse"].maxima[name] != result.stages["fine"].maxima[name]]
    assert len(different) > len(shared) / 2, "the stages share weights, not ranges"


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_the_order_of_the_batches_changes_nothing(
    digits_models: Models, digits_pictures: list[np.ndarray], method: Any
) -> None:
    coarse = {"coarse": digits_models["coarse"], "fine": digits_models["fine"]}
    few = [batch[:4] for batch in digits_pictures]
    forward = calibrate(CONFIG, coarse, lambda: few, method, 0.5)
    backward = calibrate(CONFIG, coarse, lambda: few[::-1], method, 0.5)
    assert forward == backward


def test_smoothing_is_measured_on_the_smoothed_tensors(
    digits_models: Models, digits_pictures: list[np.ndarray]
) -> None:
    plain, smooth = (calibrate(CONFIG, digits_models, lambda: digits_pictures, "percentile", s) for s in (None, 0.5))
    for name, powers in smooth.stages["coarse"].exponents.items():
        before, after = (result.stages["coarse"].maxima[name] for result in (plain, smooth))
        assert before * 2.0 ** -max(powers) <= after <= before * 2.0 ** -min(powers)
    assert any(
        smooth.stages["coarse"].maxima[name] < plain.stages["coarse"].maxima[name]
        for name in smooth.stages["coarse"].exponents
    )
    untouched = next(key for key in smooth.stages["coarse"].maxima if key.endswith(":y"))
    assert smooth.stages["coarse"].maxima[untouched] == plain.stages["coarse"].maxima[untouched]
    for ranges in smooth.stages.values():
        assert all(0 < ranges.limits[key] <= ranges.maxima[key] for key in ranges.maxima)


def test_black_pictures_give_a_zero_range_and_a_graph_that_still_runs(digits_models: Models) -> None:
    black = np.zeros((2, 1, 64, 64), np.float32)
    result = calibrate(CONFIG, digits_models, lambda: [black], "percentile", 0.5)
    patches = next(site.activation for site in find_sites(digits_models["coarse"]) if site.group == "patch_embed")
    assert result.stages["coarse"].limits[patches] == 0
    models = {s: quantized(model, "int8", result.stages[s].limits) for s, model in digits_models.items()}
    with opened(CONFIG, models) as chain:
        assert np.isfinite(chain.run(black)["fine"]["logits"]).all()


def test_no_pictures_is_an_error(digits_models: Models) -> None:
    with pytest.raises(InputError, match="calibration needs pictures"):
        calibrate(CONFIG, digits_models, list, "minmax", None)


def test_pictures_that_change_between_the_passes_are_noticed(
    digits_models: Models, digits_pictures: list[np.ndarray]
) -> None:
    calls = iter([digits_pictures[0] * np.float32(0.1), digits_pictures[0] * np.float32(3)])
    with pytest.raises(MscopeError, match="must not change between passes"):
        calibrate(CONFIG, digits_models, lambda: [next(calls)], "percentile", None)
