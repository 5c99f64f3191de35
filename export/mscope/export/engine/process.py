"""Runs the worker and survives it: an abort of the builder is one line, Ctrl-C ends it at once, nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path

from pydantic import ValidationError

from mscope.core.errors import BackendError, InputError
from mscope.core.python import module_command
from mscope.export.engine.request import BuildResult, EngineRequest, Event
from mscope.export.extend import Progress

WORKER = "mscope.export.engine.worker"


def build_in_process(request: EngineRequest, progress: Progress | None = None, module: str = WORKER) -> BuildResult:
    """Builds an engine in a child process and returns what it reports.

    Args:
        request: what to build; the plan is written to its `engine`.
        progress: called with the stage, the builder's phase and its steps.
        module: the worker; another one in tests.

    Raises:
        BackendError: the library, the parser or the builder failed, or the process died; says with what last words.
        InputError: the library does not build for a GPU that was named.
    """
    what = f"{request.flavour} engine {request.stage} {request.precision}"
    with tempfile.TemporaryDirectory(prefix="mscope-engine-") as scratch:
        asked, answer, words = (Path(scratch) / name for name in ("request.json", "result.json", "stderr"))
        asked.write_text(request.model_dump_json(), encoding="utf-8")
        with words.open("wb") as stderr:
            child = subprocess.Popen(
                module_command(module, str(asked), str(answer), str(os.getpid())),
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )
            try:
                _follow(child, what, progress)
                status = child.wait()
            finally:
                # Also on Ctrl-C, whatever the child is in the middle of.
                child.kill()
                child.wait()
        if not answer.is_file():
            raise BackendError(f"{what}: the builder {_end(status)}{_last_words(words)}; no engine was written")
        result = BuildResult.model_validate_json(answer.read_bytes())
    if result.error:
        raise (InputError if result.usage else BackendError)(
            result.error if result.usage else f"{what}: {result.error}"
        )
    return result


def _follow(child: subprocess.Popen[bytes], what: str, progress: Progress | None) -> None:
    assert child.stdout is not None
    with child.stdout as lines:
        for line in lines:
            try:
                event = Event.model_validate_json(line)
            except ValidationError:
                continue  # the library's own print
            if progress is not None:
                steps = f" {event.step}/{event.of}" if event.of > 1 and event.kind == "step" else ""
                progress(f"{what}: {event.text[:60]}{steps}")


def _end(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def _last_words(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f" after '{lines[-1][-300:]}'" if lines else " without a word"
