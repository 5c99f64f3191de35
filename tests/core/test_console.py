import errno
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from mscope.core.console import EXTRAS, echo, print_error, run_app, run_guarded
from mscope.core.errors import BackendError, InputError


def raising(error: BaseException) -> object:
    def call() -> None:
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("bad\n  input"), 2, "error: bad input"),
        (BackendError("no backend"), 1, "error: no backend"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 1, "error: /x/y: No space left on device; free"),
        (OSError(errno.EACCES, "Permission denied", "/x"), 1, "error: /x: Permission denied"),
        (OSError(errno.EIO, "Input/output error"), 1, "error: Input/output error"),
        (MemoryError(), 1, "error: out of memory"),
        (
            ModuleNotFoundError("no", name="onnx.helper"),
            1,
            "error: this needs onnx, which the bare install leaves out: pip",
        ),
        (ModuleNotFoundError("no", name="foo"), 1, "error: internal error: ModuleNotFoundError: no"),
        (ZeroDivisionError("division by zero"), 1, "error: internal error: ZeroDivisionError: division by zero"),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_one_line_and_a_status(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, line: str, debug: bool
) -> None:
    assert run_guarded(raising(error), debug=debug) == status  # type: ignore[arg-type]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith(line)
    assert ("Traceback" in err) == debug
    assert debug or err.count("\n") == 1


def make_app() -> typer.Typer:
    app = typer.Typer()

    @app.command()
    def work(number: int, debug: Annotated[bool, typer.Option("--debug")] = False) -> int | None:
        if number == 3:
            raise typer.Exit(7)
        if number == 4:
            raise KeyboardInterrupt
        return None if number == 0 else number

    return app


@pytest.mark.parametrize(("argument", "status"), [("0", 0), ("1", 1), ("5", 5), ("3", 7)])
def test_a_command_returns_its_status(argument: str, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(make_app(), [argument]) == status
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("arguments", [[], ["many"], ["1", "--colour"]])
def test_bad_usage_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(make_app(), arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")


def test_ctrl_c_inside_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(make_app(), ["4"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_help_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(make_app(), ["--help"]) == 0
    assert "Usage" in capsys.readouterr().out


def test_a_group_without_a_command_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    for name in ("one", "two"):
        app.command(name)(lambda: None)
    assert run_app(app, []) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Usage" in err


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer()
    app.command()(lambda: None)
    assert run_app(app, ["--version"]) == 0
    assert capsys.readouterr().out.startswith("mambascope-deploy")


def test_output_that_nobody_reads_any_more() -> None:
    # Small enough to stay in the buffer until the command has ended.
    code = (
        "import sys; from mscope.core.console import run_guarded; sys.exit(run_guarded(lambda: print(1), debug=False))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "core"), "PYTHONUNBUFFERED": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, env=environment, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def ended(code: str, stdout: int | None = subprocess.PIPE, **more: Any) -> subprocess.CompletedProcess[bytes]:
    """A process whose command runs `code`, under run_app."""
    program = f"""
import os, signal, sys, threading, time
import typer
from mscope.core.console import run_app

app = typer.Typer()

@app.command()
def work():
    {code}

sys.exit(run_app(app, []))
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "core")} | more.pop("env", {})
    return subprocess.run(
        [sys.executable, "-c", program], stdout=stdout, stderr=subprocess.PIPE, env=environment, check=False, **more
    )


def test_sigterm_ends_a_command_as_ctrl_c_does(tmp_path: Path) -> None:
    code = f"""
    from pathlib import Path
    from mscope.core.files import replacing
    with replacing(Path({str(tmp_path / "file")!r})):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)"""
    done = ended(code)
    assert (done.returncode, done.stderr) == (130, b"error: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_sigterm_is_as_it_was_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    run_app(make_app(), ["0"])
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_is_left_to_whoever_takes_it_already_and_to_the_main_thread() -> None:
    seen: list[Any] = []
    app = typer.Typer()
    app.command()(lambda: seen.append(signal.getsignal(signal.SIGTERM)))
    before = signal.signal(signal.SIGTERM, print)
    try:
        assert run_app(app, []) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run_app, app, []).result() == 0
    assert seen == [print, before]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8:surrogateescape", "ascii"])
def test_a_file_name_that_is_no_unicode(encoding: str) -> None:
    done = ended("print('caf\\udcff'); print('\\udcff', file=sys.stderr)", env={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stdout, done.stderr) == (0, b"caf\\udcff\n", b"\\udcff\n")


@pytest.mark.parametrize("number", [1, 2])
def test_a_stream_that_is_closed(number: int) -> None:
    code = "print(sys.stdout.isatty(), sys.stderr.isatty()); print(file=sys.stderr)"
    done = ended(code, preexec_fn=lambda: os.close(number))
    assert (done.returncode, done.stderr) == (0, b"\n" if number == 1 else b"")


@pytest.mark.parametrize(("given", "told"), [(None, b"1\n"), ("0", b"0\n")])
def test_onnxruntime_reports_nothing_unless_it_is_wanted(given: str | None, told: bytes) -> None:
    clean = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", clean)
        done = ended(
            "print(os.environ['ORT_DISABLE_TELEMETRY'])", env={} if given is None else {"ORT_DISABLE_TELEMETRY": given}
        )
    assert (done.returncode, done.stdout) == (0, told)


def test_extras_are_those_of_the_distribution() -> None:
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    distributions = {"sklearn": "scikit-learn"}
    for module, extra in EXTRAS.items():
        wanted = project["optional-dependencies"][extra]
        assert any(re.match(rf"{distributions.get(module, module)}\b", line) for line in wanted), f"{module}: {extra}"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("x" * 40, ["x" * 40]),
        (
            "  ort  missing  no NVIDIA driver here, see /a/path/longer/the-terminal",
            ["  ort  missing  no NVIDIA driver here,", " " * 16 + "see", " " * 16 + "/a/path/longer/the-terminal"],
        ),
        ("warning: the machine was busy  before --two runs", ["warning: the machine was busy  before", "  --two runs"]),
        (
            "    by GMACs it pays only if more than 12 % exit",
            ["    by GMACs it pays only if more than", "      12 % exit"],
        ),
    ],
)
@pytest.mark.parametrize("err", [False, True])
def test_a_line_in_a_narrow_terminal(line: str, shown: list[str], err: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    with os.fdopen(theirs, "w") as terminal, os.fdopen(ours, "rb") as screen:
        monkeypatch.setattr(sys, "stderr" if err else "stdout", terminal)
        echo(line, err=err)
        monkeypatch.undo()
        assert os.read(screen.fileno(), 4096).decode().splitlines() == shown


def test_what_a_terminal_would_obey_is_spelt_out(capfd: pytest.CaptureFixture[str]) -> None:
    echo("left out: a\x1b]0;title\x07.png", err=True)
    print_error("a\x1b[2J.png: no\nsuch file")
    assert capfd.readouterr().err == "left out: a\\x1b]0;title\\x07.png\nerror: a\\x1b[2J.png: no such file\n"


def test_a_line_in_a_pipe_is_whole(capfd: pytest.CaptureFixture[str]) -> None:
    echo("  label  " + "word " * 100)
    echo("warning: " + "word " * 100, err=True)
    assert capfd.readouterr() == ("  label  " + "word " * 100 + "\n", "warning: " + "word " * 100 + "\n")
