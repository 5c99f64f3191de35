"""One command's work: check what was asked, train, measure, write the weights and the report."""

from __future__ import annotations

import datetime
import json
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mscope.core.bundle import sha256_of
from mscope.core.errors import InputError, MscopeError
from mscope.core.files import replacing, write_text_atomically
from mscope.model.backbone import Backbone
from mscope.model.training.loop import Listener, Pace, Trainer
from mscope.model.training.recipe import Recipe
from mscope.model.training.report import TEST_PICTURES, Measured, measure, render

DATASETS = ("digits",)


class Stopped(MscopeError):
    """The user stopped the run; its checkpoint is on disk."""

    exit_code = 130


@dataclass(frozen=True)
class Options:
    """What `mscope-train` was asked for."""

    recipe: Recipe
    out: Path
    init: Path | None = None
    resume: bool = False
    threads: int | None = None
    report: Path | None = None
    command: str = ""
    test_pictures: int = TEST_PICTURES
    pace: Pace = field(default_factory=Pace)


def checkpoint_of(out: Path) -> Path:
    """Where the unfinished run of a weights file keeps its checkpoint."""
    return out.with_name(out.name + ".ckpt")


def train(options: Options, listener: Listener) -> dict[str, Any]:
    """Trains, writes the weights to `options.out` and returns the record of the run (JSON values).

    Raises:
        InputError: options that do not fit, a file that is missing, a folder that cannot be written into.
        MscopeError, OSError: a full disk.
        Stopped: the listener asked to stop; the checkpoint is written.
        Diverged: training got nowhere.
    """
    import torch

    _check(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    checkpoint = checkpoint_of(options.out)
    derived: list[str] = []
    if options.resume:
        trainer = Trainer.resume(checkpoint, listener, options.pace)
        listener.message(f"resumed {checkpoint}: its own options hold, those of this command are ignored")
    else:
        if checkpoint.exists():
            raise InputError(f"{checkpoint} is an unfinished run: continue it with --resume, or delete the file")
        trainer = Trainer(options.recipe, checkpoint, listener, options.pace)
        if options.init is not None:
            derived = trainer.initialise_from(options.init)
    if not trainer.run():
        raise Stopped(f"stopped; the run is in {checkpoint}: continue it with the same --out and --resume")
    measured = measure(trainer.averaged, pictures=options.test_pictures)
    _write_weights(trainer.averaged, trainer.recipe, options.out)
    record = _record(options, trainer, measured, derived)
    folder = options.report or options.out.parent
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(folder / f"{options.out.stem}.json", json.dumps(record, indent=1) + "\n")
    if options.report is not None:
        write_text_atomically(folder / f"{options.out.stem}.txt", render(measured) + "\n")
    checkpoint.unlink(missing_ok=True)
    return record


def _check(options: Options) -> None:
    """Everything that can be refused before hours of work."""
    if options.recipe.dataset not in DATASETS:
        raise InputError(f"unknown data set '{options.recipe.dataset}': there is {', '.join(DATASETS)}")
    if options.out.suffix != ".safetensors":
        raise InputError(f"the weights are written as .safetensors, got --out {options.out}")
    if options.init is not None and options.resume:
        raise InputError("--init starts a run and --resume continues one: give one of them")
    if options.init is not None and not options.init.is_file():
        raise InputError(f"no weights file at {options.init} (--init)")
    for folder in (options.out.parent, options.report or options.out.parent):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".{options.out.name}.probe"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(f"cannot write into {folder}: {error.strerror}") from None


def _write_weights(model: Backbone, recipe: Recipe, out: Path) -> None:
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with replacing(out) as file:
        file.write(save(tensors, metadata={"recipe": recipe.model_dump_json()}))


def _record(options: Options, trainer: Trainer, measured: Measured, derived: list[str]) -> dict[str, Any]:
    import torch

    return {
        "command": options.command,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "recipe": trainer.recipe.model_dump(),
        "steps": trainer.recipe.steps,
        "restarts": trainer.restarts,
        "training_seconds": round(trainer.seconds, 1),
        "threads": torch.get_num_threads(),
        "init": options.init.name if options.init else None,
        "derived": derived,
        "config": trainer.averaged.config.model_dump(),
        "weights": {"file": options.out.name, "sha256": sha256_of(options.out)},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "measured": measured.model_dump(exclude_none=True),
    }
