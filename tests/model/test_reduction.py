"""Reduced ViMs against float64 loops in numpy, written from docs/reduction.md and not from the code."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import oracle
from mscope.core.config import ModelConfig, config_for
from mscope.core.geometry import fine_grid
from mscope.model import native, scan
from mscope.model.alignment import aligned_scan, idle_step
from mscope.model.backbone import Backbone
from mscope.model.checkpoint import model_from_seed
from mscope.model.mixer import Mixer
from mscope.model.rows import largest
from mscope.model.sequence import Sequence
from mscope.model.token_merging import Merging
from mscope.model.token_pruning import Pruning, gaps_between

Array = np.ndarray


def silu(v: Array) -> Array:
    return v / (1 + np.exp(-v))


def rms_norm(x: Array, weight: Array) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight


def direction(p: dict[str, Array], s: str, a: str, x: Array, z: Array, pruned: list[int], how: str) -> Array:
    """One direction on (L, C) in scan order; pruned[t] tokens are missing before token t."""
    weight, bias, rank = p[f"conv1d{s}.weight"][:, 0], p[f"conv1d{s}.bias"], p[f"dt_proj{s}.weight"].shape[1]
    width, A = weight.shape[1], -np.exp(p[a])
    padded = np.concatenate([np.zeros((width - 1, x.shape[1])), x])
    x = silu(np.array([(padded[t : t + width] * weight.T).sum(0) for t in range(len(x))]) + bias)

    def delta_of(row: Array) -> Array:
        dt = p[f"x_proj{s}.weight"][:rank] @ row
        return np.log1p(np.exp(p[f"dt_proj{s}.weight"] @ dt + p[f"dt_proj{s}.bias"]))

    idle = delta_of(silu(bias))
    h, y = np.zeros(A.shape), []
    for t, row in enumerate(x):
        B, C = np.split(p[f"x_proj{s}.weight"][rank:] @ row, 2)
        delta = delta_of(row)
        for _ in range(pruned[t]):
            h = {"none": h, "zero": np.exp(idle[:, None] * A) * h, "repeat": np.exp(delta[:, None] * A) * h}[how]
        h = np.exp(delta[:, None] * A) * h + (delta * row)[:, None] * B
        y.append((h @ C + p[f"D{s}"] * row) * silu(z[t]))
    return np.array(y)


def mixer(p: dict[str, Array], u: Array, places: list[int], how: str) -> tuple[Array, Array]:
    x, z = np.split(u @ p["in_proj.weight"].T, 2, axis=1)
    missing = [b - a - 1 for a, b in pairwise(places)]
    forward = direction(p, "", "A_log", x, z, [0, *missing], how)
    backward = direction(p, "_b", "A_b_log", x[::-1], z[::-1], [0, *missing[::-1]], how)[::-1]
    y = (forward + backward) / 2
    return y @ p["out_proj.weight"].T, y


def prune(tokens: list[Array], places: list[int], y: Array, middle: int, kept: int) -> tuple[list[Array], list[int]]:
    score = {place: np.maximum(row, 0).mean() for place, row in zip(places, y, strict=True) if place != middle}
    best = sorted(score, key=lambda place: (-score[place], place))[:kept]
    stay = [i for i, place in enumerate(places) if place in (*best, middle)]
    return [tokens[i] for i in stay], [places[i] for i in stay]


def merge(
    tokens: list[Array], sizes: list[float], places: list[int], features: Array, middle: int, removed: int
) -> tuple[list[Array], list[float], list[int]]:
    patches = [i for i, place in enumerate(places) if place != middle]
    sources, targets = patches[::2], patches[1::2]

    def cosine(i: int, j: int) -> float:
        a, b = features[i], features[j]
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

    best = {i: max(targets, key=lambda j: (cosine(i, j), -j)) for i in sources}
    order = sorted(sources, key=lambda i: (-cosine(i, best[i]), i))
    heaps = {i: [i] for i in range(len(tokens))}
    for i in order[:removed]:
        heaps[best[i]].append(i)
        del heaps[i]
    grown = {i: sum(sizes[m] for m in members) for i, members in heaps.items()}
    means = [sum(sizes[m] * tokens[m] for m in members) / grown[i] for i, members in heaps.items()]
    return means, [grown[i] for i in heaps], [places[i] for i in heaps]


def reference(model: Backbone, image: Array) -> Array:
    """Logits of one image (channels, H, W)."""
    config, state = model.config, {key: value.double().numpy() for key, value in model.state_dict().items()}
    side, middle = config.patch, fine_grid(config).count // 2
    weight = state["patch_embed.proj.weight"].reshape(config.d_model, -1)
    cut = [
        weight @ image[:, r : r + side, c : c + side].reshape(-1) + state["patch_embed.proj.bias"]
        for r in range(0, config.height, side)
        for c in range(0, config.width, side)
    ]
    cut.insert(middle, state["cls_token"][0, 0])
    tokens = [token + position for token, position in zip(cut, state["pos_embed"][0], strict=True)]
    places, sizes = list(range(len(tokens))), [1.0] * len(tokens)
    after = {step.block: step for step in config.reductions}
    how = config.prune_alignment if config.reduce == "prune" else "none"
    for block in range(config.depth):
        start = f"layers.{block}.mixer."
        p = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
        hidden, y = mixer(p, rms_norm(np.array(tokens), state[f"layers.{block}.norm.weight"]), places, how)
        tokens = [token + row for token, row in zip(tokens, hidden, strict=True)]
        if block in after and config.reduce == "prune":
            tokens, places = prune(tokens, places, y, middle, after[block].after)
        elif block in after:
            features = hidden if config.merge_features == "hidden" else np.array(tokens)
            removed = after[block].before - after[block].after
            tokens, sizes, places = merge(tokens, sizes, places, features, middle, removed)
    last = rms_norm(tokens[places.index(middle)], state["norm_f.weight"])
    return state["head.weight"] @ last + state["head.bias"]


def network(**changes: Any) -> Backbone:
    settings = {"depth": 5, "d_model": 24, "d_state": 3, "height": 48, "width": 32, "reduce_after": (1, 2, 4)}
    model = model_from_seed(config_for("digits", "vim", **(settings | changes)), 3).model
    with torch.no_grad():
        for parameter in model.parameters():  # away from the zeros and ones of the initialisation
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def pictures(model: Backbone, count: int) -> torch.Tensor:
    config = model.config
    shape = (count, config.channels, config.height, config.width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


CHOICES: list[dict[str, Any]] = [
    {"reduce": "prune", "keep": 0.4, "prune_alignment": "none"},
    {"reduce": "prune", "keep": 0.4, "prune_alignment": "zero"},
    {"reduce": "prune", "keep": 0.4, "prune_alignment": "repeat"},
    {"reduce": "prune", "keep": 0.1, "prune_alignment": "repeat", "reduce_steps": "count"},
    {"reduce": "merge", "keep": 0.4},
    {"reduce": "merge", "keep": 0.4, "merge_features": "residual"},
    {"reduce": "merge", "keep": 0.2, "reduce_steps": "ratio"},
]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(str(value) for value in choice.values()))
def test_the_network_in_numpy(choice: dict[str, Any]) -> None:
    model = network(**choice).double()
    images = pictures(model, 3)
    with torch.no_grad():
        actual = model.forward_full(images).numpy()
    expected = np.array([reference(model, image) for image in images.numpy()])
    # A few hundred sums in float64.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
    # It matters: the reduced network is another one than the plain one.
    with torch.no_grad():
        plain = network(reduce_after=None).double().forward_full(images).numpy()
    assert np.abs(actual - plain).max() > 1e-4


@pytest.mark.parametrize("method", ["prune", "merge"])
def test_keeping_all_changes_no_bit(method: str) -> None:
    plain, kept = network(reduce_after=None), network(reduce=method, keep=1.0)
    images = pictures(plain, 2).float()
    with torch.no_grad():
        assert torch.equal(plain.forward_full(images), kept.forward_full(images))
    assert plain.state_dict().keys() == network(reduce=method, keep=0.5).state_dict().keys()


@pytest.mark.parametrize("how", ["repeat", "zero"])
def test_a_gap_is_what_idle_tokens_in_its_place_are(how: str) -> None:
    """The aligned scan against the plain recurrence over the full sequence, in which pruned tokens bring no input."""
    config = config_for("digits", "vim", prune_alignment=how)
    torch.manual_seed(0)
    mixer = Mixer(config).double()
    mixer.initialise(6, backward_delta=True)
    places = [0, 1, 5, 6, 9, 10, 17]
    length, channels, rank = len(places), config.d_inner, config.dt_rank
    xz = torch.randn(1, length, 2 * channels, dtype=torch.float64)
    x, x_b = (torch.randn(1, length, channels, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        dbc, dbc_b = F.linear(x, mixer.x_proj.weight), F.linear(x_b, mixer.x_proj_b.weight)
        gaps = gaps_between(torch.tensor([places], dtype=torch.float64))
        actual = aligned_scan(mixer, xz, x, x_b, dbc, dbc_b, gaps)[0].numpy()
        total = np.zeros((length, channels))
        for source, projected, dt_proj, conv, x_proj, A_log, D, reverse in (
            (x, dbc, mixer.dt_proj, mixer.conv1d, mixer.x_proj, mixer.A_log, mixer.D, False),
            (x_b, dbc_b, mixer.dt_proj_b, mixer.conv1d_b, mixer.x_proj_b, mixer.A_b_log, mixer.D_b, True),
        ):
            full = {name: np.zeros((1, places[-1] + 1, width)) for name, width in
                    (("x", channels), ("B", config.d_state), ("C", config.d_state), ("delta", channels))}  # fmt: skip
            full["delta"] += idle_step(conv, x_proj, dt_proj).numpy()
            step = F.softplus(dt_proj(projected[..., :rank]))[0].numpy()
            if how == "repeat":
                for t, (place, row) in enumerate(zip(places, step, strict=True)):
                    start, end = (place, places[t + 1]) if reverse and t + 1 < length else (place, place + 1)
                    if not reverse:
                        start = places[t - 1] + 1 if t else 0
                    full["delta"][0, start:end] = row
            _, B, C = (part[0].numpy() for part in projected.split([rank, config.d_state, config.d_state], dim=2))
            for name, value in (("x", source[0].numpy()), ("B", B), ("C", C), ("delta", step)):
                full[name][0, places] = value
            y = oracle.selective_scan(
                full["x"], full["delta"], -np.exp(A_log.numpy()), full["B"], full["C"], D.numpy(),
                reverse=reverse, delta_softplus=False,
            )  # fmt: skip
            total += y[0, places]
        expected = total / 2 * silu(xz[0, :, channels:].numpy())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


def test_a_step_that_vanishes_does_not_divide_by_zero() -> None:
    mixer = Mixer(config_for("digits", "vim", prune_alignment="zero"))
    mixer.initialise(6, backward_delta=True)
    with torch.no_grad():
        for projection in (mixer.dt_proj, mixer.dt_proj_b):
            projection.bias.fill_(-200.0)  # softplus of it is 0 in float32
        x = torch.randn(1, 3, mixer.D.shape[0])
        gaps = gaps_between(torch.tensor([[0.0, 1.0, 4.0]]))
        dbc, dbc_b = F.linear(x, mixer.x_proj.weight), F.linear(x, mixer.x_proj_b.weight)
        y = aligned_scan(mixer, torch.cat([x, x], dim=2), x, x, dbc, dbc_b, gaps)
    assert torch.isfinite(y).all()


@pytest.mark.skipif(not native.available(), reason="the native kernels are not built")
@pytest.mark.parametrize("reverse", [False, True])
def test_the_native_scan_without_softplus(reverse: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    shapes = ((2, 9, 6), (2, 9, 6), (6, 4), (2, 9, 4), (2, 9, 4), (6,), (2, 9, 6))
    leaves = [torch.rand(shape, generator=generator) for shape in shapes]
    leaves[2] = -leaves[2]
    results = []
    for name in ("native", "reference"):
        tensors = [leaf.clone().requires_grad_() for leaf in leaves]
        with scan.implementation(name):
            y = scan.selective_scan(*tensors, reverse=reverse, delta_softplus=False)
        (y * torch.linspace(1, 2, y.numel()).reshape(y.shape)).sum().backward()
        results.append([y, *(tensor.grad for tensor in tensors)])
    for a, b in zip(*results, strict=True):
        assert a is not None
        assert b is not None
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


def config(**changes: Any) -> ModelConfig:
    return config_for("digits", "vim", **changes)


def sequence(tokens: torch.Tensor, class_place: int) -> Sequence:
    return Sequence(tokens, class_place)


def test_pruning_keeps_the_class_token_the_order_and_of_equals_the_first() -> None:
    tokens = torch.arange(7.0).reshape(1, 7, 1).repeat(2, 1, 3)
    y = torch.ones(2, 7, 4)
    y[:, 3] = -5.0  # the class token, worth nothing
    y[1, 5] = 9.0
    left = Pruning(config(reduce="prune", keep=0.5), kept=3)(sequence(tokens, 3), tokens, y)
    assert left.place is not None
    assert left.place.tolist() == [[0, 1, 2, 3], [0, 1, 3, 5]]
    torch.testing.assert_close(left.tokens[..., 0], left.place)
    assert left.class_row().tolist() == [[3], [2]]
    assert left.gaps is not None
    assert left.gaps.before[1, :, 0].tolist() == [0, 0, 1, 1]
    assert left.gaps.after[1, :, 0].tolist() == [0, 1, 1, 0]
    again = Pruning(config(reduce="prune", keep=0.5), kept=1)(left, left.tokens, torch.ones(2, 4, 4))
    assert again.place is not None
    assert again.place.tolist() == [[0, 3], [0, 3]]


def test_merging_conserves_the_mean_of_all_patches() -> None:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(3, 18, 5, generator=generator, dtype=torch.float64)
    settings = config(reduce="merge", keep=0.5)
    left = sequence(tokens, 9)
    total = tokens.sum(1) - tokens[:, 9]
    for removed in (5, 4, 3):
        left = Merging(settings, removed)(left, torch.randn(left.tokens.shape, generator=generator).double(), tokens)
        assert left.size is not None
        assert left.place is not None
        row = left.class_row()[:, 0]
        # The class token is untouched, and nobody is in it.
        assert torch.equal(left.class_token(), tokens[:, 9])
        assert left.size[torch.arange(3), row, 0].tolist() == [1, 1, 1]
        weighted = (left.tokens * left.size).sum(1) - left.class_token()
        torch.testing.assert_close(weighted, total, rtol=0, atol=1e-12)
        assert left.size.sum(1)[:, 0].tolist() == [18, 18, 18]
        assert (left.place.diff(dim=1) > 0).all()
    assert left.tokens.shape[1] == 18 - 12


@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
def test_equal_tokens_merge_into_the_first_destination(value: float) -> None:
    tokens = torch.full((2, 9, 4), value)
    left = Merging(config(reduce="merge", keep=0.5), 3)(sequence(tokens, 4), tokens, tokens)
    assert left.place is not None
    assert left.size is not None
    # Patches 0 1 2 3 | 5 6 7 8: sources 0, 2, 5, 7; of equal ones the first three go, into the first destination.
    assert left.place[0].tolist() == [1, 3, 4, 6, 7, 8]
    assert left.size[0, :, 0].tolist() == [4, 1, 1, 1, 1, 1]
    torch.testing.assert_close(left.tokens, tokens[:, :6])


def test_gradients_go_through_what_is_left() -> None:
    for method in ("prune", "merge"):
        model = network(reduce=method, keep=0.4)
        model.forward_full(pictures(model, 2).float()).square().sum().backward()
        grads = [parameter.grad for parameter in model.parameters()]
        assert all(grad is not None and torch.isfinite(grad).all() for grad in grads)
        assert all(float(grad.abs().max()) > 0 for grad in grads if grad is not None)


def test_largest_of_equals_is_the_lower_index() -> None:
    assert largest(torch.tensor([[1.0, 2, 2, 1, 2], [0, 0, 0, 0, 0]]), 4).tolist() == [[1, 2, 4, 0], [0, 1, 2, 3]]
