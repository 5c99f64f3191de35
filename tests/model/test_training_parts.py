"""Loss, schedule, weight average, no-decay groups, warm start: each against a computation by hand."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch

from mscope.core.config import ModelConfig, config_for
from mscope.core.errors import InputError
from mscope.core.geometry import coarse_grid, fine_grid
from mscope.model.checkpoint import build_model, resize_positions
from mscope.model.mambascope import MambaScope
from mscope.model.training.ema import WeightAverage
from mscope.model.training.loop import config_of
from mscope.model.training.loss import cascade_loss, kl_to_fine
from mscope.model.training.optimizer import adamw, decays
from mscope.model.training.ranking import region_saliency, teach_ranking
from mscope.model.training.recipe import make_recipe
from mscope.model.training.schedule import Schedule
from mscope.model.training.warm_start import derive_stages

COARSE = torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 0.5]])
FINE = torch.tensor([[2.0, -1.0, 0.0], [0.0, 0.0, 3.0]])
LABELS = torch.tensor([0, 2])


def probabilities(row: torch.Tensor) -> list[float]:
    exps = [math.exp(v) for v in row.tolist()]
    return [e / sum(exps) for e in exps]


def test_loss_by_hand() -> None:
    ce_fine = ce_coarse = kl = 0.0
    for coarse, fine, label in zip(COARSE, FINE, LABELS.tolist(), strict=True):
        p, q = probabilities(fine), probabilities(coarse)
        ce_fine -= math.log(p[label]) / 2
        ce_coarse -= math.log(q[label]) / 2
        kl += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True)) / 2
    loss = cascade_loss(COARSE, FINE, LABELS)
    assert float(loss.total) == pytest.approx(ce_fine + kl, rel=1e-5)
    assert float(loss.kl) == pytest.approx(kl, rel=1e-5)
    mixed = cascade_loss(COARSE, FINE, LABELS, kl_weight=0.25, coarse_weight=0.75)
    assert float(mixed.total) == pytest.approx(ce_fine + 0.25 * kl + 0.75 * ce_coarse, rel=1e-5)


def test_kl_has_the_fine_prediction_as_its_target() -> None:
    # A fine answer sure of one class: the coarse stage must pay for missing it, and not for hedging.
    sure, hedging = torch.tensor([[20.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert float(kl_to_fine(hedging, sure)) == pytest.approx(math.log(2), rel=1e-4)
    assert float(kl_to_fine(sure, hedging)) > 5
    assert float(kl_to_fine(FINE, FINE)) == pytest.approx(0.0, abs=1e-6)


def test_kl_moves_the_coarse_stage_only() -> None:
    coarse, fine = COARSE.clone().requires_grad_(), FINE.clone().requires_grad_()
    kl_to_fine(coarse, fine).backward()
    assert fine.grad is None
    assert coarse.grad is not None
    # d KL / d coarse logits = softmax(coarse) - softmax(fine), over the batch
    torch.testing.assert_close(coarse.grad, (COARSE.softmax(-1) - FINE.softmax(-1)) / 2)


RECIPE = make_recipe(samples=1000, batch=1, warmup_steps=100, warm_share=0.4, ramp_share=0.1, alpha=0.5, lr=1e-3)


def test_learning_rate() -> None:
    schedule = Schedule(RECIPE, RECIPE.lr)
    rates = [schedule.at(step).lr for step in range(RECIPE.steps)]
    assert rates[0] == pytest.approx(1e-5)
    assert max(rates) == rates[99] == pytest.approx(1e-3)
    assert all(a > b for a, b in itertools.pairwise(rates[100:]))
    assert rates[550] == pytest.approx((1e-3 + RECIPE.lr_final) / 2, rel=1e-3)  # the middle of the cosine
    assert rates[-1] == pytest.approx(RECIPE.lr_final, rel=0.01)
    assert Schedule(RECIPE, 5e-4).at(99).lr == pytest.approx(5e-4)


def test_phases() -> None:
    schedule = Schedule(RECIPE, RECIPE.lr)
    phases = [schedule.at(step) for step in range(RECIPE.steps)]
    assert [p.phase for p in phases] == ["plain"] * 400 + ["full"] * 267 + ["adaptive"] * 333
    assert {p.alpha for p in phases[:667]} == {1.0}
    assert {p.alpha for p in phases[667:]} == {0.5}
    assert (phases[400].kl_weight, phases[400].coarse_weight) == (0.0, 1.0)
    assert (phases[450].kl_weight, phases[450].coarse_weight) == (0.5, 0.5)
    assert {(p.kl_weight, p.coarse_weight) for p in phases[500:]} == {(1.0, 0.0)}  # the paper's loss


def test_the_weight_of_the_kl_term_is_ramped_too() -> None:
    recipe = make_recipe(samples=100, batch=1, warm_start="joint", warm_share=0.3, ramp_share=0.2, kl_weight=3.0)
    weights = [Schedule(recipe, recipe.lr).at(step).kl_weight for step in (29, 40, 50, 99)]
    assert weights == pytest.approx([0.0, 1.5, 3.0, 3.0])


def test_vim_is_plain_throughout() -> None:
    recipe = make_recipe(samples=100, batch=1, arch="vim")
    assert {Schedule(recipe, recipe.lr).at(step).phase for step in range(100)} == {"plain"}


def test_recipe_errors_name_the_option() -> None:
    with pytest.raises(InputError, match="alpha"):
        make_recipe(alpha=1.5)
    with pytest.raises(InputError, match="samples"):
        make_recipe(samples=0)


def tiny(**changes: object) -> MambaScope:
    torch.manual_seed(0)
    model = build_model(config_for("digits", d_model=16, depth=2, d_state=2, **changes))
    assert isinstance(model, MambaScope)
    return model


def test_weight_average_by_hand() -> None:
    model = tiny()
    average = WeightAverage(model, decay=0.9)
    expected = model.head.bias.detach().clone()
    for update in range(1, 60):
        with torch.no_grad():
            model.head.bias += float(update)
        average.update()
        decay = min(0.9, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * model.head.bias.detach()
    torch.testing.assert_close(average.model.head.bias.detach(), expected)
    assert not average.model.training
    average.adopt(["head.bias"])
    torch.testing.assert_close(average.model.head.bias, model.head.bias)
    assert not any(parameter.requires_grad for parameter in average.model.parameters())


def test_weight_decay_spares_what_it_must() -> None:
    model = tiny()
    kept = {name for name, parameter in model.named_parameters() if not decays(name, parameter)}
    for name in (
        "cls_token", "pos_embed", "pos_embed_coarse", "norm_f.weight", "head.bias", "reuse.norm.weight",
        "reuse.fc1.bias", "layers.0.norm.weight", "layers.0.mixer.A_log", "layers.0.mixer.A_b_log",
        "layers.0.mixer.D", "layers.0.mixer.D_b", "layers.0.mixer.dt_proj.bias", "layers.0.mixer.dt_proj_b.bias",
        "layers.0.mixer.conv1d.bias", "patch_embed.proj.bias",
    ):  # fmt: skip
        assert name in kept, name
    decayed = {name for name, _ in model.named_parameters()} - kept
    assert decayed >= {"head.weight", "reuse.fc2.weight", "layers.1.mixer.in_proj.weight", "patch_embed.proj.weight"}
    optimizer = adamw(model, 0.05)
    assert {group["weight_decay"]: len(group["params"]) for group in optimizer.param_groups} == {
        0.05: len(decayed),
        0.0: len(kept),
    }


def test_two_steps_of_adamw_by_hand() -> None:
    layer = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    optimizer = adamw(layer, 0.05)
    rate, weight = 0.01, float(layer.weight.detach())
    mean = square = 0.0
    for step, gradient in enumerate((1.0, -0.25), 1):
        for group in optimizer.param_groups:
            group["lr"] = rate
        layer.weight.grad = torch.full_like(layer.weight, gradient)
        optimizer.step()
        # Loshchilov and Hutter, algorithm 2, with Adam's usual moments.
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        unbiased = mean / (1 - 0.9**step) / (math.sqrt(square / (1 - 0.999**step)) + 1e-8)
        weight -= rate * (unbiased + 0.05 * weight)
        assert float(layer.weight.detach()) == pytest.approx(weight, abs=1e-12)


def test_derived_stages_follow_the_rule() -> None:
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    names = derive_stages(model)
    assert "pos_embed_coarse" in names
    assert "reuse.fc2.weight" in names
    config = model.config
    expected = resize_positions(before["pos_embed"], fine_grid(config), coarse_grid(config))
    torch.testing.assert_close(model.pos_embed_coarse.detach(), expected)
    assert model.reuse is not None
    assert float(model.reuse(torch.randn(2, 3, 16)).detach().abs().max()) == 0
    for name, tensor in model.state_dict().items():
        if name not in names:
            torch.testing.assert_close(tensor, before[name])


def test_derived_fine_stage_is_the_plain_vim_at_alpha_1() -> None:
    # Raster order and the class token in the middle: the very sequence of plain ViM. Region order is another one.
    images = torch.randn(2, 1, 64, 64)
    model = tiny(order="class-middle", fine_order="raster", alpha=1.0)
    derive_stages(model)
    torch.testing.assert_close(model(images)[1], model.forward_full(images))
    other = tiny(order="class-middle", fine_order="region", alpha=1.0)
    other.load_state_dict(model.state_dict())
    assert not torch.allclose(other(images)[1], model.forward_full(images))


def test_the_network_of_a_recipe_is_the_shipped_size() -> None:
    # The exporter builds config_for("digits"): what was trained must be that, field by field.
    assert config_of(make_recipe()) == config_for("digits")
    assert config_of(make_recipe(arch="vim")) == config_for("digits", "vim")


def test_every_choice_of_the_configuration_can_be_trained() -> None:
    choices = {
        "alpha": 0.5, "metric": "clip", "metric_topk": 4, "gated_importance": False, "beta": 0.5, "ema_start": "first",
        "importance_from": 2, "importance_every": 3, "reuse": "linear", "reuse_class_token": True,
        "order": "class-middle", "fine_order": "region",
    }  # fmt: skip
    # What is left are sizes; nothing that the paper leaves open may be missing here.
    sizes = {"arch", "size", "d_model", "depth", "d_state", "d_conv", "expand", "patch", "channels", "height", "width"}
    # Reductions are baselines of a plain ViM; benchmarks/reduction_retrain.py trains them.
    reductions = {name for name in ModelConfig.model_fields if name.startswith(("reduce", "prune", "merge"))} | {"keep"}
    assert set(choices) == set(ModelConfig.model_fields) - sizes - reductions - {"classes"}
    assert make_recipe(**choices).choices == choices
    assert config_of(make_recipe(**choices)) == config_for("digits", **choices)
    # As `--set KEY=VALUE` gives them.
    assert make_recipe(**{name: str(value) for name, value in choices.items()}).choices == choices
    with pytest.raises(InputError, match="importance_from 7"):
        config_of(make_recipe(importance_from=7))


def test_gradients_reach_both_stages() -> None:
    model = tiny()
    images, labels = torch.randn(3, 1, 64, 64), torch.tensor([1, 2, 3])
    coarse, fine = model(images)
    cascade_loss(coarse, fine, labels).total.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or float(p.grad.abs().max()) == 0]
    assert without == []
    # The coarse stage alone learns from the KL term, the fine one from its cross-entropy.
    assert model.pos_embed_coarse.grad is not None
    assert model.pos_embed.grad is not None


def test_initialise_twice_does_not_shrink_the_residual_branches() -> None:
    model = tiny()
    first = float(model.blocks()[0].mixer.out_proj.weight.detach().std())
    model.initialise(backward_delta=True)
    assert float(model.blocks()[0].mixer.out_proj.weight.detach().std()) == pytest.approx(first, rel=0.2)


@pytest.mark.parametrize(
    ("changes", "scale"), [({}, 0.01), ({"ema_start": "first"}, 1.0), ({"beta": 0.5}, 0.5), ({"beta": 1.0}, 1.0)]
)
def test_the_ranking_is_taught_where_the_loss_depends_on_the_pixels(changes: dict[str, Any], scale: float) -> None:
    model = tiny(**changes)
    image = torch.randn(2, 1, 64, 64)
    importance = torch.full((2, 16), 0.02).requires_grad_()
    same = teach_ranking(image, importance, model.config, strength=0.5)
    torch.testing.assert_close(same.detach(), image, rtol=0, atol=0)
    # A loss of region 5 (row 1, column 1) alone: whatever its sign, that region should rank first.
    same[:, :, 16:32, 16:32].square().sum().backward()
    assert importance.grad is not None
    # softmax of equal scores less the target, times strength over batch, over the average's scale: 1 - beta from 0.
    expected = torch.full((2, 16), 1 / 16)
    expected[:, 5] -= 1.0
    torch.testing.assert_close(importance.grad, expected * 0.5 / 2 / scale)


def test_region_saliency_by_hand() -> None:
    model = tiny()
    gradient = torch.zeros(1, 1, 64, 64)
    gradient[0, 0, 0, 0], gradient[0, 0, 5, 5] = 3.0, -4.0  # region 0: norm 5
    gradient[0, 0, 63, 63] = 15.0  # region 15
    saliency = region_saliency(gradient, model.config)
    assert saliency[0, 0] == pytest.approx(0.25)
    assert saliency[0, 15] == pytest.approx(0.75)
    assert float(saliency.sum()) == pytest.approx(1.0)
    assert float(region_saliency(torch.zeros(1, 1, 64, 64), model.config).abs().max()) == 0


def test_teaching_the_ranking_changes_no_other_gradient() -> None:
    model = tiny()
    images, labels = torch.randn(3, 1, 64, 64), torch.tensor([1, 2, 3])
    coarse = model.coarse(images)
    selection = model.split(coarse.importance)
    taught = teach_ranking(images, coarse.importance, model.config, strength=1.0)
    loss = torch.nn.functional.cross_entropy(model.fine(taught, coarse.features, coarse.embeddings, *selection), labels)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(model(images)[1], labels))
    to_importance, to_fine = torch.autograd.grad(loss, [coarse.importance, model.pos_embed])
    assert float(to_importance.abs().max()) > 0
    (plain,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(images)[1], labels), [model.pos_embed])
    torch.testing.assert_close(to_fine, plain)


def test_joint_warm_start_trains_both_stages_from_the_first_step() -> None:
    recipe = make_recipe(samples=100, batch=1, warm_start="joint", warm_share=0.3, ramp_share=0.2)
    steps = [Schedule(recipe, recipe.lr).at(step) for step in range(100)]
    assert [step.phase for step in steps[:50]] == ["full"] * 50
    assert {(step.kl_weight, step.coarse_weight) for step in steps[:30]} == {(0.0, 1.0)}
    assert steps[40].kl_weight == pytest.approx(0.5)
