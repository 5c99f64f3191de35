"""How the kernels are called: streams, CUDA graphs, array protocols, PyTorch, and what they refuse."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor

import cuda_torch
from mscope.core.errors import BackendError, InputError
from mscope.model import mamba_ssm_interface, scan
from mscope.plugins import cuda
from op_cases import Case, Inputs

pytestmark = pytest.mark.gpu

CASE = Case(64, channels=48, batch=2)


@pytest.fixture
def given() -> dict[str, Tensor]:
    return cuda_torch.tensors(Inputs(CASE, "float32"))


def test_a_side_stream(given: dict[str, Tensor]) -> None:
    """Queued on the stream that is named: the kernel waits for what came before it there."""
    expected = cuda_torch.bidirectional(given, CASE, "float32")
    torch.cuda.synchronize()
    side, late = torch.cuda.Stream(), given["x_both"].clone()
    given["x_both"] = torch.full_like(late, float("nan"))
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # tens of milliseconds: a kernel on another stream would read NaN
        given["x_both"].copy_(late)
        got = cuda_torch.bidirectional(given, CASE, "float32")
    side.synchronize()
    assert torch.equal(got, expected)


@pytest.mark.parametrize("case", [CASE, Case(3000, channels=24)], ids=str)
def test_a_cuda_graph(case: Case) -> None:
    """Captured once and replayed on new numbers."""
    first, second = (cuda_torch.tensors(Inputs(case, "float16", seed)) for seed in (0, 1))
    expected = [cuda_torch.bidirectional(given, case, "float16") for given in (first, second)]
    static = {name: tensor.clone() for name, tensor in first.items()}
    scratch = cuda_torch.allocate(64 << 20)
    y, graph = cuda_torch.output(case, "float16"), torch.cuda.CUDAGraph()
    arrays = [static[name] for name in cuda_torch.SCAN_NAMES]
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        stream = cuda_torch.stream()
        cuda.bidirectional_selective_scan(*arrays, out=y, stream=stream, allocate=lambda count: scratch[:count])
    for given, right in zip((first, second), expected, strict=True):
        for name, tensor in static.items():
            tensor.copy_(given[name])
        y.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(y, right)


def test_two_threads_at_once() -> None:
    """One kernel at two lengths, so with two amounts of shared memory: neither takes the other's away."""

    def run(length: int) -> None:
        case = Case(length, channels=384)
        with torch.cuda.stream(torch.cuda.Stream()):
            given = cuda_torch.tensors(Inputs(case, "float16"))
            expected = cuda_torch.bidirectional(given, case, "float16")
            for _ in range(300):
                assert torch.equal(cuda_torch.bidirectional(given, case, "float16"), expected)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, (125, 197)))


def test_a_thread_is_left_with_the_context_that_it_had(given: dict[str, Tensor]) -> None:
    """A new thread has none: the kernels run there all the same, and leave it without."""
    expected, y = cuda_torch.bidirectional(given, CASE, "float32"), cuda_torch.output(CASE, "float32")
    arrays, driver = [given[n] for n in cuda_torch.SCAN_NAMES], ctypes.CDLL("libcuda.so.1")
    torch.cuda.synchronize()

    def contexts() -> list[int | None]:
        seen = []
        for call in range(3):
            if call:
                cuda.bidirectional_selective_scan(*arrays, out=y)
            context = ctypes.c_void_p()
            assert driver.cuCtxGetCurrent(ctypes.byref(context)) == 0
            seen.append(context.value)
        return seen

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(contexts).result() == [None, None, None]
    torch.cuda.synchronize()
    assert torch.equal(y, expected)
    here, *after = contexts()
    assert here is not None
    assert after == [here, here]


class OnlyInterface:
    """A tensor through `__cuda_array_interface__` alone."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        interface: dict[str, Any] = self.tensor.__cuda_array_interface__
        return interface


class OnlyDlpack:
    """A tensor through DLPack alone."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, stream: int | None = None) -> Any:
        return self.tensor.__dlpack__(stream=stream)

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()


@pytest.mark.parametrize("wrap", [OnlyInterface, OnlyDlpack])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_array_protocols(wrap: Any, dtype: str) -> None:
    if wrap is OnlyInterface and dtype == "bfloat16":
        pytest.skip("__cuda_array_interface__ has no bfloat16")
    given = cuda_torch.tensors(Inputs(CASE, dtype))
    expected = cuda_torch.bidirectional(given, CASE, dtype)
    y = cuda_torch.output(CASE, dtype)
    torch.cuda.synchronize()
    stream = cuda_torch.stream()
    cuda.bidirectional_selective_scan(*(wrap(given[n]) for n in cuda_torch.SCAN_NAMES), out=wrap(y), stream=stream)
    assert torch.equal(y, expected)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_pytorch_inference_takes_the_kernels(given: dict[str, Tensor], dtype: str) -> None:
    """mscope.model.scan without gradients: the same numbers as its reference, to the storage type's rounding."""
    pytest.importorskip("pydantic")
    from mscope.model import scan

    typed = {n: t if n.startswith(("A", "D", "dt_bias")) else t.to(getattr(torch, dtype)) for n, t in given.items()}
    arrays = [typed[name] for name in cuda_torch.SCAN_NAMES]
    with torch.inference_mode():
        assert scan.implementation_for(typed["xz"]) == "cuda"
        got = scan.bidirectional_selective_scan(*arrays)
        convolved = scan.bidirectional_conv1d_silu(*(typed[n] for n in cuda_torch.CONV_NAMES))
        with scan.implementation("reference"):
            wide = [t.float() for t in arrays]
            expected = scan.bidirectional_selective_scan(*wide)
            plain = scan.bidirectional_conv1d_silu(*(typed[n].float() for n in cuda_torch.CONV_NAMES))
    # A few roundings of the storage type; of float32, of sums of numbers that are a hundred times the result.
    loose = {"float32": 1e-4, "float16": 2e-3, "bfloat16": 1.6e-2}[dtype]
    for ours, theirs in ((got, expected), (convolved, plain)):
        assert ours.dtype == getattr(torch, dtype)
        torch.testing.assert_close(ours.float(), theirs, rtol=loose, atol=loose)


def test_pytorch_training_does_not(given: dict[str, Tensor]) -> None:
    pytest.importorskip("pydantic")
    from mscope.model import scan

    assert scan.implementation_for(given["xz"]) != "cuda"
    with scan.implementation("cuda"), pytest.raises(BackendError, match="no backward pass"):
        scan.causal_conv1d_silu(given["x"], given["weight"], given["bias"])


def test_what_does_not_fit_is_refused(given: dict[str, Tensor]) -> None:
    def refused(match: str, **change: Any) -> None:
        with pytest.raises(InputError, match=match):
            cuda_torch.bidirectional({**given, **change}, CASE, "float32")

    refused("dbc has shape", dbc=given["dbc"][..., :-1])
    refused("A is torch.float64|A is float64", A=given["A"].double())
    refused("D_b is on cpu", D_b=given["D_b"].cpu())
    refused("dt_weight is float16: expected float32", dt_weight=given["dt_weight"].half())
    with pytest.raises(InputError, match="width of 2, 3 or 4"):
        cuda.causal_conv1d_silu(given["xz"], torch.zeros(48, 5, device="cuda"), given["bias"], out=given["x"])
    torch.cuda.synchronize()  # nothing was launched that could fail later


def test_scratch_memory_is_asked_for_where_it_is_needed() -> None:
    case = Case(3000, channels=24)
    given, y = cuda_torch.tensors(Inputs(case, "float32")), cuda_torch.output(case, "float32")
    with pytest.raises(InputError, match="bytes of scratch memory: pass `allocate`"):
        cuda.bidirectional_selective_scan(*(given[n] for n in cuda_torch.SCAN_NAMES), out=y, stream=cuda_torch.stream())


@pytest.mark.parametrize("gated", [True, False])
def test_mamba_ssm_s_functions_run_on_the_kernels(gated: bool) -> None:
    """Its layout, three groups: channels are slices of larger tensors, tokens are strided."""
    random = torch.Generator().manual_seed(7)
    shapes = {
        "u": (2, 48, 65),
        "delta": (2, 48, 65),
        "A": (48, 16),
        "B": (2, 3, 16, 65),
        "C": (2, 3, 16, 65),
        "D": (48,),
    }
    shapes |= {"z": (2, 48, 65)} if gated else {}
    exact = {name: torch.randn(shape, generator=random, dtype=torch.float64) for name, shape in shapes.items()}
    exact["A"] = -exact["A"].abs() - 0.1
    expected = mamba_ssm_interface.selective_scan_fn(**exact, delta_softplus=True)
    with torch.no_grad(), scan.implementation("cuda"):
        given = {name: value.float().cuda() for name, value in exact.items()}
        got = mamba_ssm_interface.selective_scan_fn(**given, delta_softplus=True)
    # Each token adds a few roundings of 2**-24, the state remembers some tens of them.
    assert float((got.double().cpu() - expected).abs().max()) <= 64 * 2.0**-24 * float(expected.abs().max())
