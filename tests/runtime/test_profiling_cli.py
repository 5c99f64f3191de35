"""mscope-profile as a command."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import profiles
from mscope.core.console import run_app
from mscope.runtime.profiling.cli import app
from mscope.runtime.profiling.schema import PathEnergy, Power, load_profile
from mscope.runtime.profiling.text import print_profile

Run = Callable[..., tuple[int, str, str]]
QUICK = ("--duration", "0.02", "--threads", "1", "--kernel", "function", "--idle", "none", "--cold-starts", "0")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        status = run_app(app, [str(argument) for argument in arguments])
        return status, *capfd.readouterr()

    return call


def test_tables_and_a_file(run: Run, bundle: Path, vim_bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "p.json"
    status, out, err = run(
        "--bundle", bundle, "--compare", vim_bundle, "--exit-rate", "0.5", "--batch", "1,2", *QUICK, "--json", target
    )
    assert (status, err) == (0, "")
    for text in ("leaves early", "refined", "plain ViM", "batch 2", "fine", "on this machine", "warning:"):
        assert text in out
    assert "\x1b" not in out
    profile = load_profile(target)
    assert profile.settings.batches == (1, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


def test_json_on_stdout_is_the_profile_alone(run: Run, vim_bundle: Path) -> None:
    status, out, err = run("--bundle", vim_bundle, *QUICK, "--json", "-")
    assert (status, err) == (0, "")
    assert json.loads(out)["bundle"]["arch"] == "vim"
    assert out.count("\n") == 1


def test_layers_in_files(run: Run, bundle: Path, tmp_path: Path) -> None:
    status, out, err = run("--bundle", bundle, *QUICK, "--save-layers", tmp_path / "layers")
    assert (status, err) == (0, "")
    assert "coarse by kind" in out
    names = sorted(path.name for path in (tmp_path / "layers").iterdir())
    assert names == ["coarse.graph.json", "coarse.profile.json", "fine.graph.json", "fine.profile.json"]


def test_a_profile_with_every_section_prints(capfd: pytest.CaptureFixture[str]) -> None:
    print_profile(profiles.sample_profile())
    out = capfd.readouterr().out
    for text in ("cold start 381 ms", "memory 150 MiB", "after 0.1 s idle", "fine by block", "in_proj", "saves 45 %"):
        assert text in out


def test_every_line_fits_a_terminal_of_80_columns_and_none_is_broken_in_a_pipe(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    warning = " ".join(["latencies", "that", "scatter"] * 20)
    profile = profiles.sample_profile().model_copy(update={"warnings": (warning,)})
    print_profile(profile)
    assert f"warning: {warning}" in capfd.readouterr().out.splitlines()
    monkeypatch.setattr("mscope.runtime.report._PIPE_WIDTH", 80)
    print_profile(profile)
    narrow = capfd.readouterr().out
    assert max(len(line) for line in narrow.splitlines()) <= 80
    # Nothing is cut off, and a path keeps the order of its stages.
    assert "…" not in narrow
    assert re.search(r"95 % sure +\d+\.\d+ - \d+\.\d+ +\d+\.\d+ - \d+\.\d+ +\d+\.\d+ - \d+\.\d+ *\n", narrow)
    assert re.search(r"coarse .*\n *select .*\n *fine .*\n *postprocess ", narrow)


def test_a_comparison_fits_a_terminal_of_80_columns(run: Run, tmp_path: Path) -> None:
    for name, slower in (("a", 1.0), ("b", 1.5)):
        (tmp_path / f"{name}.json").write_text(profiles.sample_profile(slower=slower).to_json())
    status, out, _ = run("diff", tmp_path / "a.json", tmp_path / "b.json")
    assert status == 0
    rows = [line for line in out.splitlines() if " > " in line]
    assert len(rows) > 20
    assert max(map(len, rows)) < 80
    assert re.search(r"^  total +p50 +\d+\.\d{3} > \d+\.\d{3} +\+\d+\.\d%\* +\+\S+ to \+\S+ +\S+$", out, re.M)


def test_energy_is_told_or_why_not(capfd: pytest.CaptureFixture[str]) -> None:
    paths = (
        PathEnergy(
            path="exit", batch=1, images=50, seconds=2.0, watts=10.0, joules_per_image=0.4, net_joules_per_image=0.25,
            uncertainty_joules_per_image=0.012,
        ),
        PathEnergy(path="refine", batch=1, images=0, seconds=0.0, reason="the sensor stopped"),
    )  # fmt: skip
    power = Power(sensor="rapl", total="package", idle_watts=3.0, rails={"package": 10.0}, paths=paths, notes=("hot",))
    print_profile(profiles.sample_profile(power=power))
    lines = capfd.readouterr().out.splitlines()
    assert (
        "energy, an image that leaves early, batch 1 (rapl): 0.4 +- 0.012 J an image, 0.25 J without idle power"
        in lines
    )
    assert "energy, an image that is refined, batch 1 (rapl): not measured: the sensor stopped" in lines
    assert "hot" in lines


def test_the_other_commands_are_there(run: Run, tmp_path: Path) -> None:
    for name, slower in (("a", 1.0), ("b", 1.5)):
        (tmp_path / f"{name}.json").write_text(profiles.sample_profile(slower=slower).to_json())
    arguments = ("diff", tmp_path / "a.json", tmp_path / "b.json", "--fail-if", "p50>+5%")
    assert run(*arguments)[0] == 1
    assert run("predict", "--help")[0] == 0
    status, _, err = run("compare-all")
    assert (status, err.count("\n")) == (2, 1)


def test_bad_usage(run: Run, bundle: Path, vim_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    base = ("--bundle", bundle, *QUICK)
    for arguments, message in [
        (("--bundle", tmp_path / "none"), "no bundle at"),
        ((*base, "--duration", "0"), "--duration"),
        ((*base, "--duration", "-3"), "--duration"),
        ((*base, "--duration", "long"), "--duration"),
        ((*base, "--batch", "1,x"), "--batch takes numbers"),
        ((*base, "--batch", "0"), "--batch takes sizes"),
        ((*base, "--eta", "0.5;0.6"), "--eta takes numbers"),
        ((*base, "--eta", "2"), "eta is a confidence"),
        ((*base, "--idle", "0"), "--idle"),
        ((*base, "--data", tmp_path / "empty"), "no pictures"),
        ((*base, "--json", tmp_path), "is a folder"),
        ((*base, "--json", tmp_path / "no" / "p.json"), "there is no folder"),
        ((*base, "--html", tmp_path / "no" / "p.html"), "--html"),
        ((*base, "--compare", bundle), "expected plain ViM"),
        (("--bundle", vim_bundle, *QUICK, "--eta", "0.5"), "plain ViM"),
        ((*base, "--no-such"), "--no-such"),
    ]:
        status, out, err = run(*arguments)
        assert (status, out) == (2, ""), arguments
        assert message in err, arguments
        assert err.startswith("error: "), arguments
        assert err.count("\n") == 1, arguments
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_folder_without_permission(run: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    status, out, err = run("--bundle", bundle, *QUICK, "--json", tmp_path / "p.json")
    assert (status, out) == (2, "")
    assert "no permission to write" in err


def test_progress_on_a_terminal_leaves_stdout_alone(vim_bundle: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "mscope.runtime.profiling.cli", "--bundle", str(vim_bundle), *QUICK, "--json", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while block := os.read(ours, 65536):
                shown += block
        out, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0
    assert json.loads(out)["schema_version"] == 1
    assert b"loading 0%" in shown
    assert shown.endswith(b"\r\x1b[2K")


def test_help_loads_nothing_heavy_and_has_an_example() -> None:
    """So it is quick: 0.2 s."""
    code = (
        "import sys; from mscope.core.console import run_app; from mscope.runtime.profiling.cli import app; "
        "run_app(app, ['--help']); "
        "bad = {'numpy', 'PIL', 'onnxruntime', 'torch', 'onnx', 'pydantic'} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "mscope-profile --bundle bundles/ti --compare bundles/ti-vim" in done.stdout
