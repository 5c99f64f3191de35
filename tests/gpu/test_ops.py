"""The CUDA kernels on the device against float64: the case table, the models' sizes, long sequences."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

import cuda_torch
import op_cases as cases
from op_cases import CASES, ROUNDING, Case, Inputs

pytestmark = pytest.mark.gpu

MODELS = {"ti": (384, 12), "s": (768, 24), "b": (1536, 48)}


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_case_table(case: Case, dtype: str) -> None:
    cuda_torch.check_every_op(case, dtype)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("length", [50, 125, 197])
@pytest.mark.parametrize("size", MODELS)
def test_models(size: str, length: int, dtype: str) -> None:
    channels, rank = MODELS[size]
    cuda_torch.check_every_op(Case(length, channels=channels, rank=rank), dtype)


@pytest.mark.parametrize("batch, channels", [(8, 384), (64, 384), (300, 40)])
def test_batches(batch: int, channels: int) -> None:
    """Enough blocks for the dense layout with 16 and 32 channels a block."""
    cuda_torch.check_every_op(Case(50, channels=channels, batch=batch), "float16")


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(
    "case", [Case(1024, channels=24), Case(5000, channels=9, states=24), Case(16384, channels=16)], ids=str
)
def test_long_sequences(case: Case, dtype: str) -> None:
    """Cut into segments, with states carried over their edges."""
    cuda_torch.check_every_op(case, dtype)


def test_long_sequences_that_fill_the_device() -> None:
    """No segments: chunk after chunk, with the stash."""
    cuda_torch.check_every_op(Case(1100, channels=384, batch=16, rank=4, states=8), "bfloat16")


def test_nan_reaches_what_depends_on_it_and_nothing_else() -> None:
    case = Case(100, channels=20, batch=2)
    inputs = Inputs(case, "float32")
    inputs.stored["x_both"][0, 160, 7] = float("nan")
    got = cuda_torch.bidirectional(cuda_torch.tensors(inputs), case, "float32").isnan()
    expected = torch.zeros_like(got)
    expected[1, 60:, 7] = True
    assert torch.equal(got, expected)


@pytest.mark.parametrize("case", [Case(197, channels=384), Case(2000, channels=40, batch=3)], ids=str)
def test_the_same_bits_every_time(case: Case) -> None:
    """A missing barrier would show here sooner or later; no result depends on the order of blocks."""
    given = cuda_torch.tensors(Inputs(case, "float16"))
    first = cuda_torch.bidirectional(given, case, "float16")
    for _ in range(50):
        assert torch.equal(first, cuda_torch.bidirectional(given, case, "float16"))


def test_views_are_read_in_place() -> None:
    """xz and dbc as the projections leave them, inside wider tensors, at an odd offset."""
    case = Case(60, channels=12, batch=2)
    inputs = Inputs(case, "float32")
    given = cuda_torch.tensors(inputs)
    expected = cuda_torch.bidirectional(given, case, "float32")
    for name in ("xz", "x_both", "dbc"):
        tensor = given[name]
        wide = torch.full((*tensor.shape[:2], tensor.shape[2] + 3), float("nan"), device=tensor.device)
        wide[..., 1:-2] = tensor
        given[name] = wide[..., 1:-2]
        assert given[name].data_ptr() % 16 != 0
    # The scalar path reads other widths but sums in the same order.
    assert torch.equal(cuda_torch.bidirectional(given, case, "float32"), expected)
    assert cases.bidirectional(inputs).worst(cuda_torch.download(expected), "float32") < cuda_torch.tolerance(case)
