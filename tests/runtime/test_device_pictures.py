"""Pictures scaled on the device (`preprocess="device"`): the kernels' own source on a fake device, against the host."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fake_gpu
import fake_tensorrt
import fakes
from fake_cuda import FakeCuda
from fake_gpu import install_with_kernels
from mscope.core.errors import BackendError, InputError
from mscope.runtime import Scope
from mscope.runtime.device import pictures
from mscope.runtime.device.cuda import Device
from mscope.runtime.device.stream import Stream
from mscope.runtime.preprocess import Prepared, Unscaled

ETA = 0.6


pytestmark = pytest.mark.usefixtures("layer")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, network: fakes.FakeNetwork, layer: str) -> FakeCuda:
    return install_with_kernels(monkeypatch, network)


@pytest.fixture
def both(cuda: FakeCuda, engines: Path) -> Iterator[tuple[Scope, Scope]]:
    """The same bundle on the same device: scaling there, and on the host."""
    with (
        Scope.load(engines, backend="tensorrt", preprocess="device") as device,
        Scope.load(engines, backend="tensorrt") as host,
    ):
        host.run(np.zeros((1, 3, 64, 48), np.float32), 0.0)  # nothing of its own is queued any more
        yield device, host


def random_picture(draw: np.random.Generator, *shape: int) -> Any:
    return draw.integers(0, 256, shape, dtype=np.uint8)


def same(device: Scope, host: Scope, given: list[Any], eta: float = 1.0) -> None:
    got = device.run(device.stack([device.prepare(image) for image in given]), eta)
    expected = host.run(host.stack([host.prepare(image) for image in given]), eta)
    for name in ("logits", "coarse_logits", "importance", "selected"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)
    assert got.stages == expected.stages


def tensor_on_device(cuda: FakeCuda, scope: Scope, rows: int) -> Any:
    cascade: Any = scope._cascade
    image = cascade._tensors["image", "image"]
    return cuda.array(image.address, "float32", (rows, *image.shape)).copy()


def test_the_tensor_is_the_hosts_bit_for_bit(both: tuple[Scope, Scope], cuda: FakeCuda) -> None:
    device, host = both
    draw = np.random.default_rng(0)
    for turn in range(25):
        height, width = np.exp(draw.uniform(0, np.log(500), 2)).astype(int)
        given: Any = random_picture(draw, height, width, 3)
        if turn % 3 == 1:
            given = Image.fromarray(given)
        device.run(device.stack([device.prepare(given)]), ETA)
        got, expected = tensor_on_device(cuda, device, 1)[0], host.preprocess(given).tensor
        np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32), err_msg=str((height, width)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "CMYK", "1", "I;16"])
def test_every_kind_of_picture(both: tuple[Scope, Scope], mode: str, tmp_path: Path) -> None:
    """Decoding, orientation and the way to RGB stay on the host, and so do their errors."""
    draw = np.random.default_rng(1)
    if mode == "I;16":
        picture = Image.fromarray(draw.integers(0, 65536, (90, 70), dtype=np.uint16))
    else:
        picture = Image.fromarray(random_picture(draw, 90, 70, 4), "RGBA").convert(mode)
    same(*both, [picture])
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.convert("RGB").save(path, exif=exif)
    same(*both, [path])
    for bad, match in ((tmp_path / "none.png", "no such file"), (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)")):
        for scope in both:
            with pytest.raises(InputError, match=match):
                scope.prepare(bad)


def test_grey_networks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network = fakes.FakeNetwork(fakes.fake_config(channels=1))
    install_with_kernels(monkeypatch, network)
    fakes.write_fake_bundle(tmp_path / "b", network)
    fake_tensorrt.add_engines(tmp_path / "b")
    draw = np.random.default_rng(2)
    with (
        Scope.load(tmp_path / "b", backend="tensorrt", preprocess="device") as device,
        Scope.load(tmp_path / "b", backend="tensorrt") as host,
    ):
        for given in (random_picture(draw, 70, 90), random_picture(draw, 70, 90, 1), random_picture(draw, 70, 90, 3)):
            same(device, host, [given])


@pytest.mark.parametrize("integrated", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3, 8, 11])
def test_batches_of_pictures_and_tensors(
    monkeypatch: pytest.MonkeyPatch, network: fakes.FakeNetwork, engines: Path, count: int, integrated: bool
) -> None:
    cuda = install_with_kernels(monkeypatch, network, integrated=integrated)
    draw = np.random.default_rng(count)
    with (
        Scope.load(engines, backend="tensorrt", preprocess="device") as device,
        Scope.load(engines, backend="tensorrt") as host,
    ):
        for _ in range(3):
            given: list[Any] = [random_picture(draw, *draw.integers(20, 150, 2), 3) for _ in range(count)]
            for row in range(0, count, 4):  # an .npy among pictures
                given[row] = fakes.random_images(network.config, 1, seed=row)[0]
            same(device, host, given)
            same(device, host, given, ETA)
    if integrated:
        assert not {"HostToDevice", "DeviceToHost"} & set(cuda.log)
    assert cuda.live == 0


def test_one_picture_goes_up_once(both: tuple[Scope, Scope], cuda: FakeCuda) -> None:
    device, _ = both
    picture = random_picture(np.random.default_rng(0), 80, 60, 3)
    device.run(device.stack([device.prepare(picture)]), 0.0)
    cuda.log.clear()
    waits = cuda.calls["cudaStreamSynchronize"]
    device.run(device.stack([device.prepare(picture)]), 0.0)
    assert cuda.log == ["HostToDevice", "resample", "coarse", "DeviceToHost", "DeviceToHost"]
    assert cuda.calls["cudaStreamSynchronize"] == waits + 1


def test_shared_memory_is_used_in_turn(
    both: tuple[Scope, Scope], cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More pictures than fit at once: what is queued must have been read before its memory is written again."""
    monkeypatch.setattr(pictures, "_SHARED", 40_000)
    draw = np.random.default_rng(3)
    same(*both, [random_picture(draw, 80, 60, 3) for _ in range(8)])


def test_a_large_picture_gets_memory_that_goes_back(
    both: tuple[Scope, Scope], cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "_SHARED", 10_000)
    monkeypatch.setattr(pictures, "_KEPT", 100_000)
    draw = np.random.default_rng(4)
    stage: Any = both[0]._cascade._pictures  # type: ignore[attr-defined]
    small, large = random_picture(draw, 70, 60, 3), random_picture(draw, 700, 600, 3)
    for given in (small, large, small, small):
        same(*both, [given])
        assert (stage._capacity > 100_000) == (given is large)


def test_out_of_memory_is_one_line_and_the_next_picture_is_right(
    monkeypatch: pytest.MonkeyPatch, network: fakes.FakeNetwork, engines: Path
) -> None:
    install_with_kernels(monkeypatch, network, limit=4 << 20)
    draw = np.random.default_rng(5)
    with (
        Scope.load(engines, backend="tensorrt", preprocess="device") as device,
        Scope.load(engines, backend="tensorrt") as host,
    ):
        same(device, host, [random_picture(draw, 70, 60, 3)])
        with pytest.raises(BackendError, match=r"the GPU is out of memory for decoded pictures, [\d.]+ MiB"):
            device(random_picture(draw, 2000, 1600, 3))
        same(device, host, [random_picture(draw, 70, 60, 3)])


def test_a_stage_without_memory_for_its_levels_leaves_nothing(cuda: FakeCuda) -> None:
    device = Device()
    stream = Stream(device)
    levels = np.zeros((3, 256), np.float32)
    stage = pictures.PictureStage(device, stream, (3, 64, 48), levels)
    stage.close()
    full = cuda._limit - levels.nbytes + 1
    taken = device.call("cudaMalloc", full)
    with pytest.raises(BackendError, match="out of memory for 'levels' of 3 images"):
        pictures.PictureStage(device, stream, (3, 64, 48), levels)
    device.call("cudaFree", taken)
    stream.close()
    stage.close()  # once more, when its stream is gone
    assert cuda.live == 0


def test_a_lost_device_is_no_reason_to_fail_when_all_is_given_back(
    cuda: FakeCuda, engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope = Scope.load(engines, backend="tensorrt", decide="device", preprocess="device")
    cascade: Any = scope._cascade
    cascade.time_on_device(True)
    scope.run(np.zeros((1, 3, 64, 48), np.float32), ETA)
    lost = cuda.cudaError_t.cudaErrorIllegalAddress
    told = []
    for name in ("StreamSynchronize", "StreamDestroy", "Free", "FreeHost", "EventDestroy", "GraphExecDestroy"):
        monkeypatch.setattr(cuda, f"cuda{name}", lambda handle, name=name: told.append(name) or (lost,))
    scope.close()
    assert set(told) == {"StreamSynchronize", "StreamDestroy", "Free", "FreeHost", "EventDestroy", "GraphExecDestroy"}


def test_the_callers_array_is_copied(both: tuple[Scope, Scope]) -> None:
    """A camera's buffer may be filled again before the batch runs."""
    device, host = both
    picture = random_picture(np.random.default_rng(6), 64, 48, 3)
    kept = picture.copy()
    prepared = device.prepare(picture)
    assert isinstance(prepared, Unscaled)
    picture[:] = 0
    got = device.run(device.stack([prepared]), 1.0)
    np.testing.assert_array_equal(got.logits, host.run(host.stack([host.prepare(kept)]), 1.0).logits)


def test_only_what_the_network_sees_is_kept(both: tuple[Scope, Scope]) -> None:
    device, _ = both
    prepared = device.prepare(Image.new("RGB", (5000, 64)), keep_view=True)
    assert isinstance(prepared, Unscaled)
    assert prepared.crop.pixels.shape[1] < 70
    assert prepared.view is not None
    assert prepared.size == (5000, 64)


def test_profiles_and_calibration_still_prepare_on_the_host(both: tuple[Scope, Scope]) -> None:
    assert isinstance(both[0].preprocess(Image.new("RGB", (90, 90))), Prepared)


def test_what_is_refused(
    monkeypatch: pytest.MonkeyPatch, network: fakes.FakeNetwork, engines: Path, both: tuple[Scope, Scope]
) -> None:
    device, host = both
    batch = device.stack([device.prepare(Image.new("RGB", (90, 90)))])
    with pytest.raises(InputError, match="need a scope loaded with preprocess='device'"):
        host.run(batch)
    with pytest.raises(
        InputError, match="--preprocess device is for backends on a GPU: leave it out with --backend ort"
    ):
        Scope.load(engines, backend="ort-cpu", preprocess="device")
    with pytest.raises(InputError, match="--preprocess is one of host, device, got 'gpu'"):
        Scope.load(engines, preprocess="gpu")  # type: ignore[arg-type]
    fake_gpu.set_driver(monkeypatch, None)
    with pytest.raises(BackendError, match="ort-cpu: it has no GPU for --preprocess device"):
        Scope.load(engines, preprocess="device")


def test_without_the_kernels_it_says_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, network: fakes.FakeNetwork, engines: Path
) -> None:
    cuda = FakeCuda(host_addresses=True)
    fake_gpu.install(monkeypatch, network, cuda)
    monkeypatch.setattr("mscope.plugins.cuda.why_missing", lambda device: "libmscope_cuda is not built: run so and so")
    with pytest.raises(BackendError, match=r"--preprocess device needs the CUDA kernels: .* is not built: run so"):
        Scope.load(engines, backend="tensorrt", preprocess="device")
    assert cuda.live == 0


def test_the_command_prints_what_it_prints_without(
    cuda: FakeCuda, engines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder with a broken picture among good ones and a tensor, in batches, with overlays."""
    from mscope.core.console import run_app
    from mscope.runtime.cli import app

    draw = np.random.default_rng(7)
    sources = []
    for number, size in enumerate(((70, 90), (300, 20), (64, 48))):
        sources.append(tmp_path / f"{number}.png")
        Image.fromarray(random_picture(draw, *size, 3)).save(sources[-1])
    sources += [tmp_path / "broken.png", tmp_path / "x.npy"]
    sources[3].write_bytes(sources[0].read_bytes()[:60])
    np.save(sources[4], draw.normal(size=(2, 3, 64, 48)).astype(np.float32))
    said = {}
    for place in ("host", "device"):
        arguments = ["--bundle", str(engines), "--backend", "tensorrt", "--preprocess", place, "--batch", "3", "--json"]
        arguments += ["--eta", "0.6", "--save-vis", str(tmp_path / place)]
        assert run_app(app, [*map(str, sources), *arguments]) == 1
        out, err = capsys.readouterr()
        assert "broken.png: " in err
        lines = [json.loads(line) for line in out.splitlines()]
        said[place] = [{name: value for name, value in line.items() if name != "latency_ms"} for line in lines]
    assert len(said["host"]) == 5
    assert said["device"] == said["host"]
    drawn = [sorted(path.name for path in (tmp_path / place).iterdir()) for place in said]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 5
    assert "resample" in cuda.log
    assert cuda.live == 0
