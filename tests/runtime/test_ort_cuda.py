"""The backend ort-cuda without CUDA: what it refuses and says, and its graphs by address on the CPU provider."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

import cuda_host
import fake_gpu
import fakes
import ort_cuda_host
from fake_cuda import FakeCuda
from mscope.core.contract import graph_for
from mscope.core.errors import BackendError
from mscope.runtime import Scope
from mscope.runtime.backends import ort_cuda, ort_ops


def test_onnxruntime_without_cuda_is_told_apart() -> None:
    class Session:
        def __init__(self, providers: list[str], nodes: dict[str, str]) -> None:
            self.providers, self.nodes = providers, nodes

        def get_providers(self) -> list[str]:
            return self.providers

        def get_provider_graph_assignment_info(self) -> list[Any]:
            def part(kind: str, place: str) -> Any:
                return SimpleNamespace(ep_name=place, get_nodes=lambda: [SimpleNamespace(op_type=kind)])

            return [part(*node) for node in self.nodes.items()]

    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    ort_cuda.check_on_gpu(Session([cuda, cpu], {"MatMul": cuda, "Gather": cpu}), "coarse.onnx")
    with pytest.raises(BackendError, match=r"opened coarse\.onnx for CPUExecutionProvider in place of CUDA"):
        ort_cuda.check_on_gpu(Session([cpu], {}), "coarse.onnx")
    with pytest.raises(BackendError, match=r"would run Scan of coarse\.onnx on the CPU"):
        ort_cuda.check_on_gpu(Session([cuda, cpu], {"MatMul": cuda, "Scan": cpu}), "coarse.onnx")


def test_the_installed_onnxruntime_tells_where_its_nodes_went(bundle: Path) -> None:
    """The calls of check_on_gpu, on a real session: all of it is on the CPU here, and it must say so."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(str(bundle / "coarse.onnx"), options, providers=["CPUExecutionProvider"])
    if not hasattr(session, "get_provider_graph_assignment_info"):
        pytest.skip("this ONNX Runtime does not tell")
    session.disable_fallback()
    kinds = {node.op_type for part in session.get_provider_graph_assignment_info() for node in part.get_nodes()}
    assert "MatMul" in kinds
    with pytest.raises(BackendError, match="in place of CUDAExecutionProvider"):
        ort_cuda.check_on_gpu(session, "coarse.onnx")


@pytest.fixture
def registered(
    network: fakes.FakeNetwork, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> list[Any]:
    """Options that native ops were registered with, for an ONNX Runtime that refuses them, by the parameter's reason.

    Other sessions are on the CPU, as those of onnxruntime-gpu without a driver.
    """
    if cuda_host.compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    real = onnxruntime.InferenceSession
    options_with: list[Any] = []

    def session(path: str, options: Any, providers: list[Any]) -> Any:
        if options in options_with:
            raise RuntimeError(request.param)
        return real(path, options, providers=["CPUExecutionProvider"])

    def register(ops: ort_ops.NativeOps, options: Any, version: str) -> None:
        if ops.library is not None:
            options_with.append(options)

    monkeypatch.setenv("MSCOPE_PLUGIN_DIR", str(ort_cuda_host.library().parent))
    fake_gpu.install(monkeypatch, network, FakeCuda(host_addresses=True))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(ort_ops.NativeOps, "register", register)
    return options_with


@pytest.mark.parametrize("kernel", ["auto", "native", "function"])
@pytest.mark.parametrize("registered", ["NOT_IMPLEMENTED : Could not find an implementation for X"], indirect=True)
def test_a_cuda_provider_that_cannot_be_had_is_the_reason_told(
    bundle: Path, network: fakes.FakeNetwork, registered: list[Any], kernel: Any
) -> None:
    """With the library ONNX Runtime complains of the ops, which have no kernel on the CPU: not what is to be told."""
    runner = ort_cuda.OrtCudaRunner(graph_for(network.config, "coarse"), bundle / "coarse.onnx", kernel=kernel)
    with pytest.raises(BackendError, match=r"opened coarse\.onnx for CPUExecutionProvider in place of CUDA"):
        runner.activate()
    assert len(registered) == (kernel != "function")


@pytest.mark.parametrize("registered", ["SelectiveScan 'node': D has shape (6,)"], indirect=True)
def test_a_graph_that_only_the_native_kernels_refuse(
    bundle: Path, network: fakes.FakeNetwork, registered: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider is there: the reason is the kernels' own, with the way round them."""
    fake_gpu.put_ort_cuda_on_the_cpu(monkeypatch, largest=4)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    runner = ort_cuda.OrtCudaRunner(graph_for(network.config, "coarse"), bundle / "coarse.onnx")
    with pytest.raises(BackendError, match=r"coarse\.onnx on the GPU \(SelectiveScan .*\): --kernel function does"):
        runner.activate()
    assert len(registered) == 1


@pytest.mark.parametrize("registered", ["refused"], indirect=True)
def test_libraries_of_pips_packages_are_loaded_first_and_what_lacks_is_told(
    bundle: Path, network: fakes.FakeNetwork, registered: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The provider is linked with libraries that no loader looks for in site-packages; stdout is for answers."""
    order, real = [], onnxruntime.InferenceSession

    def preload() -> None:
        order.append("preload")
        print("Failed to load libcudnn.so.9: cannot open shared object file")

    def session(*arguments: Any, **options: Any) -> Any:
        order.append("session")
        return real(*arguments, **options)

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    runner = ort_cuda.OrtCudaRunner(graph_for(network.config, "coarse"), bundle / "coarse.onnx", kernel="function")
    with pytest.raises(BackendError, match=r"\(Failed to load libcudnn\.so\.9: .*\): pip install 'onnxruntime-gpu\["):
        runner.activate()
    assert order == ["preload", "session"]
    assert capsys.readouterr().out == ""
    assert ort_cuda.preload(SimpleNamespace()) == "", "before 1.21"


def test_the_cuda_providers_options() -> None:
    """TF32 would make fp32 fp16; an option that the version does not know would be refused."""
    device: Any = SimpleNamespace(index=0)
    assert ort_cuda._options_of(device, "1.32.0")["use_tf32"] == "0"
    assert "use_tf32" not in ort_cuda._options_of(device, "1.17.3")
    assert ort_cuda._options_of(device, "2.0.0rc1")["device_id"] == "0"


@pytest.mark.usefixtures("layer")
def test_onnxruntime_by_address(
    bundle: Path, network: fakes.FakeNetwork, monkeypatch: pytest.MonkeyPatch, scope: Scope
) -> None:
    """OrtCudaRunner and the device's cascade with the CPU provider in CUDA's place, over memory that it can read."""
    find = pytest.importorskip("mscope.plugins.find")
    cuda = FakeCuda(host_addresses=True)
    fake_gpu.install(monkeypatch, network, cuda)
    fake_gpu.put_ort_cuda_on_the_cpu(monkeypatch, largest=4)
    monkeypatch.setattr(find, "library", lambda name: None)
    monkeypatch.setattr(find, "why_missing", lambda name: f"{name} was not built: build it")
    with Scope.load(bundle, backend="ort-cuda") as loaded:
        assert (loaded.backend, loaded.kernel) == ("ort-cuda", "function")
        (note,) = loaded.notes
        assert note.endswith("token by token, without native kernels: ort_cuda was not built: build it")
        assert loaded(np.zeros((8, 8, 3), np.uint8)).notes == (note,)
        for count in (0, 1, 3, 4, 11):
            images = fakes.random_images(network.config, count)
            got, expected = loaded.run(images, 0.6), scope.run(images, 0.6)
            assert got.stages == expected.stages
            # The same kernels over batches of another size: sums of a few hundred terms of size 10.
            np.testing.assert_allclose(got.logits, expected.logits, rtol=1e-5, atol=1e-4)
        loaded.time_on_device()
        timed = loaded.run(images, 0.0, refine_all=True).device
        assert timed is not None
        assert list(timed.parts) == ["upload", "coarse", "download", "decision", "fine"]
    with pytest.raises(BackendError, match="native kernels for ONNX Runtime's CUDA provider: ort_cuda was not built"):
        Scope.load(bundle, backend="ort-cuda", kernel="native")
    with Scope.load(bundle, backend="ort-cuda", kernel="function") as loaded:
        assert (loaded.kernel, loaded.notes) == ("function", ())
    fake_gpu.install_kernels(monkeypatch, cuda)
    picture = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    with Scope.load(bundle, backend="ort-cuda", preprocess="device") as loaded:
        assert loaded(picture, eta=1.0).selected == scope(picture, eta=1.0).selected
    with pytest.raises(
        BackendError, match=r"coarse.onnx runs on streams .* no CUDA graph can hold.*leave --decide device"
    ):
        Scope.load(bundle, backend="ort-cuda", decide="device")
    assert cuda.live == 0
