"""mamba-ssm's functions over this project's op, same names, same arguments: for models written against that package.

Vim, VMamba, MambaVision and Mamba call `selective_scan_fn` or one of the `mamba_inner_fn` of
`mamba_ssm.ops.selective_scan_interface`, which are CUDA and cannot be exported. These run on any device and become one
`SelectiveScan` node a scan in an exported graph. docs/own-models.md says how to put them in a model's way.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mscope.core.errors import InputError
from mscope.model import scan


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool | None = False,
) -> Tensor:
    """The selective scan in mamba-ssm's layout, channels before tokens.

    Args:
        u: (B, C, L) the sequence.
        delta: (B, C, L).
        A: (C, N) real.
        B: (B, N, L), or (B, G, N, L) for G groups of C / G neighbouring channels: each group becomes a node of its own.
        C: as B.
        D: (C,) skip; None for none.
        z: (B, C, L) gate; None for none.
        delta_bias: (C,); None for none.
        delta_softplus: whether delta and its bias go through softplus.
        return_last_state: must be false.

    Returns:
        (B, C, L) in u's dtype.

    Raises:
        InputError: what the op has not: complex A, B or C that do not depend on the input, the last state.
    """
    if return_last_state:
        raise InputError("selective_scan_fn: return_last_state=True, but the op SelectiveScan gives no last state")
    if A.is_complex():
        raise InputError("selective_scan_fn: A is complex, the op SelectiveScan takes a real one")
    for name, matrix in (("B", B), ("C", C)):
        if matrix.ndim not in (3, 4) or matrix.ndim != B.ndim:
            raise InputError(
                f"selective_scan_fn: {name} has shape {tuple(matrix.shape)}, the op SelectiveScan takes (B, N, L), or "
                "(B, G, N, L) for both B and C"
            )
    channels = u.shape[1]
    groups = 1 if B.ndim == 3 else B.shape[1]
    if groups < 1 or channels % groups:
        raise InputError(f"selective_scan_fn: {channels} channels are not {groups} groups of the same size")
    D = A.new_zeros(channels) if D is None else D
    if z is not None and delta_bias is None:
        # One form for all gated scans of a graph, whose function body has the optional inputs of one.
        delta_bias = A.new_zeros(channels)
    B, C = B.reshape(-1, groups, *B.shape[-2:]), C.reshape(-1, groups, *C.shape[-2:])
    size = channels // groups
    outputs = []
    for group in range(groups):
        part = slice(group * size, (group + 1) * size)
        y = scan.selective_scan(
            u[:, part].transpose(1, 2),
            delta[:, part].transpose(1, 2),
            A[part],
            B[:, group].transpose(1, 2),
            C[:, group].transpose(1, 2),
            D[part],
            None if z is None else z[:, part].transpose(1, 2),
            None if delta_bias is None else delta_bias[part],
            delta_softplus=delta_softplus,
        )
        outputs.append(y.transpose(1, 2))
    return outputs[0] if groups == 1 else torch.cat(outputs, dim=1)


def mamba_inner_fn(
    xz: Tensor, conv1d_weight: Tensor, conv1d_bias: Tensor | None, x_proj_weight: Tensor, delta_proj_weight: Tensor,
    out_proj_weight: Tensor, out_proj_bias: Tensor | None, A: Tensor, B: None = None, C: None = None,
    D: Tensor | None = None, delta_bias: Tensor | None = None, B_proj_bias: None = None, C_proj_bias: None = None,
    delta_softplus: bool = True, **others: object,
) -> Tensor:  # fmt: skip
    """Everything between in_proj and the block's output: `mamba_inner_fn_no_out_proj`, then the projection.

    Args:
        xz: (B, 2C, L).
        out_proj_weight: (D, C); out_proj_bias: (D,) or None. The rest as of `mamba_inner_fn_no_out_proj`.

    Returns:
        (B, L, D).
    """
    y = mamba_inner_fn_no_out_proj(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, D, delta_bias, B_proj_bias,
        C_proj_bias, delta_softplus, **others,
    )  # fmt: skip
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


def mamba_inner_fn_no_out_proj(
    xz: Tensor, conv1d_weight: Tensor, conv1d_bias: Tensor | None, x_proj_weight: Tensor, delta_proj_weight: Tensor,
    A: Tensor, B: None = None, C: None = None, D: Tensor | None = None, delta_bias: Tensor | None = None,
    B_proj_bias: None = None, C_proj_bias: None = None, delta_softplus: bool = True, **others: object,
) -> Tensor:  # fmt: skip
    """Convolution, x_proj, dt_proj and scan of one direction (Vim calls it once a direction).

    Args:
        xz: (B, 2C, L): x, then the gate z.
        conv1d_weight: (C, 1, W); conv1d_bias: (C,) or None.
        x_proj_weight: (R + 2N, C).
        delta_proj_weight: (C, R).
        A: (C, N).
        D: (C,) or None; delta_bias: (C,) or None.
        delta_softplus: as of `selective_scan_fn`.

    Returns:
        (B, C, L).

    Raises:
        InputError: B, C or their biases given, or norms of B, C and delta: no model that this is for has them.
    """
    x, delta, matrix_B, matrix_C, z = _projected(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A,
        others | {"B": B, "C": C, "B_proj_bias": B_proj_bias, "C_proj_bias": C_proj_bias},
    )  # fmt: skip
    return selective_scan_fn(x, delta, A, matrix_B, matrix_C, D, z, delta_bias, delta_softplus)


def bimamba_inner_fn(
    xz: Tensor, conv1d_weight: Tensor, conv1d_bias: Tensor | None, x_proj_weight: Tensor, delta_proj_weight: Tensor,
    out_proj_weight: Tensor, out_proj_bias: Tensor | None, A: Tensor, A_b: Tensor, B: None = None, C: None = None,
    D: Tensor | None = None, delta_bias: Tensor | None = None, B_proj_bias: None = None, C_proj_bias: None = None,
    delta_softplus: bool = True, **others: object,
) -> Tensor:  # fmt: skip
    """Vim's first bidirectional block (`bimamba_type="v1"`): both directions over the same x, delta, B and C.

    Args:
        A_b: (C, N) of the backward direction. The rest as of `mamba_inner_fn`.

    Returns:
        (B, L, D): the sum of both directions, projected.
    """
    x, delta, matrix_B, matrix_C, z = _projected(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A,
        others | {"B": B, "C": C, "B_proj_bias": B_proj_bias, "C_proj_bias": C_proj_bias},
    )  # fmt: skip
    forward = selective_scan_fn(x, delta, A, matrix_B, matrix_C, D, z, delta_bias, delta_softplus)
    turned = (tensor.flip([-1]) for tensor in (x, delta, matrix_B, matrix_C, z))
    x, delta, matrix_B, matrix_C, z = turned
    backward = selective_scan_fn(x, delta, A_b, matrix_B, matrix_C, D, z, delta_bias, delta_softplus).flip([-1])
    return F.linear((forward + backward).transpose(1, 2), out_proj_weight, out_proj_bias)


def _projected(
    xz: Tensor, conv1d_weight: Tensor, conv1d_bias: Tensor | None, x_proj_weight: Tensor, delta_proj_weight: Tensor,
    A: Tensor, unused: dict[str, object],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """x (B, C, L) after conv and SiLU, delta (B, C, L), B and C (B, N, L) and the gate z (B, C, L)."""
    unused = {name: value for name, value in unused.items() if name not in ("checkpoint_lvl", "b_c_dt_rms_eps")}
    given = [name for name, value in unused.items() if value is not None]
    if given:
        raise InputError(f"mamba_inner_fn: {', '.join(given)} is given, which only mamba-ssm's own kernels take")
    x, z = xz.chunk(2, dim=1)
    length, width = xz.shape[-1], conv1d_weight.shape[-1]
    x = F.silu(F.conv1d(x, conv1d_weight, conv1d_bias, padding=width - 1, groups=x.shape[1])[..., :length])
    projected = F.linear(x.transpose(1, 2), x_proj_weight)
    dt, B, C = scan.split_dbc(projected, delta_proj_weight.shape[1], A.shape[1])
    delta = F.linear(dt, delta_proj_weight)
    return x, delta.transpose(1, 2), B.transpose(1, 2), C.transpose(1, 2), z
