"""The contract's ops as torch custom operators: what `torch.export` sees, one node an op, instead of their insides.

They are for export alone (no gradients): eager code calls mscope.model.scan, which comes here while exporting.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mscope.model import scan


@torch.library.custom_op("mambascope::causal_conv1d_silu", mutates_args=())
def causal_conv1d_silu(xz: Tensor, weight: Tensor, bias: Tensor, weight_b: Tensor, bias_b: Tensor) -> Tensor:
    """Op `CausalConv1dSiLU`, both directions; shapes as in mscope.model.scan.bidirectional_conv1d_silu."""
    return scan.bidirectional_conv1d_silu(xz, weight, bias, weight_b, bias_b)


@causal_conv1d_silu.register_fake
def _(xz: Tensor, weight: Tensor, bias: Tensor, weight_b: Tensor, bias_b: Tensor) -> Tensor:
    return xz.new_empty(2, xz.shape[0] * xz.shape[1], weight.shape[0])


@torch.library.custom_op("mambascope::bidirectional_selective_scan", mutates_args=())
def bidirectional_selective_scan(
    xz: Tensor, x: Tensor, dbc: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor,
    dt_weight_b: Tensor, dt_bias_b: Tensor, A_b: Tensor, D_b: Tensor,
) -> Tensor:  # fmt: skip
    """Op `BidirectionalSelectiveScan`; shapes as in mscope.model.scan.bidirectional_selective_scan."""
    return scan.bidirectional_selective_scan(xz, x, dbc, dt_weight, dt_bias, A, D, dt_weight_b, dt_bias_b, A_b, D_b)


@bidirectional_selective_scan.register_fake
def _(xz: Tensor, x: Tensor, *others: Tensor) -> Tensor:
    return xz.new_empty(*xz.shape[:2], x.shape[2])


@torch.library.custom_op("mambascope::selective_scan", mutates_args=())
def selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None, delta_bias: Tensor | None,
    reverse: bool, delta_softplus: bool,
) -> Tensor:  # fmt: skip
    """Op `SelectiveScan`; shapes as in mscope.model.scan.selective_scan."""
    return scan.selective_scan(x, delta, A, B, C, D, z, delta_bias, reverse=reverse, delta_softplus=delta_softplus)


@selective_scan.register_fake
def _(x: Tensor, *others: Tensor | bool | None) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
