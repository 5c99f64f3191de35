"""The ops of docs/ops.md in float64 numpy, written from the formulas: what every implementation is compared to.

Slow and plain on purpose, and independent of torch and of mscope, so that no implementation is compared to itself.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def softplus(v: Array) -> Array:
    """log(1 + exp(v)), without overflow."""
    return np.logaddexp(v, 0.0)


def silu(v: Array) -> Array:
    """v * sigmoid(v); exp is taken of -|v| only, so that it cannot overflow."""
    u = np.exp(-np.abs(v))
    return v * np.where(v >= 0, 1.0, u) / (1.0 + u)


def selective_scan(
    x: npt.ArrayLike,
    delta: npt.ArrayLike,
    A: npt.ArrayLike,
    B: npt.ArrayLike,
    C: npt.ArrayLike,
    D: npt.ArrayLike,
    z: npt.ArrayLike | None = None,
    delta_bias: npt.ArrayLike | None = None,
    reverse: bool = False,
    delta_softplus: bool = True,
) -> Array:
    """Op `SelectiveScan`: x, delta, z (B, L, C); A (C, N); B, C (B, L, N); D, delta_bias (C,). Returns (B, L, C)."""
    x, delta, A, B, C, D = (np.asarray(a, np.float64) for a in (x, delta, A, B, C, D))
    d = delta if delta_bias is None else delta + np.asarray(delta_bias, np.float64)
    if delta_softplus:
        d = softplus(d)
    batch, length, channels = x.shape
    h = np.zeros((batch, channels, A.shape[1]))
    y = np.zeros_like(x)
    for t in reversed(range(length)) if reverse else range(length):
        h = np.exp(d[:, t, :, None] * A) * h + (d[:, t] * x[:, t])[:, :, None] * B[:, t, None, :]
        y[:, t] = (h * C[:, t, None, :]).sum(-1) + D * x[:, t]
    return y if z is None else y * silu(np.asarray(z, np.float64))


def causal_conv1d_silu(x: npt.ArrayLike, weight: npt.ArrayLike, bias: npt.ArrayLike, reverse: bool = False) -> Array:
    """One direction of op `CausalConv1dSiLU`: x (B, L, C), weight (C, W), bias (C,). Returns (B, L, C)."""
    x, weight, bias = (np.asarray(a, np.float64) for a in (x, weight, bias))
    if reverse:
        return causal_conv1d_silu(x[:, ::-1], weight, bias)[:, ::-1]
    length, width = x.shape[1], weight.shape[1]
    y = np.zeros_like(x) + bias
    for t in range(length):
        for j in range(width):
            if (source := t - (width - 1) + j) >= 0:
                y[:, t] += weight[:, j] * x[:, source]
    return silu(y)


def bidirectional_selective_scan(
    xz: npt.ArrayLike,
    x: npt.ArrayLike,
    dbc: npt.ArrayLike,
    dt_weight: npt.ArrayLike,
    dt_bias: npt.ArrayLike,
    A: npt.ArrayLike,
    D: npt.ArrayLike,
    dt_weight_b: npt.ArrayLike,
    dt_bias_b: npt.ArrayLike,
    A_b: npt.ArrayLike,
    D_b: npt.ArrayLike,
) -> Array:
    """Op `BidirectionalSelectiveScan`: xz (B, L, 2C), x (2, B L, C), dbc (2, B L, R + 2N). Returns (B, L, C)."""
    z = np.asarray(xz, np.float64)[..., np.shape(x)[-1] :]
    x_forward, x_backward = np.reshape(x, (2, *z.shape))
    dbc_forward, dbc_backward = np.reshape(dbc, (2, *z.shape[:2], np.shape(dbc)[-1]))

    def direction(
        x: npt.ArrayLike,
        dbc: npt.ArrayLike,
        dt_weight: npt.ArrayLike,
        dt_bias: npt.ArrayLike,
        A: npt.ArrayLike,
        D: npt.ArrayLike,
        reverse: bool,
    ) -> Array:
        rank, states = np.shape(dt_weight)[1], np.shape(A)[1]
        dt, B, C = np.split(np.asarray(dbc, np.float64), [rank, rank + states], axis=-1)
        delta = dt @ np.asarray(dt_weight, np.float64).T
        return selective_scan(x, delta, A, B, C, D, z, dt_bias, reverse)

    forward = direction(x_forward, dbc_forward, dt_weight, dt_bias, A, D, False)
    backward = direction(x_backward, dbc_backward, dt_weight_b, dt_bias_b, A_b, D_b, True)
    return (forward + backward) / 2
