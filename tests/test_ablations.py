"""benchmarks/ablations does what it says: one option a variant, the same numbers for the same seed, a checked file."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # as `python benchmarks/ablations` does

from ablations import results, tables, trained, variants
from ablations.collect import collect
from ablations.compare import Bootstrap, Measured, row
from ablations.inference import configured, network
from ablations.observe import Observed, observe
from ablations.trained import stored, train_all, weights_of
from ablations.variants import ON_PAPER_LOSS, ON_SHIPPED, TRAINED, Variant, recipe_of, steps_in_trunk, trunk_of

from mscope.core.config import config_for
from mscope.core.errors import InputError
from mscope.model.checkpoint import state_from_file
from mscope.model.shipped import shipped_weights
from mscope.model.training.digits import Batch, Digits
from mscope.model.training.evaluate import box_covered, stage_outputs
from mscope.model.training.loop import Pace, Trainer, config_of

ROOT = Path(__file__).parents[1]
TINY = {**variants.BUDGET, "samples": 24, "batch": 4, "warmup_steps": 2}


@pytest.fixture(scope="module")
def pictures() -> Batch:
    return Digits("validation").batch(0, 25)


@pytest.fixture(scope="module")
def shipped() -> Path:
    path = shipped_weights("digits", "mambascope")
    assert path is not None
    return path


@pytest.fixture(scope="module")
def some() -> tuple[Variant, ...]:
    names = ("default", "ranking=0", "ranking=0 metric=clip", "reuse=none")
    return tuple(variants.find(name) for name in names)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, pictures: Batch, some: tuple[Variant, ...]) -> Path:
    """Some variants, trained for six steps; all but the last with two seeds."""
    folder = tmp_path_factory.mktemp("ablations")
    train_all(folder, pictures, seeds=(1,), say=lambda _: None, variants=some, budget=TINY)
    train_all(folder, pictures, seeds=(2,), say=lambda _: None, variants=some[:-1], budget=TINY)
    return folder


class Silent:
    def progress(self, progress: object) -> None: ...

    def message(self, text: str) -> None: ...

    def stop_requested(self) -> bool:
        return False


@pytest.mark.parametrize("variant", TRAINED, ids=lambda variant: variant.name)
def test_a_trained_variant_differs_from_its_base_in_the_named_option_alone(variant: Variant) -> None:
    own, base = recipe_of(variant, 1), recipe_of(variants.find(variant.base or "default"), 1)
    differing = {name for name, value in own if value != getattr(base, name)}
    option, _, value = variant.name.split(" ")[-1].partition("=")
    if option == "layers":
        assert differing <= {"importance_from", "importance_every"}
        assert config_of(own).importance_layers != config_of(base).importance_layers
    else:
        assert differing == set(variant.changes)
        assert [str(change).lower() for change in variant.changes.values()] in ([], [value], [f"{value}.0"])
    # What the network is depends on the same option and no other.
    config, config_base = config_of(own), config_of(base)
    assert {n for n, v in config if v != getattr(config_base, n)} <= set(variant.changes)
    assert own.samples == base.samples
    assert own.lr == base.lr


@pytest.mark.parametrize("variant", ON_SHIPPED, ids=lambda variant: variant.name)
def test_an_inference_variant_changes_the_named_option_alone(variant: Variant) -> None:
    config = config_for("digits")
    own = configured(config, variant)
    differing = {name for name, value in own if value != getattr(config, name)}
    assert differing <= set(variant.changes)
    assert bool(differing) + (variant.regions != "important") == (variant.name != "default")


@pytest.mark.parametrize("group", [TRAINED, ON_SHIPPED, ON_PAPER_LOSS])
def test_names_are_unique_and_bases_exist(group: tuple[Variant, ...]) -> None:
    names = [variant.name for variant in group]
    assert len(set(names)) == len(names)
    assert {variant.base for variant in group} - {None} <= set(names)
    # No two are the same network on the same regions under two names.
    for one, other in itertools.combinations(group, 2):
        assert (one.changes, one.base, one.regions) != (other.changes, other.base, other.regions)


def test_every_metric_refines_other_regions_than_the_default(pictures: Batch, shipped: Path) -> None:
    config = config_for("digits")
    chosen = {
        variant.name: observe(network(configured(config, variant), shipped), pictures, regions=variant.regions)
        for variant in ON_SHIPPED
        if variant.table in ("default", "metric")
    }
    for one, other in itertools.combinations(chosen, 2):
        assert (chosen[one].refined != chosen[other].refined).any(), f"{one} and {other} refine the same"
        # The ranking decides what is refined and nothing before it. (Without the gate Y is computed another way.)
        np.testing.assert_allclose(chosen[one].sure, chosen[other].sure, atol=1e-5)
    assert chosen["regions=box"].covered.mean() == max(seen.covered.mean() for seen in chosen.values())


def test_what_is_observed_is_what_the_project_reports(pictures: Batch, shipped: Path) -> None:
    model = network(config_for("digits"), shipped)
    seen, reported = observe(model, pictures), stage_outputs(model, pictures)
    assert seen.coarse_right.mean() == reported.accuracy("coarse")
    assert seen.fine_right.mean() == reported.accuracy("fine")
    assert seen.covered.mean() == pytest.approx(box_covered(model, pictures), abs=1e-6)
    random = stage_outputs(model, pictures, regions="random", seed=0)
    assert observe(model, pictures, regions="random").fine_right.mean() == random.accuracy("fine")
    assert (seen.refined.sum(1) == 12).all()


def test_a_run_from_the_shared_phase_is_the_run_by_itself(work: Path, some: tuple[Variant, ...]) -> None:
    vim = shipped_weights("digits", "vim")
    assert vim is not None
    trunks = set()
    for variant in some:
        recipe = recipe_of(variant, 1, TINY)
        trunks.add(trunk_of(recipe).model_dump_json())
        trainer = Trainer(recipe, work / "by-itself.ckpt", Silent())
        trainer.initialise_from(vim)
        trainer.run()
        shared = state_from_file(weights_of(work, variant, 1))
        for name, tensor in trainer.averaged.state_dict().items():
            assert torch.equal(shared[name], tensor), f"{variant.name}: {name}"
    assert 0 < steps_in_trunk(recipe) < recipe.steps
    assert len(trunks) == 3  # the default, the paper's loss with any metric, and no reuse
    assert trunk_of(recipe_of(variants.find("alpha=0.5"), 1)) == trunk_of(recipe_of(variants.find("default"), 1))


def test_the_same_seed_gives_the_same_numbers_and_another_one_others(
    tmp_path: Path, work: Path, pictures: Batch, some: tuple[Variant, ...]
) -> None:
    train_all(tmp_path, pictures, seeds=(1,), say=lambda _: None, variants=some[:1], budget=TINY)
    first, again = (stored(folder, some[0], recipe_of(some[0], 1, TINY), pictures) for folder in (work, tmp_path))
    other = stored(work, some[0], recipe_of(some[0], 2, TINY), pictures)
    assert first is not None
    assert again is not None
    assert other is not None
    for name, values in vars(first.observed).items():
        assert np.array_equal(values, getattr(again.observed, name)), name
    assert not np.array_equal(first.observed.sure, other.observed.sure)


@pytest.mark.parametrize("step", [3, 5])  # in the phase that runs share, and after it
def test_a_stopped_queue_goes_on_to_the_same_numbers(
    step: int, tmp_path: Path, work: Path, pictures: Batch, some: tuple[Variant, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained, "_PACE", Pace(save_every=1, speak_every=1, validate_every=100))
    steps: list[str] = []

    def stop(line: str) -> None:
        steps.append(line.strip().split(",")[0])
        if steps[-1] == f"step {step} of 6":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_all(tmp_path, pictures, seeds=(1,), say=stop, variants=some[:1], budget=TINY)
    assert list(tmp_path.glob("*.json")) == []
    seen = len(steps)
    train_all(tmp_path, pictures, seeds=(1,), say=lambda line: steps.append(line), variants=some[:1], budget=TINY)
    assert not any("step 1 of 6" in line for line in steps[seen:])
    whole, stopped = (state_from_file(weights_of(folder, some[0], 1)) for folder in (work, tmp_path))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_finished_runs_are_kept_and_those_of_another_budget_refused(
    work: Path, pictures: Batch, some: tuple[Variant, ...]
) -> None:
    said: list[str] = []
    train_all(work, pictures, seeds=(1,), say=said.append, variants=some, budget=TINY)
    assert said == []
    with pytest.raises(InputError, match="another budget"):
        train_all(work, pictures, seeds=(1,), say=said.append, variants=some, budget={**TINY, "lr": 2e-3})
    with pytest.raises(InputError, match="other pictures"):
        train_all(work, Digits("test").batch(0, 8), seeds=(1,), say=said.append, variants=some, budget=TINY)


def test_from_runs_to_the_file_and_the_tables(
    tmp_path: Path, work: Path, pictures: Batch, some: tuple[Variant, ...]
) -> None:
    on_shipped = [v for v in ON_SHIPPED if v.table in ("default", "alpha") or v.regions == "random"]
    on_paper_loss = [v for v in ON_PAPER_LOSS if v.table in ("default", "alpha") or v.regions != "important"]
    found = collect(
        work, pictures, machine="test", seeds=(1, 2), say=lambda _: None, budget=TINY, trained=some,
        on_shipped=on_shipped, on_paper_loss=on_paper_loss, resamples=50,
    )  # fmt: skip
    path = tmp_path / "ablations.json"
    path.write_text(found.model_dump_json(exclude_none=True))
    assert results.load(path) == found
    # What is not finished for every seed is no row yet.
    assert [one.name for one in found.trained] == [variant.name for variant in some[:-1]]
    assert all(one.seeds == (1, 2) for one in (*found.trained, *found.paper_loss))
    for one in (*found.trained, *found.shipped, *found.paper_loss):
        assert one.fine.low <= one.fine.value <= one.fine.high
        assert (one.fine_difference is None) == (one.base is None)
    rendered = tables.render(found)
    document = "a\n<!-- table: alpha -->\nold\n<!-- end -->\nb\n<!-- table: reuse -->\n<!-- end -->\n"
    filled = tables.insert(document, rendered)
    assert rendered["alpha"] in filled
    assert "old" not in filled
    assert tables.insert(filled, rendered) == filled
    good = path.read_text()
    for spoiled in (good.replace('"schema_version":1', '"schema_version":2'), good.replace('"eta":', '"etta":'), "{"):
        path.write_text(spoiled)
        with pytest.raises(InputError, match=r"ablations\.json.*run `python benchmarks/ablations inference`"):
            results.load(path)


def test_differences_are_paired_and_seeds_are_matched() -> None:
    rng = np.random.default_rng(0)
    config, count = config_for("digits"), 200

    def run(fine: np.ndarray) -> Observed:
        return Observed(
            coarse_right=np.zeros(count, bool),
            fine_right=fine,
            sure=np.zeros(count, np.float32),
            refined=np.ones((count, 16), bool),
            covered=np.ones(count, np.float32),
        )

    base_right, other_right = rng.random(count) < 0.9, rng.random(count) < 0.9
    base = Measured(variants.find("default"), config, (1, 2), (run(base_right), run(other_right)))
    worse = base_right.copy()
    worse[:20] = False
    variant = Measured(variants.find("reuse=none"), config, (1,), (run(worse),))
    bootstrap = Bootstrap(count, 500)
    same = row(base, base, bootstrap, 0.9).fine_difference
    assert same is not None
    assert (same.value, same.low, same.high) == (0, 0, 0)
    lost = row(variant, base, bootstrap, 0.9)
    assert lost.seeds == (1,)
    assert lost.fine_difference is not None
    # Exact: the pictures that were right before and are wrong now.
    assert lost.fine_difference.value == pytest.approx(-base_right[:20].mean() * 20 / count)
    assert lost.fine_difference.high < 0
    # Far narrower than two independent intervals would allow.
    unpaired = lost.fine.high - lost.fine.low
    assert lost.fine_difference.high - lost.fine_difference.low < unpaired


def test_the_documented_tables_are_those_of_the_file() -> None:
    found = results.load(ROOT / "benchmarks" / "results" / "ablations.json")
    document = (ROOT / "docs" / "ablations.md").read_text(encoding="utf-8")
    assert tables.insert(document, tables.render(found)) == document
    assert found.budget == variants.BUDGET
    # The most telling ones at least, for as long as the queue ran, each with the same two seeds.
    queue = [variant.name for variant in TRAINED]
    assert [one.name for one in found.trained] == queue[: len(found.trained)]
    assert {one.seeds for one in found.trained} == {variants.SEEDS}
    assert {one.name for one in found.shipped} == {variant.name for variant in ON_SHIPPED}
    assert {one.name for one in found.paper_loss} == {variant.name for variant in ON_PAPER_LOSS}
    assert found.pictures == 4000


def test_the_command_refuses_in_one_line(tmp_path: Path, pictures: Batch) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "ablations"), "--work", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for arguments, words in (
        (["train", "--pictures", "0"], "--pictures is a number from 1 on"),
        (["inference", "--pictures", "1", "--seeds", "-1"], "training option seed"),
    ):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 2
        assert words in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
