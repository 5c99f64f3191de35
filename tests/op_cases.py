"""The cases that every implementation of the ops is held to: ONNX Runtime, TensorRT plugin, CUDA, and its host run.

Inputs are drawn, rounded to the storage type, and handed as float64 to tests/oracle.py, so that what is compared is the
kernel's arithmetic alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import oracle

Array = npt.NDArray[Any]

#: Largest relative error of storing a number: half a unit in the last place; and of a number near zero.
ROUNDING = {"float32": (2.0**-24, 2.0**-150), "float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 2.0**-134)}


@dataclass(frozen=True)
class Case:
    """Sizes of one scan; `delta_scale` multiplies what goes into softplus, `spare` pads a row of x, z, B, C."""

    length: int
    channels: int = 7
    states: int = 16
    rank: int = 12
    batch: int = 1
    width: int = 4
    delta_scale: float = 1.0
    spare: int = 0

    def __str__(self) -> str:
        text = f"B{self.batch}-L{self.length}-C{self.channels}-N{self.states}-R{self.rank}-W{self.width}"
        return (
            text + (f"-x{self.delta_scale:g}" if self.delta_scale != 1 else "") + (f"+{self.spare}" * bool(self.spare))
        )


CASES = [
    *(Case(length) for length in (1, 2, 15, 16, 17, 33, 50, 125, 197, 300)),
    *(Case(50, channels=channels) for channels in (1, 8, 33)),
    *(Case(33, states=states, batch=2) for states in (1, 3, 4, 8, 17, 40)),
    *(Case(33, rank=rank, batch=3, channels=9) for rank in (1, 4, 24, 48)),
    *(Case(20, width=width, batch=2) for width in (2, 3)),
    Case(10, batch=0),
    Case(64, delta_scale=1e4),
    Case(64, delta_scale=1e-6),
    Case(50, batch=2, spare=3),
    Case(50, batch=2, spare=4),
]


def to_storage(values: npt.ArrayLike, dtype: str) -> Array:
    """Rounds to the storage type; bfloat16 comes as uint16 words, as numpy has no such type."""
    wide = np.asarray(values, np.float32)
    if dtype != "bfloat16":
        return wide.astype(dtype)
    words = np.ascontiguousarray(wide).view(np.uint32).astype(np.uint64)
    rounded = (words + 0x7FFF + (words >> 16 & 1)) >> 16
    return np.where(np.isnan(wide), 0x7FC0, rounded).astype(np.uint16)


def to_float(stored: Array) -> Array:
    """Undoes `to_storage`, in float64."""
    if stored.dtype == np.uint16:
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # numpy minds some bit patterns of NaN
        return stored.astype(np.float64)


class Inputs:
    """Random arrays of every op in one storage type, by the names of docs/ops.md."""

    def __init__(self, case: Case, dtype: str, seed: int = 0) -> None:
        self.case, self.dtype = case, dtype
        draw = np.random.default_rng([seed, case.length, case.channels, case.states, case.rank, case.batch])
        tokens, channels, states = (case.batch, case.length), case.channels, case.states
        self.stored: dict[str, Array] = {}

        def rows(name: str, size: int, scale: float = 1.0, leading: tuple[int, ...] = tokens) -> None:
            values = draw.standard_normal((*leading, size + case.spare)) * scale
            values[..., size:] = np.nan  # whoever reads past a row shows it
            self.stored[name] = to_storage(values, dtype)[..., :size]

        rows("xz", 2 * channels)
        rows("x", channels)
        rows("z", channels)
        rows("delta", channels, case.delta_scale)
        rows("B", states)
        rows("C", states)
        both = (2, case.batch * case.length)  # forward, backward
        rows("x_both", channels, leading=both)
        rows("dbc", case.rank + 2 * states, leading=both)
        for suffix in ("", "_b"):
            taps = draw.uniform(-1, 1, (channels, case.width)) * case.width**-0.5
            self.stored[f"weight{suffix}"] = to_storage(taps, dtype)
            self.stored[f"bias{suffix}"] = to_storage(draw.uniform(-1, 1, channels), dtype)
            bound = case.delta_scale * case.rank**-0.5
            self.stored[f"dt_weight{suffix}"] = to_storage(draw.uniform(-bound, bound, (channels, case.rank)), dtype)
            # softplus of these is 0.001 to 1, as the models start.
            self.stored[f"dt_bias{suffix}"] = draw.uniform(-7, 0.5, channels).astype(np.float32)
            self.stored[f"A{suffix}"] = -np.exp(draw.uniform(-1, np.log(states + 1), (channels, states))).astype(
                np.float32
            )
            self.stored[f"D{suffix}"] = draw.standard_normal(channels).astype(np.float32)
        # Last, so that the arrays above do not depend on it.
        product = draw.standard_normal((2, channels, case.rank + 2 * states)) * channels**-0.5
        self.stored["x_proj_weight"] = to_storage(product, dtype)

    def wide(self, name: str) -> Array:
        return to_float(self.stored[name])

    def directions(self, name: str) -> Array:
        """x_both or dbc in float64 as (2, B, L, ...)."""
        both = self.wide(name)
        return both.reshape(2, self.case.batch, self.case.length, both.shape[2])


@dataclass(frozen=True)
class Expected:
    """An op's result in float64, and for each number the size of what was summed up for it, which errors scale with."""

    value: Array
    scale: Array

    def worst(self, got: Array, dtype: str) -> float:
        """The largest error, in float32 roundings of what was summed, once the output's own rounding is allowed for."""
        if got.size == 0:
            return 0.0
        relative, absolute = ROUNDING[dtype]
        result = to_float(got)
        if dtype == "float16":  # what float16 cannot hold becomes infinite, as it must
            result = np.where(np.isinf(result) & (np.abs(self.value) > 65500), self.value, result)
        error = np.abs(result - self.value) - (relative * np.abs(self.value) + absolute)
        worst = float((error / (2.0**-24 * self.scale + 1e-37)).max())
        return worst if np.isfinite(worst) else np.inf


def conv(inputs: Inputs, directions: int = 2) -> Expected:
    """CausalConv1dSiLU on the first C channels of xz: (directions, B L, C)."""
    parts = [_conv(inputs, suffix) for suffix in ("", "_b")[:directions]]
    rows = (directions, inputs.case.batch * inputs.case.length, inputs.case.channels)
    return Expected(*(np.stack([getattr(p, name) for p in parts]).reshape(rows) for name in ("value", "scale")))


def _conv(inputs: Inputs, suffix: str) -> Expected:
    x = inputs.wide("xz")[..., : inputs.case.channels]
    weight, bias = inputs.wide(f"weight{suffix}"), inputs.wide(f"bias{suffix}")
    value = oracle.causal_conv1d_silu(x, weight, bias, reverse=suffix == "_b")
    # |SiLU'| is at most 1.1, so errors of the sum carry over.
    length, width = inputs.case.length, inputs.case.width
    scale = np.abs(bias) + np.zeros_like(x)
    for j in range(width):
        reach = (width - 1 - j) * (-1 if suffix == "_b" else 1)
        for t in range(length):
            if 0 <= t - reach < length:
                scale[:, t] += np.abs(weight[:, j] * x[:, t - reach])
    return Expected(value, 1.1 * scale)


def scan(inputs: Inputs, reverse: bool, gated: bool, softplus: bool = True, biased: bool = True) -> Expected:
    """SelectiveScan with and without its options."""
    arrays = [inputs.wide(name) for name in ("x", "delta", "A", "B", "C", "D")]
    z = inputs.wide("z") if gated else None
    bias = inputs.wide("dt_bias") if biased else None
    return _scan(arrays, z, bias, reverse, softplus)


def bidirectional(inputs: Inputs) -> Expected:
    """BidirectionalSelectiveScan."""
    rank, states = inputs.case.rank, inputs.case.states
    z = inputs.wide("xz")[..., inputs.case.channels :]
    halves = []
    for x, dbc, suffix in zip(inputs.directions("x_both"), inputs.directions("dbc"), ("", "_b"), strict=True):
        dt, B, C = np.split(dbc, [rank, rank + states], axis=-1)
        weight = inputs.wide(f"dt_weight{suffix}")
        arrays = [x, dt @ weight.T, inputs.wide(f"A{suffix}"), B, C, inputs.wide(f"D{suffix}")]
        halves.append(
            _scan(arrays, z, inputs.wide(f"dt_bias{suffix}"), suffix == "_b", True, np.abs(dt) @ np.abs(weight.T))
        )
    names = ["xz", "x_both", "dbc"]
    names += [f"{name}{suffix}" for suffix in ("", "_b") for name in ("dt_weight", "dt_bias", "A", "D")]
    value = oracle.bidirectional_selective_scan(*(inputs.wide(name) for name in names))
    return Expected(value, (halves[0].scale + halves[1].scale) / 2)


def mixer(inputs: Inputs) -> Expected:
    """VimMixer. What it sums: x is as large as the terms of its convolution, dt, B and C as those of their product."""
    rank, states = inputs.case.rank, inputs.case.states
    z = inputs.wide("xz")[..., inputs.case.channels :]
    halves = []
    for weight, suffix in zip(inputs.wide("x_proj_weight"), ("", "_b"), strict=True):
        x = _conv(inputs, suffix)
        dt, B, C = np.split(x.value @ weight, [rank, rank + states], axis=-1)
        sizes = np.split(x.scale @ np.abs(weight), [rank, rank + states], axis=-1)
        dt_weight = inputs.wide(f"dt_weight{suffix}")
        arrays = [x.value, dt @ dt_weight.T, inputs.wide(f"A{suffix}"), B, C, inputs.wide(f"D{suffix}")]
        summed = (x.scale, sizes[1], sizes[2])
        bias, reverse = inputs.wide(f"dt_bias{suffix}"), suffix == "_b"
        halves.append(_scan(arrays, z, bias, reverse, True, sizes[0] @ np.abs(dt_weight.T), summed))
    return Expected(*((getattr(halves[0], name) + getattr(halves[1], name)) / 2 for name in ("value", "scale")))


def _scan(
    arrays: list[Array],
    z: Array | None,
    bias: Array | None,
    reverse: bool,
    softplus: bool,
    summed: Array | None = None,
    sizes: tuple[Array, Array, Array] | None = None,
) -> Expected:
    """`summed`: the size of what delta is a sum of, `sizes`: of what x, B and C are; their magnitudes without."""
    x, delta, A, B, C, D = arrays
    x_size, B_size, C_size = (np.abs(array) for array in (x, B, C)) if sizes is None else sizes
    value = oracle.selective_scan(x, delta, A, B, C, D, z, bias, reverse, softplus)
    # The same sums of absolute values; and as a step size off by a fraction moves its term and the decay by as much,
    # the condition of the step (|delta| + |bias| against softplus of their sum) counts where it is worse than one.
    total = delta + (0.0 if bias is None else bias)
    size = np.abs(delta if summed is None else summed) + (0.0 if bias is None else np.abs(bias))
    if softplus:
        # softplus' / softplus is at most 1 for negative totals and 1 / total for large ones.
        condition = 1.0 + (size / np.maximum(1.0, np.abs(total))).max(initial=0.0)
    else:
        condition = 1.0 + float((size / np.maximum(np.abs(total), 1e-30)).max(initial=0.0))
    scale = oracle.selective_scan(x_size, delta, A, B_size, C_size, np.abs(D), None, bias, reverse, softplus)
    if z is not None:
        scale = scale * np.abs(oracle.silu(z))
    return Expected(value, condition * np.abs(scale))
