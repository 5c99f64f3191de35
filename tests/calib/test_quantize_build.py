"""`build --int8` and the engines made of what it writes, as a user gets them."""

import importlib.util
import json
from pathlib import Path

import onnx
import pytest

from mscope.calib.record import load_quantisation
from mscope.core.console import run_app
from mscope.export.cli import app

DATA = ["--calib-data", "digits", "--calib-images", "16", "--no-parity"]


@pytest.fixture
def bundle(digits_bundle: Path, tmp_path: Path) -> Path:
    """A copy to add to."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for path in digits_bundle.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_build_from_adds_int8_and_says_what_it_costs(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(app, ["build", "--from", str(bundle), "--target", "onnx", "--int8", *DATA, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    made = result["quantisation"]["int8"]
    assert made["gate"]["drop"] <= made["max_drop"] == 1.0
    assert made["calibration"]["images"] == 16
    for stage in ("coarse", "fine"):
        assert f"{stage}.int8.onnx" in result["stages"][stage]["files"]
    record = bundle / "int8.quantisation.json"
    assert load_quantisation(record).gate.accuracy == made["gate"]["accuracy"]
    again = ["--int8", "--calib-data", "digits", "--no-parity", "--calib-ranges", str(record)]
    assert run_app(app, ["build", "--from", str(bundle), "--target", "onnx", *again]) == 0
    told = capsys.readouterr().out
    assert "gate     int8: coarse" in told
    assert "adaptive" in told


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--int8"], "--int8 needs pictures"),
        (["--fp8"], "--fp8 needs pictures"),
        (["--calib-data", "digits"], "--calib-data belongs to --int8 and --fp8"),
        (["--max-drop", "2"], "--max-drop belongs to"),
        (
            ["--int8", "--calib-data", "digits", "--calib-ranges", "r.json", "--calib-method", "minmax"],
            "give one of the two",
        ),
        (["--int8", "--calib-data", "no-such-folder"], "no-such-folder: no such folder or list"),
    ],
)
def test_bad_usage_is_one_line_and_leaves_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new"
    assert run_app(app, ["build", "--size", "digits", "--target", "onnx", "--out", str(out), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
def test_tensorrt_rtx_computes_every_product_of_the_same_files_in_8_bits(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--int8", "--fp8", *DATA, "--target", "trt-rtx", "--gpu", "sm_89", "--json"]
    assert run_app(app, ["build", "--from", str(bundle), *arguments]) == 0
    engines = json.loads(capsys.readouterr().out)["engines"]
    assert len(engines) == 4
    for name, proof in engines.items():
        stage, precision, *_ = name.split(".")
        model = onnx.load(bundle / f"{stage}.{precision}.onnx")
        weights = sum(tensor.name.endswith(":quantized") for tensor in model.graph.initializer)
        assert proof["proved"] == proof["products"] == weights
        assert proof["source"] == "builder"
        assert (bundle / name).stat().st_size > 1000
