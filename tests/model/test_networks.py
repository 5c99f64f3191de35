"""The networks against an independent float64 re-computation in numpy, written from MODEL.md and not from the code."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from mscope.core.cascade import select_regions
from mscope.core.config import config_for
from mscope.core.contract import graph_for
from mscope.core.cost import parameter_count
from mscope.core.geometry import coarse_grid, fine_grid, fine_indices, token_counts
from mscope.model import scan
from mscope.model.backbone import Backbone
from mscope.model.checkpoint import model_from_seed
from mscope.model.mambascope import MambaScope

Array = np.ndarray


def silu(v: Array) -> Array:
    return v / (1 + np.exp(-v))


def rms_norm(x: Array, weight: Array) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight


def one_direction(p: dict[str, Array], suffix: str, a_name: str, x: Array, z: Array) -> Array:
    """One direction on a sequence (L, C) that already runs in scan order: conv, projections, recurrence, gate."""
    length, channels = x.shape
    weight, bias = p[f"conv1d{suffix}.weight"][:, 0], p[f"conv1d{suffix}.bias"]
    convolved = np.zeros_like(x)
    for t in range(length):
        for j in range(weight.shape[1]):
            source = t - (weight.shape[1] - 1) + j
            if source >= 0:
                convolved[t] += weight[:, j] * x[source]
    x = silu(convolved + bias)
    projected = x @ p[f"x_proj{suffix}.weight"].T
    A = -np.exp(p[a_name])
    rank, states = p[f"dt_proj{suffix}.weight"].shape[1], A.shape[1]
    dt, B, C = projected[:, :rank], projected[:, rank : rank + states], projected[:, rank + states :]
    delta = np.log1p(np.exp(dt @ p[f"dt_proj{suffix}.weight"].T + p[f"dt_proj{suffix}.bias"]))
    h = np.zeros((channels, states))
    y = np.zeros_like(x)
    for t in range(length):
        h = np.exp(delta[t][:, None] * A) * h + (delta[t] * x[t])[:, None] * B[t]
        y[t] = h @ C[t] + p[f"D{suffix}"] * x[t]
    return y * silu(z)


def mixer(p: dict[str, Array], u: Array) -> tuple[Array, Array]:
    xz = u @ p["in_proj.weight"].T
    x, z = np.split(xz, 2, axis=-1)
    forward = one_direction(p, "", "A_log", x, z)
    backward = one_direction(p, "_b", "A_b_log", x[::-1], z[::-1])[::-1]
    y = (forward + backward) / 2
    return y @ p["out_proj.weight"].T, y


def encode(state: dict[str, Array], tokens: Array, layers: int) -> tuple[Array, list[Array]]:
    residual, ys = tokens, []
    for i in range(layers):
        p = {k.removeprefix(f"layers.{i}.mixer."): v for k, v in state.items() if k.startswith(f"layers.{i}.mixer.")}
        hidden, y = mixer(p, rms_norm(residual, state[f"layers.{i}.norm.weight"]))
        residual = residual + hidden
        ys.append(y)
    return rms_norm(residual, state["norm_f.weight"]), ys


def embed(state: dict[str, Array], image: Array, side: int) -> Array:
    """Raster-order patches of (channels, H, W), each times the projection."""
    _, height, width = image.shape
    weight = state["patch_embed.proj.weight"]
    tokens = [
        np.tensordot(weight, image[:, r : r + side, c : c + side], axes=3)
        for r, c in product(range(0, height, side), range(0, width, side))
    ]
    return np.array(tokens) + state["patch_embed.proj.bias"]


def reuse_of(state: dict[str, Array], feature: Array) -> Array | float:
    """MLP(LayerNorm(t)), or one Linear in the MLP's place, or nothing."""
    if "reuse.norm.weight" not in state:
        return 0.0
    normed = (feature - feature.mean()) / np.sqrt(feature.var() + 1e-5)
    normed = normed * state["reuse.norm.weight"] + state["reuse.norm.bias"]
    if "reuse.fc.weight" in state:
        return np.asarray(state["reuse.fc.weight"] @ normed + state["reuse.fc.bias"])
    hidden = state["reuse.fc1.weight"] @ normed + state["reuse.fc1.bias"]
    erf = torch.erf(torch.from_numpy(hidden) / np.sqrt(2.0)).numpy()
    return np.asarray(state["reuse.fc2.weight"] @ (hidden * (1 + erf) / 2) + state["reuse.fc2.bias"])


def double(model: Backbone) -> dict[str, Array]:
    return {key: value.double().numpy() for key, value in model.state_dict().items()}


def small(**changes: Any) -> MambaScope:
    defaults = {"alpha": 0.5, "fine_order": "region", "order": "class-first", "reuse": "mlp", "metric": "max"}
    settings = {"depth": 4, "d_model": 24, "d_state": 3, "height": 48, "width": 32, **defaults, **changes}
    model = model_from_seed(config_for("digits", **settings), 3).model
    assert isinstance(model, MambaScope)
    with torch.no_grad():
        for parameter in model.parameters():  # away from the zeros and ones of the initialisation
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model.double()


def pictures(model: MambaScope, count: int = 2) -> torch.Tensor:
    config = model.config
    shape = (count, config.channels, config.height, config.width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def test_plain_vim_in_numpy() -> None:
    model = small()
    state, image = double(model), pictures(model, 1)
    tokens = embed(state, image[0].numpy(), model.config.patch)
    middle = fine_grid(model.config).count // 2
    tokens = np.insert(tokens, middle, state["cls_token"][0, 0], axis=0) + state["pos_embed"][0]
    encoded, _ = encode(state, tokens, model.config.depth)
    expected = state["head.weight"] @ encoded[middle] + state["head.bias"]
    with torch.no_grad():
        np.testing.assert_allclose(model.forward_full(image)[0].numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fine_order", ["region", "raster"])
def test_both_stages_in_numpy(fine_order: str) -> None:
    model = small(fine_order=fine_order)
    config, state, image = model.config, double(model), pictures(model, 1)
    picture, regions = image[0].numpy(), coarse_grid(model.config)
    half = (picture[:, ::2, ::2] + picture[:, 1::2, ::2] + picture[:, ::2, 1::2] + picture[:, 1::2, 1::2]) / 4
    middle = regions.count // 2
    tokens = np.insert(embed(state, half, config.patch), middle, state["cls_token"][0, 0], axis=0)
    tokens = tokens + state["pos_embed_coarse"][0]
    encoded, ys = encode(state, tokens, config.depth)
    average = np.zeros(len(tokens))
    for layer in config.importance_layers:
        average = 0.99 * average + 0.01 * np.log1p(np.exp(ys[layer])).max(axis=-1)
    importance = np.delete(average, middle)
    with torch.no_grad():
        coarse = model.coarse(image)
    # Importance is kept in float32.
    np.testing.assert_allclose(coarse.importance[0].numpy(), importance, rtol=1e-6)
    logits = state["head.weight"] @ encoded[middle] + state["head.bias"]
    np.testing.assert_allclose(coarse.logits[0].numpy(), logits, rtol=0, atol=1e-12)

    refined = int(np.ceil(config.alpha * regions.count))
    selected, remaining = select_regions(coarse.importance.numpy(), refined)
    patches = embed(state, picture, config.patch)
    positions = state["pos_embed"][0]
    class_row = fine_grid(config).count // 2
    class_position, positions = positions[class_row], np.delete(positions, class_row, axis=0)
    features, embeddings = np.delete(encoded, middle, axis=0), np.delete(tokens, middle, axis=0)
    fine_tokens: dict[int, Array] = {}
    for region in selected[0]:
        reused = reuse_of(state, features[region])
        for i in fine_indices(np.array([region]), regions):
            fine_tokens[int(i)] = patches[i] + positions[i] + reused
    in_order = sorted(fine_tokens) if fine_order == "raster" else list(fine_tokens)
    sequence = [state["cls_token"][0, 0] + class_position, *(fine_tokens[i] for i in in_order)]
    sequence += [embeddings[region] for region in remaining[0]]
    encoded, _ = encode(state, np.array(sequence), config.depth)
    expected = state["head.weight"] @ encoded[0] + state["head.bias"]
    with torch.no_grad():
        _, fine = model(image)
    np.testing.assert_allclose(fine[0].numpy(), expected, rtol=0, atol=1e-6)  # float32 enters through importance only
    assert len(sequence) == token_counts(config).fine


@pytest.mark.parametrize("metric", ["max", "topk", "softplus", "clip", "raw", "l1"])
def test_importance_metrics(metric: str) -> None:
    from mscope.model.importance import token_scores

    config = config_for("digits", metric=metric, metric_topk=3)
    y = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)) * 3
    array = y.numpy().astype(np.float64)
    softplus = np.log1p(np.exp(array))
    expected = {
        "max": softplus.max(-1),
        "topk": np.sort(softplus, axis=-1)[..., -3:].mean(-1),
        "softplus": softplus.mean(-1),
        "clip": np.maximum(array, 0).mean(-1),
        "raw": array.mean(-1),
        "l1": np.abs(array).mean(-1),
    }[metric]
    np.testing.assert_allclose(token_scores(y, config).numpy(), expected, rtol=2e-6, atol=1e-7)


def test_moving_average_starts() -> None:
    from mscope.model.importance import MovingAverage

    for start, expected in (("zero", 0.1 * 2 * 0.9 + 0.1 * 5), ("first", 2 * 0.9 + 0.1 * 5)):
        average = MovingAverage(config_for("digits", beta=0.9, ema_start=start))
        average.add(torch.tensor([[2.0]]))
        average.add(torch.tensor([[5.0]]))
        assert average.value.item() == pytest.approx(expected, rel=1e-6)


def test_importance_layers_are_the_paper_s() -> None:
    assert [i + 1 for i in config_for("ti").importance_layers] == [12, 14, 16, 18, 20, 22, 24]
    assert [i + 1 for i in config_for("digits").importance_layers] == [4, 6]
    assert config_for("digits", depth=1).importance_layers == (0,)
    assert config_for("ti", importance_from=20, importance_every=3).importance_layers == (19, 22)


def test_everything_refined_in_raster_order_is_plain_vim() -> None:
    model = small(order="class-middle", fine_order="raster", reuse="none")
    image = pictures(model)
    with torch.no_grad():
        torch.testing.assert_close(model(image, alpha=1.0)[1], model.forward_full(image), rtol=0, atol=1e-12)


def test_raster_order_of_some_regions_is_that_of_their_patches() -> None:
    model = small(fine_order="raster")
    selected = torch.tensor([[0, 1, 4, 9], [2, 3, 10, 11]])
    patches = fine_indices(selected.numpy(), coarse_grid(model.config))
    ranks = model._raster_ranks(selected).numpy()
    np.testing.assert_array_equal(np.take_along_axis(patches, ranks, axis=1), np.sort(patches, axis=1))


ORDERS = ["class-first", "class-middle", "class-after-important", "unimportant-first"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("reuse", ["mlp", "linear", "none"])
@pytest.mark.parametrize("reuse_class_token", [False, True])
def test_the_fine_sequence_of_every_ablation(
    order: str, reuse: str, reuse_class_token: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What enters the encoder, in numpy; an encoder that changes nothing leaves the head the class token."""
    model = small(order=order, reuse=reuse, reuse_class_token=reuse_class_token, alpha=0.4)
    state, image = double(model), pictures(model, 1)
    with torch.no_grad():
        coarse = model.coarse(image)
        selected, remaining = model.split(coarse.importance)
        entered: list[torch.Tensor] = []
        monkeypatch.setattr(model, "encode", lambda tokens: (entered.append(tokens) or tokens, None))
        logits = model.fine(image, coarse.features, coarse.embeddings, selected, remaining)
    features = coarse.features[0].numpy()
    assert {tensor.name: tensor.axes[1:] for tensor in graph_for(model.config, "coarse").outputs} == {
        name: tuple(getattr(coarse, name).shape[1:]) for name in ("logits", "importance", "features", "embeddings")
    }
    regions, patches = coarse_grid(model.config), embed(state, image[0].numpy(), model.config.patch)
    middle = fine_grid(model.config).count // 2
    positions, position = np.delete(state["pos_embed"][0], middle, axis=0), state["pos_embed"][0, middle]
    class_token = state["cls_token"][0, 0] + position
    if reuse_class_token:
        # The coarse class token is what the coarse head reads.
        assert len(features) == regions.count + 1
        of_class = state["head.weight"] @ features[-1] + state["head.bias"]
        np.testing.assert_allclose(coarse.logits[0].numpy(), of_class, rtol=0, atol=1e-12)
        class_token = class_token + reuse_of(state, features[-1])
    important = [
        patches[i] + positions[i] + reuse_of(state, features[region])
        for region in selected[0].tolist()
        for i in fine_indices(np.array([region]), regions)
    ]
    others = [coarse.embeddings[0, region].numpy() for region in remaining[0].tolist()]
    tokens = [*important, *others]
    half = len(tokens) // 2
    expected = {
        "class-first": [class_token, *tokens],
        "class-middle": [*tokens[:half], class_token, *tokens[half:]],
        "class-after-important": [*important, class_token, *others],
        "unimportant-first": [class_token, *others, *important],
    }[order]
    np.testing.assert_allclose(entered[0][0].numpy(), expected, rtol=0, atol=1e-12)
    found = state["head.weight"] @ class_token + state["head.bias"]
    np.testing.assert_allclose(logits[0].numpy(), found, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("reuse", ["mlp", "linear", "none"])
@pytest.mark.parametrize("reuse_class_token", [False, True])
def test_every_ablation_runs_and_matters(order: str, reuse: str, reuse_class_token: bool) -> None:
    model = small(order=order, reuse=reuse, reuse_class_token=reuse_class_token)
    assert sum(p.numel() for p in model.parameters()) == parameter_count(model.config)
    image = pictures(model)
    with torch.no_grad():
        base = small()(image)[1]
        _, fine = model(image)
    assert torch.isfinite(fine).all()
    if (order, reuse, reuse_class_token) != ("class-first", "mlp", False) and not (
        order == "class-first" and reuse == "none" and not reuse_class_token
    ):
        assert not torch.allclose(fine, base)


def test_score_before_gate_changes_only_the_importance() -> None:
    gated, plain = small(), small(gated_importance=False)
    image = pictures(gated)
    with torch.no_grad():
        torch.testing.assert_close(gated.coarse(image).logits, plain.coarse(image).logits, rtol=0, atol=1e-12)
        assert not torch.allclose(gated.coarse(image).importance, plain.coarse(image).importance)
    # One block: what is scored is Y, which becomes what enters out_proj when it is gated.
    model = small(gated_importance=False, depth=1)
    block = model.blocks()[0]
    with torch.no_grad():
        tokens = model.embed_with_class(model.patch_embed.cut(image), model.pos_embed)
        normed = block.norm(tokens)
        hidden, before = block.mixer(normed, score_before_gate=True)
        same_hidden, gated_y = block.mixer(normed)
        z = block.mixer.in_proj(normed).chunk(2, dim=-1)[1]
        importance = model.encode(tokens, scored=True)[1]
    torch.testing.assert_close(hidden, same_hidden, rtol=0, atol=1e-12)
    torch.testing.assert_close(before * z * torch.sigmoid(z), gated_y, rtol=0, atol=1e-12)
    largest = before.amax(dim=-1)
    # Importance is kept in float32.
    assert importance is not None
    torch.testing.assert_close(importance.double(), 0.01 * torch.log1p(largest.exp()), rtol=1e-6, atol=0)


def test_the_torch_selection_is_the_runtime_s() -> None:
    model = small()
    importance = torch.randint(0, 4, (40, 24), generator=torch.Generator().manual_seed(0)).float()
    for alpha in (0.1, 0.5, 1.0):
        selected, remaining = model.split(importance, alpha)
        wanted = select_regions(importance.numpy(), selected.shape[1])
        np.testing.assert_array_equal(selected.numpy(), wanted[0])
        np.testing.assert_array_equal(remaining.numpy(), wanted[1])


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_batches_are_independent(batch: int) -> None:
    model = small()
    image = pictures(model, 3)
    with torch.no_grad():
        coarse, fine = model(image[:batch])
        each = [model(image[i : i + 1]) for i in range(batch)]
    assert coarse.shape == (batch, 10)
    for i, (one_coarse, one_fine) in enumerate(each):
        torch.testing.assert_close(coarse[i : i + 1], one_coarse, rtol=0, atol=1e-12)
        torch.testing.assert_close(fine[i : i + 1], one_fine, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("size", "tolerance"), [("digits", 2e-5), ("ti", 1e-4)])
def test_float32_is_near_float64(size: str, tolerance: float) -> None:
    # MODEL.md: float32 and float64 differ by about 1e-5 in the logits, in any correct order of operations. The bound
    # leaves one order of magnitude for another machine's order of summation.
    config = config_for(size)
    model = model_from_seed(config, 0).model
    image = torch.randn(1, config.channels, config.height, config.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        single = [logits.double() for logits in model(image)]
        exact = model.double()(image.double())
    for ours, wanted in zip(single, exact, strict=True):
        assert (ours - wanted).abs().max().item() < tolerance


def test_gradients_reach_every_parameter() -> None:
    model = small()
    coarse, fine = model(pictures(model))
    (coarse.square().sum() + fine.square().sum()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_forcing_an_implementation_that_does_not_fit_is_an_error() -> None:
    from mscope.core.errors import BackendError

    with scan.implementation("native"), pytest.raises(BackendError, match="float32 on the CPU"):
        small()(pictures(small()))
    with scan.implementation("mamba-ssm"), pytest.raises(BackendError, match="mamba-ssm"):
        small()(pictures(small()))
    assert scan.implementation_for(torch.zeros(1, dtype=torch.float64)) == "reference"


def test_initialisation_is_vim_s() -> None:
    model = model_from_seed(config_for("ti"), 0).model
    mixer = model.blocks()[0].mixer
    assert torch.equal(torch.exp(mixer.A_log).round(), torch.arange(1, 17).float().expand(384, 16))
    assert (mixer.D == 1).all()
    assert (mixer.dt_proj_b.bias == 0).all()
    delta = torch.nn.functional.softplus(mixer.dt_proj.bias.detach())
    assert 1e-4 <= delta.min().item() < delta.max().item() <= 0.1001
    assert mixer.out_proj.weight.abs().max().item() <= (384**-0.5) / 24**0.5
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    # LeCun's normal: variance 1 / fan-in after cutting at two standard deviations of what is cut.
    weight = model.patch_embed.proj.weight.detach()
    assert weight.std().item() == pytest.approx(768**-0.5, rel=0.02)
    assert weight.abs().max().item() == pytest.approx(2 * 768**-0.5 / 0.8796, rel=0.01)
    torch.manual_seed(0)
    model.initialise(backward_delta=True)
    assert mixer.dt_proj_b.bias.max().item() < 0
