"""The CUDA kernels (mscope.plugins.cuda) on torch tensors, for inference: they have no backward pass.

mscope.model.scan chooses when to come here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mscope.plugins import cuda

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def fits(x: Tensor) -> bool:
    """Whether the kernels can take tensors like `x` here and now: on a device that they run on, without autograd."""
    if not x.is_cuda or x.dtype not in _DTYPES or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return cuda.available(x.device.index)


def why_not(x: Tensor) -> str:
    """What keeps `fits` from being True; "" where it is."""
    if not x.is_cuda or x.dtype not in _DTYPES:
        return f"they take float32, float16 and bfloat16 on a CUDA device, got {x.dtype} on {x.device}"
    if torch.is_grad_enabled():
        return "they have no backward pass: run under torch.no_grad() or torch.inference_mode()"
    if torch.compiler.is_compiling():
        return "torch.compile cannot trace them"
    return cuda.why_missing(x.device.index)


def selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None, delta_bias: Tensor | None,
    reverse: bool, delta_softplus: bool = True,
) -> Tensor:  # fmt: skip
    """Op `SelectiveScan`; arguments as in scan.selective_scan. What is not of x's dtype is converted."""
    y = x.new_empty(x.shape)
    cuda.selective_scan(
        _rows(x, x), _rows(delta, x), _dense(A), _rows(B, x), _rows(C, x), _dense(D),
        None if z is None else _rows(z, x), None if delta_bias is None else _dense(delta_bias),
        out=y, reverse=reverse, delta_softplus=delta_softplus, stream=_stream(x),
        allocate=lambda count: _bytes(x, count),
    )  # fmt: skip
    return y


def causal_conv1d_silu(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
    """One direction of op `CausalConv1dSiLU`; arguments as in scan.causal_conv1d_silu."""
    y = x.new_empty(x.shape)
    taps, offset, out = _dense(weight, x.dtype), _dense(bias, x.dtype), y.flatten(0, 1)[None]
    if reverse:
        cuda.causal_conv1d_silu(_rows(x, x), weight_b=taps, bias_b=offset, out=out, stream=_stream(x))
    else:
        cuda.causal_conv1d_silu(_rows(x, x), taps, offset, out=out, stream=_stream(x))
    return y


def bidirectional_conv1d_silu(xz: Tensor, weight: Tensor, bias: Tensor, weight_b: Tensor, bias_b: Tensor) -> Tensor:
    """Both directions of op `CausalConv1dSiLU` in one launch; arguments as in scan.bidirectional_conv1d_silu."""
    y = xz.new_empty(2, xz.shape[0] * xz.shape[1], weight.shape[0])
    cuda.causal_conv1d_silu(
        _rows(xz, xz), _dense(weight, xz.dtype), _dense(bias, xz.dtype), _dense(weight_b, xz.dtype),
        _dense(bias_b, xz.dtype), out=y, stream=_stream(xz),
    )  # fmt: skip
    return y


def bidirectional_selective_scan(
    xz: Tensor, x: Tensor, dbc: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor,
    dt_weight_b: Tensor, dt_bias_b: Tensor, A_b: Tensor, D_b: Tensor,
) -> Tensor:  # fmt: skip
    """Op `BidirectionalSelectiveScan` in one launch; arguments as in scan.bidirectional_selective_scan."""
    y = x.new_empty(*xz.shape[:2], x.shape[2])
    cuda.bidirectional_selective_scan(
        _rows(xz, y), _rows(x, y), _rows(dbc, y),
        _dense(dt_weight, y.dtype), _dense(dt_bias), _dense(A), _dense(D),
        _dense(dt_weight_b, y.dtype), _dense(dt_bias_b), _dense(A_b), _dense(D_b),
        out=y, stream=_stream(y), allocate=lambda count: _bytes(y, count),
    )  # fmt: skip
    return y


def _rows(tensor: Tensor, like: Tensor) -> Tensor:
    tensor = tensor.to(like.dtype)
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _dense(tensor: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return tensor.detach().to(dtype).contiguous()


def _stream(tensor: Tensor) -> int:
    return int(torch.cuda.current_stream(tensor.device).cuda_stream)


def _bytes(like: Tensor, count: int) -> Tensor:
    return torch.empty(count, dtype=torch.uint8, device=like.device)
