"""mamba-ssm's functions over our op: against its definition, written out in float64, in its layout."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import own_models
from mscope.core.errors import InputError
from mscope.model import mamba_ssm_interface as interface


def by_definition(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool,
) -> Tensor:  # fmt: skip
    """The recurrence of Mamba (section 3, algorithm 2) a token at a time; B and C are (B, G, N, L)."""
    channels = u.shape[1]
    step = delta if delta_bias is None else delta + delta_bias[:, None]
    if delta_softplus:
        step = torch.logaddexp(step, torch.zeros_like(step))
    B, C = (matrix.repeat_interleave(channels // matrix.shape[1], dim=1) for matrix in (B, C))
    h = u.new_zeros(len(u), channels, A.shape[1])
    y = torch.empty_like(u)
    for t in range(u.shape[2]):
        h = torch.exp(step[:, :, t, None] * A) * h + (step[:, :, t] * u[:, :, t])[..., None] * B[..., t]
        y[:, :, t] = (h * C[..., t]).sum(-1)
    y = y if D is None else y + D[:, None] * u
    return y if z is None else y * F.silu(z)


def operands(batch: int, length: int, groups: int, channels: int = 12, states: int = 5) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(batch + 10 * length + groups)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    return {
        "u": normal(batch, channels, length), "delta": normal(batch, channels, length),
        "A": -normal(channels, states).abs() - 0.1, "B": normal(batch, groups, states, length),
        "C": normal(batch, groups, states, length), "D": normal(channels), "z": normal(batch, channels, length),
        "delta_bias": normal(channels),
    }  # fmt: skip


@pytest.mark.parametrize(
    "without", [(), ("z",), ("D",), ("delta_bias",), ("z", "delta_bias"), ("D", "z", "delta_bias")]
)
@pytest.mark.parametrize("delta_softplus", [True, False])
@pytest.mark.parametrize(("batch", "length", "groups"), [(2, 9, 1), (1, 1, 4), (3, 33, 3), (0, 5, 2)])
def test_a_scan_is_the_recurrence(
    batch: int, length: int, groups: int, delta_softplus: bool, without: tuple[str, ...]
) -> None:
    given: dict[str, Any] = operands(batch, length, groups) | dict.fromkeys(without)
    if not delta_softplus:
        # A step that is not positive lets the state grow without end.
        given |= {name: given[name].abs() / 10 for name in ("delta", "delta_bias") if given[name] is not None}
    expected = by_definition(**given, delta_softplus=delta_softplus)
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    double = interface.selective_scan_fn(**given, delta_softplus=delta_softplus)
    assert (double.shape, double.dtype) == (given["u"].shape, torch.float64)
    torch.testing.assert_close(double, expected, rtol=0, atol=1e-13 * scale)
    # Each token adds a few roundings of 2**-24, the state remembers some tens of them.
    single = {name: value if value is None else value.float() for name, value in given.items()}
    got = interface.selective_scan_fn(**single, delta_softplus=delta_softplus)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=64 * 2.0**-24 * scale)


def test_it_can_be_differentiated() -> None:
    exact: dict[str, Any] = {name: value.requires_grad_() for name, value in operands(2, 9, 3).items()}
    weights = torch.linspace(-1, 1, exact["u"].numel(), dtype=torch.float64).reshape(exact["u"].shape)
    expected = torch.autograd.grad((by_definition(**exact, delta_softplus=True) * weights).sum(), exact.values())
    for dtype, roundings in ((torch.float64, 2.0**-40), (torch.float32, 64 * 2.0**-24)):
        given: dict[str, Any] = {name: value.detach().to(dtype).requires_grad_() for name, value in exact.items()}
        y = interface.selective_scan_fn(**given, delta_softplus=True)
        for name, ours, theirs in zip(
            exact, torch.autograd.grad((y * weights.to(dtype)).sum(), given.values()), expected, strict=True
        ):
            torch.testing.assert_close(
                ours.double(), theirs, rtol=0, atol=roundings * float(theirs.abs().max()), msg=f"{name} in {dtype}"
            )


def test_one_group_may_leave_its_axis_out_and_softplus_is_off_as_in_mamba_ssm() -> None:
    given: dict[str, Any] = operands(2, 7, 1)
    flat = given | {name: given[name][:, 0] for name in "BC"}
    torch.testing.assert_close(interface.selective_scan_fn(**flat), interface.selective_scan_fn(**given))
    expected = by_definition(**given, delta_softplus=False)
    torch.testing.assert_close(interface.selective_scan_fn(**given), expected, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"return_last_state": True}, "gives no last state"),
        ({"A": torch.ones(12, 5, dtype=torch.complex64)}, "A is complex"),
        ({"B": torch.ones(12, 5)}, "B has shape (12, 5)"),
        ({"C": torch.ones(2, 5, 7)}, "C has shape (2, 5, 7)"),
        ({"B": torch.ones(2, 5, 5, 7), "C": torch.ones(2, 5, 5, 7)}, "12 channels are not 5 groups"),
        ({"B": torch.ones(2, 0, 5, 7), "C": torch.ones(2, 0, 5, 7)}, "12 channels are not 0 groups"),
    ],
)
def test_what_the_op_has_not_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match="selective_scan_fn: ") as refusal:
        interface.selective_scan_fn(**operands(2, 7, 1) | changed)  # type: ignore[arg-type]
    assert words in str(refusal.value)


def by_hand(block: own_models.Block, xz: Tensor, A: Tensor, backward_A: Tensor | None = None) -> Tensor:
    """(B, C, L): the inner function's insides; of both directions' sum over the same projections where A_b is given."""
    x, z = xz.chunk(2, dim=1)
    taps, length = block.conv1d.weight[:, 0], x.shape[2]
    padded = F.pad(x, (taps.shape[1] - 1, 0))
    shifted = [padded[:, :, j : j + length] * taps[:, j, None] for j in range(taps.shape[1])]
    assert block.conv1d.bias is not None
    x = F.silu(torch.stack(shifted).sum(0) + block.conv1d.bias[:, None])
    dbc = torch.einsum("dc,bcl->bdl", block.x_proj.weight, x)
    delta = torch.einsum("cr,brl->bcl", block.dt_proj.weight, dbc[:, :2])
    operands = (x, delta, dbc[:, None, 2:5], dbc[:, None, 5:], z)

    def scan(A: Tensor, x: Tensor, delta: Tensor, B: Tensor, C: Tensor, z: Tensor) -> Tensor:
        return by_definition(x, delta, A, B, C, block.D, z, block.dt_proj.bias, True)

    y = scan(A, *operands)
    if backward_A is not None:
        y = y + scan(backward_A, *(tensor.flip(-1) for tensor in operands)).flip(-1)
    return y


def test_the_inner_functions_are_conv_projections_and_scan() -> None:
    torch.manual_seed(3)
    block = own_models.Mamba().double().requires_grad_(False)
    xz, A, A_b = torch.randn(2, 12, 9, dtype=torch.float64), -torch.rand(6, 3).double(), -torch.rand(6, 3).double()
    others = {"D": block.D, "delta_bias": block.dt_proj.bias, "delta_softplus": True, "checkpoint_lvl": 1}
    alone = interface.mamba_inner_fn_no_out_proj(xz, *block.inner(), A, **others)  # type: ignore[arg-type]
    torch.testing.assert_close(alone, by_hand(block, xz, A))
    weights = (*block.inner(), block.out_proj.weight, block.out_proj.bias)
    projected = interface.mamba_inner_fn(xz, *weights, A, **others)  # type: ignore[arg-type]
    torch.testing.assert_close(projected, block.out_proj(by_hand(block, xz, A).transpose(1, 2)))
    both = interface.bimamba_inner_fn(xz, *weights, A, A_b, **others)  # type: ignore[arg-type]
    torch.testing.assert_close(both, block.out_proj(by_hand(block, xz, A, A_b).transpose(1, 2)))


@pytest.mark.parametrize("name", ["B", "C", "B_proj_bias", "C_proj_bias", "dt_rms_weight"])
def test_an_argument_that_would_be_ignored_is_refused(name: str) -> None:
    block = own_models.Mamba()
    with pytest.raises(InputError, match=f"mamba_inner_fn: {name} is given"):
        interface.mamba_inner_fn_no_out_proj(
            torch.ones(1, 12, 5),
            *block.inner(),
            block.A(),
            **{name: torch.ones(3)},  # type: ignore[arg-type]
        )


def test_it_stands_in_for_mamba_ssm_where_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", interface)
    from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn, selective_scan_fn

    assert (selective_scan_fn, mamba_inner_fn) == (interface.selective_scan_fn, interface.mamba_inner_fn)
    assert math.isfinite(float(selective_scan_fn(*(torch.ones(1, 1, 1) for _ in range(2)), -torch.ones(1, 1),
                                                 torch.ones(1, 1, 1), torch.ones(1, 1, 1))))  # fmt: skip
