"""The runtime on a real GPU: its memory and streams, other libraries' arrays, and every GPU backend against the CPU.

A backend that cannot be had on the machine is skipped with the reason that it gives itself.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("pydantic")
pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed: pip install 'cuda-python>=12.6.2'")

import torch

from mscope.core.contract import Tensor
from mscope.core.errors import BackendError, InputError
from mscope.runtime.device.arrays import device_array
from mscope.runtime.device.cuda import Device, Memory
from mscope.runtime.device.driver import find_gpu
from mscope.runtime.device.stream import Stream
from mscope.runtime.device.tensors import DeviceTensor, StagedTensor
from two_processes import check_two_at_once

pytestmark = pytest.mark.gpu

SHAPE = (3, 8, 8)


@pytest.fixture
def stream() -> Iterator[Stream]:
    stream = Stream(Device())
    yield stream
    stream.close()


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory(Device())
    yield memory
    torch.cuda.synchronize()
    memory.release()


def test_the_driver_and_torch_see_the_same_gpu() -> None:
    gpu, missing = find_gpu()
    assert gpu is not None, missing
    major, minor = torch.cuda.get_device_capability(0)
    assert gpu.compute_capability == Device().compute_capability == f"sm_{major}{minor}"
    assert gpu.name == torch.cuda.get_device_name(0)


def test_rows_go_there_are_compacted_and_come_back(memory: Memory, stream: Stream) -> None:
    declared = Tensor("features", "float32", ("batch", 5, 7))
    staged = StagedTensor(Device(), memory, stream, declared, 6)
    compact = DeviceTensor(memory, stream, declared, 6)
    numbers = np.random.default_rng(0).normal(size=(6, 5, 7)).astype(np.float32)
    staged.host[:] = numbers
    staged.upload(6)
    for source, place, count in ((1, 0, 2), (5, 2, 1)):
        row = compact.row_bytes
        stream.copy(compact.address + place * row, staged.address + source * row, count * row, "DeviceToDevice")
    stream.synchronize()
    staged.host[:] = np.nan
    stream.copy(staged.address, compact.address, 6 * compact.row_bytes, "DeviceToDevice")
    staged.download(6)
    stream.synchronize()
    np.testing.assert_array_equal(staged.host[:3], numbers[[1, 2, 5]])
    assert (staged.host[3:] == 0).all(), "padding is zeros"


def test_a_graph_of_copies_is_replayed(memory: Memory, stream: Stream) -> None:
    declared = Tensor("features", "float32", ("batch", 64))
    first, second = (StagedTensor(Device(), memory, stream, declared, 4) for _ in range(2))

    def copy() -> None:
        stream.copy(second.address, first.address, 4 * first.row_bytes, "DeviceToDevice")

    graph = stream.capture(copy)
    for value in (1.0, 2.0):
        first.host[:] = value
        first.upload(4)
        graph.launch(stream)
        second.download(4)
        stream.synchronize()
        assert (second.host == value).all()
    graph.close()


def test_a_refused_capture_leaves_the_stream_usable(memory: Memory, stream: Stream) -> None:
    with pytest.raises(BackendError, match="CUDA: cuda"):
        stream.capture(stream.synchronize)
    stream.zero(memory.on_device(256, "a test"), 256)
    stream.synchronize()
    assert torch.zeros(3, device="cuda").sum().item() == 0


def test_more_memory_than_there_is_is_one_line(memory: Memory) -> None:
    with pytest.raises(BackendError, match=r"the GPU is out of memory for a test.* MiB are free\): use a"):
        memory.on_device(1 << 50, "a test")
    assert torch.ones(3, device="cuda").sum().item() == 3


@pytest.mark.parametrize("protocol", ["dlpack", "interface", "no stream named"])
def test_a_torch_tensor_is_read_in_place_and_in_order(memory: Memory, stream: Stream, protocol: str) -> None:
    """The tensor is still being written on torch's stream when it is given; PyCUDA says version 3 and no stream."""

    class Interface:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor
            said = {} if protocol == "interface" else {"version": 3, "stream": None}
            self.__cuda_array_interface__ = tensor.__cuda_array_interface__ | said

    ours = StagedTensor(Device(), memory, stream, Tensor("image", "float32", ("batch", *SHAPE)), 4)
    stream.synchronize()
    tensor = torch.full((4, *SHAPE), float("nan"), device="cuda")
    torch.cuda.synchronize()
    torch.cuda._sleep(50_000_000)
    tensor.copy_(torch.arange(tensor.numel(), device="cuda").reshape(tensor.shape))
    view = device_array(tensor if protocol == "dlpack" else Interface(tensor), SHAPE, Device(), stream)
    assert view.address == tensor.data_ptr()
    stream.copy(ours.address, view.address, 4 * ours.row_bytes, "DeviceToDevice")
    ours.download(4)
    stream.synchronize()
    np.testing.assert_array_equal(ours.host, np.arange(4 * 192).reshape(4, *SHAPE))


def test_a_cupy_array_is_read_in_place_and_in_order(memory: Memory, stream: Stream) -> None:
    cupy = pytest.importorskip("cupy")
    ours = StagedTensor(Device(), memory, stream, Tensor("image", "float32", ("batch", *SHAPE)), 4)
    stream.synchronize()
    array = cupy.full((4, *SHAPE), cupy.nan, cupy.float32)
    cupy.cuda.Device().synchronize()
    torch.cuda._sleep(50_000_000)  # on the default stream, which is CuPy's too
    array[...] = cupy.arange(array.size, dtype=cupy.float32).reshape(array.shape)
    view = device_array(array, SHAPE, Device(), stream)
    assert view.address == array.data.ptr
    stream.copy(ours.address, view.address, 4 * ours.row_bytes, "DeviceToDevice")
    ours.download(4)
    stream.synchronize()
    np.testing.assert_array_equal(ours.host, np.arange(4 * 192).reshape(4, *SHAPE))


def test_tensors_that_do_not_fit(stream: Stream) -> None:
    def refused(tensor: Any, match: str) -> None:
        with pytest.raises(InputError, match=match):
            device_array(tensor, SHAPE, Device(), stream)

    good = torch.zeros((2, *SHAPE), device="cuda")
    refused(good.half(), "float16, expected float32")
    refused(good[:, :, :4], "got shape")
    refused(good.transpose(2, 3), "make it contiguous")
    refused(good.clone().requires_grad_(), "detach it first")


def run_export(*arguments: str) -> None:
    command = [sys.executable, "-m", "mscope.export.cli", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=550)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr[-3000:]}"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needed = ("onnx", "onnxscript", "onnxruntime", "safetensors", "polygraphy", "PIL", "platformdirs", "rich", "typer")
    for package in needed:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: no bundle can be made here")
    folder = tmp_path_factory.mktemp("gpu") / "digits"
    run_export("build", "--size", "digits", "--target", "onnx", "--out", str(folder))
    return folder


# Engines are of fp32 where a bundle has nothing beside it, else of that.
TARGETS = {
    "tensorrt": ("--target", "trt"),
    "tensorrt-rtx": ("--target", "trt-rtx"),
    "ort-cuda": ("--fp16", "--target", "onnx"),
}


@pytest.fixture(scope="module")
def prepared(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A bundle with files for a backend; skips where the backend is not to be had."""
    built: dict[str, Path] = {}

    def prepare(backend: str) -> Path:
        from mscope.plugins import trt
        from mscope.runtime.backends.registry import BACKENDS

        found = BACKENDS[backend].probe()
        if not found.available:
            pytest.skip(f"{backend}: {found.missing}")
        if backend not in built:
            if backend != "ort-cuda" and trt.why_missing():
                run_export("plugins", "build")  # function bodies have loops, which no graph holds
            folder = tmp_path_factory.mktemp(backend) / "digits"
            shutil.copytree(bundle, folder)
            run_export("build", "--from", str(folder), *TARGETS[backend])
            built[backend] = folder
        return built[backend]

    return prepare


@pytest.mark.parametrize("backend", TARGETS)
def test_a_gpu_backend_answers_as_the_cpu(prepared: Callable[[str], Path], backend: str) -> None:
    """fp32 engines of the trained digits network, kernel by kernel, captured and replayed, in batches of every kind."""
    from mscope.runtime import Scope

    bundle = prepared(backend)
    with Scope.load(bundle, backend="ort-cpu") as cpu, Scope.load(bundle, backend=backend, precision="fp32") as gpu:
        assert gpu.backend == backend
        shape = (cpu.config.channels, cpu.config.height, cpu.config.width)
        for seed, count in enumerate((0, 1, 1, 1, 3, 3, 3, 8, 8, 8, 21)):
            images = np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)
            expected = cpu.run(images, refine_all=True)
            got = gpu.run(images, refine_all=True)
            assert expected.coarse_logits is not None
            assert got.coarse_logits is not None
            # TensorRT and cuBLAS may round the factors of float32 products to TF32's 11 bits, 5e-4 each: twenty times
            # that is allowed after all the layers. A wrong row or index is off by whole numbers.
            close = {"atol": 1e-2, "rtol": 1e-2}
            np.testing.assert_allclose(got.coarse_logits, expected.coarse_logits, **close)
            np.testing.assert_allclose(got.importance, expected.importance, **close)
            # Where almost equal importances change places, the fine logits are another selection's.
            same = (np.asarray(got.selected) == np.asarray(expected.selected)).all(axis=1)
            assert same.mean() >= 0.5 or count < 8
            np.testing.assert_allclose(got.logits[same], expected.logits[same], **close)
            on_device = torch.from_numpy(images).cuda()
            for _ in range(4):  # copied, then in place: kernel by kernel, captured, replayed
                again = gpu.run(on_device, refine_all=True)
                np.testing.assert_allclose(again.logits, got.logits, atol=1e-4, rtol=1e-4)
        assert gpu.notes == ()


def test_onnxruntime_with_the_native_ops(prepared: Callable[[str], Path]) -> None:
    """Every op of both precisions on the GPU and ours, the answers those of the CPU; not taken where not asked for."""
    from mscope.plugins import find, ort
    from mscope.runtime import Scope

    bundle = prepared("ort-cuda")
    assert find.library("ort_cuda") is not None, find.why_missing("ort_cuda")
    with Scope.load(bundle, backend="ort-cpu", precision="fp32") as cpu:
        depth, shape = cpu.config.depth, (cpu.config.channels, cpu.config.height, cpu.config.width)
        images = np.random.default_rng(0).normal(size=(64, *shape)).astype(np.float32)
        expected = cpu.run(images, refine_all=True)
    for precision, close in (("fp32", 1e-3), ("fp16", 5e-2)):
        before = ort.kernels_created("ort_cuda")
        with Scope.load(bundle, backend="ort-cuda", kernel="native", precision=precision) as gpu:
            assert (gpu.kernel, gpu.notes) == ("native", ())
            assert ort.kernels_created("ort_cuda") - before == 2 * 2 * depth, "two stages, two ops a block"
            calls = ort.calls("ort_cuda")
            # Batches of every kind, in an order in which the scratch memory grows and then is more than is needed.
            for count in (1, 3, 64, 1, 64):
                got = gpu.run(images[:count], refine_all=True)
                assert got.coarse_logits is not None
                assert expected.coarse_logits is not None
                scale = np.abs(expected.logits).max()
                np.testing.assert_allclose(
                    got.coarse_logits, expected.coarse_logits[:count], rtol=0, atol=close * scale
                )
                same = (np.asarray(got.selected) == np.asarray(expected.selected)[:count]).all(axis=1)
                assert same.mean() >= 0.5
                np.testing.assert_allclose(got.logits[same], expected.logits[:count][same], rtol=0, atol=close * scale)
            assert ort.calls("ort_cuda") > calls
    kernels = ort.kernels_created("ort_cuda")
    with Scope.load(bundle, backend="ort-cuda", kernel="function", precision="fp32") as gpu:
        assert (gpu.kernel, ort.kernels_created("ort_cuda")) == ("function", kernels)
        got = gpu.run(images[:2], refine_all=True)
        np.testing.assert_allclose(got.coarse_logits, expected.coarse_logits[:2], rtol=0, atol=1e-3 * scale)


def test_runs_of_one_onnxruntime_session_side_by_side() -> None:
    """Long sequences need scratch memory; runs of one session go on streams of their own, each with its block."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("the installed ONNX Runtime has no CUDA provider")
    import ort_graphs
    from mscope.core.contract import OP_BIDIRECTIONAL_SCAN
    from mscope.plugins import find
    from op_cases import Case, Inputs

    values = ort_graphs.values_of(OP_BIDIRECTIONAL_SCAN, Inputs(Case(2048, channels=384, batch=2), "float32"))
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(find.require("ort_cuda")))
    model = ort_graphs.model_of(OP_BIDIRECTIONAL_SCAN, values).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CUDAExecutionProvider"])
    assert session.get_providers()[0] == "CUDAExecutionProvider"
    feeds = {i.name: values[i.name] for i in session.get_inputs()}
    (alone,) = session.run(None, feeds)
    with ThreadPoolExecutor(4) as pool:
        for (y,) in pool.map(lambda _: session.run(None, feeds), range(64)):
            np.testing.assert_array_equal(y, alone)


@pytest.mark.parametrize("backend", TARGETS)
def test_pictures_scaled_on_the_device(prepared: Callable[[str], Path], backend: str) -> None:
    """The same engines on the same bits: the same answers as with the host's preprocessing."""
    from mscope.runtime import Scope

    bundle, draw = prepared(backend), np.random.default_rng(0)
    with (
        Scope.load(bundle, backend=backend, precision="fp32", preprocess="device") as device,
        Scope.load(bundle, backend=backend, precision="fp32") as host,
    ):
        for count in (1, 1, 1, 3, 5):
            pictures = [draw.integers(0, 256, (*draw.integers(8, 400, 2), 3), dtype=np.uint8) for _ in range(count)]
            got, expected = (scope.batch(pictures, eta=1.0) for scope in (device, host))
            for ours, theirs in zip(got, expected, strict=True):
                assert ours.selected == theirs.selected
                assert ours.confidence == pytest.approx(theirs.confidence, abs=1e-6)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_the_exit_decided_on_the_device(prepared: Callable[[str], Path], backend: str) -> None:
    """Both engines in one graph, for images that leave and that go on, in turn."""
    from mscope.runtime import Scope
    from mscope.runtime.device.branch import why_no_branches

    bundle = prepared(backend)
    if reason := why_no_branches(Device()):
        pytest.skip(reason)
    with (
        Scope.load(bundle, backend=backend, precision="fp32", decide="device") as device,
        Scope.load(bundle, backend=backend, precision="fp32") as host,
    ):
        shape, stages = (1, host.config.channels, host.config.height, host.config.width), set()
        for seed in range(30):
            image = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
            for eta in (0.0, 0.5, 0.9, 1.0):
                got, expected = device.run(image, eta), host.run(image, eta)
                assert got.stages == expected.stages
                np.testing.assert_array_equal(np.asarray(got.selected), np.asarray(expected.selected))
                np.testing.assert_allclose(got.logits, expected.logits, atol=1e-4, rtol=1e-4)
                stages.add(got.stages)
        assert stages == {("coarse",), ("fine",)}


@pytest.mark.parametrize("backend", TARGETS)
def test_the_devices_clock_adds_up(prepared: Callable[[str], Path], backend: str) -> None:
    from mscope.runtime import Scope

    with Scope.load(prepared(backend), backend=backend, precision="fp32") as scope:
        assert scope.time_on_device()
        image = np.zeros((4, scope.config.channels, scope.config.height, scope.config.width), np.float32)
        for _ in range(5):
            outcome = scope.run(image, refine_all=True)
            assert outcome.device is not None
            assert list(outcome.device.parts) == ["upload", "coarse", "download", "decision", "fine"]
            assert sum(outcome.device.parts.values()) == pytest.approx(outcome.device.total, rel=0.02)
            assert outcome.device.total <= sum(outcome.stage_ms.values())


@pytest.mark.parametrize("backend", TARGETS)
def test_two_processes_share_the_gpu(prepared: Callable[[str], Path], backend: str, tmp_path: Path) -> None:
    from mscope.core.bundle import load_manifest

    bundle = prepared(backend)
    config = load_manifest(bundle).config
    check_two_at_once(bundle, backend, tmp_path, (config.channels, config.height, config.width))
