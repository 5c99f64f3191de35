"""The command as a user types it: output, exit status, one line for an error, nothing heavy for --help."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fake_tensorrt
import fakes
from mscope.core.console import run_app
from mscope.core.manifest import Weights
from mscope.export.cli import app


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSCOPE_HOME", str(tmp_path / "home"))


def info_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run_app(app, ["info", *arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("\n") == 1
    content: dict[str, Any] = json.loads(captured.out)
    return content


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run_app(app, list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_info_of_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    content = info_json(capsys, "--size", "s")
    assert (content["arch"], content["size"]) == ("mambascope", "s")
    assert content["alpha"] == 0.5
    assert content["tokens"] == {"coarse": 50, "fine": 125, "full": 197}
    assert content["gmacs"]["coarse"] == pytest.approx(1.32, abs=0.01)
    assert content["gmacs"]["full"] == pytest.approx(5.1, rel=0.03)
    assert content["params"] == 26_998_120
    assert content["weights"] is None
    assert content["variants"] == []
    assert content["break_even_exit_rate_gmacs"] < 0


def test_info_of_plain_vim_has_one_stage(capsys: pytest.CaptureFixture[str]) -> None:
    content = info_json(capsys, "--size", "b", "--arch", "vim")
    assert content["alpha"] is None
    assert content["tokens"] == {"coarse": None, "fine": None, "full": 197}
    assert content["gmacs"] == {"coarse": None, "fine": None, "full": pytest.approx(18.9, rel=0.03)}
    assert content["break_even_exit_rate_gmacs"] is None
    assert run_app(app, ["info", "--size", "b", "--arch", "vim"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"vim b, 224 x 224, \d+\.\d\d M parameters", lines[0])
    assert re.fullmatch(r"  plain ViM     197 tokens    1\d\.\d{3} GMACs", lines[1])
    assert len(lines) == 2


def test_info_at_another_alpha_and_resolution(capsys: pytest.CaptureFixture[str]) -> None:
    content = info_json(capsys, "--alpha", "1", "--resolution", "256x192")
    assert content["tokens"] == {"coarse": 49, "fine": 193, "full": 193}
    assert content["resolution"] == [256, 192]
    assert 0 < content["break_even_exit_rate_gmacs"] < 1


def test_info_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(app, ["info", "--size", "ti"]) == 0
    out = capsys.readouterr().out
    assert "mambascope ti, alpha 0.5, 224 x 224, 7.45 M parameters" in out
    assert "break-even" in out


def test_info_of_a_bundle_for_people(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Of an engine what its record tells, of a graph what is counted."""
    network = fakes.FakeNetwork(fakes.fake_config())
    fakes.write_fake_bundle(tmp_path / "b", network)
    fake_tensorrt.add_engines(tmp_path / "b", launches=37, launches_per_block=6.5)
    fake_tensorrt.add_engines(tmp_path / "b", precision="fp32")
    content = info_json(capsys, str(tmp_path / "b"))
    assert content["launches"]["fine.fp16.sm_90.trt.engine"] == {"total": 37, "per_block": 6.5}
    assert content["launches"]["fine.fp32.sm_90.trt.engine"] == {"total": None, "per_block": None}
    assert run_app(app, ["info", str(tmp_path / "b")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"  weights    random, seed {network.seed}: untrained" in lines
    size = next(variant["bytes"] for variant in content["variants"] if variant["file"] == "fine.onnx") / 1e6
    total = content["launches"]["fine.onnx"]["total"]
    assert lines[-3:] == [
        f"  fine.onnx                    fine, onnx fp32, {size:.1f} MB, {total} launches, 0 a block",
        "  fine.fp16.sm_90.trt.engine   fine, tensorrt fp16, 0.0 MB, 37 launches, 6.5 a block",
        "  fine.fp32.sm_90.trt.engine   fine, tensorrt fp32, 0.0 MB",
    ]
    weights = Weights(origin="file", name="net.pth", sha256="0" * 64)
    fakes.write_fake_bundle(tmp_path / "trained", network, weights=weights)
    assert run_app(app, ["info", str(tmp_path / "trained")]) == 0
    assert "  weights    net.pth" in capsys.readouterr().out.splitlines()


def test_build_then_info_then_verify(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "digits"
    assert run_app(app, ["build", "--size", "digits", "--seed", "3", "--out", str(out), "--json"]) == 0
    captured = capsys.readouterr()
    built = json.loads(captured.out)
    assert captured.err == ""  # not a terminal: no progress
    assert built["weights"]["origin"] == "random"
    assert any("untrained" in line for line in built["warnings"])
    content = info_json(capsys, str(out))
    assert content["weights"]["trained"] is False
    assert [variant["file"] for variant in content["variants"]] == ["coarse.onnx", "fine.onnx"]
    assert content["parity"] == built["parity"]
    assert content["launches"]["coarse.onnx"]["per_block"] == 6
    assert run_app(app, ["verify", str(out)]) == 0
    assert "untrained" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert run_app(app, ["build", "--from", "digits", "--fp16", "--target", "onnx", "--json"]) == 0
    revised = json.loads(capsys.readouterr().out)
    assert (revised["bundle"], revised["name"]) == (str(out), built["name"])
    assert list(revised["stages"]["fine"]["files"]) == ["fine.onnx", "fine.fp16.onnx"]
    assert list(revised["precision"]) == ["coarse.fp16.onnx", "fine.fp16.onnx"]
    assert run_app(app, ["info", str(out)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if ".onnx" in line]
    assert len(rows) == 4
    assert len({line.index(", onnx fp") - len(line.split()[1]) for line in rows}) == 1, "columns are aligned"
    assert run_app(app, ["verify", str(out), "--layers", "--json"]) == 0
    verified = json.loads(capsys.readouterr().out)
    assert verified["problems"] == []
    assert {variant["precision"] for variant in verified["variants"]} == {"fp32", "fp16"}
    # The folder was named, so it is not the latest.
    assert "no bundle yet" in refused(capsys, "info")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "--size", "xl"], "unknown size 'xl'"),
        (["build", "--arch", "vit"], "unknown architecture"),
        (["build", "--alpha", "0"], "alpha"),
        (["build", "--alpha", "1.5"], "alpha"),
        (["build", "--alpha", "nan"], "alpha"),
        (["build", "--eta", "1.5"], "eta"),
        (["build", "--resolution", "10"], "multiple of 32"),
        (["build", "--target", "rtx"], "unknown target 'rtx'"),
        (["build", "--target", "onnx", "--gpu", "sm_89"], "--gpu belongs to engines"),
        (["build", "--gpu", "89"], "--gpu takes compute capabilities"),
        (["build", "--batch", "8,1"], "--batch is MIN,OPT,MAX"),
        (["build", "--ops", "cuda"], "unknown --ops 'cuda'"),
        (["build", "--from", "nowhere"], "no bundle at nowhere"),
        (["build", "--from", "nowhere", "--alpha", "0.5"], "--alpha is about a new bundle"),
        (["build", "--weights", "nowhere.pth"], "no weights file at nowhere.pth"),
        (["build", "--labels", "nowhere.txt"], "nowhere.txt"),
        (["build", "--classes", "0"], "classes"),
        (["verify"], "no bundle yet"),
        (["info", "nowhere"], "no bundle at nowhere"),
        (["info", ".", "--size", "ti"], "not both"),
        (["build", "--no-such-option"], "--no-such-option"),
    ],
)
def test_bad_usage_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert message in refused(capsys, *arguments)


def test_help_imports_nothing_heavy() -> None:
    """So it is quick."""
    code = (
        "import sys; from mscope.core.console import run_app; from mscope.export.cli import app;"
        "status = run_app(app, ['build', '--help']);"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'onnxscript', 'numpy'} & set(sys.modules);"
        "print(sorted(heavy), file=sys.stderr); sys.exit(status)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_paths(), timeout=60)
    assert result.returncode == 0
    assert result.stderr == "[]\n"
    assert "Examples:" in result.stdout


def _paths() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
