"""From everything that was run to benchmarks/results/ablations.json."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ablations.compare import LEVEL, Bootstrap, Measured, eta_rows, row
from ablations.inference import configured, observe_all
from ablations.observe import Observed
from ablations.results import Results, Row
from ablations.trained import fingerprint, stored, weights_of
from ablations.variants import (
    AS_IT_IS,
    BUDGET,
    ETAS,
    ON_PAPER_LOSS,
    ON_SHIPPED,
    PAPER_LOSS,
    TRAINED,
    Variant,
    find,
    recipe_of,
)  # fmt: skip
from mscope.calib.intervals import RESAMPLES
from mscope.core.config import ModelConfig, config_for
from mscope.core.cost import stage_cost
from mscope.core.errors import InputError
from mscope.model.checkpoint import model_from_checkpoint
from mscope.model.shipped import shipped_weights
from mscope.model.training.digits import Batch
from mscope.model.training.evaluate import plain_logits
from mscope.model.training.loop import config_of

Say = Callable[[str], None]


def collect(
    work: Path,
    pictures: Batch,
    *,
    machine: str,
    seeds: Sequence[int],
    say: Say,
    budget: Mapping[str, Any] = BUDGET,
    trained: Sequence[Variant] = TRAINED,
    on_shipped: Sequence[Variant] = ON_SHIPPED,
    on_paper_loss: Sequence[Variant] = ON_PAPER_LOSS,
    resamples: int = RESAMPLES,
) -> Results:
    """Everything finished below `work` for all seeds, and the inference variants, run where they are missing.

    Raises:
        InputError: the default and the paper's loss, with which all is compared, are not trained yet.
    """
    runs = _trained(work, trained, seeds, budget, pictures)
    for name in ("default", PAPER_LOSS):
        if name not in runs:
            raise InputError(f"'{name}' is not trained below {work}: run `python benchmarks/ablations train` first")
    bootstrap = Bootstrap(len(pictures.labels), resamples)
    weights, vim_weights = shipped_weights("digits", "mambascope"), shipped_weights("digits", "vim")
    assert weights is not None
    assert vim_weights is not None
    eta = float(json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))["eta"])
    vim = model_from_checkpoint(config_for("digits", "vim"), vim_weights).model
    plain_right = plain_logits(vim, pictures).argmax(-1) == pictures.labels

    config = config_for("digits")
    seen = {0: observe_all(work, weights, config, on_shipped, pictures, say)}
    shipped, as_it_is = _inference_rows(config, on_shipped, seen, bootstrap, eta), seen[0][AS_IT_IS.name]
    own = runs[PAPER_LOSS].config
    seen = {
        seed: observe_all(work, weights_of(work, find(PAPER_LOSS), seed), own, on_paper_loss, pictures, say)
        for seed in runs[PAPER_LOSS].seeds
    }
    paper_loss = _inference_rows(own, on_paper_loss, seen, bootstrap, eta)
    return Results(
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        machine=machine,
        versions=_versions(),
        pictures=len(pictures.labels),
        pictures_sha256=fingerprint(pictures),
        eta=eta,
        level=LEVEL,
        resamples=resamples,
        budget=dict(budget),
        plain=bootstrap.mean(plain_right.astype(np.float64)),
        mmacs_plain=1e3 * stage_cost(config).full,
        shipped=shipped,
        paper_loss=paper_loss,
        trained=tuple(
            row(measured, runs[measured.variant.base] if measured.variant.base else None, bootstrap, eta)
            for measured in runs.values()
        ),
        etas=tuple(eta_rows(as_it_is, plain_right, stage_cost(config), ETAS, bootstrap)),
    )


def _inference_rows(
    config: ModelConfig,
    variants: Sequence[Variant],
    seen: Mapping[int, Mapping[str, Observed]],
    bootstrap: Bootstrap,
    eta: float,
) -> tuple[Row, ...]:
    """Rows of other inference on the same weights; `seen` by the seed that trained these, then by variant."""
    measured = {
        variant.name: Measured(
            variant, configured(config, variant), tuple(seen), tuple(by_name[variant.name] for by_name in seen.values())
        )
        for variant in variants
    }
    return tuple(
        row(one, measured[one.variant.base] if one.variant.base else None, bootstrap, eta) for one in measured.values()
    )


def _trained(
    work: Path, variants: Sequence[Variant], seeds: Sequence[int], budget: Mapping[str, Any], pictures: Batch
) -> dict[str, Measured]:
    """The variants that are finished for every seed."""
    found = {}
    for variant in variants:
        runs = [stored(work, variant, recipe_of(variant, seed, budget), pictures) for seed in seeds]
        finished = tuple(run.observed for run in runs if run is not None)
        if len(finished) == len(seeds):
            config = config_of(recipe_of(variant, seeds[0], budget))
            found[variant.name] = Measured(variant, config, tuple(seeds), finished)
    return found


def _versions() -> dict[str, str]:
    import torch

    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
