"""The code that nvcc makes of the CUDA kernels, run on the PTX machine: numbers, bounds, alignment, barriers, races.

The library's own host code chooses and launches the kernels (ptx_library.py), so that plans, launch sizes, shared
memory and parameters are what a device would get. MSCOPE_PTX_ARCHITECTURE picks another virtual architecture than 90,
whose code differs in details. docs/cuda.md says what this cannot see.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import cuda_torch
import op_cases
import ptx_library
from cuda_calls import FILTERS, SelectCall, check_resample
from mscope.core.cascade import select_regions
from mscope.core.errors import BackendError
from mscope.plugins import cuda, cuda_arrays
from op_cases import CASES, ROUNDING, Case, Inputs
from ptx.program import Instruction, PtxError
from ptx_library import H100, SINGLE, VAST, PtxDevice, template_of

pytestmark = pytest.mark.slow

ARCHITECTURE = os.environ.get("MSCOPE_PTX_ARCHITECTURE", "90")
DEVICES = {"h100": H100, "single": SINGLE, "vast": VAST}
# Of each kind one: a token, a whole chunk, several chunks, many states, a high rank, odd sizes, no images, hard steps.
FEW = [
    Case(1), Case(50), Case(197, channels=5), Case(33, states=40, batch=2), Case(33, rank=48, batch=2, channels=9),
    Case(20, width=2, spare=3), Case(10, batch=0), Case(64, delta_scale=1e4),
]  # fmt: skip
LONG = Case(1030, channels=2)
# Where each scan kernel is chosen: (lanes, states a lane, whether it only sums a segment up).
CHOSEN = {
    (16, 1, 0): ("h100", Case(50)),
    (4, 4, 0): ("single", Case(50, batch=2)),
    (4, 2, 0): ("single", Case(50, batch=2, states=8)),
    (4, 4, 1): ("vast", LONG),
    (4, 2, 1): ("vast", Case(1030, channels=2, states=8)),
}


class Bench:
    """A device whose kernels tests run through mscope.plugins.cuda, on torch's CPU tensors."""

    def __init__(self, library: ctypes.CDLL, patch: pytest.MonkeyPatch, device: str) -> None:
        self.device = PtxDevice(library, ARCHITECTURE, DEVICES[device])
        patch.setattr(cuda, "load", lambda: self.device.library)
        patch.setattr(cuda, "_device", lambda call: self.device.index)
        patch.setattr(cuda, "view", self.device.seen(cuda_arrays.view))
        patch.setattr(cuda_torch, "DEVICE", "cpu")
        patch.setattr(cuda_torch, "allocate", self._allocate)
        patch.setattr(torch.cuda, "current_stream", lambda device=None: SimpleNamespace(cuda_stream=0))
        for name in ("mscope_cuda_scan", "mscope_cuda_conv_silu", "mscope_cuda_scan_workspace"):
            getattr(library, name).argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
        library.mscope_cuda_message.restype = ctypes.c_char_p

    def _allocate(self, count: int) -> torch.Tensor:
        scratch = torch.full((count,), 0xFF, dtype=torch.uint8)
        self.device.machine.memory.allow("scratch", scratch.data_ptr(), count, writable=True)
        return scratch

    def check(self, case: Case, dtype: str) -> None:
        """Every op against float64."""
        self.strict(lambda: cuda_torch.check_every_op(case, dtype))

    def strict(self, call: Callable[[], Any]) -> Any:
        """What the machine objects to is the error."""
        try:
            return call()
        except BackendError:
            if self.device.error is not None:
                raise self.device.error from None
            raise


MakeBench = Callable[[str], Bench]


@pytest.fixture
def make_bench(over_fake_cudart: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeBench]:
    made: list[Bench] = []

    def make(device: str) -> Bench:
        made.append(Bench(over_fake_cudart, monkeypatch, device))
        return made[-1]

    yield make
    for bench in made:
        bench.device.close()


@pytest.fixture(params=["h100"])
def bench(request: pytest.FixtureRequest, make_bench: MakeBench) -> Bench:
    return make_bench(request.param)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case(bench: Bench, case: Case) -> None:
    bench.check(case, "float32")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_types(bench: Bench, dtype: str) -> None:
    for case in FEW:
        if not (dtype == "float16" and case.delta_scale > 1e3):  # beyond the largest float16
            bench.check(case, dtype)


@pytest.mark.parametrize("bench", ["single"], indirect=True)
def test_one_multiprocessor(bench: Bench) -> None:
    """It takes the dense layouts, and chunks."""
    for case in FEW:
        bench.check(case, "float32")


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("kernel", CHOSEN, ids=str)
def test_each_kernel(make_bench: MakeBench, kernel: tuple[int, int, int], dtype: str) -> None:
    device, case = CHOSEN[kernel]
    bench, inputs = make_bench(device), Inputs(case, dtype)
    y = bench.strict(lambda: cuda_torch.bidirectional(cuda_torch.tensors(inputs), case, dtype))
    worst = op_cases.bidirectional(inputs).worst(cuda_torch.download(y), dtype)
    assert worst < cuda_torch.tolerance(case)
    assert kernel in map(template_of, bench.device.launches)


def test_that_is_every_kernel_of_the_library(over_fake_cudart: ctypes.CDLL) -> None:
    names = set(ptx_library.functions(ARCHITECTURE))
    assert names == {name for name in over_fake_cudart.fake_kernels().decode().split() if "mscope" in name}
    scans = [template_of(name) for name in names if "scan_kernel" in name]
    assert sorted(scans) == sorted([*CHOSEN] * len(ROUNDING))
    others = [name for name in names if "scan_kernel" not in name]
    assert all(re.search("conv_kernel|resample_kernel|select_kernel", name) for name in others), others


def test_the_size_of_vim_ti(bench: Bench) -> None:
    """One launch a block of the coarse pass, with the shared memory that it has on an H100."""
    bench.check(Case(50, channels=384), "float16")


@pytest.mark.parametrize("regions", [1, 49, 300])
def test_selection(bench: Bench, regions: int) -> None:
    draw = np.random.default_rng(regions)
    for count in sorted({0, regions // 2, regions}):
        importance = draw.normal(size=(2, regions)).round(1).astype(np.float32)
        call = SelectCall(draw.normal(size=(2, 700)), importance, count, 0.5)
        bench.device.allow_arrays(call)
        call.run(bench.device)
        selected, remaining = select_regions(importance, count)
        np.testing.assert_array_equal(call.selected, selected)
        np.testing.assert_array_equal(call.remaining, remaining)


def test_the_condition_of_a_branch(bench: Bench) -> None:
    for threshold, goes_on in ((0.0, 0), (2.0, 1)):
        call = SelectCall(np.zeros((1, 3)), np.zeros((1, 4)), 2, threshold, condition=0x5EED)
        bench.device.allow_arrays(call)
        call.run(bench.device)
        assert bench.device.machine.conditions.pop(0x5EED) == goes_on == call.goes_on[0]


@pytest.mark.parametrize("interpolation", FILTERS)
def test_resampling(bench: Bench, interpolation: str) -> None:
    draw = np.random.default_rng(0)
    for rows, columns, channels, shape in (
        (1, 1, 3, (9, 7)),
        (61, 83, 3, (24, 20)),
        (500, 3, 3, (16, 5)),
        (40, 30, 1, (48, 64)),
    ):
        pixels = draw.integers(0, 256, (rows, columns, channels), dtype=np.uint8)
        box = (0.0, 0.0, float(columns), float(rows))
        check_resample(bench.device, pixels, box, shape, interpolation, prepare=bench.device.allow_arrays)


@pytest.mark.parametrize("device", ["h100", "single"])
def test_each_barrier_is_needed(make_bench: MakeBench, device: str) -> None:
    """Without any one of them the machine finds the race: so it would find one that was forgotten."""
    bench, case = make_bench(device), Case(50 if device == "h100" else 200, channels=5)
    given = cuda_torch.tensors(Inputs(case, "float32"))

    def run() -> None:
        bench.strict(lambda: cuda_torch.bidirectional(given, case, "float32"))

    run()
    removed = 0
    for name in sorted(set(bench.device.launches)):
        function = bench.device.machine.functions[name]
        code = list(function.code)
        bench.device.machine.functions[name] = replace(function, code=code)  # the original is everybody's
        for at in np.flatnonzero(bench.device.machine.reached[name]):
            if code[at].name[0] != "bar":
                continue
            barrier, code[at] = code[at], Instruction(("mov", "u32"), ("_", "0"), text="no barrier")
            with pytest.raises(PtxError, match="race"):
                run()
            code[at], bench.device.error = barrier, None
            removed += 1
    assert removed >= 3


def test_a_launch_with_more_shared_memory_than_a_device_has_is_refused(bench: Bench) -> None:
    with pytest.raises(BackendError, match="shared memory than a block can have"):
        bench.check(Case(16, states=3000, rank=12, channels=1), "float32")


def test_reads_past_an_array_are_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of x are said to be fewer than the kernel is told."""
    seen = cuda.view

    def shorter(array: Any, name: str = "an array") -> Any:
        found = seen(array, name)
        if name == "x":
            bench.device.machine.memory.allow(name, found.pointer, 4 * 39, writable=False)
        return found

    monkeypatch.setattr(cuda, "view", shorter)
    with pytest.raises(PtxError, match="which no allocation holds"):
        bench.check(Case(40, channels=6), "float32")
