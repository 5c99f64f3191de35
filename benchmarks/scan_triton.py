"""One direction of the selective scan in Triton: what scan_gpu.py compares with where mamba-ssm cannot be had.

Written as such a kernel usually is: a program takes a block of channels with all their states through the sequence.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _scan(
    x, delta, A, B, C, D, z, bias, y, length, channels,
    x_row, delta_row, b_row, z_row,
    N: tl.constexpr, BLOCK: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, N)
    first = tl.program_id(1).to(tl.int64) * length
    real = c < channels
    a = tl.load(A + c[:, None] * N + n[None, :], mask=real[:, None], other=-1.0)
    skip = tl.load(D + c, mask=real, other=0.0)
    offset = tl.load(bias + c, mask=real, other=0.0)
    h = tl.zeros([BLOCK, N], dtype=tl.float32)
    for i in range(length):
        t = first + (length - 1 - i if REVERSE else i)
        u = tl.load(x + t * x_row + c, mask=real, other=0.0).to(tl.float32)
        d = tl.load(delta + t * delta_row + c, mask=real, other=0.0).to(tl.float32) + offset
        d = tl.maximum(d, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(d)))
        b = tl.load(B + t * b_row + n).to(tl.float32)
        e = tl.load(C + t * b_row + n).to(tl.float32)
        h = tl.exp(d[:, None] * a) * h + (d * u)[:, None] * b[None, :]
        out = tl.sum(h * e[None, :], axis=1) + skip * u
        g = tl.load(z + t * z_row + c, mask=real, other=0.0).to(tl.float32)
        tl.store(y + t * channels + c, (out * g / (1.0 + tl.exp(-g))).to(y.dtype.element_ty), mask=real)


def selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor, reverse: bool
) -> Tensor:
    """Op `SelectiveScan` of docs/ops.md; batches must follow each other at length * row."""
    batch, length, channels = x.shape
    y = torch.empty((batch, length, channels), dtype=x.dtype, device=x.device)
    block = 8
    _scan[(triton.cdiv(channels, block), batch)](
        x, delta, A, B, C, D, z, bias, y, length, channels, x.stride(1), delta.stride(1), B.stride(1), z.stride(1),
        N=A.shape[1], BLOCK=block, REVERSE=reverse, num_warps=1,
    )  # fmt: skip
    return y
