"""The gate's figures on decisions made by hand; what passes, what is refused, and what a refusal leaves behind."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import PIL
import pytest
from PIL import Image

from mscope.calib import split
from mscope.calib.dataset import Dataset, Example, open_dataset
from mscope.calib.gate import Decisions, compare, decide_on, shared_regions
from mscope.calib.record import Quantisation, load_quantisation
from mscope.calib.split import split_data
from mscope.calib.variant import AccuracyError, QuantizeOptions, Quantizer
from mscope.core.bundle import load_manifest
from mscope.core.config import config_for
from mscope.core.errors import InputError
from mscope.export.build import build_bundle
from mscope.export.extend import extend_bundle
from mscope.export.options import BuildOptions
from mscope.plugins import find
from mscope.runtime import Scope
from mscope.runtime.preprocess import Preprocessor

# Few pictures: these tests are about what happens, tests on thousands are the benchmark's.
QUICK: dict[str, Any] = {"data": "digits", "images": 32, "compared": 100, "max_drop": 5.0}


def logits(*answers: int, sure: float = 10.0) -> np.ndarray:
    """Three classes; every row answers one of them."""
    return (np.eye(3)[list(answers)] * sure).astype(np.float32)


def decisions(coarse: np.ndarray, fine: np.ndarray, selected: list[list[int]]) -> Decisions:
    return Decisions({"coarse": coarse, "fine": fine}, np.array(selected, np.int64), np.array([0, 1, 2, 0]))


def test_the_figures_of_a_comparison_are_counted_by_path() -> None:
    regions = [[0, 1], [0, 1], [2, 3], [2, 3]]
    unsure = logits(0, 0, 2, 1)
    unsure[1:] *= 0.1  # the first picture exits at 0.9, the others are refined
    reference = decisions(unsure, logits(0, 1, 2, 0), regions)
    flipped = unsure.copy()
    flipped[3] *= 10  # the last one leaves early now, with its wrong coarse answer
    variant = decisions(flipped, logits(0, 1, 1, 0), [[0, 1], [0, 2], [2, 3], [0, 1]])
    result = compare(variant, reference, eta=0.9, held_out=True)
    assert result.reference == {"coarse": 0.5, "fine": 1.0, "adaptive": 1.0}
    assert result.accuracy == {"coarse": 0.5, "fine": 0.75, "adaptive": 0.5}
    assert result.changed == {"coarse": 0.0, "fine": 0.25, "adaptive": 0.5}
    assert result.exit_flips == 0.25
    assert result.selected_agreement == (2 + 1 + 2 + 0) / 8
    assert (result.drop, result.counted) == (50.0, "accuracy"), "of the path that loses most"


def test_a_gain_on_one_path_does_not_hide_a_loss_on_another() -> None:
    reference = decisions(logits(0, 0, 0, 0), logits(0, 1, 2, 0), [[0]] * 4)
    variant = decisions(logits(0, 1, 2, 0), logits(0, 1, 2, 1), [[0]] * 4)
    assert compare(variant, reference, eta=1.0, held_out=True).drop == 25.0


def test_untrained_weights_are_judged_by_their_answers() -> None:
    reference = decisions(logits(1, 0, 0, 1), logits(1, 2, 0, 1), [[0]] * 4)  # all wrong
    variant = decisions(logits(1, 0, 0, 1), logits(2, 2, 0, 1), [[0]] * 4)
    trained = compare(variant, reference, eta=1.0, held_out=True)
    untrained = compare(variant, reference, eta=1.0, held_out=True, by_accuracy=False)
    assert (trained.drop, untrained.drop, untrained.counted) == (0.0, 25.0, "answers")


def test_the_temperature_moves_exits() -> None:
    one = decisions(logits(0, 1, 2, 0, sure=3.0), logits(0, 1, 2, 0), [[0]] * 4)
    assert one.exits(0.9).all()
    assert not one.exits(0.9, temperature=4.0).any()
    # Of logits 2, 0, 0 the first class has exp(2) / (exp(2) + 2) = 0.787; halved, they would be exp(4) / (exp(4) + 2).
    plain = decisions(logits(0, 1, 2, 0, sure=2.0), logits(0, 1, 2, 0), [[0]] * 4)
    assert plain.exits(0.78).all()
    assert not plain.exits(0.79).any()
    assert (plain.answers(0.79)["adaptive"] == plain.answers(None)["fine"]).all()


def test_no_pictures_are_no_comparison() -> None:
    class Unused:
        def run(self, image: np.ndarray) -> Any:
            raise AssertionError("there is no picture to run")

    with pytest.raises(InputError, match="no pictures to compare the variant with fp32 on"):
        decide_on(Unused(), lambda: iter(()))  # type: ignore[arg-type]


def test_shared_regions_is_set_overlap() -> None:
    random = np.random.default_rng(0)
    ours, theirs = (np.stack([random.choice(16, 12, replace=False) for _ in range(5)]) for _ in range(2))
    expected = np.mean([len(set(a) & set(b)) / 12 for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)])
    assert shared_regions(ours, theirs) == pytest.approx(expected)
    assert shared_regions(None, theirs) is None


class Numbers(Dataset):
    """Pictures that are their own index."""

    def __init__(self, count: int) -> None:
        self.name, self.classes, self.notes, self._count = "numbers", 10, (), count

    def __len__(self) -> int:
        return self._count

    def example(self, index: int) -> Example:
        return Example(str(index), np.zeros((1, 1), np.uint8), index % 10)

    @property
    def fingerprint(self) -> str:
        return "0" * 64


@pytest.mark.parametrize("total, wanted", [(1000, 256), (357, 256), (400, 300), (356, 256), (50, 256), (1, 1)])
def test_calibration_and_comparison_share_no_picture_unless_there_are_too_few(total: int, wanted: int) -> None:
    seen, compared, held_out = split_data(Numbers(total), wanted)
    chosen, others = ({part.example(i).source for i in range(len(part))} for part in (seen, compared))
    assert len(chosen) == len(seen) == min(total, wanted)
    assert held_out == (total - wanted >= 100)
    assert (len(chosen & others) == 0) == held_out
    assert len(others) == (total - wanted if held_out else total)
    if total >= 2 * wanted:
        # Spread over the whole set, which a folder orders by class.
        gaps = np.diff(sorted(int(name) for name in chosen))
        assert gaps.max() <= 2 * total / wanted


@pytest.fixture(scope="module")
def quantized_bundle(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Quantisation]:
    folder = copy_of(digits_bundle, tmp_path_factory.mktemp("int8"))
    quantizer = Quantizer(QuantizeOptions("int8", **QUICK))
    extend_bundle(folder, [quantizer])
    assert quantizer.result is not None
    return folder, quantizer.result


def copy_of(bundle: Path, folder: Path) -> Path:
    target = folder / "bundle"
    target.mkdir()
    for path in bundle.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_an_int8_variant_is_in_the_bundle_and_runs(quantized_bundle: tuple[Path, Quantisation]) -> None:
    folder, result = quantized_bundle
    manifest = load_manifest(folder)
    for stage in ("coarse", "fine"):
        assert [v.precision for v in manifest.stages[stage].variants] == ["fp32", "int8"]
    assert load_quantisation(folder / "int8.quantisation.json") == result
    assert (result.calibration.images, result.calibration.batches, result.calibration.skipped) == (32, 2, 0)
    assert result.calibration.pillow == PIL.__version__
    assert (result.gate.images, result.gate.held_out) == (100, True)
    assert result.calibration.data == "digits:validation"
    assert not result.sensitivity, "the gate held at once"
    picture = np.zeros((1, 1, 64, 64), np.float32)
    native = find.library("ort") is not None
    with Scope.load(folder, precision="int8") as scope, Scope.load(folder, precision="fp32") as exact:
        assert (scope.precision, scope.kernel) == ("int8", "native" if native else "function")
        assert not np.array_equal(scope.run(picture, 1.0).logits, exact.run(picture, 1.0).logits)


def test_stored_ranges_make_the_same_graphs_again(
    quantized_bundle: tuple[Path, Quantisation], digits_bundle: Path, tmp_path: Path
) -> None:
    folder, first = quantized_bundle
    other = copy_of(digits_bundle, tmp_path)
    quantizer = Quantizer(QuantizeOptions("int8", **QUICK, ranges=folder / "int8.quantisation.json"))
    extend_bundle(other, [quantizer])
    assert quantizer.result is not None
    assert quantizer.result.calibration == first.calibration
    for stage in ("coarse", "fine"):
        assert (other / f"{stage}.int8.onnx").read_bytes() == (folder / f"{stage}.int8.onnx").read_bytes()


def spoiled_ranges(result: Quantisation, path: Path, names: list[str], factor: float) -> Path:
    """A record whose limits of some coarse activations are `factor` of what they should be."""
    content = json.loads(result.model_dump_json())
    limits = content["calibration"]["stages"]["coarse"]["limits"]
    for name in names:
        limits[name] *= factor
    path.write_text(json.dumps(content))
    return path


def test_one_bad_layer_is_found_and_left_out(
    quantized_bundle: tuple[Path, Quantisation], digits_bundle: Path, tmp_path: Path
) -> None:
    _, first = quantized_bundle
    bad = spoiled_ranges(first, tmp_path / "r.json", ["layers.2/norm/Mul"], 0.01)
    folder = copy_of(digits_bundle, tmp_path)
    quantizer = Quantizer(QuantizeOptions("int8", **QUICK, ranges=bad))
    extend_bundle(folder, [quantizer])
    result = quantizer.result
    assert result is not None
    assert (result.sensitivity[0].stage, result.sensitivity[0].group) == ("coarse", "layers.2.in_proj")
    assert result.left_out == {"coarse": ("layers.2.in_proj",), "fine": ()}
    assert result.gate.drop <= 5.0
    assert not quantizer.notes, "100 pictures tell 5 points"
    stored = {tensor.name for tensor in onnx.load(folder / "coarse.int8.onnx").graph.initializer}
    assert "layers.2.mixer.in_proj.weight" in stored
    assert "layers.3.mixer.in_proj.weight" not in stored


def test_past_max_drop_the_variant_is_refused_with_the_layers_to_blame_and_the_bundle_is_as_it_was(
    quantized_bundle: tuple[Path, Quantisation], digits_bundle: Path, tmp_path: Path
) -> None:
    _, first = quantized_bundle
    names = list(first.calibration.stages["coarse"].limits)
    # Every layer of the coarse stage is useless: leaving half of all layers out does not help.
    bad = spoiled_ranges(first, tmp_path / "r.json", names, 0.001)
    content = json.loads(bad.read_text())
    fine = content["calibration"]["stages"]["fine"]["limits"]
    content["calibration"]["stages"]["fine"]["limits"] = {name: limit * 0.001 for name, limit in fine.items()}
    bad.write_text(json.dumps(content))
    folder = copy_of(digits_bundle, tmp_path)
    before = contents(folder)
    with pytest.raises(
        AccuracyError, match=r"int8 refused: .* points of accuracy lost .* To blame .*layers\.\d"
    ) as caught:
        extend_bundle(folder, [Quantizer(QuantizeOptions("int8", **QUICK, ranges=bad))])
    assert caught.value.exit_code == 1
    assert contents(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "r.json"]


def test_ranges_of_other_weights_are_refused(
    quantized_bundle: tuple[Path, Quantisation], tmp_path: Path, digits_bundle: Path
) -> None:
    _, first = quantized_bundle
    path = tmp_path / "r.json"
    changed = first.calibration.model_copy(update={"weights": "digits mambascope seed 7"})
    path.write_text(first.model_copy(update={"calibration": changed}).model_dump_json())
    with pytest.raises(InputError, match="ranges of other weights"):
        extend_bundle(copy_of(digits_bundle, tmp_path), [Quantizer(QuantizeOptions("int8", **QUICK, ranges=path))])


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not valid JSON"),
        ("[]", "valid dictionary"),
        ('{"precision": "int8"}', "Field required"),
        (None, "cannot read"),
    ],
)
def test_a_record_that_is_none_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "r.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        load_quantisation(path)


def test_a_record_with_nan_in_it_is_refused(quantized_bundle: tuple[Path, Quantisation], tmp_path: Path) -> None:
    _, first = quantized_bundle
    path = spoiled_ranges(first, tmp_path / "r.json", ["layers.2/norm/Mul"], float("nan"))
    with pytest.raises(InputError, match=r"limits\.layers\.2/norm/Mul"):
        load_quantisation(path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data": None}, "--int8 needs pictures: .* never guessed"),
        ({"method": "guess"}, "unknown calibration method"),
        ({"images": 0}, "--calib-images is 1 or more"),
        ({"smoothing": 1.5}, "--smoothing is between 0 and 1"),
        ({"max_drop": -1.0}, "--max-drop is in points"),
    ],
)
def test_options_that_cannot_be_carried_out(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Quantizer(QuantizeOptions("int8", **{**QUICK, **changes}))


def test_plain_vim_is_quantised_too(tmp_path: Path) -> None:
    quantizer = Quantizer(QuantizeOptions("int8", **QUICK))
    options = BuildOptions(config=config_for("digits", "vim"), out=tmp_path / "vim", parity=False)
    build_bundle(options, derive=[quantizer])
    assert quantizer.result is not None
    gate = quantizer.result.gate
    assert set(gate.accuracy) == {"full"}
    assert (gate.eta, gate.exit_flips, gate.selected_agreement) == (None, None, None)
    with Scope.load(tmp_path / "vim", precision="int8") as scope:
        assert scope.precision == "int8"


def test_pictures_are_prepared_once_where_they_fit_and_anew_where_they_do_not(
    digits_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = load_manifest(digits_bundle)
    data = open_dataset("digits:validation", manifest, limit=20)
    drawn: list[int] = []
    whole = type(data).example
    monkeypatch.setattr(type(data), "example", lambda self, index: (drawn.append(index), whole(self, index))[1])
    for limit, times in ((1 << 20, 1), (9 * 64 * 64 * 4, 2)):
        monkeypatch.setattr(split, "_KEPT_BYTES", limit)
        pictures = split.Pictures(data, Preprocessor(manifest.preprocessing, manifest.config), batch=8)
        first, second = ([batch.tensor for batch in pictures()] for _ in range(2))
        assert drawn == list(range(20)) * times
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
        drawn.clear()


def test_untrained_weights_are_quantised_whole_and_the_user_is_told(tmp_path: Path) -> None:
    # Of 10 near-tied answers many change; there is no accuracy that could be lost.
    quantizer = Quantizer(QuantizeOptions("int8", **{**QUICK, "max_drop": 0.0}))
    options = BuildOptions(config=config_for("digits", depth=2), seed=3, out=tmp_path / "random", parity=False)
    build_bundle(options, derive=[quantizer])
    assert quantizer.result is not None
    assert quantizer.result.gate.counted == "answers"
    assert quantizer.result.gate.drop > 0
    assert quantizer.result.left_out == {"coarse": (), "fine": ()}
    assert any("untrained" in note for note in quantizer.notes)


def test_one_picture_among_corrupt_ones_is_enough_to_run_and_the_user_is_told(
    digits_bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos" / "3"
    folder.mkdir(parents=True)
    Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)).save(folder / "good.png")
    (folder / "corrupt.png").write_bytes(b"not a picture")
    options = QuantizeOptions("int8", data=str(tmp_path / "photos"), max_drop=1.0)
    quantizer = Quantizer(options)
    extend_bundle(copy_of(digits_bundle, tmp_path), [quantizer])
    assert quantizer.result is not None
    assert (quantizer.result.calibration.images, quantizer.result.calibration.skipped) == (1, 1)
    assert not quantizer.result.gate.held_out
    told = "\n".join(quantizer.notes)
    assert "1 picture could not be read, the first: " in told
    assert "1 picture cannot tell a drop of 1 points" in told
    (folder / "good.png").unlink()
    with pytest.raises(InputError, match="calibration needs pictures, none could be read"):
        extend_bundle(tmp_path / "bundle", [Quantizer(options)])
