"""What is ablated: every variant names the one option in which it differs from its base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mscope.model.training.recipe import Recipe, make_recipe

Regions = Literal["important", "random", "box"]


@dataclass(frozen=True)
class Variant:
    """One row of a table.

    Attributes:
        name: unique within its list, `option=value`.
        table: which table it belongs to.
        changes: fields of Recipe (to be trained) or of ModelConfig (other inference on given weights).
        base: the variant that it differs from in those fields alone; None for a base itself.
        regions: what is refined: the important regions, as many at random, or those that hold most of the digit's box
            (known to the data set, not to any network: the best that a ranking could do).
    """

    name: str
    table: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    base: str | None = "default"
    regions: Regions = "important"


# Fine-tuning from the shipped plain ViM, short and the same for every variant. The peak is where the cosine of the
# shipped model's recipe stands when its two stages are derived.
BUDGET: dict[str, Any] = {
    "samples": 16_000, "lr": 1e-3, "warmup_steps": 50, "ramp_share": 0.1, "warm_share": 0.0, "easy_share": 0.0,
}  # fmt: skip
SEEDS = (1, 2)  # not 0: its pictures trained the plain ViM that all start from

PAPER_LOSS = "ranking=0"
_ALL_LAYERS = {"importance_from": 1, "importance_every": 1}
_EVERY_SECOND = {"importance_from": 2, "importance_every": 2}

# In the order in which they are trained: the most telling first, then by what they cost.
TRAINED: tuple[Variant, ...] = (
    Variant("default", "default", base=None),
    Variant(PAPER_LOSS, "ranking", {"ranking": 0.0}),
    *(
        Variant(f"{PAPER_LOSS} metric={metric}", "metric", {"metric": metric}, base=PAPER_LOSS)
        for metric in ("clip", "l1", "softplus", "raw", "topk")
    ),
    Variant("alpha=0.5", "alpha", {"alpha": 0.5}),
    Variant("alpha=0.25", "alpha", {"alpha": 0.25}),
    Variant("alpha=1", "alpha", {"alpha": 1.0}),
    # With two scored layers and a start at 0: the last layer alone.
    Variant(f"{PAPER_LOSS} beta=0", "beta", {"beta": 0.0}, base=PAPER_LOSS),
    Variant(f"{PAPER_LOSS} layers=all", "layers", _ALL_LAYERS, base=PAPER_LOSS),
    Variant("reuse=none", "reuse", {"reuse": "none"}),
    Variant("order=class-after-important", "order", {"order": "class-after-important"}),
    Variant("order=unimportant-first", "order", {"order": "unimportant-first"}),
    Variant("reuse=linear", "reuse", {"reuse": "linear"}),
    Variant("reuse_class_token=true", "reuse", {"reuse_class_token": True}),
    Variant("order=class-middle", "order", {"order": "class-middle"}),
    Variant("fine_order=region", "order", {"fine_order": "region"}),
    Variant(f"{PAPER_LOSS} gated_importance=false", "metric", {"gated_importance": False}, base=PAPER_LOSS),
)

# Other inference on given weights, without any training for it.
RANKINGS: tuple[Variant, ...] = (
    *(
        Variant(f"metric={metric}{'' if gated else ' gated_importance=false'}", "metric",
                {"metric": metric, "gated_importance": gated})
        for gated in (True, False)
        for metric in ("max", "topk", "softplus", "clip", "raw", "l1")
        if (metric, gated) != ("max", True)
    ),
    Variant("regions=random", "metric", regions="random"),
    Variant("regions=box", "metric", regions="box"),
    *(Variant(f"beta={beta:g}", "beta", {"beta": beta}) for beta in (0.0, 0.5, 0.9, 0.999)),
    # Started at the first scored layer, 0.99 leaves almost nothing of the second.
    Variant("ema_start=first", "beta", {"ema_start": "first"}),
    Variant("layers=all", "layers", _ALL_LAYERS),
    Variant("layers=2,4,6", "layers", _EVERY_SECOND),
    Variant("layers=4,5,6", "layers", {"importance_from": 4, "importance_every": 1}),
    *(
        Variant(f"layers={layer}", "layers", {"importance_from": layer, "importance_every": 6})
        for layer in range(1, 7)
    ),
)  # fmt: skip
ALPHAS = tuple(
    Variant(f"alpha={alpha:g}", "alpha", {"alpha": alpha}) for alpha in (0.125, 0.25, 0.375, 0.5, 0.6, 0.8, 0.9, 1.0)
)
LAYOUTS: tuple[Variant, ...] = (
    *(
        Variant(f"order={order}", "order", {"order": order})
        for order in ("class-middle", "class-after-important", "unimportant-first")
    ),
    Variant("fine_order=region", "order", {"fine_order": "region"}),
    Variant("reuse=none", "reuse", {"reuse": "none"}),
)
AS_IT_IS = Variant("default", "default", base=None)
ON_SHIPPED = (AS_IT_IS, *RANKINGS, *ALPHAS, *LAYOUTS)
# Not every one of them again: each is run for every seed.
_SPARED = ("beta=0.9", "beta=0.999", "alpha=0.125", "alpha=0.375", "alpha=0.6", "alpha=0.8", "alpha=0.9")
ON_PAPER_LOSS = (
    AS_IT_IS,
    *(
        variant
        for variant in (*RANKINGS, *ALPHAS)
        if variant.name not in _SPARED and ("importance_every", 6) not in variant.changes.items()
    ),
)
ETAS = (0.0, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 1.0)

# What decides the ranking alone: without the ranking's gradient it cannot matter while every region is refined.
_RANKING_FIELDS = ("metric", "metric_topk", "beta", "ema_start", "importance_from", "importance_every")


def find(name: str, variants: tuple[Variant, ...] = TRAINED) -> Variant:
    """The variant of that name."""
    return next(variant for variant in variants if variant.name == name)


def recipe_of(variant: Variant, seed: int, budget: Mapping[str, Any] = BUDGET) -> Recipe:
    """The training run of a variant: its base's, with the variant's own changes."""
    base = {} if variant.base is None else find(variant.base).changes
    return make_recipe(**{**budget, "seed": seed, **base, **variant.changes})


def trunk_of(recipe: Recipe) -> Recipe:
    """The run whose first phase, with every region refined, is also that of `recipe`, bit for bit.

    alpha does not matter before that phase ends; nor does the ranking, where nothing teaches it. (`gated_importance`
    does: it is computed another way, whose rounding differs.)
    """
    fields = ("alpha",) if recipe.ranking else ("alpha", *_RANKING_FIELDS)
    return make_recipe(**recipe.model_dump(exclude=set(fields)))


def steps_in_trunk(recipe: Recipe) -> int:
    """Optimiser steps of the phase with every region refined, as training/schedule.py counts them."""
    return round(recipe.full_share * recipe.steps)
