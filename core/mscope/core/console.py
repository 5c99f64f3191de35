"""From an exception to one line on stderr and an exit status: how every command of the project ends."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from mscope.core.errors import MscopeError
from mscope.core.text import readable

if TYPE_CHECKING:
    import typer

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_DISTRIBUTION = "mambascope-deploy"
# Optional packages by the name that is imported, and the extra of this distribution that brings each.
EXTRAS = {
    "torch": "export", "onnx": "export", "onnxscript": "export", "safetensors": "export", "polygraphy": "export",
    "sklearn": "calib", "matplotlib": "calib", "av": "video",
}  # fmt: skip
#: The first of Polygraphy's releases with a class for each measure, several of them in one comparison.
OLDEST_POLYGRAPHY = "0.53.4"


def examples(*commands: str) -> str:
    """An epilog for a command's help: its examples, each on a line of its own."""
    return "\n\n".join(["Examples:", *(f"  {command}" for command in commands)])


def run_app(app: typer.Typer, arguments: Sequence[str] | None = None) -> int:
    """Runs a Typer app and returns the exit status of the process; results are the app's business, errors end here.

    A command may return an int, its status; None is 0. Every failure becomes one line on stderr: MscopeError with its
    `exit_code`, bad usage 2, Ctrl-C 130, a full disk and all else 1. A reader of stdout that went away (`| head`) ends
    the command quietly. SIGTERM does what Ctrl-C does. With `--debug` among the arguments the traceback is printed
    before the line.

    `--version` alone prints the distribution's version.

    Args:
        app: the command, or group of commands.
        arguments: instead of sys.argv[1:].
    """
    import typer

    _prepare_streams()
    # ONNX Runtime's wheels (1.32) report to their maker and keep an identifier in the home folder, unless this is set
    # before they are imported. A command that looks at somebody's pictures does not do that unasked.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:
        return run_guarded(_print_version, debug=False)
    command = typer.main.get_command(app)

    def call() -> object:
        with _terminated_as_interrupted():
            return command.main(args=given, standalone_mode=False)

    return run_guarded(call, debug="--debug" in given)


def _prepare_streams() -> None:
    """Makes stdout and stderr take every text, a file's name that is not Unicode too; closed ones go nowhere.

    A byte that is not UTF-8 is written as `\\udcff`, which in a string of JSON is what it means.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, by which service managers end a command, does what Ctrl-C does: nothing is left half-written."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def run_guarded(call: Callable[[], object], *, debug: bool) -> int:
    """Calls `call` and returns an exit status as `run_app` describes; prints at most one line, or a traceback too."""
    try:
        status = call()
        if status == EXIT_INTERRUPTED:
            # Typer turns Ctrl-C into this status and says nothing.
            print_error("interrupted")
        sys.stdout.flush()
    except SystemExit as error:
        # Typer's own way out when stdout is closed.
        status = error.code
        _drop_closed_stdout()
    except BrokenPipeError:
        _drop_closed_stdout()
        return EXIT_FAILURE
    except (Exception, KeyboardInterrupt) as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            # Of a group without a command: its help, which the message is, on lines of its own.
            print(error, file=sys.stderr)
            return EXIT_USAGE
        if debug:
            import traceback

            traceback.print_exc()
        message, status = _line_and_status(error)
        print_error(message)
    return status if isinstance(status, int) else 0


def echo(line: str, *, err: bool = False) -> None:
    """Prints a line for people: whole in a pipe; where a terminal is narrower, broken between words.

    What follows hangs below the last of the line's columns, which two spaces or more set off, or two beyond its begin.
    What a terminal would obey, in a file's name for example, is spelt out.
    """
    line = readable(line)
    stream = sys.stderr if err else sys.stdout
    columns = _columns(stream)
    if columns is not None and len(line) > columns:
        begins = [found.end() for found in re.finditer(r"\S {2,}(?=\S)", line[: columns // 2])]
        hang = begins[-1] if begins else len(line) - len(line.lstrip()) + 2
        # Neither a path nor an option is torn apart; what heads the line keeps its spaces.
        line = textwrap.fill(
            line[hang:], columns, initial_indent=line[:hang], subsequent_indent=" " * hang, break_long_words=False,
            break_on_hyphens=False,
        )  # fmt: skip
    print(line, file=stream, flush=True)


def _columns(stream: TextIO) -> int | None:
    """The width of a terminal; None of anything else, and of a terminal that does not tell."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return None


def print_error(message: object) -> None:
    """One line `error: ...` on stderr, whatever line breaks and other control characters the message has."""
    with contextlib.suppress(OSError):
        print(f"error: {readable(' '.join(str(message).split()))}", file=sys.stderr, flush=True)


def _print_version() -> None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        print(f"{_DISTRIBUTION} {version(_DISTRIBUTION)}")
    except PackageNotFoundError:
        print(f"{_DISTRIBUTION}, run from a checkout that is not installed")


def _line_and_status(error: BaseException) -> tuple[str, int]:
    if isinstance(error, MscopeError):
        return str(error), error.exit_code
    if hasattr(error, "format_message"):
        # A usage error of click, which Typer bundles or depends on according to its version.
        return f"{error.format_message()} (--help lists the options)", EXIT_USAGE
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        return "interrupted", EXIT_INTERRUPTED
    if isinstance(error, ModuleNotFoundError) and (module := (error.name or "").partition(".")[0]) in EXTRAS:
        install = f"pip install 'mambascope-deploy[{EXTRAS[module]}]'"
        return f"this needs {module}, which the bare install leaves out: {install}", EXIT_FAILURE
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        hint = "; free some space and run again, nothing half-written is left" if error.errno == errno.ENOSPC else ""
        return f"{where}{error.strerror or error}{hint}", EXIT_FAILURE
    if isinstance(error, MemoryError):
        return f"out of memory: {error or 'use a smaller batch'}", EXIT_FAILURE
    return f"internal error: {type(error).__name__}: {error} (--debug shows where)", EXIT_FAILURE


def _drop_closed_stdout() -> None:
    # Or the interpreter complains when it flushes stdout at its end.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
