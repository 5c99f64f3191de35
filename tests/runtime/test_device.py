"""One device: what is missing without it, its memory and graphs, and the batch sizes that are run."""

import gc
import importlib.util
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fake_gpu
import fakes
from fake_cuda import FakeCuda, Misuse
from fake_gpu import FakeDriver
from fake_tensorrt import IRuntimeConfig
from mscope.core.contract import Tensor
from mscope.core.errors import BackendError
from mscope.runtime import Scope
from mscope.runtime.device import driver
from mscope.runtime.device.buckets import bucket_of, runs
from mscope.runtime.device.cuda import Device, Memory, why_no_bindings
from mscope.runtime.device.stream import Stream
from mscope.runtime.device.tensors import DeviceTensor, StagedTensor
from mscope.runtime.result import Outcome


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, layer: str) -> FakeCuda:
    fake = FakeCuda()
    fake_gpu.install_cuda(monkeypatch, fake)
    return fake


def test_buckets_are_powers_of_two_in_the_profile() -> None:
    cases = ((1, 64, {1, 2, 4, 8, 16, 32, 64}), (1, 6, {1, 2, 4, 6}), (4, 8, {4, 8}), (5, 5, {5}))
    for smallest, largest, every in cases:
        assert {bucket_of(rows, smallest, largest) for rows in range(1, largest + 1)} == every
    for largest in range(1, 70):
        for rows in range(1, largest + 1):
            bucket = bucket_of(rows, 1, largest)
            assert rows <= bucket <= largest
            assert bucket < 2 * rows
    for rows in (0, 9):
        with pytest.raises(ValueError, match="do not fit"):
            bucket_of(rows, 1, 8)


def test_runs_move_every_row_to_its_place() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows = np.flatnonzero(rng.random(17) < rng.random())
        source, target = np.arange(17), np.full(len(rows), -1)
        stretches = list(runs(rows.tolist()))
        for start, place, count in stretches:
            target[place : place + count] = source[start : start + count]
        np.testing.assert_array_equal(target, rows)
        assert len(stretches) <= 9
    assert list(runs([])) == []
    assert list(runs([2, 3, 4])) == [(2, 0, 3)]


@pytest.mark.parametrize(
    ("library", "message"),
    [
        (None, "no NVIDIA driver .* is not found"),
        (FakeDriver(status=999), r"does not start \(CUDA error 999\)"),
        (FakeDriver(status=100), "sees no GPU"),
        (FakeDriver(count=0), "sees no GPU"),
        (FakeDriver(name_status=101), r"does not describe its GPU \(CUDA error 101\)"),
    ],
)
def test_what_the_driver_lacks(monkeypatch: pytest.MonkeyPatch, library: Any, message: str) -> None:
    fake_gpu.set_driver(monkeypatch, library)
    gpu, missing = driver.find_gpu()
    assert gpu is None
    assert re.search(message, missing)


def test_the_gpu_that_the_driver_has(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu.set_driver(monkeypatch, FakeDriver(capability=(12, 1)))
    gpu, missing = driver.find_gpu()
    assert (str(gpu), missing) == ("NVIDIA Fake (sm_121)", "")
    assert gpu is not None
    assert gpu.driver == "13.0"


@pytest.mark.skipif(importlib.util.find_spec("cuda.bindings.runtime") is None, reason="cuda-python is not installed")
def test_the_real_runtime_without_a_driver_is_one_line() -> None:
    if driver.find_gpu()[0] is not None:
        pytest.skip("there is a driver and a GPU here")
    with pytest.raises(BackendError, match=r"CUDA: cuda(Get|Set)Device failed.*: "):
        Device()


def test_without_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu.set_driver(monkeypatch, FakeDriver(version=12060))
    install = r"pip install --upgrade 'cuda-python>=12\.6\.2,<13'$"
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(BackendError, match=rf"^cuda-python 12\.6\.2 or newer is not installed: {install}"):
        Device()

    def no_package(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'cuda'")

    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", no_package)
        assert why_no_bindings().startswith("cuda-python 12.6.2 or newer is not installed")
    monkeypatch.setattr("mscope.runtime.device.cuda.why_no_bindings", lambda: "")
    with pytest.raises(BackendError, match=rf"^cuda\.bindings\.runtime cannot be imported \(.+\): {install}"):
        Device()


def test_an_old_cuda_python_is_named(cuda: FakeCuda) -> None:
    cuda.runtime = 11080
    with pytest.raises(BackendError, match=r"is for CUDA 11\.8, 12\.6\.2 or newer is needed: pip install --upgrade"):
        Device()


def test_a_driver_that_cuda_python_does_not_find_is_one_line(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until 12.8 it raises where a driver, or a function of it, is not there."""

    def not_found(device: int) -> Any:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    device = Device()
    monkeypatch.setattr(device.api, "cudaStreamCreateWithFlags", not_found)
    with pytest.raises(
        BackendError, match=r"cudaStreamCreateWithFlags failed within cuda-python: Failed to dlopen libcuda\.so\.1"
    ):
        Stream(device)


def test_a_status_without_a_name_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real package raises at the status of a driver that is newer than it."""
    fake_gpu.through_cuda_python(monkeypatch)
    cuda = FakeCuda()
    fake_gpu.install_cuda(monkeypatch, cuda)
    device = Device()
    monkeypatch.setattr(cuda, "cudaStreamCreateWithFlags", lambda flags: (12345, 0))
    with pytest.raises(BackendError, match=r"CUDA: cudaStreamCreateWithFlags failed within cuda-python: .*12345"):
        Stream(device)


def test_the_table_of_backends_costs_little() -> None:
    """Probing imports no CUDA, TensorRT or ONNX Runtime."""
    code = (
        "import sys; from mscope.runtime.backends.registry import available_backends; found = available_backends();"
        "assert [f.name for f in found] == ['tensorrt', 'tensorrt-rtx', 'ort-cpu', 'ort-cuda'];"
        "heavy = {'cuda.bindings.runtime', 'tensorrt', 'tensorrt_rtx', 'onnxruntime', 'torch'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_memory_is_owned_and_given_back(cuda: FakeCuda) -> None:
    device = Device()
    memory = Memory(device)
    address = memory.on_device(100, "a test")
    assert address % 256 == 0
    host, mapped = memory.on_host(100, "a test")
    assert (host != 0, mapped) == (True, 0)
    assert cuda.live == 2
    memory.release()
    memory.release()
    assert cuda.live == 0


def test_out_of_memory_is_told_where_the_driver_does_not_say_how_much_is_left(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(Device())
    unknown = cuda.cudaError_t.cudaErrorUnknown
    monkeypatch.setattr(cuda, "cudaMemGetInfo", lambda: (unknown, 0, 0))
    with pytest.raises(BackendError, match=r"the GPU is out of memory for a test, 4096\.0 MiB: use a smaller batch"):
        memory.on_device(1 << 32, "a test")


def test_a_staged_tensor_goes_there_and_back(cuda: FakeCuda) -> None:
    device = Device()
    memory, stream = Memory(device), Stream(device)
    tensor = StagedTensor(device, memory, stream, Tensor("importance", "float32", ("batch", 3)), 4)
    tensor.host[:2] = [[1, 2, 3], [4, 5, 6]]
    tensor.upload(2)
    tensor.host[:2].copy()
    stream.synchronize()
    np.testing.assert_array_equal(
        cuda.array(tensor.address, "float32", (4, 3)), [[1, 2, 3], [4, 5, 6], [0] * 3, [0] * 3]
    )
    tensor.download(2)
    assert np.isnan(tensor.host[:2]).all(), "the fake must punish reading too early"
    stream.synchronize()
    np.testing.assert_array_equal(tensor.host[:2], [[1, 2, 3], [4, 5, 6]])
    stream.close()
    memory.release()


def test_new_memory_is_zeros_for_padding(cuda: FakeCuda) -> None:
    device = Device()
    memory, stream = Memory(device), Stream(device)
    tensor = DeviceTensor(memory, stream, Tensor("features", "float32", ("batch", 3)), 2)
    stream.synchronize()
    assert (cuda.array(tensor.address, "float32", (2, 3)) == 0).all()
    stream.close()
    memory.release()


def test_a_capture_that_is_refused_leaves_the_stream_usable(cuda: FakeCuda) -> None:
    device = Device()
    memory, stream = Memory(device), Stream(device)
    address = memory.on_device(256, "a test")
    unnoticed = lambda: cuda.refuse_capture(stream.handle)  # noqa: E731
    for forbidden in (lambda: memory.on_device(1, "a test"), stream.synchronize, unnoticed):
        with pytest.raises(BackendError, match="cudaErrorStreamCapture"):
            stream.capture(lambda forbidden=forbidden: (stream.zero(address, 4), forbidden()))  # type: ignore[misc]
    graph = stream.capture(lambda: stream.zero(address, 4))
    stream.synchronize()
    assert (cuda.memory(address, 4) == 0xFF).all(), "a capture runs nothing"
    graph.launch(stream)
    stream.synchronize()
    assert (cuda.memory(address, 4) == 0).all()
    for _ in range(2):
        graph.close()
        stream.close()
        memory.release()
    assert cuda.live == 0


def test_the_fake_forgives_nothing(cuda: FakeCuda) -> None:
    """What the other tests rely on."""
    device = Device()
    memory, stream = Memory(device), Stream(device)
    address = memory.on_device(256, "a test")
    for wrong in (
        lambda: cuda.memory(address, 257),
        lambda: cuda.memory(address - 1, 1),
        lambda: stream.copy(address, address + 8, 16, "DeviceToDevice"),
        lambda: stream.copy(address, id(cuda), 16, "HostToDevice"),
        lambda: cuda.cudaFree(address + 1),
    ):
        with pytest.raises(Misuse):
            wrong()
    stream.zero(address, 4)
    with pytest.raises(Misuse, match="while work is queued"):
        memory.release()
    stream.close()
    late = FakeCuda()
    with pytest.raises(Misuse, match="was freed"):
        late.memory(address, 1)


def test_the_stand_ins_refuse_wrong_directions_devices_and_caches() -> None:
    cuda = FakeCuda(integrated=True)
    kinds = cuda.cudaMemcpyKind
    _, host = cuda.cudaHostAlloc(256, cuda.cudaHostAllocMapped)
    _, mapped = cuda.cudaHostGetDevicePointer(host, 0)
    (_, own), (_, stream) = cuda.cudaMalloc(256), cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking)
    cuda.cudaMemcpyAsync(own, mapped, 8, kinds.cudaMemcpyDefault, stream)
    with pytest.raises(Misuse, match="direction is not that of its memory"):
        cuda.cudaMemcpyAsync(own, mapped, 8, kinds.cudaMemcpyDeviceToDevice, stream)
    cuda.cudaSetDevice(1)
    with pytest.raises(Misuse, match="another device is current"):
        cuda.cudaMalloc(8)
    config = IRuntimeConfig()
    config.set_runtime_cache(config.create_runtime_cache())
    with pytest.raises(Misuse, match="cache of a config is gone"):
        config._check_cache()


def test_a_capture_survives_garbage(cuda: FakeCuda) -> None:
    """Memory of another library's (PyCUDA's) whose owner is garbage in a cycle: given back in a capture it ends it."""
    device = Device()
    stream, memory = Stream(device), Memory(device)
    target = memory.on_device(64, "a test")
    freed = []

    class Owner:
        def __init__(self) -> None:
            self.address, self.itself = device.call("cudaMalloc", 64), self

        def __del__(self) -> None:
            freed.append(cuda.capturing(stream.handle))
            device.call("cudaFree", self.address)

    Owner()

    def record() -> None:
        kept = [[number] for number in range(100_000)]  # far more than starts a collection
        stream.zero(target, len(kept) and 64)

    stream.capture(record).close()
    gc.collect()
    assert freed
    assert not any(freed)
    assert gc.isenabled()
    stream.close()
    memory.release()


@pytest.mark.parametrize(
    ("name", "number"), [("IllegalAddress", 700), ("LaunchTimeout", 702), ("Assert", 710), ("MpsClientTerminated", 810)]
)
def test_a_lost_device_says_so(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    device = Device()
    stream = Stream(device)
    lost = getattr(cuda.cudaError_t, f"cudaError{name}")
    monkeypatch.setattr(cuda, "cudaStreamSynchronize", lambda stream: (lost,))
    with pytest.raises(BackendError, match=rf"cudaError{name} \({number}\); the device's context is lost"):
        stream.synchronize()
    wrong = cuda.cudaError_t.cudaErrorInvalidValue
    monkeypatch.setattr(cuda, "cudaStreamSynchronize", lambda stream: (wrong,))
    with pytest.raises(BackendError, match=r"cudaErrorInvalidValue \(1\)$"):
        stream.synchronize()


def test_closing_lets_another_threads_batch_finish(
    cuda: FakeCuda, network: fakes.FakeNetwork, engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpu.install(monkeypatch, network, cuda)
    images, array = fake_gpu.random_batch(network, 3), fake_gpu.InterfaceArray(cuda, fake_gpu.random_batch(network, 1))
    scope = Scope.load(engines, backend="tensorrt")
    expected = scope.run(images, 1.0)
    cascade: Any = scope._cascade
    running, wanted, run = threading.Event(), threading.Event(), cascade._run

    class Lock:
        held = threading.Lock()

        def __enter__(self) -> None:
            if running.is_set():
                wanted.set()
            self.held.acquire()

        def __exit__(self, *error: object) -> None:
            self.held.release()

    def slowly(*arguments: Any) -> Outcome:
        running.set()
        assert wanted.wait(20), "close() did not ask for the lock"
        outcome: Outcome = run(*arguments)
        return outcome

    monkeypatch.setattr(cascade, "_lock", Lock())
    monkeypatch.setattr(cascade, "_run", slowly)
    with ThreadPoolExecutor(2) as pool:
        batch = pool.submit(scope.run, images, 1.0)
        assert running.wait(20)
        pool.submit(scope.close).result()
        np.testing.assert_array_equal(batch.result().logits, expected.logits)
    for given in (images, array):
        with pytest.raises(BackendError, match=r"used after close\(\)"):
            scope.run(given, 1.0)
    assert cuda.live == 1, "the array"


def test_fake_network_rows(network: fakes.FakeNetwork) -> None:
    """The fake engines' arithmetic is the network's."""
    from fake_tensorrt import run_rows

    images = fakes.random_images(network.config, 3)
    given = run_rows(network, "coarse", {"image": images})
    chosen = np.tile(np.arange(0, 12, 2), (3, 1))
    rest = np.tile(np.arange(1, 12, 2), (3, 1))
    feeds = {"image": images, "features": given["features"], "embeddings": given["embeddings"]}
    got = run_rows(network, "fine", feeds | {"selected": chosen, "remaining": rest})["logits"]
    np.testing.assert_allclose(got, network.fine(images, chosen, rest), rtol=1e-5, atol=1e-5)
