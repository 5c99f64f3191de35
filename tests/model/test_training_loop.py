"""The loop: it learns, resumes bit for bit, restarts from plateaus, stops on request, refuses foreign files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mscope.core.errors import CheckpointError, InputError
from mscope.model.mambascope import MambaScope
from mscope.model.training.digits import Batch, Digits
from mscope.model.training.loop import Diverged, Pace, Progress, Trainer
from mscope.model.training.recipe import Recipe, make_recipe
from mscope.model.training.session import Options, Stopped, checkpoint_of, train
from mscope.model.training.state import load_state

PACE = Pace(save_every=1000, speak_every=1, validate_every=1000, validation_pictures=10)
# All three phases in a dozen steps.
SHORT = {"samples": 48, "batch": 4, "warmup_steps": 2, "warm_share": 0.34, "ramp_share": 0.2, "full_share": 0.7}


class Silent:
    """A listener that remembers, and asks to stop after `stop_after` steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.seen: list[Progress] = []
        self.messages: list[str] = []
        self.stop_after = stop_after
        self.asked = 0

    def progress(self, progress: Progress) -> None:
        self.seen.append(progress)

    def message(self, text: str) -> None:
        self.messages.append(text)

    def stop_requested(self) -> bool:
        self.asked += 1
        return self.asked == self.stop_after


class SamePictures:
    """A data set of one batch, which a run must learn by heart."""

    def __init__(self) -> None:
        self._batch = Digits("train", easy_first=10**6).batch(0, 8)

    def batch(self, start: int, count: int) -> Batch:
        return self._batch


@pytest.mark.parametrize("warm_share", [1 - 1e-9, 0.0])
def test_a_short_run_lowers_the_loss(tmp_path: Path, warm_share: float) -> None:
    recipe = make_recipe(samples=25 * 8, batch=8, warmup_steps=3, warm_share=warm_share, ramp_share=1.0, lr=3e-3)
    listener = Silent()
    trainer = Trainer(recipe, tmp_path / "x.ckpt", listener, PACE)
    trainer._data = SamePictures()
    trainer.run()
    losses = [progress.loss for progress in listener.seen]
    assert len(losses) == 25
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("stop_after", [2, 4, 9])
def test_resume_is_bit_exact(tmp_path: Path, stop_after: int) -> None:
    recipe = make_recipe(**SHORT)
    straight = Trainer(recipe, tmp_path / "straight.ckpt", Silent(), PACE)
    assert straight.run()

    listener = Silent(stop_after)
    first = Trainer(recipe, tmp_path / "parts.ckpt", listener, PACE)
    assert not first.run()
    assert load_state(tmp_path / "parts.ckpt").step == stop_after
    second = Trainer.resume(tmp_path / "parts.ckpt", Silent(), PACE)
    assert second.run()
    for (name, one), other in zip(
        straight.averaged.state_dict().items(), second.averaged.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


def test_phases_of_a_run(tmp_path: Path) -> None:
    listener = Silent()
    trainer = Trainer(make_recipe(**SHORT), tmp_path / "x.ckpt", listener, PACE)
    assert isinstance(trainer.averaged, MambaScope)
    trainer.run()
    assert [progress.phase for progress in listener.seen] == ["plain"] * 4 + ["full"] * 4 + ["adaptive"] * 4
    assert any("two stages derived" in message for message in listener.messages)


def test_a_plateau_starts_anew_at_half_the_rate_and_gives_up_in_the_end(tmp_path: Path) -> None:
    recipe = make_recipe(**SHORT | {"plateau_steps": 2, "plateau_accuracy": 1.0})
    listener = Silent()
    trainer = Trainer(recipe, tmp_path / "x.ckpt", listener, PACE)
    with pytest.raises(Diverged, match="after 3 restarts"):
        trainer.run()
    assert len(listener.messages) == 3
    assert f"lr {recipe.lr / 8:g}" in listener.messages[-1]


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    trainer = Trainer(make_recipe(**SHORT), tmp_path / "x.ckpt", Silent(), PACE)
    with torch.no_grad():
        trainer._model.head.bias.fill_(float("nan"))
    with pytest.raises(Diverged, match="loss is nan"):
        trainer.run()


def test_a_checkpoint_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        load_state(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(CheckpointError, match="cannot read"):
        load_state(tmp_path / "text.ckpt")
    torch.save({"model": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(CheckpointError, match="no checkpoint of mscope-train"):
        load_state(tmp_path / "foreign.ckpt")


def options(recipe: Recipe, out: Path, **changes: object) -> Options:
    return Options(recipe, out, **{"test_pictures": 40, "pace": PACE, **changes})  # type: ignore[arg-type]


def test_a_stopped_session_resumes_to_the_same_file(tmp_path: Path) -> None:
    recipe = make_recipe(**SHORT)
    straight = train(options(recipe, tmp_path / "straight.safetensors"), Silent())
    out = tmp_path / "parts.safetensors"
    with pytest.raises(Stopped, match="--resume"):
        train(options(recipe, out), Silent(stop_after=5))
    assert not out.exists()
    with pytest.raises(InputError, match="unfinished run"):
        train(options(recipe, out), Silent())
    resumed = train(options(recipe, out, resume=True, report=tmp_path / "report"), Silent())
    assert resumed["weights"]["sha256"] == straight["weights"]["sha256"]
    assert resumed["measured"] == straight["measured"]
    assert not checkpoint_of(out).exists()
    assert "coarse stage" in (tmp_path / "report" / "parts.txt").read_text()
    measured = resumed["measured"]
    assert measured["pictures"] == 40
    assert measured["curve"][0]["accuracy"] == measured["coarse"]
    assert measured["curve"][-1]["accuracy"] == measured["fine"]
    assert sum(row["pictures"] for row in measured["by_size"]) == 40


def test_a_run_can_start_from_a_plain_vim(tmp_path: Path) -> None:
    plain = train(options(make_recipe(**SHORT | {"arch": "vim"}), tmp_path / "vim.safetensors"), Silent())
    assert plain["measured"]["plain"] > 0
    recipe = make_recipe(**SHORT | {"warm_share": 0.0, "easy_share": 0.0})
    record = train(options(recipe, tmp_path / "scope.safetensors", init=tmp_path / "vim.safetensors"), Silent())
    assert record["init"] == "vim.safetensors"
    assert "pos_embed_coarse" in record["derived"]
