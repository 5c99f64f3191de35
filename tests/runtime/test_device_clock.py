"""The device's own clock, on a fake device whose work takes as long as told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fake_gpu
import fake_tensorrt
import fakes
import profiles
from fake_cuda import FakeCuda, Misuse
from fake_gpu import InterfaceArray, random_batch
from mscope.core.console import run_app
from mscope.core.errors import BackendError
from mscope.runtime import Scope
from mscope.runtime.device.clock import EventClock
from mscope.runtime.device.cuda import Device
from mscope.runtime.device.stream import Stream
from mscope.runtime.profiling.cli import app
from mscope.runtime.profiling.facts import facts
from mscope.runtime.profiling.html_charts import figures
from mscope.runtime.profiling.markdown import to_markdown
from mscope.runtime.profiling.options import ProfileOptions
from mscope.runtime.profiling.run import profile_bundle
from mscope.runtime.profiling.schema import parse_profile
from mscope.runtime.profiling.statistics import series_of
from mscope.runtime.profiling.text import print_profile
from mscope.runtime.profiling.words import warnings_about

# Milliseconds of each kind of work, as the fake logs it.
COSTS = {
    "HostToDevice": 0.25, "DeviceToHost": 0.125, "DeviceToDevice": 0.0625, "coarse": 2.0, "fine": 4.0, "full": 6.0,
    "select": 0.5, "resample": 1.0,
}  # fmt: skip
THINKS_MS = 8.0


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, network: fakes.FakeNetwork, layer: str) -> FakeCuda:
    cuda = FakeCuda(host_addresses=True)
    cuda.costs = dict(COSTS)
    fake_gpu.install(monkeypatch, network, cuda)
    fake_gpu.install_kernels(monkeypatch, cuda)
    return cuda


@pytest.fixture
def scope(cuda: FakeCuda, engines: Path) -> Iterator[Scope]:
    with Scope.load(engines, backend="tensorrt") as scope:
        assert scope.time_on_device()
        yield scope


def timed(scope: Scope, image: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
    """The parts, which must add up to the total."""
    device = scope.run(image, *args, **kwargs).device
    assert device is not None
    # Each event's time is rounded to half a microsecond.
    assert sum(device.parts.values()) == pytest.approx(device.total, abs=5e-4 * (len(device.parts) + 2))
    return device.parts


def test_the_parts_of_an_image_that_goes_on(scope: Scope, cuda: FakeCuda, network: fakes.FakeNetwork) -> None:
    def thinks(sure: Any, wanted: Any) -> Any:
        cuda.host_ms += THINKS_MS
        return wanted

    image = random_batch(network, 1)
    for _ in range(4):  # launched, captured, replayed
        parts = timed(scope, image, 1.0, may_refine=thinks)
        assert list(parts) == ["upload", "coarse", "download", "decision", "fine"]
        assert parts == pytest.approx(
            {
                "upload": 0.25,
                "coarse": 2.0,
                "download": 3 * 0.125,  # logits, importance, logits
                "decision": THINKS_MS + 2 * 0.25,
                "fine": 4.0,
            }
        )


def test_the_parts_of_one_that_leaves_and_of_mixed_batches(
    scope: Scope, cuda: FakeCuda, network: fakes.FakeNetwork
) -> None:
    assert timed(scope, random_batch(network, 1), 0.0) == {"upload": 0.25, "coarse": 2.0, "download": 0.25}
    images = random_batch(network, 8, seed=3)
    moved = timed(scope, images, 0.6)["decision"] - 2 * 0.25
    assert moved > 0
    assert moved % (3 * COSTS["DeviceToDevice"]) == pytest.approx(0.0)


def test_a_batch_in_several_goes_adds_up(scope: Scope, network: fakes.FakeNetwork) -> None:
    parts = timed(scope, random_batch(network, 20), 0.0)
    assert parts == {"upload": 3 * 0.25, "coarse": 6.0, "download": 3 * 0.25}


def test_an_array_in_place_needs_no_upload(scope: Scope, cuda: FakeCuda, network: fakes.FakeNetwork) -> None:
    array = InterfaceArray(cuda, random_batch(network, 1))
    assert "upload" in timed(scope, array, 0.0), "one that comes once is copied"
    assert "upload" not in timed(scope, array, 0.0)


def test_an_empty_batch_has_no_times(scope: Scope, network: fakes.FakeNetwork) -> None:
    assert scope.run(random_batch(network, 0), 0.0).device is None


@pytest.mark.usefixtures("layer")
def test_plain_vim(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network = fakes.FakeNetwork(fakes.fake_config(arch="vim"))
    cuda = FakeCuda()
    cuda.costs = dict(COSTS)
    fake_gpu.install(monkeypatch, network, cuda)
    fakes.write_fake_bundle(tmp_path / "b", network)
    fake_tensorrt.add_engines(tmp_path / "b")
    with Scope.load(tmp_path / "b", backend="tensorrt") as scope:
        scope.time_on_device()
        assert timed(scope, random_batch(network, 1)) == {"upload": 0.25, "full": 6.0, "download": 0.125}
    assert cuda.live == 0


def test_decided_and_scaled_on_the_device(cuda: FakeCuda, engines: Path) -> None:
    picture = np.zeros((80, 60, 3), np.uint8)
    with Scope.load(engines, backend="tensorrt", decide="device", preprocess="device") as scope:
        scope.time_on_device()
        batch = scope.stack([scope.prepare(picture)])
        scope.run(batch, 1.0)
        parts = timed(scope, batch, 1.0)
        assert list(parts) == ["preprocess", "cascade"]
        assert parts["preprocess"] == pytest.approx(0.25 + 1.0)
        assert parts["cascade"] == pytest.approx(2.0 + 0.5 + 4.0 + 4 * 0.125)
    assert cuda.live == 0


def test_without_profiling_there_are_no_events(cuda: FakeCuda, engines: Path, network: fakes.FakeNetwork) -> None:
    image = random_batch(network, 3)
    with Scope.load(engines, backend="tensorrt") as scope:
        assert scope.run(image, 0.6).device is None
        assert not [name for name in cuda.calls if name.startswith("cudaEvent")]
        scope.time_on_device()
        for _ in range(5):
            assert scope.run(image, 1.0).device is not None
        made = cuda.calls["cudaEventCreateWithFlags"]
        assert made <= 8, "events are used again"
        scope.time_on_device(False)
        recorded = cuda.calls["cudaEventRecord"]
        assert scope.run(image, 1.0).device is None
        assert cuda.calls["cudaEventRecord"] == recorded
    assert cuda.live == 0


def test_a_backend_on_the_cpu_has_no_such_clock(engines: Path, network: fakes.FakeNetwork) -> None:
    with Scope.load(engines, backend="ort-cpu") as scope:
        assert not scope.time_on_device()
        assert scope.run(random_batch(network, 1), 0.0).device is None


def test_times_are_asked_for_when_the_stream_is_done(cuda: FakeCuda) -> None:
    """What the fake holds the clock to."""
    device = Device()
    stream = Stream(device)
    clock = EventClock(device, stream)
    clock.on = True
    clock.start()
    cuda.enqueue(stream.handle, "coarse", lambda: None)
    clock.mark("coarse")
    with pytest.raises(BackendError, match="NotReady"):
        clock.times()
    stream.synchronize()
    times = clock.times()
    assert times is not None
    assert (times.parts, times.total) == ({"coarse": 2.0}, 2.0)
    with pytest.raises(Misuse, match="recorded into a capture"):
        stream.capture(lambda: clock.mark("coarse"))
    cuda.cudaStreamEndCapture(stream.handle)
    clock.close()
    clock.close()
    stream.close()
    assert cuda.live == 0


def test_a_profile_names_both_clocks(
    cuda: FakeCuda, engines: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ProfileOptions(
        bundle=engines, backend="tensorrt", duration_s=0.3, batches=(1, 2), cold_starts=0, idle_gaps_s=(), exit_rate=0.5
    )
    profile = profile_bundle(options)
    for batch in profile.batches:
        for name, path in batch.paths.items():
            assert path.device_parts is not None
            assert path.device_total is not None
            assert {series.clock for series in (*path.device_parts.values(), path.device_total)} == {"device"}
            assert {series.clock for series in (*path.parts.values(), path.total)} == {"host"}
            assert path.device_gap is not None
            assert path.device_gap < 0.02
            assert path.device_parts["coarse"].summary.p50_ms == pytest.approx(2.0)
            assert ("fine" in path.device_parts) == (name == "refine")
    assert parse_profile(profile.to_json(), "x") == profile
    stored = json.loads(profile.to_json())["batches"][0]["paths"]["refine"]
    assert stored["device_parts"]["fine"]["clock"] == "device"
    print_profile(profile)
    said = capsys.readouterr().out
    assert 'host clock; below "device clock" the GPU\'s own' in said
    assert said.count("device clock") == 1 + len(profile.batches)
    markdown = to_markdown(profile)
    assert "| device clock, p50 ms | batch | in all | upload | coarse | download |" in markdown
    titles = [figure.title for figure in figures(profile)]
    assert titles.count("Where the GPU's time goes, batch 1") == 1


def test_a_profile_of_pictures_scaled_on_the_device(
    cuda: FakeCuda, engines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ProfileOptions(
        bundle=engines, backend="tensorrt", preprocess="device", duration_s=0.1, cold_starts=0, idle_gaps_s=()
    )
    profile = profile_bundle(options)
    assert profile.runtime.preprocess == "device"
    path = profile.batches[0].paths["refine"]
    assert path.device_parts is not None
    assert list(path.device_parts) == ["preprocess", "coarse", "download", "decision", "fine"]
    assert path.device_parts["preprocess"].summary.p50_ms == pytest.approx(1.25)
    assert next(iter(path.parts)) == "preprocess"
    print_profile(profile)
    assert "pictures scaled on the device" in capsys.readouterr().out


def test_a_profile_where_the_device_decides_measures_the_host_beside_it(
    cuda: FakeCuda, engines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ProfileOptions(
        bundle=engines, backend="tensorrt", decide="device", duration_s=0.2, cold_starts=0, idle_gaps_s=(0.01,),
        exit_rate=0.5,
    )  # fmt: skip
    profile = profile_bundle(options)
    assert profile.runtime.decide == "device"
    (batch,) = profile.batches
    assert batch.decided_on_host is not None
    for name in ("exit", "refine"):
        there, here = batch.paths[name], batch.decided_on_host[name]  # type: ignore[index]
        # What the host sees of a graph is one part; the device's own clock tells it from the copy.
        assert list(there.parts) == ["preprocess", "check", "cascade", "postprocess"]
        assert list(there.device_parts or ()) == ["upload", "cascade"]
        assert {"coarse", "select"} <= set(here.parts)
        assert ("fine" in here.parts) == (name == "refine")
        assert there.split_gap < 0.02
        assert there.total.summary.count == here.total.summary.count == batch.rounds
    mean = (batch.paths["exit"].total.summary.mean_ms + batch.paths["refine"].total.summary.mean_ms) / 2
    assert batch.expected[0].mean_ms == pytest.approx(mean)
    assert profile.verdict[1].startswith("with the exit decided on the device an image that leaves early ")
    assert parse_profile(profile.to_json(), "x") == profile
    print_profile(profile)
    for text in (capsys.readouterr().out, to_markdown(profile)):
        assert text.count("is refined, decided on the host") == 1
    assert [row for row in facts(profile) if row[0] == "exit decided"]


def test_what_cannot_be_decided_on_the_device_is_one_line(engines: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--bundle", str(engines), "--decide", "device", "--cold-starts", "0"]
    for more, status, message in (
        (["--batch", "1,8"], 2, "--decide device is for single images: leave it or --batch 1, 8 out"),
        (["--backend", "ort-cpu"], 2, "--decide device"),
    ):
        assert run_app(app, [*given, *more]) == status
        said = capsys.readouterr()
        assert message in said.err
        assert (said.out, said.err.count("\n")) == ("", 1)


def test_profiles_of_the_cpu_say_nothing_of_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    profile = profiles.sample_profile()
    print_profile(profile)
    assert "device clock" not in capsys.readouterr().out + to_markdown(profile)
    assert not [figure for figure in figures(profile) if "GPU" in figure.title]


def test_parts_that_miss_the_devices_total_are_a_warning() -> None:
    profile = profiles.sample_profile()
    batch = profile.batches[0]
    path = batch.paths["exit"]
    for gap, warned in ((0.019, False), (0.021, True)):
        changed = path.model_copy(
            update={"device_parts": {"coarse": series_of([7.0], "device")}, "device_gap": gap,
                    "device_total": series_of([7.2], "device")}
        )  # fmt: skip
        other = profile.model_copy(
            update={"batches": (batch.model_copy(update={"paths": {**batch.paths, "exit": changed}}),)}
        )
        lines = [line for line in warnings_about(other) if "the device's parts miss its total by 2.1 %" in line]
        assert bool(lines) == warned
