"""What is said of stored outputs, against the definitions, and the command from one end to the other."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fakes
from labelled import synthetic_outputs, write_class_folders
from mscope.calib.evaluate import Evaluation, evaluate
from mscope.calib.latency import StageLatency
from mscope.core.bundle import load_manifest
from mscope.core.config import ModelConfig
from mscope.core.console import run_app
from mscope.core.manifest import Manifest, Temperature
from mscope.export.cli import app

LATENCY = StageLatency(coarse=2.0, select=0.5, fine=4.0, images=9)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return fakes.write_fake_bundle(tmp_path_factory.mktemp("m") / "fake", fakes.FakeNetwork(fakes.fake_config()))


def softmax(logits: np.ndarray) -> np.ndarray:
    values = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: np.ndarray = values / values.sum(axis=1, keepdims=True)
    return shares


def test_every_figure_is_its_definition(manifest: Manifest) -> None:
    outputs = synthetic_outputs(400)
    plain = synthetic_outputs(400, plain=True)
    found = evaluate(manifest, outputs, eta=0.7, plain=plain, plain_gmacs=0.5, latency=LATENCY, resamples=50)
    coarse, fine, labels = outputs.coarse_logits, outputs.fine_logits, outputs.labels
    assert coarse is not None
    assert fine is not None
    early = softmax(coarse).max(axis=1) >= 0.7
    final = np.where(early[:, None], coarse, fine)
    answers = found.answers
    for name, logits in {"coarse": coarse, "fine": fine, "adaptive": final, "plain": plain.full_logits}.items():
        assert logits is not None
        assert answers[name].top1.value == pytest.approx((logits.argmax(axis=1) == labels).mean())
        best = np.argsort(-logits, axis=1)[:, :5]
        top5 = answers[name].top5
        assert top5 is not None
        assert top5.value == pytest.approx((best == labels[:, None]).any(axis=1).mean())
        sure = softmax(logits).max(axis=1)
        right = logits.argmax(axis=1) == labels
        which = np.minimum((sure * 15).astype(int), 14)
        gaps = [abs(sure[which == b].sum() - right[which == b].sum()) for b in range(15)]
        assert answers[name].ece.value == pytest.approx(sum(gaps) / 400, abs=1e-6)
        for one in (answers[name].top1, top5, answers[name].ece, answers[name].gmacs):
            assert one.low <= one.value <= one.high
    rate, stages = early.mean(), manifest.stages
    assert found.exit_rate is not None
    assert found.exit_rate.value == pytest.approx(rate)
    expected = stages["coarse"].gmacs + (1 - rate) * stages["fine"].gmacs
    assert answers["adaptive"].gmacs.value == pytest.approx(expected)
    assert answers["adaptive"].gmacs.low < expected < answers["adaptive"].gmacs.high
    assert answers["adaptive"].latency_ms == pytest.approx(2.5 + (1 - rate) * 4.0)
    assert (answers["coarse"].latency_ms, answers["fine"].latency_ms) == (2.5, 6.5)
    assert answers["plain"].gmacs.value == 0.5
    difference = found.differences["adaptive - plain"]
    assert difference.value == pytest.approx(answers["adaptive"].top1.value - answers["plain"].top1.value)
    assert found.differences["adaptive - coarse"].low > 0.05
    for one in found.differences.values():
        assert one.low <= one.value <= one.high
    assert set(found.differences) == {"adaptive - coarse", "adaptive - fine", "adaptive - plain"}


def test_the_curve_has_both_ends_and_the_eta_in_use(manifest: Manifest) -> None:
    outputs = synthetic_outputs(1000)
    found = evaluate(manifest, outputs, eta=0.7, resamples=50)
    curve = {row.eta: row for row in found.curve}
    assert curve[0.0].accuracy == pytest.approx(found.answers["coarse"].top1.value)
    assert curve[0.0].gmacs == pytest.approx(manifest.stages["coarse"].gmacs)
    assert curve[1.0].accuracy == pytest.approx(found.answers["fine"].top1.value)
    assert curve[0.7].accuracy == pytest.approx(found.answers["adaptive"].top1.value)
    assert all(row.accuracy_low <= row.accuracy <= row.accuracy_high for row in found.curve)
    assert [row.eta for row in found.curve] == sorted(curve)
    assert found.curve_points > 900 >= 4 * len(found.curve)


def test_classes_add_up(manifest: Manifest) -> None:
    outputs = synthetic_outputs(300)
    found = evaluate(manifest, outputs, eta=0.7, resamples=10)
    assert sum(row.images for row in found.classes) == 300
    for name in ("coarse", "fine", "adaptive"):
        total = sum(row.images * getattr(row, name) for row in found.classes)
        assert total / 300 == pytest.approx(found.answers[name].top1.value)
    assert found.exit_rate is not None
    assert sum(row.images * (row.exit_rate or 0) for row in found.classes) / 300 == pytest.approx(found.exit_rate.value)
    assert found.classes[0].label == "label 0"


def test_ties_go_to_the_lower_class_and_few_classes_have_no_top5(tmp_path: Path) -> None:
    manifest = fakes.write_fake_bundle(tmp_path / "b", fakes.FakeNetwork(fakes.fake_config(classes=5)))
    outputs = synthetic_outputs(3, classes=5)
    object.__setattr__(outputs, "coarse_logits", np.zeros((3, 5), np.float32))
    object.__setattr__(outputs, "labels", np.array([0, 1, 0]))
    found = evaluate(manifest, outputs, eta=0.0, resamples=5)
    assert found.answers["coarse"].top1.value == pytest.approx(2 / 3)
    assert found.answers["coarse"].top5 is None


def test_a_temperature_moves_confidence_not_answers(manifest: Manifest) -> None:
    outputs = synthetic_outputs(400)
    cooled = manifest.model_copy(update={"temperature": Temperature(coarse=3.0, fine=0.5)})
    plain, scaled = (evaluate(one, outputs, eta=0.7, resamples=10) for one in (manifest, cooled))
    for stage in ("coarse", "fine"):
        assert plain.answers[stage].top1.value == scaled.answers[stage].top1.value
        assert plain.answers[stage].ece.value != scaled.answers[stage].ece.value
    assert plain.exit_rate is not None
    assert scaled.exit_rate is not None
    assert scaled.exit_rate.value < plain.exit_rate.value


def call(*arguments: object) -> int:
    return run_app(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fake bundle whose coarse stage is neither always sure nor never."""
    folder = tmp_path_factory.mktemp("bundles") / "fake"
    fakes.write_fake_bundle(folder, fakes.FakeNetwork(fakes.fake_config(), gain=2.0))
    return folder


@pytest.fixture(scope="module")
def vim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "vim"
    fakes.write_fake_bundle(folder, fakes.FakeNetwork(fakes.fake_config(arch="vim")))
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_class_folders(tmp_path / "pictures", fakes.fake_config(), 40)


def assert_same(left: Any, right: Any) -> None:
    """Equal but for roundings of float32 values in [0, 1]."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, float):
        assert left == pytest.approx(right, abs=1e-6)
    else:
        assert left == right


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[dict[str, Any], str]:
    """The JSON of a successful call, and what was on stderr."""
    assert call("eval", *arguments, "--threads", 1, "--kernel", "function", "--json") == 0
    captured = capsys.readouterr()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(captured.out, parse_constant=refuse), captured.err


def test_the_command_writes_everything_and_the_batch_changes_no_number(
    adaptive: Path, vim: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = {}
    for batch in (1, 7, 40):
        out = tmp_path / f"out-{batch}"
        content, err = evaluated(
            capsys, adaptive, pictures, "--compare", vim, "--out", out, "--batch", batch, "--latency-images", 0
        )
        assert "40 images: an accuracy of 90 %" in err
        assert json.loads((out / "eval.json").read_text()) == content
        results[batch] = content
    # Confidence may differ in the last bit of a float32, where a batch sums in another order; no decision does.
    for batch in (7, 40):
        assert_same(results[1], results[batch])
    assert results[1]["data"]["images"] == 40
    assert set(results[1]["answers"]) == {"coarse", "fine", "adaptive", "plain"}
    out = tmp_path / "out-7"
    rows = list(csv.DictReader((out / "curve.csv").open()))
    assert [float(row["eta"]) for row in rows] == [row["eta"] for row in results[7]["curve"]]
    assert len(list(csv.DictReader((out / "classes.csv").open()))) == 10
    for name in ("curve.png", "reliability.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 800
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_a_second_call_takes_the_outputs_of_the_first(
    adaptive: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MSCOPE_HOME", str(tmp_path / "home"))
    first, _ = evaluated(capsys, adaptive, pictures, "--latency-images", 0)
    (store,) = (tmp_path / "home" / "outputs").iterdir()
    times = {path: path.stat().st_mtime_ns for path in store.iterdir()}
    second, _ = evaluated(capsys, adaptive, pictures, "--latency-images", 0, "--eta", 0.9)
    assert {path: path.stat().st_mtime_ns for path in store.iterdir()} == times
    assert second["answers"]["coarse"] == first["answers"]["coarse"]
    assert second["eta"] == 0.9


def test_latency_is_measured_in_the_same_call(
    adaptive: Path, vim: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, _ = evaluated(capsys, adaptive, pictures, "--compare", vim, "--out", tmp_path / "o", "--latency-images", 6)
    latency, answers = content["latency_ms"], content["answers"]
    assert latency["images"] == 6
    assert min(latency["coarse"], latency["select"], latency["fine"], answers["plain"]["latency_ms"]) > 0
    assert answers["fine"]["latency_ms"] == pytest.approx(latency["coarse"] + latency["select"] + latency["fine"])
    assert content["break_even_exit_rate"]["latency"] is not None
    assert content["curve"][0]["latency_ms"] == pytest.approx(latency["coarse"] + latency["select"])


def test_a_plain_vim_alone(vim: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, _ = evaluated(capsys, vim, pictures, "--out", tmp_path / "o")
    assert set(content["answers"]) == {"plain"}
    assert content["curve"] == []
    assert not (tmp_path / "o" / "curve.png").exists()
    assert (tmp_path / "o" / "reliability.png").exists()


def test_one_image_and_broken_ones(
    adaptive: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted(pictures.rglob("*.png"))
    for path in names[1:]:
        path.write_bytes(b"broken")
    content, err = evaluated(capsys, adaptive, pictures, "--out", tmp_path / "o")
    assert content["data"]["images"] == 1
    assert len(content["data"]["skipped"]) == 39
    assert err.count("warning: left out") == 10
    assert "29 more pictures left out" in err
    assert "one image" in err
    assert "39 of 40 pictures could not be read" in err
    assert content["answers"]["coarse"]["top1"]["high"] - content["answers"]["coarse"]["top1"]["low"] > 0.5


def test_the_table_for_people(
    adaptive: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("eval", adaptive, pictures, "--out", tmp_path / "o", "--limit", 20, "--eta", 0.8) == 0
    out = capsys.readouterr().out
    for text in (
        "20 pictures",
        "coarse stage alone",
        "adaptive, eta 0.8",
        "exit early",
        "hardest classes",
        "medians of",
    ):
        assert text in out


def test_an_interval_stays_in_one_piece_in_a_narrow_terminal(
    adaptive: Path, vim: Path, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mscope.runtime.report._PIPE_WIDTH", 72)
    monkeypatch.setenv("MSCOPE_HOME", str(pictures.parent / "home"))
    assert call("eval", adaptive, pictures, "--compare", vim, "--limit", 20) == 0
    table = capsys.readouterr().out.split("exit early")[0]
    assert len(re.findall(r"\[\d+\.\d\d, \d+\.\d\d\]", table)) == 4


def test_pictures_in_a_folder_whose_name_is_no_unicode(
    adaptive: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures.rename(tmp_path / os.fsdecode(b"caf\xff"))
    next(folder.rglob("*.png")).write_bytes(b"broken")
    content, err = evaluated(capsys, adaptive, folder, "--out", tmp_path / "o")
    assert content["data"]["name"] == str(folder)
    assert json.loads((tmp_path / "o" / "eval.json").read_text(encoding="utf-8")) == content
    assert "left out" in err
    bundle = shutil.copytree(adaptive, tmp_path / "bundle")
    assert call("calibrate-eta", bundle, folder, "--target", "gmacs<=1000", "--out", tmp_path / "o") == 0
    calibration = load_manifest(bundle).calibration
    assert calibration is not None
    assert calibration.data == r"caf\udcff"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{adaptive}", "nowhere"], "no such folder or list"),
        (["nowhere", "{pictures}"], "no bundle at nowhere"),
        (["{adaptive}", "{pictures}", "--eta", "1.5"], "eta is a confidence between 0 and 1"),
        (["{vim}", "{pictures}", "--eta", "0.5"], "leave --eta out"),
        (["{adaptive}", "{pictures}", "--compare", "{adaptive}"], "--compare takes a plain ViM bundle"),
        (["{adaptive}", "{pictures}", "--level", "95"], "a confidence level is from 0.5"),
        (["{adaptive}", "{pictures}", "--limit", "0"], "--limit is a number of pictures"),
        (["{adaptive}", "{pictures}", "--precision", "int8"], "int8"),
        (["{adaptive}", "{pictures}", "--backend", "abacus"], "unknown backend 'abacus'"),
        (["{adaptive}", "digits"], "labels"),
    ],
)
def test_bad_usage_is_one_line(
    adaptive: Path, vim: Path, pictures: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    if arguments[1] == "digits":
        message = "digits has the classes 0 to 9"
    given = [one.format(adaptive=adaptive, vim=vim, pictures=pictures) for one in arguments]
    assert call("eval", *given) in (1, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_bundle_of_other_classes_is_not_compared(
    adaptive: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config: ModelConfig = fakes.fake_config(arch="vim", classes=7)
    fakes.write_fake_bundle(tmp_path / "seven", fakes.FakeNetwork(config))
    assert call("eval", adaptive, pictures, "--compare", tmp_path / "seven", "--out", tmp_path / "o") == 2
    assert "answer the same question" in capsys.readouterr().err


def test_a_reduced_vim_is_measured_but_not_called_plain(
    adaptive: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = fakes.fake_config(arch="vim", reduce="merge", keep=0.7, reduce_after=(1,))
    fakes.write_fake_bundle(tmp_path / "reduced", fakes.FakeNetwork(config))
    assert call("eval", adaptive, pictures, "--compare", tmp_path / "reduced", "--out", tmp_path / "o") == 2
    assert "not reduced" in capsys.readouterr().err
    content, _ = evaluated(capsys, tmp_path / "reduced", pictures, "--out", tmp_path / "o", "--latency-images", 0)
    reduced = "ViM, merged to 0.7: its tokens are reduced, merge: 48 patch tokens, 34 after"
    assert any(reduced in line for line in content["warnings"])


def test_help_is_fast_and_has_an_example() -> None:
    code = (
        "import sys; from mscope.export.cli import app; from mscope.core.console import run_app\n"
        "for name in ('eval', 'calibrate-eta'): run_app(app, [name, '--help'])\n"
        "bad = {'numpy', 'torch', 'onnx', 'PIL', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Examples:\n\n  mscope-export") == 2


def test_the_shipped_digits_from_end_to_end(
    digits_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    bundle = tmp_path / "digits"
    shutil.copytree(digits_bundle, bundle)
    content, _ = evaluated(capsys, bundle, "digits", "--limit", 200, "--out", tmp_path / "out", "--latency-images", 3)
    answers = content["answers"]
    assert answers["adaptive"]["top1"]["value"] > answers["coarse"]["top1"]["value"] + 0.03
    assert answers["adaptive"]["top1"]["value"] > 0.93
    assert answers["adaptive"]["gmacs"]["value"] < load_manifest(bundle).baseline.gmacs
    assert content["warnings"] == []
    # The same outputs serve the choice of eta.
    call("calibrate-eta", bundle, "digits", "--limit", 200, "--target", "accuracy>=93%", "--out", tmp_path / "out",
         "--threads", 1, "--kernel", "function", "--json")  # fmt: skip
    chosen = json.loads(capsys.readouterr().out)
    manifest = load_manifest(bundle)
    assert manifest.default_eta == chosen["calibration"]["eta"] < content["eta"]
    assert manifest.calibration is not None
    assert manifest.calibration.accuracy >= 0.93
    assert manifest.calibration.data == "digits:test"


def test_an_evaluation_needs_no_files(manifest: Manifest) -> None:
    found: Evaluation = evaluate(manifest, synthetic_outputs(1), resamples=3)
    assert (found.images, found.eta) == (1, manifest.default_eta)
