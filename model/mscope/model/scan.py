"""The three operations of a Vim block's mixer, each with its implementations, chosen by device and dtype.

docs/ops.md is the contract; the ONNX ops and the native kernels have the same arguments. Here they are differentiable
functions of torch tensors. `reference` is a plain loop, exact in float64; `native` is the project's C++ (float32 on the
CPU, forward and backward); `cuda` is the project's CUDA kernels (inference only); `mamba-ssm` is that package's one.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mscope.core.errors import BackendError
from mscope.model import cuda, native

Implementation = Literal["auto", "reference", "native", "cuda", "mamba-ssm"]
_forced: Implementation = "auto"


@contextlib.contextmanager
def implementation(name: Implementation) -> Iterator[None]:
    """Within the block every scan runs on the named implementation, or fails; `auto` picks the fastest that fits."""
    global _forced
    previous, _forced = _forced, name
    try:
        yield
    finally:
        _forced = previous


@functools.cache
def mamba_ssm_available() -> bool:
    """Whether mamba-ssm and its CUDA kernel can be imported."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # noqa: F401
    except (ImportError, OSError):
        return False
    return torch.cuda.is_available()


def implementation_for(x: Tensor) -> Implementation:
    """The implementation that `selective_scan` takes for a tensor like `x`. Raises BackendError for a forced misfit."""
    native_fits = x.device.type == "cpu" and x.dtype == torch.float32
    cuda_fits = x.is_cuda and x.dtype != torch.float64
    if _forced == "native" and not (native_fits and native.available()):
        raise BackendError(f"the native kernel takes float32 on the CPU, got {x.dtype} on {x.device}")
    if _forced == "cuda" and not cuda.fits(x):
        raise BackendError(f"the CUDA kernels cannot be used: {cuda.why_not(x)}")
    if _forced == "mamba-ssm" and not (cuda_fits and mamba_ssm_available()):
        raise BackendError("mamba-ssm is not installed, or the tensor is not on a CUDA device: pip install mamba-ssm")
    if _forced != "auto":
        return _forced
    if native_fits and native.available():
        return "native"
    if cuda.fits(x):
        return "cuda"
    if cuda_fits and mamba_ssm_available():
        return "mamba-ssm"
    return "reference"


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    reverse: bool = False,
    delta_softplus: bool = True,
) -> Tensor:
    """The selective state-space recurrence of one direction (op `SelectiveScan`).

    Args:
        x: (B, L, C) the sequence, after conv and SiLU.
        delta: (B, L, C) before bias and softplus.
        A: (C, N) negative.
        B: (B, L, N) input matrix.
        C: (B, L, N) output matrix.
        D: (C,) skip.
        z: (B, L, C) gate, applied as SiLU(z); None for no gate.
        delta_bias: (C,) added to delta once, inside the softplus.
        reverse: run from the last token to the first; the output keeps the original order.
        delta_softplus: False: delta plus bias is the step as it is.

    Returns:
        (B, L, C) in x's dtype. float64 input is computed in float64, all other input in float32.
    """
    if torch.compiler.is_exporting():
        from mscope.model import torch_ops

        if z is None and delta_bias is not None:
            # Added here: TensorRT refuses a node that leaves out an input before its last one.
            delta, delta_bias = delta + delta_bias, None
        return torch_ops.selective_scan(x, delta, A, B, C, D, z, delta_bias, reverse, delta_softplus)
    chosen = implementation_for(x)
    if chosen == "native":
        return native.selective_scan(x, delta, A, B, C, D, z, delta_bias, reverse, delta_softplus)
    if chosen == "cuda":
        return cuda.selective_scan(x, delta, A, B, C, D, z, delta_bias, reverse, delta_softplus)
    if chosen == "mamba-ssm":
        return _mamba_ssm_scan(x, delta, A, B, C, D, z, delta_bias, reverse, delta_softplus)
    return _reference_scan(x, delta, A, B, C, D, z, delta_bias, reverse, delta_softplus)


def causal_conv1d_silu(x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool = False) -> Tensor:
    """SiLU of the depthwise causal convolution (op `CausalConv1dSiLU`, one direction).

    Args:
        x: (B, L, C).
        weight: (C, W) taps as in PyTorch's Conv1d(groups=C); the last one meets the current token.
        bias: (C,).
        reverse: anti-causal: the convolution of the reversed sequence, output in the original order.

    Returns:
        (B, L, C).
    """
    chosen = implementation_for(x)
    if chosen == "native":
        return native.causal_conv1d_silu(x, weight, bias, reverse)
    if chosen == "cuda":
        return cuda.causal_conv1d_silu(x, weight, bias, reverse)
    width, length = weight.shape[1], x.shape[1]
    taps = weight.flip(1) if reverse else weight
    padded = F.pad(x, (0, 0, 0, width - 1) if reverse else (0, 0, width - 1, 0))
    total = bias + sum(padded[:, j : j + length] * taps[:, j] for j in range(width))
    return F.silu(total)


def bidirectional_conv1d_silu(xz: Tensor, weight: Tensor, bias: Tensor, weight_b: Tensor, bias_b: Tensor) -> Tensor:
    """Op `CausalConv1dSiLU`, both directions.

    Args:
        xz: (B, L, C + Cz); x is its first C channels.
        weight: (C, W); bias: (C,); the two with `_b` belong to the backward (anti-causal) direction.

    Returns:
        (2, B * L, C): forward, backward, each in the original token order.
    """
    if torch.compiler.is_exporting():
        from mscope.model import torch_ops

        return torch_ops.causal_conv1d_silu(xz, weight, bias, weight_b, bias_b)
    if implementation_for(xz) == "cuda":
        return cuda.bidirectional_conv1d_silu(xz, weight, bias, weight_b, bias_b)
    x = xz[..., : weight.shape[0]]
    directions = causal_conv1d_silu(x, weight, bias), causal_conv1d_silu(x, weight_b, bias_b, reverse=True)
    return torch.stack(directions).flatten(1, 2)


def bidirectional_selective_scan(
    xz: Tensor,
    x: Tensor,
    dbc: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    dt_weight_b: Tensor,
    dt_bias_b: Tensor,
    A_b: Tensor,
    D_b: Tensor,
) -> Tensor:
    """Everything between x_proj and out_proj of a Vim block (op `BidirectionalSelectiveScan`).

    Args:
        xz: (B, L, 2C); its last C channels are the gate z.
        x: (2, B * L, C) after conv and SiLU: forward, backward, each in the original token order.
        dbc: (2, B * L, R + 2N): dt, B, C of each direction's x_proj.
        dt_weight: (C, R); dt_bias: (C,); A: (C, N); D: (C,); the four with `_b` belong to the backward direction.

    Returns:
        (B, L, C): the mean of both directions, each gated by SiLU(z).
    """
    if torch.compiler.is_exporting():
        from mscope.model import torch_ops

        return torch_ops.bidirectional_selective_scan(
            xz, x, dbc, dt_weight, dt_bias, A, D, dt_weight_b, dt_bias_b, A_b, D_b
        )
    if implementation_for(xz) == "cuda":
        return cuda.bidirectional_selective_scan(xz, x, dbc, dt_weight, dt_bias, A, D, dt_weight_b, dt_bias_b, A_b, D_b)
    (x_forward, x_backward), (dbc_forward, dbc_backward) = directions_of(x, xz), directions_of(dbc, xz)
    z = xz[..., x.shape[-1] :]
    forward = direction(x_forward, dbc_forward, dt_weight, dt_bias, A, D, z)
    backward = direction(x_backward, dbc_backward, dt_weight_b, dt_bias_b, A_b, D_b, z, reverse=True)
    return (forward + backward) / 2


def directions_of(both: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """The forward and the backward half of (2, B * L, C), each as (B, L, C) with B and L of `like`."""
    forward, backward = both.unflatten(1, like.shape[:2]).unbind(0)
    return forward, backward


def split_dbc(dbc: Tensor, dt_rank: int, d_state: int) -> tuple[Tensor, Tensor, Tensor]:
    """dt (..., R), B (..., N) and C (..., N) of what x_proj gives, (..., R + 2N)."""
    # Slices: torch's split becomes a sequence of tensors in ONNX, which few engines have.
    return dbc[..., :dt_rank], dbc[..., dt_rank : dt_rank + d_state], dbc[..., dt_rank + d_state :]


def direction(
    x: Tensor, dbc: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, z: Tensor | None,
    *, reverse: bool = False,
) -> Tensor:  # fmt: skip
    """One direction from x_proj's output: delta = dt @ dt_weight^T, then the scan. Shapes as above; (B, L, C)."""
    dt, B, C = split_dbc(dbc, dt_weight.shape[1], A.shape[1])
    return selective_scan(x, F.linear(dt, dt_weight), A, B, C, D, z, dt_bias, reverse=reverse)


def _reference_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None,
    delta_bias: Tensor | None, reverse: bool, delta_softplus: bool,
) -> Tensor:  # fmt: skip
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    source = x.dtype
    x, delta, A, B, C, D = (t.to(dtype) for t in (x, delta, A, B, C, D))
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)
    if delta_softplus:
        # F.softplus switches to the identity at 20, which costs 2e-9; logaddexp is exact everywhere.
        delta = torch.logaddexp(delta, torch.zeros((), dtype=dtype, device=x.device))
    dx = delta * x
    length = x.shape[1]
    state = x.new_zeros(x.shape[0], x.shape[2], A.shape[1])
    outputs: list[Tensor] = [state.sum(-1)] * length
    for t in reversed(range(length)) if reverse else range(length):
        state = torch.exp(delta[:, t, :, None] * A) * state + dx[:, t, :, None] * B[:, t, None, :]
        outputs[t] = torch.einsum("bcn,bn->bc", state, C[:, t])
    y = torch.stack(outputs, dim=1) + D * x
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(source)


def _mamba_ssm_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None,
    delta_bias: Tensor | None, reverse: bool, delta_softplus: bool,
) -> Tensor:  # fmt: skip
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def channels_first(tensor: Tensor) -> Tensor:
        return (tensor.flip(1) if reverse else tensor).transpose(1, 2).contiguous()

    y = selective_scan_fn(
        channels_first(x),
        channels_first(delta.to(x.dtype)),
        A.float(),
        channels_first(B.to(x.dtype)),
        channels_first(C.to(x.dtype)),
        D.float(),
        z=None if z is None else channels_first(z.to(x.dtype)),
        delta_bias=None if delta_bias is None else delta_bias.float(),
        delta_softplus=delta_softplus,
    ).transpose(1, 2)
    return y.flip(1) if reverse else y
