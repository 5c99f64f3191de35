"""mscope.plugins.cuda and mscope.model.cuda, with the kernels' host run in place of the device library.

So tests/gpu's own functions run here too, on a few cases: a mistake in them shows before a GPU is there.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import cuda_host
import cuda_torch
import op_cases as cases
from mscope.core.errors import BackendError, InputError
from mscope.plugins import cuda
from mscope.plugins.cuda_arrays import view
from op_cases import ROUNDING, Case, Inputs

CASE = Case(40, channels=6, batch=2)


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    if cuda_host.compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    monkeypatch.setattr(cuda, "load", cuda_host.HostLibrary)
    monkeypatch.setattr(cuda, "_device", lambda call: 0)
    monkeypatch.setattr(cuda_torch, "DEVICE", "cpu")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: SimpleNamespace(cuda_stream=0))


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("case", [CASE, Case(20, width=3, spare=4), Case(5, batch=0), Case(1030, channels=2)], ids=str)
def test_every_op_through_python(case: Case, dtype: str) -> None:
    cuda_torch.check_every_op(case, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_model_adapter(dtype: str) -> None:
    """mscope.model.cuda has the arguments of mscope.model.scan, and converts what is not of x's dtype."""
    from mscope.model import cuda as adapter
    from mscope.model import scan

    given = cuda_torch.tensors(Inputs(CASE, dtype))
    given["dt_weight"] = given["dt_weight"].double()
    given["A"] = given["A"].t().contiguous().t()
    wide = {name: tensor.float() for name, tensor in given.items()}
    # A few roundings of the storage type; of float32, of sums of numbers that are a hundred times the result.
    loose = {"float32": 1e-4, "float16": 2e-3, "bfloat16": 1.6e-2}[dtype]

    def close(got: Any, expected: Any) -> None:
        assert got.dtype == given["x"].dtype
        torch.testing.assert_close(got.float(), expected, rtol=loose, atol=loose)

    with torch.no_grad(), scan.implementation("reference"):
        names = cuda_torch.SCAN_NAMES
        close(
            adapter.bidirectional_selective_scan(*(given[n] for n in names)),
            scan.bidirectional_selective_scan(*(wide[n] for n in names)),
        )
        got = adapter.bidirectional_conv1d_silu(*(given[n] for n in cuda_torch.CONV_NAMES))
        expected = scan.bidirectional_conv1d_silu(*(wide[n] for n in cuda_torch.CONV_NAMES))
        close(got, expected)
        for reverse in (False, True):
            x, weight, bias = "x", "weight", "bias"
            close(
                adapter.causal_conv1d_silu(given[x], given[weight], given[bias], reverse),
                scan.causal_conv1d_silu(wide[x], wide[weight], wide[bias], reverse=reverse),
            )
            arrays = ("x", "delta", "A", "B", "C", "D", "z", "dt_bias")
            close(
                adapter.selective_scan(*(given[n] for n in arrays), reverse),
                scan.selective_scan(*(wide[n] for n in arrays), reverse=reverse),
            )


def test_host_tensors_and_gradients_stay_away() -> None:
    from mscope.model import cuda as adapter
    from mscope.model import scan

    x = torch.zeros(1, 2, 3)
    assert not adapter.fits(x)
    assert "on a CUDA device, got torch.float32 on cpu" in adapter.why_not(x)
    with scan.implementation("cuda"), pytest.raises(BackendError, match="the CUDA kernels cannot be used"):
        scan.implementation_for(x)


def test_a_failed_launch_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_host.HostLibrary, "mscope_cuda_scan", lambda *_: 700)
    given = cuda_torch.tensors(Inputs(CASE, "float32"))
    with pytest.raises(BackendError, match=r"was not launched \(700\): status 700"):
        cuda_torch.bidirectional(given, CASE, "float32")


def test_scratch_memory_is_asked_for() -> None:
    case = Case(1030, channels=2)
    given, y = cuda_torch.tensors(Inputs(case, "float32")), cuda_torch.output(case, "float32")
    with pytest.raises(InputError, match="bytes of scratch memory"):
        cuda.bidirectional_selective_scan(*(given[n] for n in cuda_torch.SCAN_NAMES), out=y)


class Interface:
    """An array with `__cuda_array_interface__` alone."""

    def __init__(self, array: Any, **change: Any) -> None:
        self.__cuda_array_interface__ = {**array.__array_interface__, **change}


class Dlpack:
    """An array with DLPack alone."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, stream: int | None = None) -> Any:
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


def test_views_of_every_protocol() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)[:, 1:, :3]
    for wrapped in (Interface(array), Dlpack(array), Dlpack(torch.from_numpy(array)), torch.from_numpy(array)):
        seen = view(wrapped)
        assert (seen.pointer, seen.shape, seen.strides, seen.dtype) == (
            array.ctypes.data,
            (2, 2, 3),
            (12, 4, 1),
            "float32",
        )
    dense = np.zeros((2, 3, 4), np.float16)
    assert view(Interface(dense, strides=None)).strides == (12, 4, 1)
    assert view(Dlpack(torch.zeros(2, dtype=torch.bfloat16))).dtype == "bfloat16"
    with pytest.raises(InputError, match="x has typestr <i4: expected one of <f4"):
        view(Interface(np.zeros(3, np.int32)), "x")
    with pytest.raises(InputError, match="x has DLPack type code 0 of 32 bits"):
        view(Dlpack(np.zeros(3, np.int32)), "x")
    with pytest.raises(InputError, match="x is a list: expected a torch tensor or an array with"):
        view([1.0], "x")


def test_an_output_that_shares_memory_is_refused() -> None:
    """The kernels read their inputs through a cache that does not see what is written meanwhile."""
    given = cuda_torch.tensors(Inputs(CASE, "float32"))
    batch, length, channels = CASE.batch, CASE.length, CASE.channels
    scanned = [given[name] for name in ("x", "delta", "A", "B", "C", "D", "z")]
    both = [given[name] for name in cuda_torch.SCAN_NAMES]
    for shared, message in (
        (given["x"], "y shares memory with x: give it memory of its own"),
        (given["z"], "y shares memory with z"),
        (torch.zeros(1, length, channels).expand(batch, -1, -1), "each of its elements needs memory of its own"),
    ):
        with pytest.raises(InputError, match=message):
            cuda.selective_scan(*scanned, out=shared)
    inside = given["x_both"].view(-1)[channels:][: batch * length * channels].view(batch, length, channels)
    with pytest.raises(InputError, match="y shares memory with x"):
        cuda.bidirectional_selective_scan(*both, out=inside)
    with pytest.raises(InputError, match="y shares memory with xz"):
        cuda.bidirectional_selective_scan(*both, out=given["xz"][..., channels:])
    # Rows may run backwards, as in CuPy: the first is the last in memory.
    x, *others = (tensor.numpy() for tensor in scanned)
    memory = np.zeros((batch + 1, length, channels), np.float32)
    backwards, apart = memory[:batch, ::-1], np.zeros_like(x)
    backwards[:] = x
    with pytest.raises(InputError, match="y shares memory with x"):
        cuda.selective_scan(*map(Interface, (backwards, *others)), out=Interface(memory[1:]))
    cuda.selective_scan(*map(Interface, (backwards, *others)), out=Interface(apart))
    expected = torch.zeros_like(given["x"])
    cuda.selective_scan(*scanned, out=expected)
    np.testing.assert_array_equal(apart, expected.numpy())
    wide = torch.zeros(1, batch * length, 2 * channels)
    taps = {"weight": given["weight"], "bias": given["bias"]}
    with pytest.raises(InputError, match="y shares memory with xz"):
        cuda.causal_conv1d_silu(wide.view(batch, length, -1), **taps, out=wide[..., :channels])
    # Between each other's rows: the half of xz that this op does not read.
    expected = cuda_torch.bidirectional(given, CASE, "float32")
    cuda.bidirectional_selective_scan(*both, out=given["xz"][..., :channels])
    assert torch.equal(given["xz"][..., :channels], expected)


def test_elements_that_lie_between_two_addresses_are_refused() -> None:
    """A device's load of one faults, and no call works in the process after that."""
    given = cuda_torch.tensors(Inputs(CASE, "float32"))
    names = ("x", "delta", "A", "B", "C", "D")
    odd = np.zeros(given["x"].numel() * 4 + 4, np.uint8)[2:-2].view(np.float32).reshape(given["x"].shape)
    y = cuda_torch.output(CASE, "float32")
    with pytest.raises(InputError, match=r"x begins at address 0x\w+, between two elements"):
        cuda.selective_scan(Interface(odd), *(Interface(given[n].numpy()) for n in names[1:]), out=Interface(y.numpy()))
    packed = np.zeros((2, 3, 4), [("value", np.float32), ("mark", np.uint8)])["value"]
    with pytest.raises(InputError, match=r"x has strides of \(60, 20, 5\) bytes, no multiples of its elements' 4"):
        view(Interface(packed, strides=packed.strides), "x")


def test_results_do_not_depend_on_where_rows_lie() -> None:
    """Rows that cannot be read four elements at a time give the same bits."""
    given = cuda_torch.tensors(Inputs(CASE, "float32"))
    expected = cuda_torch.bidirectional(given, CASE, "float32")
    for name in ("xz", "x_both", "dbc"):
        wide = torch.full((*given[name].shape[:2], given[name].shape[2] + 3), float("nan"))
        wide[..., 1:-2] = given[name]
        given[name] = wide[..., 1:-2]
    assert torch.equal(cuda_torch.bidirectional(given, CASE, "float32"), expected)
    assert cases.bidirectional(Inputs(CASE, "float32")).worst(expected.numpy(), "float32") < 4
