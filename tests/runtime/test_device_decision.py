"""Both stages as one graph with a branch (`decide="device"`): the kernel's own source on a fake device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fake_gpu
import fake_tensorrt
import fakes
from fake_cuda import FakeCuda, Misuse
from fake_gpu import InterfaceArray, install_with_kernels, random_batch
from fake_tensorrt import FakeTensorRT
from mscope.core.cascade import confidence
from mscope.core.errors import BackendError, InputError
from mscope.runtime import Scope
from mscope.runtime.device import branch
from mscope.runtime.device.branch import Branches
from mscope.runtime.device.cuda import Device, Memory
from mscope.runtime.device.stream import Stream
from mscope.runtime.result import Outcome

ETA = 0.6


pytestmark = pytest.mark.usefixtures("layer")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, network: fakes.FakeNetwork, layer: str) -> FakeCuda:
    return install_with_kernels(monkeypatch, network)


@pytest.fixture
def both(cuda: FakeCuda, engines: Path) -> Iterator[tuple[Scope, Scope]]:
    """The same bundle on the same device, decided there and on the host."""
    with (
        Scope.load(engines, backend="tensorrt", decide="device") as device,
        Scope.load(engines, backend="tensorrt") as host,
    ):
        yield device, host


def same(got: Outcome, expected: Outcome) -> None:
    for name in ("logits", "confidence", "coarse_logits", "coarse_confidence", "importance", "selected"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)
    assert got.stages == expected.stages


def test_every_answer_is_the_hosts(both: tuple[Scope, Scope], network: fakes.FakeNetwork) -> None:
    device, host = both
    seen = set()
    for seed in range(40):
        image = random_batch(network, 1, seed)
        for eta in (0.0, 0.3, ETA, 1.0):
            got = device.run(image, eta)
            same(got, host.run(image, eta))
            seen.add((eta, got.stages))
            assert list(got.stage_ms) == ["cascade"]
        same(device.run(image, 0.0, refine_all=True), host.run(image, 0.0, refine_all=True))
    assert {(ETA, ("coarse",)), (ETA, ("fine",))} <= seen, "the test needs both kinds"


def test_at_eta_itself_the_host_has_the_last_word(
    both: tuple[Scope, Scope], network: fakes.FakeNetwork, cuda: FakeCuda
) -> None:
    """eta is the confidence, or the next number: the device may refine in vain, the answer is the host's."""
    device, host = both
    in_vain = 0
    for seed in range(25):
        image = random_batch(network, 1, seed)
        coarse = host.run(image, 0.0)
        assert coarse.coarse_confidence is not None
        sure = coarse.coarse_confidence[0]
        for eta in (sure, np.nextafter(sure, np.float32(0)), np.nextafter(sure, np.float32(2))):
            cuda.log.clear()
            got = device.run(image, float(eta))
            ran = "fine" in cuda.log
            same(got, host.run(image, float(eta)))
            assert ran or got.stages == ("coarse",)
            in_vain += ran and got.stages == ("coarse",)
    assert in_vain > 0


def test_one_launch_and_one_wait(both: tuple[Scope, Scope], network: fakes.FakeNetwork, cuda: FakeCuda) -> None:
    device, _ = both
    image = random_batch(network, 1)
    device.run(image, 1.0)
    cuda.log.clear()
    before = dict(cuda.calls)
    device.run(image, 1.0)
    downloads = ["DeviceToHost"] * 4
    assert cuda.log == ["HostToDevice", "graph", "coarse", "select", "fine", *downloads]
    made = {name: count - before.get(name, 0) for name, count in cuda.calls.items() if count != before.get(name, 0)}
    made = {name: count for name, count in made.items() if name not in ("cudaError_t", "cudaMemcpyKind")}
    current = {"cudaGetDevice": 1, "cudaSetDevice": 1}
    assert made == current | {"cudaMemcpyAsync": 1, "cudaGraphLaunch": 1, "cudaStreamSynchronize": 1}
    cuda.log.clear()
    device.run(image, 0.0)  # another threshold goes up
    assert cuda.log == ["HostToDevice", "HostToDevice", "graph", "coarse", "select", *downloads]


def test_batches_are_decided_on_the_host(both: tuple[Scope, Scope], network: fakes.FakeNetwork) -> None:
    device, host = both
    for count in (0, 2, 5, 9):
        images = random_batch(network, count, count)
        got = device.run(images, ETA)
        same(got, host.run(images, ETA))
        assert list(got.stage_ms) == ["coarse", "select", "fine"]
    image = random_batch(network, 1)
    got = device.run(image, 1.0, may_refine=lambda sure, wanted: np.zeros_like(wanted))
    assert got.stages == ("coarse",)


def test_an_array_on_the_device(both: tuple[Scope, Scope], network: fakes.FakeNetwork, cuda: FakeCuda) -> None:
    device, host = both
    for seed in range(4):
        image = random_batch(network, 1, seed)
        same(device.run(InterfaceArray(cuda, image), ETA), host.run(image, ETA))


def test_pictures_scaled_on_the_device_too(cuda: FakeCuda, engines: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    with (
        Scope.load(engines, backend="tensorrt", decide="device", preprocess="device") as device,
        Scope.load(engines, backend="tensorrt") as host,
    ):
        got, expected = device(picture, eta=1.0), host(picture, eta=1.0)
        assert (got.topk, got.selected, got.stage) == (expected.topk, expected.selected, expected.stage)
        assert set(got.latency_ms) == {"preprocess", "cascade", "total"}


@pytest.mark.parametrize("alpha", [1.0, 0.05])
def test_other_alphas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, alpha: float) -> None:
    network = fakes.FakeNetwork(fakes.fake_config(alpha=alpha))
    install_with_kernels(monkeypatch, network)
    fakes.write_fake_bundle(tmp_path / "b", network)
    fake_tensorrt.add_engines(tmp_path / "b")
    with (
        Scope.load(tmp_path / "b", backend="tensorrt", decide="device") as device,
        Scope.load(tmp_path / "b", backend="tensorrt") as host,
    ):
        for seed in range(3):
            image = random_batch(network, 1, seed)
            same(device.run(image, 1.0), host.run(image, 1.0))


def test_the_bundles_temperature(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, network: fakes.FakeNetwork) -> None:
    from mscope.core.manifest import Temperature

    install_with_kernels(monkeypatch, network)
    fakes.write_fake_bundle(tmp_path / "b", network, temperature=Temperature(coarse=3.0, fine=0.5))
    fake_tensorrt.add_engines(tmp_path / "b")
    with (
        Scope.load(tmp_path / "b", backend="tensorrt", decide="device") as device,
        Scope.load(tmp_path / "b", backend="tensorrt") as host,
    ):
        stages = set()
        for seed in range(20):
            image = random_batch(network, 1, seed)
            got = device.run(image, 0.35)
            same(got, host.run(image, 0.35))
            stages |= set(got.stages)
        assert stages == {"coarse", "fine"}


def test_an_integrated_gpu(monkeypatch: pytest.MonkeyPatch, network: fakes.FakeNetwork, engines: Path) -> None:
    cuda = install_with_kernels(monkeypatch, network, integrated=True)
    with (
        Scope.load(engines, backend="tensorrt", decide="device") as device,
        Scope.load(engines, backend="tensorrt") as host,
    ):
        for seed in range(4):
            image = random_batch(network, 1, seed)
            same(device.run(image, ETA), host.run(image, ETA))
    assert not {"HostToDevice", "DeviceToHost"} & set(cuda.log)
    assert cuda.live == 0
    assert cuda.calls["cudaStreamCreateWithFlags"] == cuda.calls["cudaStreamDestroy"]


def test_a_kernel_that_is_too_sure_costs_time_and_no_answer(
    cuda: FakeCuda, network: fakes.FakeNetwork, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With engines that take a single image, as a camera's may."""
    fakes.write_fake_bundle(tmp_path / "b", network)
    fake_tensorrt.add_engines(tmp_path / "b", batch=(1, 1, 1))
    with (
        Scope.load(tmp_path / "b", backend="tensorrt", decide="device") as device,
        Scope.load(tmp_path / "b", backend="tensorrt") as host,
    ):
        decision: Any = device._cascade._decision  # type: ignore[attr-defined]
        monkeypatch.setattr(decision, "threshold", lambda eta: 0.0)
        for seed in range(3):
            image = random_batch(network, 1, seed)
            same(device.run(image, 1.0), host.run(image, 1.0))
            assert not decision.went_on


def test_nan_from_an_engine_is_found(
    monkeypatch: pytest.MonkeyPatch, network: fakes.FakeNetwork, engines: Path
) -> None:
    for stage, weight in (("coarse", "coarse_head"), ("fine", "fine_head")):
        broken = fakes.FakeNetwork(network.config)
        broken.weights[weight] = np.full_like(broken.weights[weight], np.nan)
        install_with_kernels(monkeypatch, broken)
        with (
            Scope.load(engines, backend="tensorrt", decide="device") as scope,
            pytest.raises(BackendError, match=f"{stage}.*'logits' came back with NaN"),
        ):
            scope.run(random_batch(network, 1), 1.0)


def refused(engines: Path, match: str, cuda: FakeCuda, **options: Any) -> None:
    with pytest.raises((BackendError, InputError), match=match):
        Scope.load(engines, **({"backend": "tensorrt", "decide": "device"} | options))
    assert cuda.live == 0


def test_an_old_driver_is_named(monkeypatch: pytest.MonkeyPatch, network: fakes.FakeNetwork, engines: Path) -> None:
    cuda = install_with_kernels(monkeypatch, network, driver=12020)
    refused(
        engines, r"driver is for CUDA 12\.2, conditional nodes need 12\.4 or newer.*leave --decide device out", cuda
    )
    install_with_kernels(monkeypatch, network, driver=12040)
    with Scope.load(engines, backend="tensorrt", decide="device") as scope:
        assert list(scope.run(random_batch(network, 1), ETA).stage_ms) == ["cascade"]


@pytest.mark.parametrize("stage", [True, "coarse", "fine"])
def test_engines_that_cannot_be_captured(
    monkeypatch: pytest.MonkeyPatch, network: fakes.FakeNetwork, engines: Path, stage: bool | str
) -> None:
    cuda = FakeCuda(host_addresses=True)
    modules: dict[str, FakeTensorRT] = fake_gpu.install(monkeypatch, network, cuda)
    fake_gpu.install_kernels(monkeypatch, cuda)
    modules["tensorrt"].capture_refused = stage
    refused(engines, r"do not become one graph \(.*not permitted.*\): leave --decide device out", cuda)


@pytest.mark.parametrize("stage", ["coarse", "fine"])
def test_an_engine_that_says_it_cannot_be_captured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, network: fakes.FakeNetwork, stage: str
) -> None:
    """TensorRT-RTX is asked, and not tried: within a branch the driver would not survive it."""
    cuda = FakeCuda(host_addresses=True)
    modules = fake_gpu.install(monkeypatch, network, cuda, ("tensorrt-rtx",))
    fake_gpu.install_kernels(monkeypatch, cuda)
    fakes.write_fake_bundle(tmp_path / "b", network)
    fake_tensorrt.add_engines(tmp_path / "b", flavour="tensorrt-rtx")
    modules["tensorrt-rtx"].capture_refused = stage
    match = rf"{stage}.*no CUDA graph \(the engine allocates or waits.*\): leave --decide device out"
    refused(tmp_path / "b", match, cuda, backend="tensorrt-rtx")
    assert "cudaStreamBeginCapture" not in cuda.calls


def test_engines_for_larger_batches_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, network: fakes.FakeNetwork
) -> None:
    cuda = install_with_kernels(monkeypatch, network)
    fakes.write_fake_bundle(tmp_path / "b", network)
    fake_tensorrt.add_engines(tmp_path / "b", batch=(4, 4, 8))
    refused(tmp_path / "b", "single images, these engines take 4 or more", cuda)


def test_what_else_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cuda: FakeCuda, engines: Path) -> None:
    refused(engines, "--decide device is for backends on a GPU", cuda, backend="ort-cpu")
    refused(engines, "--decide is one of host, device, got 'gpu'", cuda, decide="gpu")
    vim = fakes.FakeNetwork(fakes.fake_config(arch="vim"))
    fakes.write_fake_bundle(tmp_path / "vim", vim)
    refused(tmp_path / "vim", "--decide has no meaning for a plain ViM", cuda)
    with monkeypatch.context() as fewer:
        fewer.setattr("mscope.plugins.cuda_select.MOST_REGIONS", 11)
        refused(engines, "--decide device ranks up to 11 regions, got 12: leave --decide device out", cuda)
    monkeypatch.setattr("mscope.plugins.cuda.why_missing", lambda device: "not built")
    refused(engines, "--decide device needs the CUDA kernels: not built", cuda)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--deadline-ms", "5"), "leave it or --deadline-ms out"),
        (("--batch", "4"), "leave it or --batch 4 out"),
    ],
)
def test_the_command_says_what_does_not_go_together(
    arguments: tuple[str, ...], match: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from mscope.core.console import run_app
    from mscope.runtime.cli import app

    assert run_app(app, ["x.jpg", "--decide", "device", *arguments]) == 2
    assert match in capsys.readouterr().err


class Bench:
    """A stream whose capture holds one piece of work that sets a condition."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.device = cuda, Device()
        self.memory, self.stream = Memory(self.device), Stream(self.device)
        self.branches = Branches(self.device, self.stream)
        self.address = self.memory.on_device(256, "a test")

    def record(self, goes_on: bool, body: Any) -> None:
        condition = self.branches.condition()
        self.cuda.enqueue(self.stream.handle, "decide", lambda: _set(condition, goes_on))
        self.branches.run_if(condition, body)
        self.cuda.enqueue(self.stream.handle, "after", lambda: None)

    def close(self) -> None:
        self.branches.close()
        self.stream.close()
        self.memory.release()
        assert self.cuda.live == 0


def _set(condition: int, value: bool) -> None:
    import ctypes

    ctypes.c_uint.from_address(condition).value = int(value)


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_branch_runs_or_is_left_out(cuda: FakeCuda, goes_on: bool) -> None:
    bench = Bench(cuda)
    graph = bench.stream.capture(lambda: bench.record(goes_on, lambda side: side.zero(bench.address, 4)))
    bench.stream.synchronize()
    for _ in range(2):
        cuda.log.clear()
        graph.launch(bench.stream)
        bench.stream.synchronize()
        assert cuda.log == ["graph", "decide", *(["zero"] if goes_on else []), "after"]
    graph.close()
    bench.close()


def test_a_body_that_fails_leaves_both_streams_usable(cuda: FakeCuda) -> None:
    bench = Bench(cuda)

    def fails(side: Stream) -> None:
        side.zero(bench.address, 4)
        raise BackendError("the engine did not run")

    for _ in range(2):
        with pytest.raises(BackendError, match="the engine did not run"):
            bench.stream.capture(lambda: bench.record(True, fails))
    graph = bench.stream.capture(lambda: bench.record(True, lambda side: side.zero(bench.address, 4)))
    graph.launch(bench.stream)
    bench.stream.synchronize()
    graph.close()
    bench.close()


def test_branches_outside_a_capture(cuda: FakeCuda) -> None:
    bench = Bench(cuda)
    with pytest.raises(BackendError, match="not being captured"):
        bench.branches.condition()
    bench.close()


def test_the_fake_forgives_no_wrong_branch(cuda: FakeCuda) -> None:
    """What the tests above rely on."""
    bench = Bench(cuda)

    def capture(record: Any, error: Any, match: str) -> None:
        with pytest.raises(error, match=match):
            bench.stream.capture(record)

    capture(lambda: bench.branches.condition() and bench.stream.zero(bench.address, 4), BackendError, "InvalidValue")

    def nothing_decides() -> None:
        bench.branches.run_if(bench.branches.condition(), lambda side: None)

    capture(nothing_decides, Misuse, "does not wait for the kernel that decides")

    def beside() -> None:
        condition = bench.branches.condition()
        bench.stream.zero(bench.address, 4)
        api = bench.device.api
        params = api.cudaGraphNodeParams()
        params.type = api.cudaGraphNodeType.cudaGraphNodeTypeConditional
        params.conditional.handle, params.conditional.size = condition, 1
        params.conditional.type = api.cudaGraphConditionalNodeType.cudaGraphCondTypeIf
        graph, before = bench.branches._captured()
        bench.branches._call("cudaGraphAddNode", graph, before, bench.branches._plain(1), 1, params)
        bench.stream.zero(bench.address, 4)

    capture(beside, Misuse, "would run beside the branch")
    capture(lambda: bench.record(True, lambda side: side.synchronize()), Misuse, "the driver dies")
    capture(lambda: bench.record(True, lambda side: side.wait_for(1)), BackendError, "InvalidValue")
    bench.close()


def test_older_names_are_asked_for() -> None:
    assert branch.named(12090, "cudaGraphAddNode") == "cudaGraphAddNode_v2"
    assert branch.named(13040, "cudaGraphAddNode") == "cudaGraphAddNode"


def test_confidence_of_the_fake_network_is_not_trivial(network: fakes.FakeNetwork) -> None:
    sure = [confidence(network.coarse(random_batch(network, 1, seed))["logits"])[0] for seed in range(20)]
    assert min(sure) < ETA < max(sure)
