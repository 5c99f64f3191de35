import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fakes
from fake_cuda import FakeCuda
from fake_gpu import InterfaceArray, random_batch
from mscope.core.bundle import MANIFEST, mark_latest
from mscope.core.cost import stage_cost
from mscope.core.errors import BundleError, InputError
from mscope.core.geometry import token_counts
from mscope.core.manifest import Weights
from mscope.runtime import Scope

# float32 sums of a few hundred terms of size 10: about 2e-5, and numpy adds in another order than ONNX Runtime.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-4}
ETA = 0.6


def by_hand(network: fakes.FakeNetwork, image: np.ndarray, eta: float) -> tuple[np.ndarray, list[int] | None]:
    """The cascade for one image in plain Python, sharing nothing with mscope.core.cascade."""
    coarse = {name: array[0] for name, array in network.coarse(image[None]).items()}
    exps = [math.exp(v - max(coarse["logits"])) for v in coarse["logits"]]
    if max(exps) / sum(exps) >= eta:
        return coarse["logits"], None
    scores = coarse["importance"].tolist()
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    chosen, rest = sorted(ranked[: math.ceil(len(scores) / 2)]), sorted(ranked[math.ceil(len(scores) / 2) :])
    return network.fine(image[None], np.array([chosen]), np.array([rest]))[0], chosen


def test_a_mixed_batch_is_every_image_by_hand(scope: Scope, network: fakes.FakeNetwork) -> None:
    images = fakes.random_images(network.config, 23)
    outcome = scope.run(images, ETA)
    assert {"coarse", "fine"} == set(outcome.stages), "the test needs both kinds"
    for row, image in enumerate(images):
        logits, chosen = by_hand(network, image, ETA)
        np.testing.assert_allclose(outcome.logits[row], logits, **TOLERANCE)
        assert outcome.stages[row] == ("coarse" if chosen is None else "fine")
        assert outcome.selected is not None
        assert outcome.selected[row].tolist() == ([-1] * 6 if chosen is None else chosen)
    expected = network.coarse(images)
    np.testing.assert_allclose(outcome.coarse_logits, expected["logits"], **TOLERANCE)
    np.testing.assert_allclose(outcome.importance, expected["importance"], **TOLERANCE)


def test_batches_of_any_size_give_the_same(scope: Scope, network: fakes.FakeNetwork) -> None:
    images = fakes.random_images(network.config, 12)
    whole = scope.run(images, ETA)
    for size in (1, 5):
        parts = [scope.run(images[i : i + size], ETA) for i in range(0, 12, size)]
        assert [stage for part in parts for stage in part.stages] == list(whole.stages)
        np.testing.assert_allclose(np.concatenate([part.logits for part in parts]), whole.logits, **TOLERANCE)
        selected = np.concatenate([part.selected for part in parts if part.selected is not None])
        np.testing.assert_array_equal(selected, whole.selected)


def test_eta_edges(scope: Scope, network: fakes.FakeNetwork) -> None:
    images = fakes.random_images(network.config, 6)
    easy = scope.run(images, 0.0)
    assert easy.stages == ("coarse",) * 6
    assert easy.selected is not None
    assert (easy.selected == -1).all()
    np.testing.assert_array_equal(easy.logits, easy.coarse_logits)
    assert scope.run(images, 1.0).stages == ("fine",) * 6
    for eta in (-0.01, 1.01, math.nan):
        with pytest.raises(InputError, match="between 0 and 1"):
            scope.run(images, eta)


def test_confidence_equal_to_eta_exits(scope: Scope, network: fakes.FakeNetwork) -> None:
    images = fakes.random_images(network.config, 1)
    outcome = scope.run(images, 1.0)
    assert outcome.coarse_confidence is not None
    exactly = float(outcome.coarse_confidence[0])
    assert scope.run(images, exactly).stages == ("coarse",)
    assert scope.run(images, exactly + 1e-6).stages == ("fine",)


def test_ties_take_the_lower_region(scope: Scope, network: fakes.FakeNetwork) -> None:
    outcome = scope.run(np.zeros((1, 3, 64, 48), np.float32), 1.0)
    assert outcome.selected is not None
    assert outcome.selected.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_ties_among_many_regions(tmp_path: Path) -> None:
    # More than sorting by insertion, which is stable by itself, is used for.
    network = fakes.FakeNetwork(fakes.fake_config(height=160, width=160))
    fakes.write_fake_bundle(tmp_path / "b", network)
    image = np.zeros((1, 3, 160, 160), np.float32)
    image[:, :, 144:, 144:] = 1
    with Scope.load(tmp_path / "b") as loaded:
        outcome = loaded.run(image, 1.0)
    assert outcome.selected is not None
    assert outcome.selected.tolist() == [[*range(49), 99]]


def test_an_empty_batch(scope: Scope) -> None:
    outcome = scope.run(np.zeros((0, 3, 64, 48), np.float32), ETA)
    assert outcome.logits.shape == (0, 10)
    assert outcome.selected is not None
    assert outcome.selected.shape == (0, 6)
    assert outcome.stages == ()
    assert scope.batch([]) == []


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (np.zeros((1, 3, 48, 64), np.float32), r"got shape \(1, 3, 48, 64\), expected"),
        (np.zeros((3, 64, 48), np.float32), r"got shape \(3, 64, 48\)"),
        (np.zeros((1, 3, 64, 48), np.float64), "got dtype float64, expected float32"),
    ],
)
def test_run_refuses_other_tensors(scope: Scope, tensor: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        scope.run(tensor)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_by_name(scope: Scope, network: fakes.FakeNetwork, bad: float) -> None:
    images = fakes.random_images(network.config, 3)
    images[2, 1, 5, 7] = bad
    with pytest.raises(InputError, match=r"image 2: 1 value\(s\) are NaN or infinite, the first at \(1, 5, 7\)"):
        scope.run(images)
    with pytest.raises(InputError, match=r"^street:"):
        scope(images[2], source="street")


def test_inputs_are_not_modified_and_outputs_are_the_callers(scope: Scope, network: fakes.FakeNetwork) -> None:
    images = fakes.random_images(network.config, 4)
    images.flags.writeable = False
    first = scope.run(images, ETA)
    kept = first.logits.copy()
    assert first.coarse_logits is not None
    first.coarse_logits[:] = 0
    np.testing.assert_array_equal(first.logits, kept)
    np.testing.assert_array_equal(scope.run(images, ETA).logits, kept)


def test_a_strided_batch_is_read_right(scope: Scope, network: fakes.FakeNetwork) -> None:
    images = fakes.random_images(network.config, 4)
    np.testing.assert_array_equal(scope.run(images[::2], ETA).logits, scope.run(images[::2].copy(), ETA).logits)


def test_result_and_its_json(scope: Scope, network: fakes.FakeNetwork) -> None:
    images = list(fakes.random_images(network.config, 9))
    outcome = scope.run(np.stack(images), ETA)
    results = scope.batch(images, eta=ETA, topk=3)
    cost, tokens = stage_cost(network.config), token_counts(network.config)
    for row, result in enumerate(results):
        fine = outcome.stages[row] == "fine"
        line = json.loads(result.to_json())
        assert list(line) == [
            "source", "stage", "confidence", "coarse_confidence", "eta", "topk", "gmacs", "tokens", "selected",
            "latency_ms", "backend", "kernel", "precision", "untrained",
        ]  # fmt: skip
        assert line["source"] == f"image {row}"
        assert line["untrained"] is True
        assert line["gmacs"] == pytest.approx(cost.coarse + cost.fine * fine, rel=1e-4)
        assert line["tokens"] == tokens.coarse + tokens.fine * fine
        assert (line["selected"] is None) == (not fine)
        assert [guess["index"] for guess in line["topk"]] == np.argsort(-outcome.logits[row])[:3].tolist()
        assert line["topk"][0]["label"] == f"label {line['topk'][0]['index']}"
        assert line["confidence"] == line["topk"][0]["prob"]
        assert list(line["latency_ms"]) == ["preprocess", "coarse", "select", "fine", "total"]
        assert (line["latency_ms"]["fine"] > 0) == fine
        assert (line["backend"], line["kernel"]) == ("ort-cpu", "function")
        assert "\n" not in result.to_json()


@pytest.mark.parametrize("eta", [np.float32(0.5), np.float16(0.5), np.array(0.5), np.int64(1), 1])
def test_numpys_numbers_are_etas_too(scope: Scope, network: fakes.FakeNetwork, eta: Any) -> None:
    result = scope(fakes.random_images(network.config, 1)[0], eta=eta)
    assert type(result.eta) is float
    assert json.loads(result.to_json())["eta"] == float(eta)


def test_a_name_for_each_image(scope: Scope, network: fakes.FakeNetwork) -> None:
    images = list(fakes.random_images(network.config, 2))
    assert [result.source for result in scope.batch(images, sources=["a", "b"])] == ["a", "b"]
    for sources in ([], ["a"], ["a", "b", "c"]):
        with pytest.raises(InputError, match=rf"sources: got {len(sources)} names for 2 images"):
            scope.batch(images, sources=sources)


def test_shares_of_the_time_add_up(scope: Scope, network: fakes.FakeNetwork) -> None:
    outcome = scope.run(fakes.random_images(network.config, 9), ETA)
    shares = [outcome.image_ms(row) for row in range(9)]
    for stage, whole in outcome.stage_ms.items():
        assert sum(share[stage] for share in shares) == pytest.approx(whole)


def test_the_time_to_prepare_is_in_milliseconds(
    scope: Scope, network: fakes.FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = Scope.prepare

    def slow(self: Scope, image: object, source: str | None = None) -> object:
        time.sleep(0.02)
        return prepare(self, image, source)

    monkeypatch.setattr(Scope, "prepare", slow)
    started = time.perf_counter()
    result = scope(fakes.random_images(network.config, 1)[0])
    elapsed = (time.perf_counter() - started) * 1e3
    assert 20.0 <= result.latency_ms["preprocess"] < result.latency_ms["total"] <= elapsed


def test_topk_bounds(scope: Scope, network: fakes.FakeNetwork) -> None:
    image = fakes.random_images(network.config, 1)[0]
    assert len(scope(image, topk=100).topk) == 10
    with pytest.raises(InputError, match="topk"):
        scope(image, topk=0)


def test_default_eta_is_the_bundles(tmp_path: Path, network: fakes.FakeNetwork) -> None:
    fakes.write_fake_bundle(tmp_path / "b", network, default_eta=0.0, labels=None)
    image = fakes.random_images(network.config, 1)[0]
    with Scope.load(tmp_path / "b") as loaded:
        result = loaded(image)
        assert (result.eta, result.stage) == (0.0, "coarse")
        assert result.answer.label == f"class {result.answer.index}"


def test_trained_weights_carry_no_warning(tmp_path: Path, network: fakes.FakeNetwork) -> None:
    fakes.write_fake_bundle(tmp_path / "b", network, weights=Weights(origin="shipped", name="w", sha256="0" * 64))
    with Scope.load(tmp_path / "b") as loaded:
        assert "untrained" not in loaded(fakes.random_images(network.config, 1)[0]).to_dict()


@pytest.mark.parametrize("alpha", [1.0, 0.05])
def test_other_alphas(tmp_path: Path, alpha: float) -> None:
    network = fakes.FakeNetwork(fakes.fake_config(alpha=alpha))
    fakes.write_fake_bundle(tmp_path / "b", network)
    images = fakes.random_images(network.config, 3)
    with Scope.load(tmp_path / "b") as loaded:
        outcome = loaded.run(images, 1.0)
    scores = network.coarse(images)["importance"]
    count = math.ceil(alpha * 12)
    expected = [sorted(sorted(range(12), key=lambda i: -row[i])[:count]) for row in scores]
    assert outcome.selected is not None
    assert outcome.selected.tolist() == expected


def test_plain_vim(vim_bundle: Path, vim_network: fakes.FakeNetwork) -> None:
    images = fakes.random_images(vim_network.config, 3)
    with Scope.load(vim_bundle) as loaded:
        outcome = loaded.run(images)
        np.testing.assert_allclose(outcome.logits, vim_network.full(images), **TOLERANCE)
        assert (outcome.stages, outcome.selected) == (("full",) * 3, None)
        line = json.loads(loaded(images[0]).to_json())
        assert (line["stage"], line["eta"], line["coarse_confidence"], line["selected"]) == ("full", None, None, None)
        assert line["tokens"] == token_counts(vim_network.config).full
        assert list(line["latency_ms"]) == ["preprocess", "full", "total"]
        with pytest.raises(InputError, match="plain ViM"):
            loaded.run(images, 0.5)
        assert loaded.run(images[:0]).logits.shape == (0, 10)


def test_pictures_and_arrays_come_to_the_same(scope: Scope, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    results = scope.batch([tmp_path / "x.png", str(tmp_path / "x.png"), Image.fromarray(pixels), pixels], eta=1.0)
    assert len({result.confidence for result in results}) == 1
    assert [result.source for result in results] == [str(tmp_path / "x.png")] * 2 + ["image 2", "image 3"]


def test_the_latest_bundle(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSCOPE_HOME", str(tmp_path))
    with pytest.raises(BundleError, match="no bundle yet"):
        Scope.load()
    mark_latest(bundle)
    with Scope.load() as loaded:
        assert loaded.manifest.name == "fake"


def test_a_changed_byte_is_found(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    content = bytearray((copy / "fine.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "fine.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"fine\.onnx has changed"):
        Scope.load(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"schema_version": 99}, "schema version 99"), ({"surprise": 1}, "surprise"), ({"stages": {}}, "stages")],
)
def test_foreign_manifests(bundle: Path, tmp_path: Path, change: dict[str, object], message: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    content = json.loads((copy / MANIFEST).read_text()) | change
    (copy / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(BundleError, match=message):
        Scope.load(copy)


def test_a_backend_on_the_cpu_takes_no_array_on_the_device(scope: Scope, network: fakes.FakeNetwork) -> None:
    array = InterfaceArray(FakeCuda(), random_batch(network, 1))
    with pytest.raises(InputError, match=r"on a CUDA device, which this backend does not read: move it to the host"):
        scope.run(array)
    with pytest.raises(InputError, match="got list, expected a numpy array"):
        scope.run([1.0])
