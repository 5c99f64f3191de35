"""Autograd around the native training kernels. The kernels' own numbers are tested in tests/plugins."""

import pytest
import torch
from torch import Tensor

from mscope.model import native, scan

pytestmark = pytest.mark.skipif(not native.available(), reason="the native training kernels are not built")


def scan_arguments(batch: int = 2, length: int = 6, channels: int = 5, states: int = 3) -> list[Tensor]:
    """Leaves with gradients: xz, delta, A, dbc, D, delta_bias."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    leaves = [
        normal(batch, length, 2 * channels), normal(batch, length, channels), -torch.exp(normal(channels, states)),
        normal(batch, length, 2 * states), normal(channels), normal(channels),
    ]  # fmt: skip
    return [leaf.requires_grad_() for leaf in leaves]


def run(leaves: list[Tensor], reverse: bool) -> Tensor:
    xz, delta, A, dbc, D, delta_bias = leaves
    (x, z), (B, C) = xz.chunk(2, -1), dbc.chunk(2, -1)
    return scan.selective_scan(x, delta, A, B, C, D, z, delta_bias, reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 6])
def test_slices_of_wider_tensors_get_their_gradients(length: int, reverse: bool) -> None:
    leaves = scan_arguments(length=length)
    results = {}
    for name in ("native", "reference"):
        with scan.implementation(name):
            y = run(leaves, reverse)
            results[name] = [y, *torch.autograd.grad((y * torch.arange(y.numel()).view_as(y)).sum(), leaves)]
    for found, expected in zip(results["native"], results["reference"], strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5 * float(expected.detach().abs().max()))


@pytest.mark.parametrize("reverse", [False, True])
def test_conv_reads_a_slice_in_place(reverse: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    xz = torch.randn(2, 6, 10, generator=generator).requires_grad_()
    weight, bias = (torch.randn(size, generator=generator).requires_grad_() for size in ((5, 4), (5,)))
    results = []
    for name in ("native", "reference"):
        with scan.implementation(name):
            y = scan.causal_conv1d_silu(xz[..., :5], weight, bias, reverse=reverse)
            results.append([y, *torch.autograd.grad(y.square().sum(), (xz, weight, bias))])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_layouts_that_need_a_copy_give_the_same() -> None:
    leaves = [leaf.detach() for leaf in scan_arguments()]
    with scan.implementation("native"):
        y = run(leaves, reverse=False)
        # Tokens and sequences swapped in memory; a broadcast; every other channel.
        leaves[1] = leaves[1].transpose(0, 1).contiguous().transpose(0, 1)
        leaves[3] = leaves[3].repeat_interleave(2, -1)[..., ::2]
        leaves[4] = leaves[4].repeat_interleave(2)[::2]
        assert torch.equal(run(leaves, reverse=False), y)


def test_nothing_is_recorded_without_gradients() -> None:
    leaves = scan_arguments()
    with torch.no_grad():
        assert run(leaves, reverse=False).grad_fn is None
    assert run(leaves, reverse=False).grad_fn is not None


def test_empty_batch() -> None:
    leaves = scan_arguments(batch=0)
    y = run(leaves, reverse=False)
    assert y.shape == (0, 6, 5)
    assert all(g.abs().sum() == 0 for g in torch.autograd.grad(y.sum(), leaves))


def test_what_the_kernel_cannot_take_is_refused() -> None:
    leaves = [leaf.detach() for leaf in scan_arguments()]
    x, delta, A, B = leaves[0][..., :5], leaves[1], leaves[2], leaves[3][..., :3]
    with pytest.raises(TypeError, match=r"delta is torch\.float64"):
        native.selective_scan(x, delta.double(), A, B, B, leaves[4])
    with pytest.raises(ValueError, match=r"D has shape \(4,\), expected \(5,\)"):
        native.selective_scan(x, delta, A, B, B, leaves[4][:4])
