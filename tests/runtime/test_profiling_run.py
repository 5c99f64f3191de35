"""A whole profile on small bundles: what is in it, what it says, and what it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fakes
import profiles
from mscope.core.errors import BackendError, InputError
from mscope.core.manifest import CurvePoint
from mscope.runtime.profiling import facts, power_state
from mscope.runtime.profiling.cold import ColdRequest, cold_start
from mscope.runtime.profiling.exit_rates import accuracy_at, eta_of_rate, rates_from_confidences, rates_from_curve
from mscope.runtime.profiling.options import ProfileOptions
from mscope.runtime.profiling.run import profile_bundle
from mscope.runtime.profiling.schema import Profile, load_profile, parse_profile
from mscope.runtime.profiling.statistics import series_of
from mscope.runtime.profiling.words import verdict, warnings_about

QUICK = ProfileOptions(duration_s=0.02, threads=1, kernel="function", idle_gaps_s=(), cold_starts=0)
CURVE = tuple(
    CurvePoint(eta=eta, accuracy=accuracy, exit_rate=rate, gmacs=1.0)
    for eta, rate, accuracy in ((0.2, 1.0, 0.8), (0.6, 0.6, 0.9), (0.9, 0.1, 0.95))
)
Options = Callable[..., ProfileOptions]


@pytest.fixture
def quick(bundle: Path) -> Options:
    return lambda **changes: dataclasses.replace(QUICK, **({"bundle": bundle} | changes))


@pytest.fixture
def pictures(tmp_path: Path, network: fakes.FakeNetwork) -> Path:
    """Eight pictures in two folders of classes."""
    for number, image in enumerate(fakes.random_images(network.config, 8)):
        folder = tmp_path / "data" / f"class {number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(image.transpose(1, 2, 0) * 127 + 128, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "data"


def test_a_cascade_beside_plain_vim(quick: Options, vim_bundle: Path) -> None:
    pauses: list[float] = []
    done: list[str] = []
    options = quick(compare=vim_bundle, batches=(1, 3), idle_gaps_s=(0.5,), exit_rate=0.4)
    profile = profile_bundle(options, lambda text, share: done.append(text), sleep=pauses.append)
    assert [batch.batch for batch in profile.batches] == [1, 3]
    for batch in profile.batches:
        assert list(batch.paths) == ["exit", "refine", "plain"]
        assert list(batch.paths["refine"].parts) == ["preprocess", "check", "coarse", "select", "fine", "postprocess"]
        assert "fine" not in batch.paths["exit"].parts
        assert "full" in batch.paths["plain"].parts
        for path in batch.paths.values():
            assert path.total.summary.count == batch.rounds >= 10
            assert path.split_gap < 0.02
            for part in path.parts.values():
                assert len(part.samples_ms) == batch.rounds
        assert (batch.fine_one is None) == (batch.batch == 1)
        assert [expected.exit_rate for expected in batch.expected] == [0.4]
        assert batch.expected[0].saving is not None
        assert len(batch.expected_by_exit_rate) == 11
    assert pauses == [0.5] * 3
    assert profile.idle_gaps is not None
    assert [gap.gap_s for gap in profile.idle_gaps] == [0.0, 0.5]
    assert profile.compare is not None
    assert (profile.bundle.arch, profile.compare.arch) == ("mambascope", "vim")
    assert profile.bundle.manifest_sha256 != profile.compare.manifest_sha256
    assert (profile.runtime.backend, profile.runtime.kernel, profile.runtime.threads) == ("ort-cpu", "function", 1)
    assert {"python", "onnxruntime", "numpy"} <= set(profile.versions)
    assert profile.machine.cores >= 1
    assert any("untrained" in line for line in profile.warnings)
    assert any("measuring batch 3" in text for text in done)
    assert parse_profile(profile.to_json(), "here") == profile


def test_plain_vim_is_profiled_as_such(quick: Options, vim_bundle: Path) -> None:
    profile = profile_bundle(quick(bundle=vim_bundle))
    (batch,) = profile.batches
    assert list(batch.paths) == ["plain"]
    assert (batch.expected, batch.expected_by_exit_rate, batch.break_even_exit_rate) == ((), (), None)
    assert profile.bundle.alpha is None
    assert profile.verdict[0].startswith("plain ViM ")


def test_pictures_give_the_exit_rates(quick: Options, pictures: Path, scope: object) -> None:
    (pictures / "class 0" / "broken.png").write_text("no picture")
    profile = profile_bundle(quick(data=pictures, etas=(0.37,)))
    rates = profile.exit_rates
    assert (rates.source, rates.images, profile.settings.input) == ("data", 8, "data")
    assert rates.points[0] == (0.0, 1.0)
    assert rates.points[-1][0] == 1.0
    assert 0.37 in dict(rates.points)
    falling = [rate for _, rate in rates.points]
    assert falling == sorted(falling, reverse=True)
    assert [expected.eta for expected in profile.batches[0].expected] == [eta for eta, _ in rates.points]
    assert any("1 picture was left out" in line and "broken.png" in line for line in profile.warnings)


def test_the_curve_gives_the_exit_rates(tmp_path: Path, network: fakes.FakeNetwork, quick: Options) -> None:
    fakes.write_fake_bundle(tmp_path / "b", network, eta_curve=CURVE, default_eta=0.6)
    profile = profile_bundle(quick(bundle=tmp_path / "b", etas=(0.75,)))
    assert profile.exit_rates.source == "curve"
    assert [expected.eta for expected in profile.batches[0].expected] == [0.2, 0.6, 0.75, 0.9]
    between = profile.batches[0].expected[2]
    assert between.exit_rate == pytest.approx(0.35)
    assert between.accuracy == pytest.approx(0.925)
    with pytest.raises(InputError, match=r"goes from 0\.2 to 0\.9"):
        profile_bundle(quick(bundle=tmp_path / "b", etas=(0.95,)))


def test_nothing_is_known_of_the_exits(quick: Options, vim_bundle: Path) -> None:
    profile = profile_bundle(quick(compare=vim_bundle))
    assert profile.exit_rates.source == "unknown"
    with pytest.raises(InputError, match="--eta: how many images exit at it is not known"):
        profile_bundle(quick(etas=(0.5,)))
    assert profile.batches[0].expected == ()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"duration_s": 0.0}, "--duration is seconds of measuring, above 0"),
        ({"duration_s": -1.0}, "--duration"),
        ({"duration_s": float("nan")}, "--duration"),
        ({"batches": ()}, "--batch takes sizes"),
        ({"batches": (0,)}, "--batch takes sizes from 1"),
        ({"batches": (2, 2)}, "twice"),
        ({"etas": (1.5,)}, "eta is a confidence"),
        ({"exit_rate": 1.1}, "--exit-rate is a share"),
        ({"exit_rate": 0.5, "data": Path("x")}, "give one of them"),
        ({"exit_rate": 0.5, "etas": (0.5,)}, "leave --eta out"),
        ({"idle_gaps_s": (0.0,)}, "--idle takes pauses"),
        ({"cold_starts": -1}, "--cold-starts"),
        ({"limit": 0}, "--limit"),
        ({"data": Path("/none")}, "no such folder"),
        ({"threads": 0}, "threads"),
        ({"backend": "tpu"}, "unknown backend"),
    ],
)
def test_bad_options(quick: Options, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        profile_bundle(quick(**changes))


def test_bad_folders(quick: Options, bundle: Path, vim_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no pictures or \.npy files in this folder or below"):
        profile_bundle(quick(data=tmp_path / "empty"))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_text("no picture")
    with pytest.raises(InputError, match="none of 1 pictures can be read"):
        profile_bundle(quick(data=tmp_path / "bad"))
    with pytest.raises(InputError, match="expected plain ViM: build one with"):
        profile_bundle(quick(compare=bundle))
    reduced = fakes.FakeNetwork(fakes.fake_config(arch="vim", reduce="merge", keep=0.7, reduce_after=(1,)))
    fakes.write_fake_bundle(tmp_path / "reduced", reduced)
    with pytest.raises(InputError, match="is a ViM reduced by merge, expected a plain one"):
        profile_bundle(quick(compare=tmp_path / "reduced"))
    for changes in ({"compare": bundle}, {"etas": (0.5,)}, {"exit_rate": 0.5}):
        with pytest.raises(InputError, match="the bundle is a plain ViM, which has no early exit"):
            profile_bundle(quick(bundle=vim_bundle, **changes))


def test_comparing_other_networks_is_said(quick: Options, tmp_path: Path) -> None:
    wide = fakes.FakeNetwork(fakes.fake_config(arch="vim", width=80, size="other"))
    fakes.write_fake_bundle(tmp_path / "wide", wide)
    profile = profile_bundle(quick(compare=tmp_path / "wide"))
    assert "different sizes are compared: fake (adaptive) and other (plain ViM)" in profile.warnings
    assert "different resolutions are compared: 64x48 (adaptive) and 64x80 (plain ViM)" in profile.warnings
    grey = fakes.FakeNetwork(fakes.fake_config(arch="vim", channels=1))
    fakes.write_fake_bundle(tmp_path / "grey", grey)
    with pytest.raises(InputError, match="do not solve one task"):
        profile_bundle(quick(compare=tmp_path / "grey"))


def test_cold_start_is_a_fresh_process(bundle: Path, tmp_path: Path) -> None:
    request = ColdRequest(str(bundle), "ort-cpu", "fp32", "function", 1, 4)
    found, memory = cold_start(request, 1)
    (run,) = found.runs
    assert min(run.import_ms, run.load_ms, run.first_ms) > 0
    assert run.total_ms > run.import_ms + run.load_ms + run.first_ms
    assert found.total_p50_ms == run.total_ms
    assert memory.batch == 4
    assert memory.loaded_bytes is not None
    assert memory.peak_bytes is not None
    # numpy and ONNX Runtime alone are some tens of MiB; torch would be hundreds.
    assert 20 << 20 < memory.loaded_bytes <= memory.peak_bytes < 400 << 20
    with pytest.raises(BackendError, match=r"a fresh process could not run the bundle: .*no bundle at"):
        cold_start(dataclasses.replace(request, bundle=str(tmp_path / "none")), 1)


def test_a_machine_that_throttles_is_told(quick: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter((3, 7))
    state = power_state.MachineState({}, {}, {}, frozenset())
    monkeypatch.setattr(
        "mscope.runtime.profiling.run.machine_state",
        lambda: dataclasses.replace(state, events={"processor too hot": next(counts)}),
    )
    profile = profile_bundle(quick())
    assert profile.machine.throttled == ("processor too hot: 4 times",)
    assert any("throttled while it was measured (processor too hot: 4 times)" in line for line in profile.warnings)
    assert ("throttled meanwhile", "processor too hot: 4 times") in facts.facts(profile)


def test_a_machine_that_slows_down_is_told() -> None:
    sound = profiles.sample_profile(count=120)
    assert not [line for line in warnings_about(sound) if "slower over the run" in line]
    first = sound.batches[0]
    ramp = np.linspace(1.0, 1.3, 120)
    paths = {
        name: path.model_copy(update={"total": series_of(np.array(path.total.samples_ms) * ramp)})
        for name, path in first.paths.items()
    }
    slowing = sound.model_copy(update={"batches": (first.model_copy(update={"paths": paths}),)})
    # Middles of the outer thirds of the ramp: 1.05 and 1.25.
    (line,) = [line for line in warnings_about(slowing) if "slower over the run" in line]
    shown = int(line.split("by ")[1].split(" %")[0])
    assert shown == pytest.approx(19, abs=3)
    # One path alone is not the machine.
    mixed = first.model_copy(update={"paths": {**paths, "exit": first.paths["exit"]}})
    told = warnings_about(sound.model_copy(update={"batches": (mixed,)}))
    assert not [line for line in told if "slower over the run" in line]


def test_exit_rates_from_confidences_and_curve() -> None:
    sure = np.array([0.1, 0.5, 0.5, 0.9, 1.0], np.float32)
    rates = dict(rates_from_confidences(sure, (0.505,)).points)
    assert len(rates) == 102
    assert [rates[eta] for eta in (0.0, 0.1, 0.5, 0.505, 0.51, 1.0)] == [1.0, 1.0, 0.8, 0.4, 0.4, 0.2]
    points = rates_from_curve(CURVE, (0.1, 0.4), ()).points
    assert points == ((0.2, 1.0), (0.4, pytest.approx(0.8)), (0.6, 0.6), (0.9, 0.1))
    assert eta_of_rate(0.35, points) == pytest.approx(0.75)
    assert eta_of_rate(0.05, points) is None
    assert eta_of_rate(1.0, points) is None


def test_accuracy_between_the_points_of_a_curve() -> None:
    curve = [CurvePoint(eta=eta, accuracy=right, exit_rate=0.5, gmacs=1.0) for eta, right in ((0.8, 0.9), (0.4, 0.7))]
    assert accuracy_at(curve, 0.4) == 0.7
    assert accuracy_at(curve, 0.7) == pytest.approx(0.85)
    assert accuracy_at(curve, 0.8) == 0.9
    assert (
        accuracy_at(curve, 0.39) is accuracy_at(curve, 0.81) is accuracy_at([], 0.5) is accuracy_at(None, 0.5) is None
    )


def with_break_even(profile: Profile, rate: float | None, eta: float | None = None) -> Profile:
    first = profile.batches[0].model_copy(update={"break_even_exit_rate": rate, "break_even_eta": eta})
    return profile.model_copy(update={"batches": (first,)})


@pytest.mark.parametrize(
    "rate, eta, text",
    [
        (0.14, 0.934, "it would lose above eta 0.934 (fewer than 14 % leave early there)"),
        (-0.2, None, "adaptivity pays at every eta"),
        (1.3, None, "adaptivity does not pay at any eta"),
        (0.01, None, "it pays at every eta looked at, up to 0.99"),
        (0.98, None, "it loses at every eta looked at, from 0.3"),
        (None, None, "costs too little to tell"),
    ],
)
def test_verdicts(rate: float | None, eta: float | None, text: str) -> None:
    lines = verdict(with_break_even(profiles.sample_profile(), rate, eta))
    assert text in lines[-1]
    if rate is not None:
        assert "on this machine adaptive saves 48 % at eta 0.6: 80 % leave early by the bundle's curve" in lines[1]


def test_verdict_says_when_it_costs_more() -> None:
    profile = profiles.sample_profile()
    (batch, *_) = profile.batches
    losing = batch.expected[-1].model_copy(update={"eta": 0.6, "saving": -0.123})
    batch = batch.model_copy(update={"expected": (losing,)})
    assert (
        "adaptive costs 12 % more than plain ViM at eta 0.6"
        in verdict(profile.model_copy(update={"batches": (batch,)}))[1]
    )


def test_warnings() -> None:
    sound = profiles.sample_profile()
    assert warnings_about(sound) == ()
    few = profiles.sample_profile(count=30)
    assert "batch 1: p99 of 30 samples is little else than the maximum: use a longer --duration" in warnings_about(few)
    machine = sound.machine.model_copy(update={"load_before": 1.5})
    assert (
        "the machine was busy before the run (load 1.5 on 2 cores)"
        in warnings_about(sound.model_copy(update={"machine": machine}))[0]
    )
    slowed = sound.layers[0].model_copy(update={"stage_ms": 21.0})  # type: ignore[index]
    assert (
        "the profiler slows coarse down 3.0 times" in warnings_about(sound.model_copy(update={"layers": (slowed,)}))[0]
    )
    path = sound.batches[0].paths["exit"]
    total = path.total.model_copy(update={"summary": path.total.summary.model_copy(update={"cv": 0.23})})
    worse = path.model_copy(update={"total": total, "split_gap": 0.05})
    warmup = sound.batches[0].warmup.model_copy(update={"steady": False})
    batch = sound.batches[0].model_copy(update={"paths": {"exit": worse}, "warmup": warmup})
    lines = warnings_about(sound.model_copy(update={"batches": (batch,)}))
    assert len(lines) == 3
    assert "had not settled" in lines[0]
    assert "exit 23 %" in lines[1]
    assert "the parts miss the total by 5.0 %" in lines[2]


def test_reading_profiles_back(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    profile = profiles.sample_profile()
    path.write_text(profile.to_json())
    assert load_profile(path) == profile
    for content, message in (
        ("", "not JSON"),
        ("[" * 5000, "not JSON"),
        ("[]", "no schema_version"),
        ('{"schema_version": true}', "no schema_version"),
        ('{"schema_version": 2}', "has schema version 2, this program reads up to 1"),
        ('{"schema_version": 1}', "Field required"),
        (profile.to_json().replace('"rounds":200', '"rounds":"many"', 1), r"batches\.0\.rounds"),
        (profile.to_json().replace('"saving":', '"extra":1,"saving":', 1), "extra"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            load_profile(path)
    with pytest.raises(InputError, match="No such file"):
        load_profile(tmp_path / "none.json")
