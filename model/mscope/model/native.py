"""Autograd around the native training kernels (mscope.plugins.cpu): float32 tensors on the CPU.

mscope.model.scan chooses when to come here. As many threads are used as torch is set to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mscope.plugins import cpu


def available() -> bool:
    """Whether the native kernels are built; mscope.plugins.cpu.why_missing() says what is the matter otherwise."""
    return cpu.available()


def selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None = None,
    delta_bias: Tensor | None = None, reverse: bool = False, delta_softplus: bool = True,
) -> Tensor:  # fmt: skip
    """Op `SelectiveScan`, differentiable. All float32 on the CPU.

    Args:
        x, delta, z: (B, L, C); A: (C, N), negative; B, C: (B, L, N); D, delta_bias: (C,). Slices of a wider tensor
            along the last axis are read in place.
        reverse: run from the last token to the first; the output keeps the original order.
        delta_softplus: False: delta plus bias is the step as it is.

    Returns:
        (B, L, C), contiguous.
    """
    arguments = (x, delta, A, B, C, D, z, delta_bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments):
        differentiable: Any = SelectiveScan  # torch leaves `apply` untyped
        return differentiable.apply(*arguments, reverse, delta_softplus)
    return _scan_forward(*_scan_inputs(*arguments), reverse=reverse, delta_softplus=delta_softplus)


def causal_conv1d_silu(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool = False) -> Tensor:
    """One direction of op `CausalConv1dSiLU`, differentiable. All float32 on the CPU.

    Args:
        x: (B, L, C), read in place where it is a slice of a wider tensor along the last axis.
        weight: (C, W), the last tap meets the current token. bias: (C,).
        reverse: anti-causal; the output keeps the original order.

    Returns:
        (B, L, C), contiguous.
    """
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or bias.requires_grad):
        differentiable: Any = CausalConv1dSiLU
        return differentiable.apply(x, weight, bias, reverse)
    return _conv_forward(*_conv_inputs(x, weight, bias), reverse=reverse)


class SelectiveScan(torch.autograd.Function):
    """`selective_scan` with its gradient; states are recomputed by the backward pass, so only the inputs are kept."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, ctx.reverse, ctx.delta_softplus = arguments
        inputs = _scan_inputs(*tensors)
        ctx.save_for_backward(*inputs)
        return _scan_forward(*inputs, reverse=ctx.reverse, delta_softplus=ctx.delta_softplus)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        grad_y = grads[0].contiguous()
        results = [None if t is None else torch.empty(t.shape, dtype=torch.float32) for t in inputs]
        addresses = [None if t is None else t.data_ptr() for t in results]
        scan = _scan(*inputs, reverse=ctx.reverse, delta_softplus=ctx.delta_softplus)
        cpu.scan_backward(scan, cpu.ScanGrads(grad_y.data_ptr(), *addresses), torch.get_num_threads())
        return (*results, None, None)


class CausalConv1dSiLU(torch.autograd.Function):
    """`causal_conv1d_silu` with its gradient; only the inputs are kept."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, ctx.reverse = arguments
        inputs = _conv_inputs(*tensors)
        ctx.save_for_backward(*inputs)
        return _conv_forward(*inputs, reverse=ctx.reverse)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        grad_y = grads[0].contiguous()
        results = [torch.empty(t.shape, dtype=torch.float32) for t in inputs]
        addresses = [t.data_ptr() for t in results]
        cpu.conv_backward(
            _conv(*inputs, reverse=ctx.reverse), cpu.ConvGrads(grad_y.data_ptr(), *addresses), torch.get_num_threads()
        )
        return (*results, None)


def _scan_inputs(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None, delta_bias: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The arguments as the kernel reads them. Shapes are checked here: beyond are only addresses."""
    (batch, length, channels), states = x.shape, A.shape[1]
    sequence, matrix = (batch, length, channels), (batch, length, states)
    return (
        _rows("x", x, sequence),
        _rows("delta", delta, sequence),
        _packed("A", A, (channels, states)),
        _rows("B", B, matrix),
        _rows("C", C, matrix),
        _packed("D", D, (channels,)),
        None if z is None else _rows("z", z, sequence),
        None if delta_bias is None else _packed("delta_bias", delta_bias, (channels,)),
    )


def _scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None, delta_bias: Tensor | None,
    *, reverse: bool, delta_softplus: bool,
) -> cpu.Scan:  # fmt: skip
    return cpu.Scan(
        x.data_ptr(), delta.data_ptr(), A.data_ptr(), B.data_ptr(), C.data_ptr(), D.data_ptr(),
        None if z is None else z.data_ptr(), None if delta_bias is None else delta_bias.data_ptr(),
        _stride(x), _stride(delta), _stride(B), _stride(C), 0 if z is None else _stride(z),
        *x.shape, A.shape[1], int(reverse), int(delta_softplus),
    )  # fmt: skip


def _scan_forward(*inputs: Any, reverse: bool, delta_softplus: bool) -> Tensor:
    y = torch.empty(inputs[0].shape, dtype=torch.float32)
    scan = _scan(*inputs, reverse=reverse, delta_softplus=delta_softplus)
    cpu.scan_forward(scan, y.data_ptr(), torch.get_num_threads())
    return y


def _conv_inputs(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    (batch, length, channels), width = x.shape, weight.shape[1]
    return (
        _rows("x", x, (batch, length, channels)),
        _packed("weight", weight, (channels, width)),
        _packed("bias", bias, (channels,)),
    )


def _conv(x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool) -> cpu.Conv:
    return cpu.Conv(
        x.data_ptr(), weight.data_ptr(), bias.data_ptr(), _stride(x), *x.shape, weight.shape[1], int(reverse), 0
    )


def _conv_forward(x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool) -> Tensor:
    y = torch.empty(x.shape, dtype=torch.float32)
    cpu.conv_forward(_conv(x, weight, bias, reverse=reverse), y.data_ptr(), torch.get_num_threads())
    return y


def _rows(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The (B, L, C) tensor, or a contiguous copy where the kernel cannot read it in place."""
    _expect(name, tensor, shape)
    if cpu.row_stride(tensor.shape, tensor.stride()) is not None:
        return tensor
    return tensor.contiguous()


def _packed(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    _expect(name, tensor, shape)
    return tensor.contiguous()


def _stride(rows: Tensor) -> int:
    # None: contiguous() may return a tensor whose axes of size 1 keep odd strides.
    return cpu.row_stride(rows.shape, rows.stride()) or rows.shape[2]


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
        raise TypeError(f"{name} is {tensor.dtype} on {tensor.device}; the native kernel takes float32 on the CPU")
