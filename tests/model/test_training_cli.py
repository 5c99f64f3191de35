"""mscope-train as a user meets it: what is refused, in one line and with which exit status, and a run in a pipe."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mscope.core.console import run_app
from mscope.model.training.cli import app

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("core", "plugins", "model")),
    "OMP_NUM_THREADS": "1",
    "COLUMNS": "100",
}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from mscope.model.training.cli import main; main()", *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, env=ENVIRONMENT, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset", "imagenet", "--out", "{}/x.safetensors"], ["imagenet", "digits"]),
        (["--init", "{}/none.safetensors", "--out", "{}/x.safetensors"], ["no weights file", "none.safetensors"]),
        (["--out", "{}/x.pth"], [".safetensors"]),
        (["--out", "{}/file/x.safetensors"], ["cannot write into"]),
        (["--out", "{}/x.safetensors", "--alpha", "0"], ["alpha"]),
        (["--out", "{}/x.safetensors", "--arch", "resnet"], ["arch"]),
        (["--out", "{}/x.safetensors", "--resume"], ["nothing to resume"]),
        (["--out", "{}/x.safetensors", "--samples", "-5"], ["samples"]),
        (["--out", "{}/x.safetensors", "--set", "lr_finale=1"], ["lr_finale"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run_app(app, [argument.format(tmp_path) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1, printed.err
    for word in words:
        assert word in printed.err


def test_help_has_an_example_and_needs_no_torch() -> None:
    check = "import sys, mscope.model.training.cli; sys.exit(bool({'torch', 'sklearn', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], env=ENVIRONMENT).returncode == 0
    result = run("--help")
    assert result.returncode == 0
    assert "mscope-train --out digits.safetensors" in result.stdout


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mscope.model.training.cli", "--help"], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0
    assert "mscope-train --out digits.safetensors" in done.stdout


def test_a_run_in_a_pipe_prints_json_and_leaves_the_files(tmp_path: Path) -> None:
    out = tmp_path / "new" / "d.safetensors"
    result = run("--out", out, "--samples", 8, "--batch", 4, "--test-pictures", 30, "--json", "--report", tmp_path)
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    assert len(result.stdout.strip().splitlines()) == 1
    assert record["weights"]["file"] == "d.safetensors"
    assert record["recipe"]["samples"] == 8
    assert "--samples 8" in record["command"]
    assert out.is_file()
    assert json.loads((tmp_path / "d.json").read_text()) == record


def test_weights_that_find_no_room_are_a_failure_that_leaves_nothing(tmp_path: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

    arguments = command("--out", tmp_path / "d.safetensors", "--samples", 8, "--batch", 4, "--test-pictures", 30)
    done = subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT, preexec_fn=small_files)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("d.safetensors: File too large\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_leaves_a_run_that_resumes(tmp_path: Path) -> None:
    out = tmp_path / "d.safetensors"
    arguments = ["--out", out, "--samples", 4 * 10_000, "--batch", 4]
    process = subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert process.stderr is not None
    deadline = time.monotonic() + 90
    while "step" not in process.stderr.readline():
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGINT)
    last = process.communicate(timeout=60)[1].strip().splitlines()[-1]
    assert process.returncode == 130
    assert "--resume" in last
    assert (tmp_path / "d.safetensors.ckpt").is_file()
    assert not out.exists()
