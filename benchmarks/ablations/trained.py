"""The variants that need training: a resumable queue of short fine-tuning runs, all from one plain ViM."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablations.observe import Observed, observe
from ablations.variants import BUDGET, TRAINED, Variant, recipe_of, steps_in_trunk, trunk_of
from mscope.core.cost import stage_cost
from mscope.core.errors import InputError
from mscope.core.files import write_text_atomically
from mscope.model.mambascope import MambaScope
from mscope.model.shipped import shipped_weights
from mscope.model.training.digits import Batch
from mscope.model.training.loop import Pace, Progress, Trainer
from mscope.model.training.recipe import Recipe
from mscope.model.training.state import load_state, save_state

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run: its record as JSON values, and what its network did on the pictures."""

    record: dict[str, Any]
    observed: Observed


class _Until:
    """A listener that stops a run after a number of steps."""

    def __init__(self, last_step: int, say: Say) -> None:
        self._last, self._say, self._step = last_step, say, 0

    def progress(self, progress: Progress) -> None:
        self._say(f"    step {progress.step} of {progress.steps}, {progress.phase}, loss {progress.loss:.3f}")

    def message(self, text: str) -> None:
        self._say(f"    {text}")

    def stop_requested(self) -> bool:
        self._step += 1
        return self._step >= self._last

    def starting_at(self, step: int) -> _Until:
        self._step = step
        return self


def train_all(
    work: Path,
    pictures: Batch,
    *,
    seeds: Sequence[int],
    say: Say,
    variants: Sequence[Variant] = TRAINED,
    budget: Mapping[str, Any] = BUDGET,
) -> None:
    """Trains what is not trained yet below `work`, variant by variant, each for all seeds; stopped, it goes on there.

    Raises:
        InputError: a run that is there is of another budget, or was measured on other pictures.
    """
    work.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    for variant in variants:
        for seed in seeds:
            recipe = recipe_of(variant, seed, budget)
            if stored(work, variant, recipe, pictures) is not None:
                continue
            say(f"{variant.name}, seed {seed} ({time.monotonic() - began:.0f} s)")
            run = _train(work, variant, recipe, pictures, say)
            say(f"  coarse {100 * run['coarse']:.2f} %, fine {100 * run['fine']:.2f} %")


def stored(work: Path, variant: Variant, recipe: Recipe, pictures: Batch) -> Run | None:
    """The finished run of a variant, or None. Raises InputError where what is there is something else."""
    record_path = _file(work, variant, recipe.seed, ".json")
    if not record_path.is_file():
        return None
    record = json.loads(record_path.read_text(encoding="utf-8"))
    if record["recipe"] != recipe.model_dump() or record["pictures"] != fingerprint(pictures):
        raise InputError(f"{record_path} is of another budget or of other pictures: use another --work, or delete it")
    return Run(record, Observed.load(record_path.with_suffix(".npz")))


def weights_of(work: Path, variant: Variant, seed: int) -> Path:
    """The weights file of a finished run."""
    return _file(work, variant, seed, ".safetensors")


def fingerprint(pictures: Batch) -> str:
    """sha256 of pictures and labels."""
    digest = hashlib.sha256(pictures.images.tobytes())
    digest.update(pictures.labels.tobytes())
    return digest.hexdigest()


def _train(work: Path, variant: Variant, recipe: Recipe, pictures: Batch, say: Say) -> dict[str, Any]:
    from safetensors.torch import save_file

    checkpoint = _file(work, variant, recipe.seed, ".ckpt")
    if not checkpoint.is_file():
        trunk = _trained_trunk(work, recipe, say)
        save_state(dataclasses.replace(load_state(trunk), recipe=recipe), checkpoint)
    trainer = _trainer(checkpoint, recipe.steps, say)
    trainer.run()
    model = trainer.averaged
    assert isinstance(model, MambaScope)
    observed = observe(model, pictures)
    observed.save(_file(work, variant, recipe.seed, ".npz"))
    weights = weights_of(work, variant, recipe.seed)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
    cost = stage_cost(model.config)
    record = {
        "variant": variant.name,
        "seed": recipe.seed,
        "recipe": recipe.model_dump(),
        "pictures": fingerprint(pictures),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "training_seconds": round(trainer.seconds, 1),
        "coarse": float(observed.coarse_right.mean()),
        "fine": float(observed.fine_right.mean()),
        "covered": float(observed.covered.mean()),
        "mmacs": {"coarse": 1e3 * cost.coarse, "fine": 1e3 * cost.fine, "full": 1e3 * cost.full},
    }
    # Last: the record's presence says that the run is finished.
    write_text_atomically(_file(work, variant, recipe.seed, ".json"), json.dumps(record, indent=1) + "\n")
    checkpoint.unlink()
    return record


def _trained_trunk(work: Path, recipe: Recipe, say: Say) -> Path:
    """The checkpoint at the end of the phase with every region refined, shared by all runs that agree until there."""
    shared = trunk_of(recipe)
    name = hashlib.sha256(shared.model_dump_json().encode()).hexdigest()[:16]
    path, last = work / f"trunk-{name}.ckpt", steps_in_trunk(shared)
    if path.is_file():
        if load_state(path).step < last:
            _trainer(path, last, say).run()
        return path
    say(f"  phase with every region refined, {last} steps")
    listener = _Until(last, say)
    trainer = Trainer(shared, path, listener, _PACE)
    vim = shipped_weights("digits", "vim")
    assert vim is not None
    trainer.initialise_from(vim)
    trainer.run()
    return path


# Often: a run is stopped by whoever else needs the machine. It decides nothing about the weights.
_PACE = Pace(save_every=50, speak_every=250, validate_every=10**9)


def _trainer(checkpoint: Path, last_step: int, say: Say) -> Trainer:
    listener = _Until(last_step, say).starting_at(load_state(checkpoint).step)
    return Trainer.resume(checkpoint, listener, _PACE)


def _file(work: Path, variant: Variant, seed: int, suffix: str) -> Path:
    return work / f"{variant.name.replace(' ', '+')}-seed{seed}{suffix}"
