"""The cascade on a device, run over fake memory, against the same network on the host: the same bits."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fake_gpu
import fake_tensorrt
import fakes
from fake_cuda import LEGACY, FakeCuda
from fake_gpu import DlpackArray, InterfaceArray, RowRunner, random_batch
from fake_tensorrt import FakeTensorRT
from mscope.core.bundle import load_manifest
from mscope.core.contract import graphs
from mscope.core.errors import BackendError, InputError
from mscope.runtime import Scope
from mscope.runtime.backends.cascade import HostCascade
from mscope.runtime.device import cascade
from mscope.runtime.result import Outcome

ETA = 0.6
LARGEST = 8

pytestmark = pytest.mark.usefixtures("layer")


@pytest.fixture
def cuda(layer: str) -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch, network: fakes.FakeNetwork, cuda: FakeCuda) -> FakeTensorRT:
    return fake_gpu.install(monkeypatch, network, cuda)["tensorrt"]


@pytest.fixture
def gpu(tensorrt: FakeTensorRT, engines: Path) -> Iterator[Scope]:
    with Scope.load(engines, backend="tensorrt") as scope:
        yield scope


@pytest.fixture(scope="module")
def host(engines: Path, network: fakes.FakeNetwork) -> HostCascade:
    manifest = load_manifest(engines)
    runners = {graph.stage: RowRunner(graph, engines / graph.stage, network) for graph in graphs(network.config)}
    for runner in runners.values():
        runner.activate()
    return HostCascade(manifest, runners)


def same(got: Outcome, expected: Outcome) -> None:
    for name in ("logits", "confidence", "coarse_logits", "coarse_confidence", "importance", "selected"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)
    assert got.stages == expected.stages
    assert list(got.stage_ms) == list(expected.stage_ms)


@pytest.mark.parametrize("eta", [0.0, ETA, 1.0], ids=["all exit", "mixed", "none exits"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, LARGEST, LARGEST + 1, 3 * LARGEST + 5])
def test_the_bits_of_the_host(
    gpu: Scope, host: HostCascade, network: fakes.FakeNetwork, count: int, eta: float
) -> None:
    """Five times: kernel by kernel, captured, replayed; with other pictures each time, and nothing left of the last."""
    for turn in range(5):
        images = random_batch(network, count, seed=turn)
        expected = host.run(images, eta)
        if eta == ETA and count >= LARGEST:
            assert set(expected.stages) == {"coarse", "fine"}, "the test needs both kinds"
        same(gpu.run(images, eta), expected)
    same(gpu.run(images, 0.0, refine_all=True), host.run(images, 0.0, refine_all=True))


def test_sizes_in_any_order(gpu: Scope, host: HostCascade, network: fakes.FakeNetwork, cuda: FakeCuda) -> None:
    rng = np.random.default_rng(0)
    for turn in range(60):
        images = random_batch(network, int(rng.integers(1, 2 * LARGEST)), seed=turn)
        eta = float(rng.choice([0.0, 0.3, ETA, 1.0]))
        same(gpu.run(images, eta), host.run(images, eta))
    assert "graph" in cuda.log


@pytest.mark.parametrize("alpha", [1.0, 0.05])
def test_other_alphas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cuda: FakeCuda, alpha: float) -> None:
    """alpha 1 leaves nothing in `remaining`: a tensor of no bytes."""
    network = fakes.FakeNetwork(fakes.fake_config(alpha=alpha))
    fake_gpu.install(monkeypatch, network, cuda)
    fakes.write_fake_bundle(tmp_path / "b", network)
    fake_tensorrt.add_engines(tmp_path / "b")
    images = random_batch(network, 5)
    with Scope.load(tmp_path / "b", backend="tensorrt") as scope:
        for _ in range(3):
            outcome = scope.run(images, 1.0)
    assert outcome.selected is not None
    for row, image in enumerate(images):
        chosen = outcome.selected[row]
        rest = np.setdiff1d(np.arange(12), chosen)
        expected = network.fine(image[None], chosen[None], rest[None])[0]
        np.testing.assert_array_equal(outcome.logits[row], expected)


def test_plain_vim(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cuda: FakeCuda) -> None:
    network = fakes.FakeNetwork(fakes.fake_config(arch="vim"))
    fake_gpu.install(monkeypatch, network, cuda)
    fakes.write_fake_bundle(tmp_path / "b", network)
    fake_tensorrt.add_engines(tmp_path / "b")
    images = random_batch(network, 11)
    with Scope.load(tmp_path / "b", backend="tensorrt") as scope:
        outcome = scope.run(images)
        assert outcome.stages == ("full",) * 11
        np.testing.assert_array_equal(
            outcome.logits, fake_tensorrt.run_rows(network, "full", {"image": images})["logits"]
        )
        assert scope.run(images[:0]).logits.shape == (0, 10)


def test_one_image_goes_up_once_and_little_comes_down(gpu: Scope, network: fakes.FakeNetwork, cuda: FakeCuda) -> None:
    images = random_batch(network, 1)
    gpu.run(images, 1.0)
    cuda.log.clear()
    gpu.run(images, 1.0)
    small = ["DeviceToHost"] * 2  # logits and importance
    assert cuda.log == ["HostToDevice", "coarse", *small, "HostToDevice", "HostToDevice", "fine", "DeviceToHost"]
    waits = cuda.calls["cudaStreamSynchronize"]
    gpu.run(images, 1.0)
    assert cuda.calls["cudaStreamSynchronize"] == waits + 2


def test_graphs_from_the_third_run_on(gpu: Scope, network: fakes.FakeNetwork, cuda: FakeCuda) -> None:
    images = random_batch(network, 2)
    for graphs_launched in (0, 0, 2, 4):
        outcome = gpu.run(images, 1.0)
        assert cuda.calls.get("cudaGraphLaunch", 0) == graphs_launched
    assert cuda.calls["cudaGraphInstantiate"] == 2
    assert outcome.notes == ()


def test_a_refused_capture_is_told_and_the_answer_is_right(
    gpu: Scope, host: HostCascade, tensorrt: FakeTensorRT, network: fakes.FakeNetwork, cuda: FakeCuda
) -> None:
    tensorrt.capture_refused = True
    images = random_batch(network, 3)
    for _ in range(4):
        outcome = gpu.run(images, 1.0)
        same(outcome, host.run(images, 1.0))
    assert len(outcome.notes) == 2
    assert "no CUDA graph at batch 4" in outcome.notes[0]
    assert "not permitted when stream is capturing" in outcome.notes[0]
    assert "cudaGraphLaunch" not in cuda.calls
    assert gpu.results(outcome, ["a", "b", "c"], [0.0] * 3, eta=1.0)[0].to_dict()["notes"] == list(outcome.notes)


def test_an_integrated_gpu_copies_nothing_between_host_and_device(
    monkeypatch: pytest.MonkeyPatch, network: fakes.FakeNetwork, engines: Path, host: HostCascade
) -> None:
    cuda = FakeCuda(integrated=True, capability=(9, 0))
    fake_gpu.install(monkeypatch, network, cuda)
    with Scope.load(engines, backend="tensorrt") as scope:
        for turn in range(4):
            images = random_batch(network, 7, seed=turn)
            same(scope.run(images, ETA), host.run(images, ETA))
    assert not {"HostToDevice", "DeviceToHost"} & set(cuda.log)
    assert "DeviceToDevice" in cuda.log
    assert cuda.live == 0


def test_everything_is_given_back(
    tensorrt: FakeTensorRT, engines: Path, cuda: FakeCuda, network: fakes.FakeNetwork
) -> None:
    with Scope.load(engines, backend="tensorrt") as scope:
        for _ in range(3):
            scope.run(random_batch(network, 5), ETA)
        assert cuda.live > 0
    assert cuda.live == 0
    assert cuda.calls["cudaStreamCreateWithFlags"] == cuda.calls["cudaStreamDestroy"]
    scope.close()


@pytest.mark.parametrize("limit", [0, 9000, 200_000, 297_000])
def test_out_of_memory_is_one_line_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, network: fakes.FakeNetwork, engines: Path, limit: int
) -> None:
    cuda = FakeCuda(limit=limit)
    fake_gpu.install(monkeypatch, network, cuda)
    with pytest.raises(
        BackendError, match=r"the GPU is out of memory for .* \(\d+ of \d+ MiB are free\): use a smaller"
    ):
        Scope.load(engines, backend="tensorrt")
    assert cuda.live == 0


def test_a_failed_run_leaves_the_next_one_right(
    gpu: Scope, host: HostCascade, tensorrt: FakeTensorRT, network: fakes.FakeNetwork, cuda: FakeCuda
) -> None:
    images = random_batch(network, 3)
    tensorrt.no_memory = True
    with pytest.raises(BackendError, match=r"cannot run coarse.* the GPU is out of memory, use a smaller batch"):
        gpu.run(images, 1.0)
    tensorrt.no_memory = False
    device: Any = gpu._cascade
    assert cuda.is_over(cuda.last_queued(device._stream.handle)), "nothing reads memory that the next batch writes"
    same(gpu.run(images, 1.0), host.run(images, 1.0))


def test_another_device_of_the_callers_stays_current(
    tensorrt: FakeTensorRT, engines: Path, host: HostCascade, network: fakes.FakeNetwork, cuda: FakeCuda
) -> None:
    """torch.cuda.set_device(1), say: everything here goes to device 0, and the caller's next tensor where it was to."""
    images = random_batch(network, 3)
    array = InterfaceArray(cuda, images)
    cuda.cudaSetDevice(1)
    with Scope.load(engines, backend="tensorrt") as scope:
        assert cuda.cudaGetDevice()[1] == 1
        for given in (images, array, array):
            same(scope.run(given, ETA), host.run(images, ETA))
            assert cuda.cudaGetDevice()[1] == 1
        with pytest.raises(InputError):
            scope.run(images[:, :1], ETA)
        assert cuda.cudaGetDevice()[1] == 1
    assert cuda.live == 1, "the array"


def test_threads_take_turns(gpu: Scope, host: HostCascade, network: fakes.FakeNetwork, cuda: FakeCuda) -> None:
    batches = [random_batch(network, 1 + seed % 9, seed) for seed in range(24)]
    arrays = [InterfaceArray(cuda, images) for images in batches[:8]]

    def run(number: int) -> tuple[Outcome, Outcome]:
        given = arrays[number] if number < len(arrays) else batches[number]
        return gpu.run(given, ETA), host.run(batches[number], ETA)

    with ThreadPoolExecutor(4) as pool:
        for got, expected in pool.map(run, range(len(batches))):
            same(got, expected)


def test_nan_from_an_engine_is_its_fault(
    monkeypatch: pytest.MonkeyPatch, engines: Path, cuda: FakeCuda, network: fakes.FakeNetwork
) -> None:
    broken = fakes.FakeNetwork(network.config)
    broken.weights["fine_head"] = np.full((4, 10), np.nan, np.float32)
    fake_gpu.install(monkeypatch, broken, cuda)
    with (
        Scope.load(engines, backend="tensorrt") as scope,
        pytest.raises(BackendError, match=r"fine.*'logits' came back with NaN"),
    ):
        scope.run(random_batch(network, 3), 1.0)


# Arrays that are on the device already


@pytest.mark.parametrize("count", [1, 3, LARGEST, LARGEST + 3])
@pytest.mark.parametrize("make", [InterfaceArray, DlpackArray])
def test_arrays_on_the_device_are_read_in_place(
    gpu: Scope, host: HostCascade, network: fakes.FakeNetwork, cuda: FakeCuda, make: Any, count: int
) -> None:
    images = random_batch(network, count)
    array = make(cuda, images)
    for turn in range(5):
        cuda.log.clear()
        same(gpu.run(array, ETA), host.run(images, ETA))
        before_coarse = cuda.log[: cuda.log.index("coarse")]
        copies = {"HostToDevice", "DeviceToDevice"} & set(before_coarse)
        assert copies == (set() if turn else {"DeviceToDevice"}), f"turn {turn}"
    np.testing.assert_array_equal(cuda.array(array.address, "float32", images.shape), images)


def test_arrays_at_new_addresses_make_no_contexts(
    gpu: Scope, host: HostCascade, tensorrt: FakeTensorRT, network: fakes.FakeNetwork, cuda: FakeCuda
) -> None:
    """They are copied to where a graph reads already; those that come in turn keep being read in place."""
    images = random_batch(network, 3)
    for _ in range(3):
        gpu.run(images, ETA)
    made = len(tensorrt.contexts)
    for _ in range(20):
        cuda.log.clear()
        same(gpu.run(InterfaceArray(cuda, images), ETA), host.run(images, ETA))
        assert cuda.log[:3] == ["wait", "DeviceToDevice", "graph"]
    assert len(tensorrt.contexts) == made
    pair = [InterfaceArray(cuda, images) for _ in range(2)]
    for turn in range(8):
        cuda.log.clear()
        same(gpu.run(pair[turn % 2], ETA), host.run(images, ETA))
    assert cuda.log[:2] == ["wait", "graph"]
    assert len(tensorrt.contexts) <= made + 4


@pytest.mark.parametrize(("count", "known"), [(4, True), (5, False)])
def test_so_many_arrays_are_known(
    gpu: Scope, network: fakes.FakeNetwork, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, count: int, known: bool
) -> None:
    """One more, in turn, and each is forgotten before it comes again."""
    monkeypatch.setattr(cascade, "_MOST_KNOWN", 4)
    arrays = [InterfaceArray(cuda, random_batch(network, 3)) for _ in range(count)]
    for turn in range(2):
        for array in arrays:
            cuda.log.clear()
            gpu.run(array, ETA)
            copied = "DeviceToDevice" in cuda.log[: cuda.log.index("coarse")]
            assert copied == (turn == 0 or not known)


def test_an_array_at_an_odd_address_is_copied_on_the_device(
    gpu: Scope, host: HostCascade, network: fakes.FakeNetwork, cuda: FakeCuda
) -> None:
    images = random_batch(network, 3)
    array = InterfaceArray(cuda, images, offset=64)
    for _ in range(3):
        cuda.log.clear()
        same(gpu.run(array, ETA), host.run(images, ETA))
        assert cuda.log[:2] == ["wait", "DeviceToDevice"]


def test_an_empty_array_on_the_device(gpu: Scope, network: fakes.FakeNetwork, cuda: FakeCuda) -> None:
    empty = np.zeros((0, 3, 64, 48), np.float32)
    assert gpu.run(InterfaceArray(cuda, empty), ETA).logits.shape == (0, 10)


@pytest.mark.parametrize("stream, version", [(77, 3), (LEGACY, 3), (None, 3), (None, 2)])
def test_the_producers_stream_is_waited_for(
    gpu: Scope, host: HostCascade, network: fakes.FakeNetwork, cuda: FakeCuda, stream: int | None, version: int
) -> None:
    """The image is still being written on another stream when it is given. PyCUDA says version 3 and no stream."""
    images = random_batch(network, 3)
    producer = LEGACY
    if stream == 77:
        stream = producer = cuda.cudaStreamCreateWithFlags(1)[1]
    array = InterfaceArray(cuda, np.full_like(images, np.nan), stream=stream, version=version)

    def write() -> None:
        cuda.array(array.address, "float32", images.shape)[...] = images

    cuda.enqueue(producer, "write", write)
    same(gpu.run(array, ETA), host.run(images, ETA))


@pytest.mark.parametrize("device_type", [2, 13], ids=["device memory", "managed memory"])
def test_dlpack_is_told_our_stream(gpu: Scope, network: fakes.FakeNetwork, cuda: FakeCuda, device_type: int) -> None:
    array = DlpackArray(cuda, random_batch(network, 2), device_type=device_type)
    gpu.run(array, ETA)
    assert array.streams[0] in cuda._streams
    assert array.streams[0] > 2


@pytest.mark.parametrize(
    ("given", "interface", "message"),
    [
        (np.zeros((1, 3, 64, 48), np.float64), {}, "got dtype float64, expected float32"),
        (np.zeros((1, 3, 48, 64), np.float32), {}, r"got shape \(1, 3, 48, 64\), expected \('B', 3, 64, 48\)"),
        (np.zeros((3, 64, 48), np.float32), {}, r"got shape \(3, 64, 48\)"),
        (np.zeros((1, 3, 64, 48), np.float32), {"strides": (36864, 12288, 4, 256)}, "make it contiguous"),
        (np.zeros((1, 3, 64, 48), np.float32), {"stream": 0}, "stream 0, which the protocol forbids"),
        (np.zeros((1, 3, 64, 48), np.float32), {"data": (4096, False)}, "not device memory"),
        (np.zeros((1, 3, 64, 48), np.int32), {}, "typestr <i4"),
        (np.zeros((1, 3, 64, 48), np.float32), {"mask": object()}, "tensor has a mask"),
    ],
)
def test_arrays_that_do_not_fit(gpu: Scope, cuda: FakeCuda, given: Any, interface: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        gpu.run(InterfaceArray(cuda, given, **interface))


def test_an_array_of_another_context(gpu: Scope, cuda: FakeCuda, network: fakes.FakeNetwork) -> None:
    """Its address means nothing in ours: a kernel that reads it would end the process's context."""
    array = InterfaceArray(cuda, random_batch(network, 1))
    cuda.foreign.add(array.address)
    with pytest.raises(InputError, match=r"another CUDA context.*import pycuda.autoprimaryctx"):
        gpu.run(array)


def test_an_array_that_is_not_given_away(gpu: Scope, cuda: FakeCuda, network: fakes.FakeNetwork) -> None:
    with pytest.raises(InputError, match=r"require gradient.*detach it first"):
        gpu.run(DlpackArray(cuda, random_batch(network, 1), detached=False))

    class LikeTorch(DlpackArray):
        @property
        def __cuda_array_interface__(self) -> Any:
            raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad")

    with pytest.raises(InputError, match=r"require gradient.*detach it first"):
        gpu.run(LikeTorch(cuda, random_batch(network, 1), detached=False))


def test_an_array_that_is_kept_back_for_another_reason(gpu: Scope, cuda: FakeCuda, network: fakes.FakeNetwork) -> None:
    """In torch's words: one on another device, and one that has a layout of its own."""

    class LikeTorch(DlpackArray):
        index, reason = 1, "Can't export tensors on a different CUDA device index. Expected: 1. Current device: 0."

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, self.index

        def __dlpack__(self, stream: int | None = None) -> Any:
            raise BufferError(self.reason)

    array = LikeTorch(cuda, random_batch(network, 1))
    with pytest.raises(InputError, match=r"^tensor: it lies on device 1, the bundle runs on device 0: move it$"):
        gpu.run(array)
    array.index, array.reason = 0, "Can't export tensors with layout other than torch.strided"
    with pytest.raises(InputError, match=r"give its memory away \(Can't export .* torch\.strided\)$"):
        gpu.run(array)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_numbers_on_the_device_are_found_by_their_effect(
    gpu: Scope, cuda: FakeCuda, network: fakes.FakeNetwork, bad: float
) -> None:
    array = InterfaceArray(cuda, random_batch(network, 3))
    gpu.run(array, ETA)
    cuda.array(array.address, "float32", (3, 3, 64, 48))[2, 1, 5, 7] = bad
    cuda.log.clear()
    with np.errstate(invalid="ignore"), pytest.raises(InputError, match=r"image 2: 1 value\(s\) are NaN or infinite"):
        gpu.run(array, ETA)
    assert cuda.log[:2] == ["wait", "coarse"], "read in place: what lies in our own memory is older"
