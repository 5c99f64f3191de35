"""Runs a bundle adaptively: a picture in, an answer out, easy pictures leaving after the coarse stage.

    from mscope.runtime import Scope

    with Scope.load("bundle") as scope:
        print(scope("cat.jpg", eta=0.6).to_json())

Imports neither torch nor onnx; what it does import comes at first use, so that commands answer `--help` at once.
"""

from __future__ import annotations

# What typing.TYPE_CHECKING is: importing typing would take longer than all that comes before Ctrl-C is looked after.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mscope.runtime.result import Guess, Outcome, Result
    from mscope.runtime.scope import Scope

__all__ = ["Guess", "Outcome", "Result", "Scope"]

_HOME = {"Guess": "result", "Outcome": "result", "Result": "result", "Scope": "scope"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
