"""Runs the cases of op_cases.py through mscope.plugins.cuda on torch tensors; for tests/gpu."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import op_cases as cases
from mscope.plugins import cuda
from op_cases import Case, Inputs

DEVICE = "cuda:0"
SCAN_NAMES = ("xz", "x_both", "dbc")
SCAN_NAMES += tuple(f"{name}{suffix}" for suffix in ("", "_b") for name in ("dt_weight", "dt_bias", "A", "D"))
CONV_NAMES = ("xz", "weight", "bias", "weight_b", "bias_b")


def tolerance(case: Case) -> float:
    """Roundings of what was summed that a result may be off by: every token's decay adds up to two, and so does delta.

    The device's exp2 is off by up to two units in the last place (CUDA C++ Programming Guide), and the state remembers
    as many tokens as there are, or about 3000 with the smallest steps drawn. Wrong indices are off by millions.
    """
    return 8.0 + 2.0 * min(case.length, 4096)


def upload(stored: Any) -> Tensor:
    """A copy on the device; a row that is part of a longer one in memory stays that."""
    if not stored.flags.c_contiguous and stored.base is not None:
        return upload(stored.base)[..., : stored.shape[-1]]
    if stored.dtype == np.uint16:
        return torch.from_numpy(stored.view(np.int16).copy()).view(torch.bfloat16).to(DEVICE)
    return torch.from_numpy(stored.copy()).to(DEVICE)


def download(tensor: Tensor) -> Any:
    """The storage form of op_cases.to_storage."""
    host = tensor.detach().cpu().contiguous()
    return host.view(torch.int16).numpy().view(np.uint16) if host.dtype == torch.bfloat16 else host.numpy()


def tensors(inputs: Inputs) -> dict[str, Tensor]:
    return {name: upload(stored) for name, stored in inputs.stored.items()}


def output(case: Case, dtype: str) -> Tensor:
    """NaN to be overwritten."""
    return torch.full(
        (case.batch, case.length, case.channels), float("nan"), dtype=getattr(torch, dtype), device=DEVICE
    )


def allocate(count: int) -> Tensor:
    return torch.full(
        (count,), 0xFF, dtype=torch.uint8, device=DEVICE
    )  # NaN in every word: scratch must be written first


def stream() -> int:
    return int(torch.cuda.current_stream(DEVICE).cuda_stream)


def bidirectional(given: dict[str, Tensor], case: Case, dtype: str) -> Tensor:
    y = output(case, dtype)
    cuda.bidirectional_selective_scan(*(given[n] for n in SCAN_NAMES), out=y, stream=stream(), allocate=allocate)
    return y


def scan(given: dict[str, Tensor], case: Case, dtype: str, *, reverse: bool, gated: bool) -> Tensor:
    y = output(case, dtype)
    cuda.selective_scan(
        *(given[n] for n in ("x", "delta", "A", "B", "C", "D")), given["z"] if gated else None, given["dt_bias"],
        out=y, reverse=reverse, stream=stream(), allocate=allocate,
    )  # fmt: skip
    return y


def conv(given: dict[str, Tensor], case: Case, dtype: str) -> Tensor:
    y = torch.stack([output(case, dtype)] * 2).flatten(1, 2)
    cuda.causal_conv1d_silu(*(given[n] for n in CONV_NAMES), out=y, stream=stream())
    return y


def check_every_op(case: Case, dtype: str) -> None:
    """Holds all three ops to float64; names the op that is off and by how much."""
    inputs = Inputs(case, dtype)
    given, limit = tensors(inputs), tolerance(case)
    results = {
        "BidirectionalSelectiveScan": (cases.bidirectional(inputs), bidirectional(given, case, dtype)),
        "SelectiveScan": (cases.scan(inputs, False, True), scan(given, case, dtype, reverse=False, gated=True)),
        "SelectiveScan, reverse": (
            cases.scan(inputs, True, False),
            scan(given, case, dtype, reverse=True, gated=False),
        ),
        "CausalConv1dSiLU": (cases.conv(inputs), conv(given, case, dtype)),
    }
    for name, (expected, got) in results.items():
        worst = expected.worst(download(got), dtype)
        assert worst < limit, f"{name} on {case}, {dtype}: off by {worst:.3g} roundings, {limit:g} allowed"
