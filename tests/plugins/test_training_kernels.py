"""The training kernels against float64: values against tests/oracle.py, gradients against autograd of a plain loop."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import oracle
from mscope.core.errors import BackendError
from mscope.plugins import cpu

pytestmark = pytest.mark.skipif(not cpu.available(), reason=cpu.why_missing() or "built")

# (batch, tokens, channels, states): one token; fewer channels than a vector has lanes, and no multiple of them; states
# in blocks of 8, 4 and 1; the model's lengths.
SHAPES = [(2, 1, 3, 1), (1, 2, 16, 8), (3, 5, 7, 5), (2, 49, 20, 16), (1, 50, 33, 8), (2, 65, 50, 7), (1, 197, 24, 16)]


def tolerance(length: int) -> float:
    """Error allowed, in proportion to the sum of the absolute values of the terms that make up a result.

    A term is the product of at most `length` decays, whose errors (2e-7 of the exponential, 2^-24 of the exponent's and
    of the state's rounding) have random signs and shrink with the term itself, so that 2^-23 a token bounds them;
    softplus, skip and gate add a few roundings more, 8 * 2^-23.
    """
    return (length + 8) * 2.0**-23


@pytest.fixture(params=cpu.instruction_sets() if cpu.available() else [])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on every instruction set that this machine has."""
    before = cpu.instruction_set()
    cpu.set_instruction_set(request.param)
    assert cpu.instruction_set() == request.param
    yield request.param
    cpu.set_instruction_set(before)


def scan_case(
    shape: tuple[int, int, int, int], seed: int = 0, delta_mean: float = 0.0, delta_scale: float = 2.0
) -> dict[str, Any]:
    """Random float32 arguments of the scan. x and z, B and C are slices of wider arrays, as in the model."""
    batch, length, channels, states = shape
    random = np.random.default_rng(seed)

    def normal(*size: int) -> np.ndarray:
        return random.standard_normal(size).astype(np.float32)

    xz, dbc = normal(batch, length, 2 * channels), normal(batch, length, 3 + 2 * states)
    return {
        "x": xz[..., :channels],
        "delta": normal(batch, length, channels) * np.float32(delta_scale) + np.float32(delta_mean),
        "A": -np.exp(normal(channels, states)),
        "B": dbc[..., 3 : 3 + states],
        "C": dbc[..., 3 + states :],
        "D": normal(channels),
        "z": xz[..., channels:],
        "delta_bias": normal(channels),
    }


def assert_scan_close(case: dict[str, Any], reverse: bool) -> None:
    y = cpu.selective_scan(**case, reverse=reverse)
    magnitudes = {k: np.abs(v) if k in {"x", "B", "C", "D"} else v for k, v in case.items()}
    # Results below float32's normal range may be flushed to zero.
    bound = tolerance(y.shape[1]) * np.abs(oracle.selective_scan(**magnitudes, reverse=reverse)) + 1e-36
    np.testing.assert_array_less(np.abs(y - oracle.selective_scan(**case, reverse=reverse)), bound)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_scan_matches_float64(isa: str, shape: tuple[int, int, int, int], gated: bool, reverse: bool) -> None:
    case = scan_case(shape)
    if not gated:
        del case["z"], case["delta_bias"]
    assert_scan_close(case, reverse)


@pytest.mark.parametrize(
    ("delta_mean", "delta_scale"), [(-7.0, 1.0), (-40.0, 20.0), (-95.0, 5.0), (60.0, 30.0), (1e4, 1e3), (1e30, 1.0)]
)
def test_scan_takes_any_delta(isa: str, delta_mean: float, delta_scale: float) -> None:
    # softplus near its cancellation, decays of exactly 1, decays that underflow, results near overflow.
    assert_scan_close(scan_case((2, 65, 20, 8), 1, delta_mean, delta_scale), reverse=False)


def test_functions_keep_their_digits(isa: str) -> None:
    """The errors that csrc/scan/math.h states, read through scans that leave one function of it."""
    # Beyond are denormal numbers, which may be flushed to zero.
    v = np.linspace(-86, 86, 400_000, dtype=np.float32).reshape(1, 1, -1)
    one, none = np.ones_like(v), np.zeros(v.size, np.float32)
    A, unit = -np.ones((v.size, 1), np.float32), np.ones((1, 1, 1), np.float32)
    exact = v.astype(np.float64)
    np.testing.assert_allclose(cpu.selective_scan(one, v, A, unit, unit, none), oracle.softplus(exact), rtol=4e-7)
    gated = cpu.selective_scan(one, v, A, 0 * unit, unit, none + 1, v)
    np.testing.assert_allclose(gated, oracle.silu(exact), rtol=4e-7)

    # Two tokens, 1 and 0: what is left is the decay of the second.
    d = np.abs(v)
    delta, x = np.concatenate([one, d], 1), np.concatenate([one, 0 * one], 1)
    units = np.ones((1, 2, 1), np.float32)
    decay = cpu.selective_scan(x, delta, A, units, units, none, delta_softplus=False)[:, 1:]
    # The exponent d log2(e) is rounded twice, A log2(e) and the product.
    np.testing.assert_array_less(np.abs(decay / np.exp(-d.astype(np.float64)) - 1), 2e-7 + d * 2.0**-23)


def test_decay_near_one_does_not_drift(isa: str) -> None:
    # All decays are exactly 1; an exponential of 0 that is off by one rounding, 0.99999994, would compound to 6e-6.
    ones = np.ones((1, 197, 16), np.float32)
    delta = np.full_like(ones, -30.0)
    case = {
        "x": ones,
        "delta": delta,
        "A": -ones[0, :16, :1],
        "B": ones[..., :1],
        "C": ones[..., :1],
        "D": 0 * ones[0, 0],
    }
    np.testing.assert_allclose(cpu.selective_scan(**case), oracle.selective_scan(**case), rtol=3e-6)


def test_nan_stays_in_its_channel(isa: str) -> None:
    case = scan_case((1, 9, 20, 5))
    for name in ("x", "delta", "z"):
        poisoned = {**case, name: case[name].copy()}
        poisoned[name][0, 4, 2] = np.nan
        found = np.isnan(cpu.selective_scan(**poisoned))
        assert found[0, 4, 2], name
        assert not found[:, :, np.arange(20) != 2].any(), name


def test_zero_input_after_a_pulse_decays_to_zero(isa: str) -> None:
    case = scan_case((1, 197, 16, 8), delta_mean=1.0, delta_scale=0.1)
    case["x"] = np.zeros((1, 197, 16), np.float32)
    case["x"][:, 0] = 1.0
    assert_scan_close(case, reverse=False)


def loop(
    x: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor, D: torch.Tensor,
    z: torch.Tensor | None = None, delta_bias: torch.Tensor | None = None, *, reverse: bool,
) -> torch.Tensor:  # fmt: skip
    if delta_bias is not None:
        delta = delta + delta_bias
    d = torch.logaddexp(delta, torch.zeros((), dtype=delta.dtype))
    h = torch.zeros(x.shape[0], x.shape[2], A.shape[1], dtype=x.dtype)
    outputs = [x[:, 0]] * x.shape[1]
    for t in reversed(range(x.shape[1])) if reverse else range(x.shape[1]):
        h = torch.exp(d[:, t, :, None] * A) * h + (d[:, t] * x[:, t])[:, :, None] * B[:, t, None, :]
        outputs[t] = (h * C[:, t, None, :]).sum(-1) + D * x[:, t]
    y = torch.stack(outputs, 1)
    return y if z is None else y * F.silu(z)


def assert_gradients_close(found: dict[str, Any], expected: dict[str, torch.Tensor], length: int) -> None:
    for name, want in expected.items():
        got, exact = found[name], want.numpy()
        assert got.shape == exact.shape, name
        # In proportion to the largest: a gradient is a sum over tokens and channels, in which terms cancel.
        assert np.abs(got - exact).max(initial=0) <= tolerance(length) * np.abs(exact).max(initial=0), name


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_scan_gradients_match_float64(isa: str, shape: tuple[int, int, int, int], gated: bool, reverse: bool) -> None:
    case = scan_case(shape)
    if not gated:
        del case["z"], case["delta_bias"]
    grad_y = np.random.default_rng(5).standard_normal(case["x"].shape).astype(np.float32)
    exact = {name: torch.tensor(a, dtype=torch.float64, requires_grad=True) for name, a in case.items()}
    y = loop(**exact, reverse=reverse)
    wanted = torch.autograd.grad(y, list(exact.values()), torch.tensor(grad_y, dtype=torch.float64))
    found = cpu.selective_scan_gradients(grad_y, **case, reverse=reverse)
    assert (found.z is None) == (found.delta_bias is None) == (not gated)
    assert_gradients_close(vars(found), dict(zip(case, wanted, strict=True)), shape[1])


def test_scan_without_softplus(isa: str) -> None:
    case = scan_case((2, 5, 7, 3))
    case["delta"] = np.abs(case["delta"])
    case["delta_bias"] = np.abs(case["delta_bias"])
    # delta is positive here, and exact where softplus(v) is given as v.
    raw = {**case, "delta": oracle.softplus(case["delta"] + case["delta_bias"]).astype(np.float32)}
    del raw["delta_bias"]
    with_softplus = cpu.selective_scan(**case)
    np.testing.assert_allclose(cpu.selective_scan(**raw, delta_softplus=False), with_softplus, rtol=1e-5, atol=1e-6)
    grad_y = np.ones_like(with_softplus)
    outer = cpu.selective_scan_gradients(grad_y, **case)
    inner = cpu.selective_scan_gradients(grad_y, **raw, delta_softplus=False)
    slope = 1 / (1 + np.exp(-(case["delta"] + case["delta_bias"]).astype(np.float64)))
    np.testing.assert_allclose(inner.delta * slope, outer.delta, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("length", [1, 2, 5, 65])
def test_conv_and_gradients_match_float64(isa: str, length: int, width: int, reverse: bool) -> None:
    random = np.random.default_rng(length * 10 + width)
    x = random.standard_normal((2, length, 38)).astype(np.float32)[..., :19]
    weight, bias = random.standard_normal((19, width)).astype(np.float32), random.standard_normal(19).astype(np.float32)
    y = cpu.causal_conv1d_silu(x, weight, bias, reverse)
    # Of one sign, the terms have the sum of their magnitudes; SiLU's own slope is at most 1.1.
    scale = oracle.causal_conv1d_silu(np.abs(x), np.abs(weight), np.abs(bias), reverse)
    expected = oracle.causal_conv1d_silu(x, weight, bias, reverse)
    np.testing.assert_array_less(np.abs(y - expected), tolerance(width) * (scale + 1))

    grad_y = random.standard_normal(y.shape).astype(np.float32)
    exact = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (x, weight, bias)]
    flipped = exact[0].flip(1) if reverse else exact[0]
    padded = F.pad(flipped, (0, 0, width - 1, 0))
    out = F.silu(exact[2] + sum(padded[:, j : j + length] * exact[1][:, j] for j in range(width)))
    out = out.flip(1) if reverse else out
    wanted = torch.autograd.grad(out, exact, torch.tensor(grad_y, dtype=torch.float64))
    found = cpu.causal_conv1d_silu_gradients(grad_y, x, weight, bias, reverse)
    names = ("x", "weight", "bias")
    assert_gradients_close(
        dict(zip(names, found, strict=True)), dict(zip(names, wanted, strict=True)), max(length, width)
    )


def test_empty_batch(isa: str) -> None:
    case = scan_case((0, 5, 7, 3))
    assert cpu.selective_scan(**case).shape == (0, 5, 7)
    found = cpu.selective_scan_gradients(np.zeros((0, 5, 7), np.float32), **case)
    assert found.x.shape == (0, 5, 7)
    for name in ("A", "D", "delta_bias"):
        assert not vars(found)[name].any(), name


def test_results_do_not_depend_on_threads() -> None:
    # Large enough that every thread gets work, and more sequences than there are groups of them.
    case = scan_case((70, 49, 40, 8))
    grad_y = np.random.default_rng(5).standard_normal(case["x"].shape).astype(np.float32)
    alone = cpu.selective_scan_gradients(grad_y, **case, threads=1)
    y = cpu.selective_scan(**case, threads=1)
    weight, bias = case["A"][:, :4], case["D"]
    conv = cpu.causal_conv1d_silu_gradients(grad_y, case["x"], weight, bias, threads=1)
    for threads in (2, 3, 64):
        np.testing.assert_array_equal(cpu.selective_scan(**case, threads=threads), y)
        shared = cpu.selective_scan_gradients(grad_y, **case, threads=threads)
        for name, value in vars(alone).items():
            np.testing.assert_array_equal(vars(shared)[name], value, err_msg=name)
        again = cpu.causal_conv1d_silu_gradients(grad_y, case["x"], weight, bias, threads=threads)
        for one, other in zip(conv, again, strict=True):
            np.testing.assert_array_equal(one, other)


def test_wrong_shapes_are_refused() -> None:
    case = scan_case((2, 5, 7, 3))
    with pytest.raises(ValueError, match=r"B has shape .* expected \(2, 5, 3\)"):
        cpu.selective_scan(**{**case, "B": case["B"][:, :4]})
    with pytest.raises(BackendError, match="bad argument"):
        cpu.scan_forward(cpu.Scan(batch=1), 0, 1)


def test_scalar_code_runs_everywhere_and_the_best_is_taken() -> None:
    before = cpu.instruction_set()
    usable = cpu.instruction_sets()
    cpu.set_instruction_set("auto")
    assert cpu.instruction_set() == usable[0]
    cpu.set_instruction_set(before)
    assert "scalar" in usable


def test_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match="sse9"):
        cpu.set_instruction_set("sse9")
    monkeypatch.setattr(cpu, "_library", None)
    monkeypatch.setenv(cpu.ISA, "sse9")
    with pytest.raises(BackendError, match="sse9"):
        cpu.load()
