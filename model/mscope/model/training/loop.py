"""The training loop of section 4.3, with a warm start for training from scratch."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mscope.core.config import ModelConfig, config_for
from mscope.core.errors import InputError, MscopeError
from mscope.model.backbone import Backbone
from mscope.model.checkpoint import build_model, model_from_checkpoint
from mscope.model.mambascope import MambaScope
from mscope.model.training.digits import Digits
from mscope.model.training.ema import WeightAverage
from mscope.model.training.evaluate import accuracy, box_covered, plain_logits, stage_outputs, to_input
from mscope.model.training.loss import cascade_loss
from mscope.model.training.optimizer import adamw
from mscope.model.training.ranking import teach_ranking
from mscope.model.training.recipe import Recipe
from mscope.model.training.schedule import Schedule, Step
from mscope.model.training.state import TrainingState, load_state, save_state
from mscope.model.training.warm_start import derive_stages

_MAX_RESTARTS = 3
_ACCURACY_DECAY = 0.98


class Diverged(MscopeError):
    """Training that does not get anywhere, or whose loss is no longer a number."""


@dataclass(frozen=True)
class Progress:
    """What a listener is told after a step."""

    step: int
    steps: int
    phase: str
    loss: float
    accuracy: float  # moving average over the training batches, of the fine stage or the plain path
    lr: float
    samples_per_s: float
    validation: dict[str, float] | None  # accuracies of the averaged weights, now and then


class Listener(Protocol):
    """Shows progress. `stop_requested` is asked after every step."""

    def progress(self, progress: Progress) -> None: ...

    def message(self, text: str) -> None: ...

    def stop_requested(self) -> bool: ...


@dataclass(frozen=True)
class Pace:
    """How often to save, speak and validate, in steps; none of it changes the weights."""

    save_every: int = 500
    speak_every: int = 100
    validate_every: int = 1500
    validation_pictures: int = 1000


def config_of(recipe: Recipe) -> ModelConfig:
    """The network that a recipe trains."""
    return config_for(recipe.dataset, recipe.arch, **recipe.choices)


class Trainer:
    """One run. `run` trains to the end, or until the listener asks to stop, after which it can be resumed."""

    def __init__(self, recipe: Recipe, checkpoint: Path, listener: Listener, pace: Pace | None = None) -> None:
        self.recipe = recipe
        self._checkpoint = checkpoint
        self._listener = listener
        self._pace = pace or Pace()
        self._data = Digits(
            "train", recipe.seed, easy_first=round(recipe.easy_share * recipe.samples), smallest=recipe.smallest_digit
        )
        self._restarts, self._peak_lr, self._seconds = 0, recipe.lr, 0.0
        self._initialised_from_file = False
        self._start()

    @classmethod
    def resume(cls, checkpoint: Path, listener: Listener, pace: Pace | None = None) -> Trainer:
        """Goes on where a checkpoint stopped. Raises CheckpointError."""
        state = load_state(checkpoint)
        trainer = cls(state.recipe, checkpoint, listener, pace)
        trainer._restore(state)
        return trainer

    @property
    def averaged(self) -> Backbone:
        """The network with the averaged weights: what is evaluated and shipped."""
        return self._average.model

    @property
    def seconds(self) -> float:
        """Time spent training, over all resumed parts."""
        return self._seconds

    @property
    def restarts(self) -> int:
        """How often the run was begun anew at a lower learning rate."""
        return self._restarts

    def initialise_from(self, path: Path) -> list[str]:
        """Starts from a weights file instead of random ones; returns the parameters derived. Raises CheckpointError."""
        loaded = model_from_checkpoint(self._model.config, path)
        self._model.load_state_dict(loaded.model.state_dict())
        self._average = WeightAverage(self._model, self.recipe.ema)
        self._initialised_from_file = True
        return list(loaded.weights.derived)

    def run(self) -> bool:
        """Trains; True when the last step is done, False when it stopped early with a checkpoint written.

        Raises:
            Diverged: the loss is not finite, or the warm start stays at chance after every restart.
            InputError: a checkpoint could not be written.
        """
        began, done_before = time.monotonic(), self._step
        seconds_before = self._seconds
        while self._step < self.recipe.steps:
            settings = self._schedule.at(self._step)
            loss = self._train_step(settings)
            self._step += 1
            self._seconds = seconds_before + time.monotonic() - began
            if self._stuck():
                self._restart()
                done_before, began, seconds_before = 0, time.monotonic(), self._seconds
                continue
            speed = (self._step - done_before) * self.recipe.batch / max(1e-9, time.monotonic() - began)
            self._tell(settings, loss, speed)
            asked = self._listener.stop_requested()
            if asked or self._step % self._pace.save_every == 0:
                save_state(self._state(), self._checkpoint)
            if asked:
                return False
        return True

    def _start(self) -> None:
        """Random weights from the seed, and everything that goes with them, at step 0."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            model = build_model(config_of(self.recipe))
            # Seeded again: what MambaScope shares with plain ViM starts equal to it, so that runs compare.
            torch.manual_seed(self.recipe.seed)
            # Vim's zero bias gives the backward scan a memory of a token or two, which nothing learns through.
            model.initialise(backward_delta=True)
        self._model = model.train()
        self._average = WeightAverage(model, self.recipe.ema)
        self._optimizer = adamw(model, self.recipe.weight_decay)
        self._schedule = Schedule(self.recipe, self._peak_lr)
        self._step, self._accuracy = 0, 0.0

    def _train_step(self, settings: Step) -> float:
        recipe = self.recipe
        if isinstance(self._model, MambaScope) and 0 < self._step == self._schedule.plain_steps:
            self._average.adopt(derive_stages(self._model))
            self._listener.message(f"step {self._step}: two stages derived from the plain ViM trained so far")
        for group in self._optimizer.param_groups:
            group["lr"] = settings.lr
        pictures = self._data.batch(self._step * recipe.batch, recipe.batch)
        images, labels = to_input(pictures.images), torch.from_numpy(pictures.labels)
        if settings.phase == "plain":
            answer = self._model.forward_full(images)
            loss = F.cross_entropy(answer, labels)
        else:
            assert isinstance(self._model, MambaScope)
            coarse, answer = self._both_stages(self._model, images, settings.alpha)
            loss = cascade_loss(
                coarse, answer, labels, kl_weight=settings.kl_weight, coarse_weight=settings.coarse_weight
            ).total
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), recipe.clip, foreach=True)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise Diverged(f"the loss is {value} at step {self._step}: try a lower --lr than {self._peak_lr:g}")
        self._optimizer.step()
        self._average.update()
        right = float((answer.argmax(-1) == labels).float().mean())
        self._accuracy = _ACCURACY_DECAY * self._accuracy + (1 - _ACCURACY_DECAY) * right
        return value

    def _both_stages(self, model: MambaScope, images: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        """Coarse and fine logits, as `model(images, alpha)`, with the ranking's gradient where the recipe has it."""
        if not self.recipe.ranking:
            coarse_logits, fine_logits = model(images, alpha)
            return coarse_logits, fine_logits
        coarse = model.coarse(images)
        gated = teach_ranking(images, coarse.importance, model.config, self.recipe.ranking)
        selection = model.split(coarse.importance, alpha)
        return coarse.logits, model.fine(gated, coarse.features, coarse.embeddings, *selection)

    def _stuck(self) -> bool:
        """Whether the warm start is still at chance at the step where that is decided."""
        recipe = self.recipe
        decided = self._step == recipe.plateau_steps < self._schedule.warm_steps
        return decided and not self._initialised_from_file and self._accuracy < recipe.plateau_accuracy

    def _restart(self) -> None:
        self._restarts += 1
        if self._restarts > _MAX_RESTARTS:
            raise Diverged(f"still at chance after {_MAX_RESTARTS} restarts: try a lower --lr than {self.recipe.lr:g}")
        self._peak_lr /= 2
        self._listener.message(f"still at chance after {self._step} steps: starting anew at lr {self._peak_lr:g}")
        self._start()

    def _tell(self, settings: Step, loss: float, speed: float) -> None:
        pace, last = self._pace, self._step == self.recipe.steps
        validate = self._step % pace.validate_every == 0 and not last
        if not (validate or last or self._step == 1 or self._step % pace.speak_every == 0):
            return
        self._listener.progress(
            Progress(
                step=self._step,
                steps=self.recipe.steps,
                phase=settings.phase,
                loss=loss,
                accuracy=self._accuracy,
                lr=settings.lr,
                samples_per_s=speed,
                validation=self._validate(settings) if validate else None,
            )
        )

    def _validate(self, settings: Step) -> dict[str, float]:
        pictures = Digits("validation").batch(0, self._pace.validation_pictures)
        model = self.averaged
        if settings.phase == "plain" or not isinstance(model, MambaScope):
            return {"plain": accuracy(plain_logits(model, pictures), pictures.labels)}
        outputs = stage_outputs(model, pictures)
        return {
            "coarse": outputs.accuracy("coarse"),
            "fine": outputs.accuracy("fine"),
            "box covered": box_covered(model, pictures),
        }

    def _state(self) -> TrainingState:
        return TrainingState(
            recipe=self.recipe,
            step=self._step,
            peak_lr=self._peak_lr,
            restarts=self._restarts,
            accuracy=self._accuracy,
            seconds=self._seconds,
            from_file=self._initialised_from_file,
            average_updates=self._average.updates,
            model=self._model.state_dict(),
            average=self._average.model.state_dict(),
            optimizer=self._optimizer.state_dict(),
        )

    def _restore(self, state: TrainingState) -> None:
        try:
            self._model.load_state_dict(state.model)
            self._average.model.load_state_dict(state.average)
            self._optimizer.load_state_dict(state.optimizer)
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(f"{self._checkpoint} does not fit this network: {str(error).splitlines()[0]}") from None
        self._average.updates = state.average_updates
        self._step, self._accuracy, self._seconds = state.step, state.accuracy, state.seconds
        self._restarts, self._peak_lr, self._initialised_from_file = state.restarts, state.peak_lr, state.from_file
        self._schedule = Schedule(self.recipe, self._peak_lr)
