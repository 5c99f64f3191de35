"""Every command's help: an example, what its arguments and options are."""

from __future__ import annotations

from typing import Any

import pytest
import typer.main

from mscope.core.console import run_app
from mscope.export.cli import app as export
from mscope.model.training.cli import app as train
from mscope.runtime.cli import app as run
from mscope.runtime.profiling.cli import app as profile

APPS = {"mscope-run": run, "mscope-export": export, "mscope-profile": profile, "mscope-train": train}


def commands(name: str, command: Any) -> dict[str, Any]:
    """A command and those below it, by what is typed for each."""
    found = {name: command}
    for below, other in getattr(command, "commands", {}).items():
        found |= commands(f"{name} {below}", other)
    return found


ALL = {
    name: command for top, app in APPS.items() for name, command in commands(top, typer.main.get_command(app)).items()
}


@pytest.mark.parametrize("name", ALL)
def test_a_command_has_an_example_and_words_for_everything(name: str) -> None:
    command = ALL[name]
    assert command.help
    # plugins path stands inside another command's line.
    assert any(name in line for line in (command.epilog or "").splitlines()), f"{name}: no example"
    for parameter in command.params:
        assert parameter.help, f"{name} {parameter.name}"
        assert parameter.help[-1] in ".]):", f"{name} {parameter.name}: {parameter.help}"


@pytest.mark.parametrize("given", [[], ["plugins"]])
def test_a_group_without_a_command_shows_its_help(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(export, given) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("Usage: ")
    assert "Commands:\n  build " in shown.err
