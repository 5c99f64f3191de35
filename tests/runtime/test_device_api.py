"""The fakes against the real packages, and the runtime against both: no name, no parameter that only a fake has."""

import inspect
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import fake_gpu
from fake_cuda import FakeCuda, Misuse
from mscope.runtime.backends import ort_cuda
from mscope.runtime.device import branch
from mscope.runtime.device.cuda import Device
from mscope.runtime.device.stream import Stream
from signatures import documented_parameters

RUNTIME = Path(__file__).parents[2] / "runtime" / "mscope" / "runtime"
SOURCES = "\n".join(
    path.read_text() for folder in ("backends", "device") for path in sorted((RUNTIME / folder).glob("*.py"))
)


def real_name(name: str) -> str:
    """What the installed cuda-python calls a function that the fake has by its name of CUDA 13."""
    version = pytest.importorskip("cuda.bindings.runtime").cudaRuntimeGetVersion()[1]
    return branch.named(version, name)


def test_the_cuda_runtime_is_what_the_fake_says() -> None:
    real = pytest.importorskip("cuda.bindings.runtime")
    functions = [name for name, _ in inspect.getmembers(FakeCuda, inspect.isfunction) if name.startswith("cuda")]
    assert len(functions) > 20
    for name in functions:
        ours = list(inspect.signature(getattr(FakeCuda, name)).parameters)[1:]
        assert documented_parameters(getattr(real, real_name(name))) == [ours], name


def test_every_cuda_name_in_the_runtime_exists() -> None:
    real = pytest.importorskip("cuda.bindings.runtime")
    called = set(re.findall(r'"(cuda[A-Z]\w+)"', SOURCES)) | set(re.findall(r"\bapi\.(cuda\w+)", SOURCES))
    assert {"cudaMalloc", "cudaGraphLaunch", "cudaMemcpyKind"} <= called
    for name in called:
        assert hasattr(real, name), name
        assert hasattr(FakeCuda(), name), f"{name} is not tried by any test"
    for kind in re.findall(r'"((?:HostTo|DeviceTo)\w+)"', SOURCES):
        assert hasattr(real.cudaMemcpyKind, f"cudaMemcpy{kind}")
    assert real.cudaError_t.cudaErrorMemoryAllocation == 2
    assert real.cudaError_t.cudaErrorIllegalAddress == 700


def test_a_branch_is_described_by_the_real_fields() -> None:
    """Structures and returns that no signature tells of, and what enumerations are passed as."""
    real = pytest.importorskip("cuda.bindings.runtime")
    ours, theirs = FakeCuda().cudaGraphNodeParams(), real.cudaGraphNodeParams()
    for params in (ours, theirs):
        params.type = real.cudaGraphNodeType.cudaGraphNodeTypeConditional
        params.conditional.handle = 77
        params.conditional.type = real.cudaGraphConditionalNodeType.cudaGraphCondTypeIf
        params.conditional.size = 1
    assert int(theirs.conditional.handle) == 77
    assert len(theirs.conditional.phGraph_out) == 1
    assert set(type(ours.conditional).__slots__) <= set(dir(theirs.conditional))
    assert int(real.cudaGraphConditionalHandle(77)) == 77
    assert int(real.cudaGraphConditionalHandleFlags.cudaGraphCondAssignDefault) == 1
    assert int(real.cudaStreamUpdateCaptureDependenciesFlags.cudaStreamSetCaptureDependencies) == 1
    assert int(real.cudaStreamCaptureStatus.cudaStreamCaptureStatusActive) == 1
    told = getattr(real, real_name("cudaStreamGetCaptureInfo")).__doc__
    returned = re.findall(r"^ *(\w+_out) : ", told[told.index("Returns") :], re.MULTILINE)
    assert [name.removesuffix("_out") for name in returned] == [
        "captureStatus", "id", "graph", "dependencies", "edgeData", "numDependencies",
    ]  # fmt: skip


def test_below_the_real_package_lies_the_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `layer` gives to the tests: NVIDIA's types, and a C function that forgives as little as the fake."""
    real = pytest.importorskip("cuda.bindings.runtime")
    fake_gpu.through_cuda_python(monkeypatch)
    cuda = FakeCuda()
    fake_gpu.install_cuda(monkeypatch, cuda)
    device = Device()
    api, stream = device.api, Stream(device)
    event = device.call("cudaEventCreateWithFlags", api.cudaEventDefault)
    assert type(event).__name__ == type(real.cudaEvent_t()).__name__
    assert type(api.cudaStreamCreateWithFlags(0)[1]).__name__ == "cudaStream_t"
    device.call("cudaEventRecord", event, stream.handle)
    device.call("cudaEventDestroy", event)
    wrong = [
        (lambda: api.cudaEventDestroy(event), Misuse, "is no cudaEvent_t, or is gone"),
        (lambda: api.cudaEventRecord(0, stream.handle), Misuse, "None is no cudaEvent_t"),
        (lambda: api.cudaStreamSynchronize(7), Misuse, "stream 7 does not exist"),
        (lambda: api.cudaMalloc(-1), OverflowError, "negative"),
        (lambda: api.cudaMalloc(), TypeError, "argument"),
        (lambda: api.cudaMemsetAsync(4096, 0, 1, stream.handle), Misuse, "no device memory"),
        (lambda: api.cudaMallocAsync(1, stream.handle), Misuse, "cudaMallocAsync is called, which"),
        (lambda: api.cudaMallocs, AttributeError, "cudaMallocs"),
    ]  # fmt: skip
    for call, kind, match in wrong:
        with pytest.raises(kind, match=match):
            call()
    stream.close()
    # The first copy of the package is as it was.
    assert real.cudaStreamSynchronize is not api.cudaStreamSynchronize
    assert Path(real.__file__).parent.name == "bindings"


def test_io_binding_by_address() -> None:
    """What OrtCudaRunner asks of ONNX Runtime, on host memory."""
    assert list(inspect.signature(onnxruntime.IOBinding.bind_input).parameters)[1:] == [
        "name", "device_type", "device_id", "element_type", "shape", "buffer_ptr",
    ]  # fmt: skip
    assert list(inspect.signature(onnxruntime.IOBinding.bind_output).parameters)[1:] == [
        "name", "device_type", "device_id", "element_type", "shape", "buffer_ptr",
    ]  # fmt: skip
    assert ort_cuda._MEMORY == "cuda"
    assert np.dtype("float32").type is np.float32
