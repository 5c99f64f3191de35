"""Eta is chosen, written, honest about what it is worth, and the bundle is never half-written."""

import json
import shutil
from pathlib import Path

import numpy as np
import PIL
import pytest

import fakes
import profiles
from labelled import synthetic_outputs, write_class_folders
from mscope.calib.dataset import Files, open_dataset
from mscope.calib.energy import energy_from_profile
from mscope.calib.eta import EtaReport, calibrate_eta
from mscope.calib.evaluate import evaluate
from mscope.calib.latency import StageLatency
from mscope.calib.pick import UnreachableError
from mscope.calib.report import warnings_about
from mscope.calib.study import Observed, Study
from mscope.calib.targets import Target
from mscope.core.bundle import load_manifest
from mscope.core.console import run_app
from mscope.core.errors import InputError
from mscope.core.manifest import MANIFEST
from mscope.export.cli import app
from mscope.runtime import Scope
from mscope.runtime.profiling.schema import PathEnergy, Power

IMAGES = 400


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Two fake bundles of two alphas with made-up outputs on the same pictures."""
    bundles = []
    for number, alpha in enumerate((0.5, 1.0)):
        folder = tmp_path / f"bundle-{alpha}"
        manifest = fakes.write_fake_bundle(folder, fakes.FakeNetwork(fakes.fake_config(alpha=alpha)))
        outputs = synthetic_outputs(IMAGES)
        if number:
            # The larger alpha is right more often.
            assert outputs.fine_logits is not None
            hot = np.eye(10, dtype=np.float32)[outputs.labels]
            object.__setattr__(outputs, "fine_logits", outputs.fine_logits + hot)
        latency = StageLatency(1.0, 0.1, 2.0 + number, 5)
        bundles.append(Observed(folder, manifest, outputs, latency, None, tmp_path, "ort-cpu", "function", "fp32"))
    data = write_class_folders(tmp_path / "pictures", fakes.fake_config(), 10)
    dataset = open_dataset(str(data), bundles[0].manifest)
    assert isinstance(dataset, Files)
    return Study(dataset, tuple(bundles))


def one(study: Study) -> Study:
    return Study(study.dataset, study.bundles[:1])


def test_choice_curve_and_record_are_written(study: Study) -> None:
    before = study.bundles[0].manifest
    report: EtaReport = calibrate_eta(one(study), Target("accuracy", 0.88), resamples=20)
    manifest = load_manifest(study.bundles[0].folder)
    assert manifest.default_eta == report.choice.eta != before.default_eta
    assert manifest.calibration == report.calibration
    assert manifest.eta_curve == report.curve
    assert manifest.temperature == before.temperature
    assert manifest.stages == before.stages
    record = manifest.calibration
    assert record is not None
    assert record.pillow == PIL.__version__
    assert (record.images, record.target, record.data) == (IMAGES, "accuracy>=0.88", "pictures")
    assert record.accuracy >= 0.88
    assert record.interval[0] < record.accuracy < record.interval[1]
    at_eta = next(point for point in report.curve if point.eta == manifest.default_eta)
    assert at_eta.accuracy == pytest.approx(record.accuracy)
    assert at_eta.latency_ms == pytest.approx(1.1 + (1 - record.exit_rate) * 2.0)
    assert len(report.curve) <= 103
    # The revised bundle runs with it.
    with Scope.load(study.bundles[0].folder, threads=1, kernel="function") as scope:
        image = fakes.random_images(scope.config, 1)[0]
        assert scope(image).eta == manifest.default_eta


def test_of_several_bundles_the_cheapest_that_reaches_the_target_is_revised(study: Study) -> None:
    before = [(observed.folder / MANIFEST).read_bytes() for observed in study.bundles]
    lenient = calibrate_eta(study, Target("accuracy", 0.8), resamples=10, write=False)
    assert lenient.bundle == study.bundles[0].folder
    assert [(observed.folder / MANIFEST).read_bytes() for observed in study.bundles] == before
    strict = calibrate_eta(study, Target("accuracy", 0.965), resamples=10)
    assert strict.bundle == study.bundles[1].folder
    assert (study.bundles[0].folder / MANIFEST).read_bytes() == before[0]
    assert (study.bundles[1].folder / MANIFEST).read_bytes() != before[1]


def test_an_unreachable_target_writes_nothing(study: Study) -> None:
    before = (study.bundles[0].folder / MANIFEST).read_bytes()
    with pytest.raises(UnreachableError, match=r"accuracy>=0\.9999 cannot be reached on these 400 images"):
        calibrate_eta(one(study), Target("accuracy", 0.9999), resamples=10)
    assert (study.bundles[0].folder / MANIFEST).read_bytes() == before


def test_a_cascade_that_costs_more_than_plain_vim_is_told_of(study: Study) -> None:
    # At alpha 1 both stages together cost more than plain ViM.
    study = Study(study.dataset, study.bundles[1:])
    report = calibrate_eta(study, Target("accuracy", 0.99), resamples=10, write=False)
    assert report.choice.costs["gmacs"] > report.plain_gmacs
    assert any("costs more than plain ViM" in line and "pays" in line for line in report.warnings)
    assert any("untrained" in line for line in report.warnings)
    cheap = calibrate_eta(study, Target("gmacs", 0.9 * report.plain_gmacs), resamples=10, write=False)
    assert not any("costs more than plain ViM" in line for line in cheap.warnings)
    assert cheap.choice.costs["gmacs"] <= 0.9 * report.plain_gmacs


def test_a_cascade_that_takes_longer_than_plain_vim_is_told_of(study: Study) -> None:
    first = study.bundles[0]
    plain = synthetic_outputs(IMAGES, plain=True)

    def told(plain_ms: float) -> list[str]:
        found = evaluate(
            first.manifest, first.outputs, eta=0.9, plain=plain, latency=first.latency, plain_latency_ms=plain_ms,
            resamples=5,
        )  # fmt: skip
        return [line for line in warnings_about(study, found) if "takes longer" in line]

    # Coarse and selection alone take 1.1 ms.
    assert "does not pay" in told(1.0)[0]
    assert "pays only if more than" in told(1.2)[0]
    assert told(4.0) == []


def test_latency_and_energy_are_bounded_by_what_was_measured(study: Study) -> None:
    report = calibrate_eta(one(study), Target("latency", 2.0), resamples=10, write=False)
    assert report.choice.costs["latency"] <= 2.0
    energy = [(0.01, 0.05)]
    report = calibrate_eta(one(study), Target("energy", 0.03), energy=energy, resamples=10, write=False)
    assert report.choice.costs["energy"] == pytest.approx(0.01 + (1 - report.choice.exit_rate) * 0.05)
    assert report.choice.costs["energy"] <= 0.03 * (1 + 1e-9)
    with pytest.raises(InputError, match="needs measured energy"):
        calibrate_eta(one(study), Target("energy", 0.03))
    unmeasured = Observed(**{**vars(study.bundles[1]), "latency": None})
    with pytest.raises(InputError, match="needs the latency measured"):
        calibrate_eta(Study(study.dataset, (study.bundles[0], unmeasured)), Target("latency", 2.0), write=False)


def test_pictures_left_out_are_told_of(study: Study) -> None:
    object.__setattr__(study.bundles[0].outputs, "skipped", ("a.png: damaged", "b.png: damaged"))
    report = calibrate_eta(one(study), Target("accuracy", 0.5), resamples=10, write=False)
    assert report.calibration.skipped == 2
    assert "2 pictures could not be read and were left out" in report.warnings


def test_a_fitted_temperature_is_stored_and_the_runtime_uses_it(study: Study) -> None:
    kept = calibrate_eta(one(study), Target("accuracy", 0.88), resamples=10, write=False)
    report = calibrate_eta(one(study), Target("accuracy", 0.88), temperature="fit", resamples=10)
    folder = study.bundles[0].folder
    manifest = load_manifest(folder)
    assert manifest.temperature == report.temperature
    assert abs(manifest.temperature.coarse - 1.0) > 0.05
    assert report.choice.eta != kept.choice.eta
    images = fakes.random_images(manifest.config, 12)
    with Scope.load(folder, threads=1, kernel="function") as scope:
        network = fakes.FakeNetwork(scope.config)
        coarse = network.coarse(images)["logits"] / manifest.temperature.coarse
        sure = np.exp(coarse - coarse.max(axis=1, keepdims=True))
        sure = (sure / sure.sum(axis=1, keepdims=True)).max(axis=1)
        stages = set()
        for image, expected in zip(images, sure, strict=True):
            result = scope(image, eta=float(np.median(sure)))
            assert result.coarse_confidence == pytest.approx(float(expected), rel=1e-4)
            assert result.stage == ("coarse" if expected >= np.median(sure) else "fine")
            # What is printed agrees with itself: the best class's probability is the confidence.
            line = json.loads(result.to_json())
            assert line["confidence"] == line["topk"][0]["prob"]
            stages.add(result.stage)
        assert stages == {"coarse", "fine"}
    kept = calibrate_eta(
        Study(study.dataset, (Observed(**{**vars(study.bundles[0]), "manifest": manifest}),)),
        Target("accuracy", 0.88), temperature="none", resamples=10,
    )  # fmt: skip
    assert load_manifest(folder).temperature.coarse == 1.0


def test_one_image_is_enough_to_choose_and_too_few_to_trust(study: Study) -> None:
    single = study.bundles[0].outputs.rows(np.array([5]))
    alone = Study(study.dataset, (Observed(**{**vars(study.bundles[0]), "outputs": single}),))
    report = calibrate_eta(alone, Target("accuracy", 0.5), resamples=10, write=False)
    assert report.calibration.images == 1
    assert report.calibration.interval[0] < 0.3
    assert any(line.startswith("one image") for line in report.warnings)


def power(exit_joules: float | None, refine_joules: float) -> Power:
    rows = [
        PathEnergy(path=path, batch=batch, images=10, seconds=1.0, watts=5.0, joules_per_image=joules)
        for path, joules in (("exit", exit_joules), ("refine", refine_joules))
        for batch in (8, 1)
    ]
    return Power(sensor="rapl", total="package-0", idle_watts=1.0, rails={}, paths=tuple(rows))  # type: ignore[arg-type]


def test_energy_comes_from_a_profile_of_this_bundle(study: Study, tmp_path: Path) -> None:
    manifest = study.bundles[0].manifest
    gmacs = {stage: record.gmacs for stage, record in manifest.stages.items()}
    sample = profiles.sample_profile(count=30)
    bundle = sample.bundle.model_copy(update={"gmacs": gmacs})
    path = tmp_path / "profile.json"

    def stored(**changes: object) -> Path:
        path.write_text(sample.model_copy(update={"bundle": bundle} | changes).to_json())
        return path

    assert energy_from_profile(stored(power=power(0.02, 0.05)), manifest) == (pytest.approx(0.02), pytest.approx(0.03))
    with pytest.raises(InputError, match="no measured energy"):
        energy_from_profile(stored(), manifest)
    with pytest.raises(InputError, match="energy of both paths"):
        energy_from_profile(stored(power=power(None, 0.05)), manifest)
    with pytest.raises(InputError, match="profile of another bundle"):
        energy_from_profile(stored(power=power(0.02, 0.05), bundle=sample.bundle), manifest)


def call(*arguments: object) -> int:
    return run_app(app, [str(argument) for argument in arguments])


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """An adaptive bundle, a plain one, and pictures."""
    config = fakes.fake_config()
    fakes.write_fake_bundle(tmp_path / "b", fakes.FakeNetwork(config, gain=2.0))
    fakes.write_fake_bundle(tmp_path / "b75", fakes.FakeNetwork(fakes.fake_config(alpha=0.75), gain=2.0))
    fakes.write_fake_bundle(tmp_path / "vim", fakes.FakeNetwork(fakes.fake_config(arch="vim")))
    write_class_folders(tmp_path / "p", config, 30)
    return tmp_path


def test_the_command(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("calibrate-eta", desk / "b", desk / "b75", desk / "p", "--target", "gmacs<=1", "--out", desk / "o") == 0
    captured = capsys.readouterr()
    assert "chosen on 30 pictures of p" in captured.out
    assert "written into" in captured.out
    assert "30 images: an accuracy of 90 %" in captured.err
    written = json.loads((desk / "o" / "calibration.json").read_text())
    manifest = load_manifest(Path(written["bundle"]))
    assert manifest.calibration is not None
    assert written["calibration"] == manifest.calibration.model_dump(mode="json")
    untouched = [desk / name for name in ("b", "b75") if (desk / name) != Path(written["bundle"])]
    assert [load_manifest(folder).calibration for folder in untouched] == [None]


def test_dry_run_and_unreachable_leave_the_bundle_as_it_is(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (desk / "b" / MANIFEST).read_bytes()
    common = ("calibrate-eta", desk / "b", desk / "p", "--out", desk / "o", "--latency-images", 0)
    assert call(*common, "--target", "gmacs<=1", "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["calibration"]["target"] == "gmacs<=1"
    assert call(*common, "--target", "accuracy>=99.9%") == 2
    captured = capsys.readouterr()
    assert "cannot be reached on these 30 images: the best accuracy is" in captured.err
    assert captured.out == ""
    assert (desk / "b" / MANIFEST).read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["b", "--target", "gmacs<=1"], "give a bundle and then the labelled pictures"),
        (["b", "p", "--target", "accuracy>=79"], "out of range"),
        (["vim", "p", "--target", "gmacs<=1"], "no early exit and no eta"),
        (["b", "p", "--target", "latency<=1ms", "--latency-images", "0"], "needs the latency measured"),
        (["b", "p", "--target", "energy<=1J"], "0 --profile files"),
        (["b", "p", "--target", "gmacs<=1", "--confidence-level", "2"], "a confidence level is from"),
        (["b", "empty", "--target", "gmacs<=1"], "the folder is empty"),
    ],
)
def test_bad_usage_is_one_line(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.setenv("MSCOPE_HOME", str(desk / "home"))
    (desk / "empty").mkdir()
    assert call("calibrate-eta", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_read_only_place_keeps_the_bundle(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure while the revised manifest is written leaves the old bundle whole."""
    kept = shutil.copytree(desk / "b", desk / "kept")

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mscope.calib.eta.write_manifest", fail)
    assert call("calibrate-eta", desk / "b", desk / "p", "--target", "gmacs<=1", "--out", desk / "o") == 1
    assert (desk / "b" / MANIFEST).read_bytes() == (kept / MANIFEST).read_bytes()
    assert load_manifest(desk / "b").calibration is None
    assert not list(desk.glob(".*.part"))
