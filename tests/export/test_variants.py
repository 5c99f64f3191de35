"""Variants are compared with the reference, held to bounds that follow from their precision, and added whole or not."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from fake_tensorrt import add_engines
from mscope.core.bundle import load_manifest, record_of, write_manifest
from mscope.core.config import ModelConfig, config_for
from mscope.core.contract import Stage
from mscope.core.errors import BackendError, MscopeError, ParityError
from mscope.core.manifest import Manifest, Temperature, Variant
from mscope.export import variants
from mscope.export.agreement import compare_exits
from mscope.export.bounds import ROUNDING, roundings, tolerance
from mscope.export.build import build_bundle
from mscope.export.extend import Derive, extend_bundle, new_file
from mscope.export.options import BuildOptions
from mscope.export.passes.mixers import split_mixers
from mscope.export.probes import probe_images
from mscope.export.reference import GraphReference
from mscope.export.revise import revise_bundle
from mscope.export.variants import compare_variants
from mscope.export.verification import raise_problems, verify
from mscope.model.checkpoint import model_from_seed
from mscope.runtime.backends.availability import Availability
from mscope.runtime.backends.registry import BACKENDS

Small = Callable[..., ModelConfig]


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSCOPE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def built(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp32, fp16 and bf16 of the small network, seed 4; not to be modified."""
    out = tmp_path_factory.mktemp("built") / "bundle"
    build_bundle(BuildOptions(small(), seed=4, out=out, precisions=("fp16", "bf16")))
    return out


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    """A copy."""
    return Path(shutil.copytree(built, tmp_path / "bundle"))


def damage(folder: Path, file: str, initializer: str, factor: float) -> None:
    """Scales a weight and records the new hash, as a faulty derivation would."""
    model = onnx.load(folder / file)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == initializer]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float16(factor), initializer))
    (folder / file).write_bytes(model.SerializeToString())
    manifest = load_manifest(folder, check_files=False)
    files = {**manifest.files, file: record_of(folder / file)}
    write_manifest(folder, manifest.model_copy(update={"files": files}))


def test_a_build_holds_every_precision_and_how_near_it_is(built: Path) -> None:
    manifest = load_manifest(built)
    for stage, record in manifest.stages.items():
        assert [variant.file for variant in record.variants] == [
            f"{stage}.onnx", f"{stage}.fp16.onnx", f"{stage}.bf16.onnx",
        ]  # fmt: skip
        fp32, fp16, bf16 = (variant.parity for variant in record.variants)
        assert fp32 is None
        assert fp16 is not None
        assert bf16 is not None
        assert fp16.reference == "pytorch"
        assert 0 < fp16.max_abs < bf16.max_abs <= (bf16.tolerance or 0)
        assert (fp16.selected_agreement is None) == (stage == "fine")


def test_verify_runs_what_can_run_and_says_what_cannot(bundle: Path) -> None:
    report = verify(bundle, layers=True)
    raise_problems(report)
    ran = {variant.name for variant in report.variants if not variant.not_run}
    assert {"ort-cpu fp32 function", "ort-cpu fp16 function", "ort-cpu bf16 function, products emulated"} <= ran
    assert all(variant.images == 6 for variant in report.variants if not variant.not_run)
    for variant in report.variants:
        assert bool(variant.not_run) != bool(variant.outputs)
        if variant.outputs:
            assert set(variant.outputs) == {
                "coarse.logits", "coarse.importance", "coarse.features", "coarse.embeddings", "fine.logits",
            }  # fmt: skip
            assert (variant.exit_flips, variant.top1_agreement.keys()) == (0, {"coarse", "fine"})
    assert report.ranges[0].headroom > 100
    assert set(report.drift) == {"coarse.fp16.onnx", "coarse.bf16.onnx", "fine.fp16.onnx", "fine.bf16.onnx"}
    assert {layers["first_drift"] for layers in report.to_json()["layers"].values()} == {None}


def test_verify_compares_exits_at_the_bundle_s_temperature(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fp32 graphs too: what is confident depends on it."""
    manifest = load_manifest(bundle)
    temperature = Temperature(coarse=2.5, fine=0.5)
    write_manifest(bundle, manifest.model_copy(update={"temperature": temperature, "default_eta": 0.3}))
    network = model_from_seed(manifest.config, 4).model.double()
    with torch.no_grad():
        exact = network.coarse(torch.from_numpy(probe_images(manifest.config, 6)).double()).logits.numpy()
    compared = []

    def spy(actual: Any, expected: Any, etas: tuple[float, ...], tolerance: float, **options: Any) -> float:
        compared.append((expected, etas))
        return compare_exits(actual, expected, etas, tolerance, **options)

    monkeypatch.setattr("mscope.export.verify.compare_exits", spy)
    raise_problems(verify(bundle))
    assert compared
    for logits, etas in compared:
        np.testing.assert_allclose(logits, exact / 2.5, rtol=1e-9, atol=1e-12)
        assert etas == (0.3,)


def test_verify_takes_pictures(bundle: Path, tmp_path: Path) -> None:
    tensor = np.random.default_rng(0).standard_normal((3, 3, 24, 40)).astype(np.float32)
    np.save(tmp_path / "given.npy", tensor)
    assert verify(bundle, pictures=[str(tmp_path / "given.npy")]).images == 9
    np.save(tmp_path / "many.npy", np.zeros((65, 3, 24, 40), np.float32))
    with pytest.raises(MscopeError, match="stands for 65 pictures, at most 64"):
        verify(bundle, pictures=[str(tmp_path / "many.npy")])


def test_a_variant_beyond_its_bounds_is_a_problem(bundle: Path) -> None:
    damage(bundle, "coarse.fp16.onnx", "layers.1.mixer.out_proj.weight", 1.5)
    report = verify(bundle, layers=True)
    with pytest.raises(ParityError, match=r"ort-cpu fp16 .*coarse (logits|features|importance) differ by"):
        raise_problems(report)
    first = report.to_json()["layers"]["coarse.fp16.onnx"]["first_drift"]
    assert first["tensor"] == "layers.1/mixer/out_proj"
    assert all(not variant.problems for variant in report.variants if "fp16" not in variant.name)


def test_a_variant_that_computes_no_numbers_is_a_problem(bundle: Path) -> None:
    damage(bundle, "coarse.fp16.onnx", "layers.1.mixer.out_proj.weight", np.inf)
    report = verify(bundle, layers=True)
    with pytest.raises(ParityError, match="NaN or infinity"):
        raise_problems(report)
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert content["layers"]["coarse.fp16.onnx"]["first_drift"]["tensor"] == "layers.1/mixer/out_proj"


def test_fp16_that_overflows_is_a_problem(bundle: Path) -> None:
    manifest = load_manifest(bundle)
    model = model_from_seed(manifest.config, 4).model
    with __import__("torch").no_grad():
        model.patch_embed.proj.weight.mul_(1e6)
    from mscope.export.precision.ranges import ranges_of
    from mscope.export.probes import probe_images
    from mscope.export.to_onnx import onnx_from_model

    found = ranges_of(
        split_mixers(onnx_from_model(model, "coarse")), "coarse", {"image": probe_images(manifest.config, 2)}
    )
    report = verify(bundle)
    report.ranges = found
    assert found[0].headroom < 1
    with pytest.raises(ParityError, match=r"fp16 overflows: coarse patch_embed"):
        raise_problems(report)


def test_int8_is_reported_and_not_judged(bundle: Path) -> None:
    """Whatever a quantised graph computes on noise: its judge is accuracy on data."""

    def derive(folder: Path, manifest: Manifest, progress: Any) -> Mapping[Stage, Variant]:
        for stage in manifest.stages:
            shutil.copyfile(folder / f"{stage}.fp16.onnx", new_file(folder, f"{stage}.int8.onnx"))
        return {stage: Variant(file=f"{stage}.int8.onnx", precision="int8") for stage in manifest.stages}

    extend_bundle(bundle, [derive])
    damage(bundle, "coarse.int8.onnx", "layers.1.mixer.out_proj.weight", 1.5)
    manifest = load_manifest(bundle)
    files: dict[Stage, Path] = {stage: bundle / f"{stage}.onnx" for stage in manifest.stages}
    images = np.random.default_rng(0).standard_normal((3, 3, 24, 40)).astype(np.float32)
    reports = compare_variants(bundle, manifest, GraphReference(manifest.config, files), images, skip=("fp32", "bf16"))
    (report,) = [report for report in reports if report.name == "ort-cpu int8 function"]
    assert report.problems == []
    assert report.outputs["coarse.logits"].tolerance is None
    assert report.outputs["coarse.logits"].relative > 1e-2


def test_an_engine_for_more_images_than_there_are(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `build --batch 8` makes them: the six probes fill no batch of eight, so that some are run twice."""
    original = variants._runners

    @contextlib.contextmanager
    def of_eight(*arguments: Any) -> Iterator[tuple[Any, tuple[int, int]]]:
        with original(*arguments) as (runners, _):
            yield runners, (8, 8)

    monkeypatch.setattr(variants, "_runners", of_eight)
    report = verify(bundle)
    raise_problems(report)
    ran = [variant for variant in report.variants if not variant.not_run]
    assert ran
    for variant in ran:
        assert (variant.images, variant.exit_flips, variant.selected_agreement) == (6, 0, 1.0)


def put_in_place(monkeypatch: pytest.MonkeyPatch, name: str, **hooks: Any) -> None:
    """A backend that is here, with other hooks."""
    there = Availability(name, "", "", "", None)
    monkeypatch.setitem(BACKENDS, name, dataclasses.replace(BACKENDS[name], probe=lambda: there, **hooks))


def test_engines_for_another_machine_are_not_run(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `build --gpu sm_89` makes them where another GPU is: no fault of the bundle's."""
    add_engines(bundle, compute_capabilities=("sm_89",))
    asked: list[str] = []

    def mismatch(path: Path, variant: Variant, kernel: str) -> str:
        asked.append(path.name)
        return "" if "sm_90" in path.name else f"{path.name} was built for sm_89: run '--from {path.parent}'"

    def runner(graph: Any, path: Path, options: Any) -> Any:
        raise BackendError(f"opened {path.name}")

    put_in_place(monkeypatch, "tensorrt", mismatch=mismatch, runner=runner)
    report = verify(bundle)
    raise_problems(report)
    (engines,) = (variant for variant in report.variants if variant.backend == "tensorrt")
    engine = "coarse.fp16.sm_89.trt.engine"
    assert engines.not_run == f"{engine} was built for sm_89: run '--from {bundle}'"
    assert asked == [engine]
    revised = revise_bundle(bundle, ("fp16",))
    (engines,) = (variant for variant in revised.steps.reports if variant.backend == "tensorrt")
    assert engines.not_run == f"{engine} was built for sm_89: run '--from BUNDLE'"
    # Of two engines for a stage the one that fits is opened.
    add_engines(bundle)
    (engines,) = (variant for variant in verify(bundle).variants if variant.backend == "tensorrt")
    assert (engines.not_run, engines.problems) == ("", ["opened coarse.fp16.sm_90.trt.engine"])


def test_the_kernel_that_is_told_is_the_one_that_runs(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, str, int | None]] = []

    def runner(graph: Any, path: Path, options: Any) -> Any:
        asked.append((path.name, options.kernel, options.threads))
        raise BackendError("no")

    put_in_place(monkeypatch, "ort-cuda", runner=runner)
    monkeypatch.setattr(variants.find, "library", lambda name: tmp_path if name == "ort_cuda" else None)
    names = [report.name for report in verify(bundle).variants if report.backend == "ort-cuda"]
    each = [(precision, kernel) for precision in ("fp32", "fp16") for kernel in ("function", "native")]
    assert names == [f"ort-cuda {precision} {kernel}" for precision, kernel in each]
    files = {"fp32": "coarse.onnx", "fp16": "coarse.fp16.onnx"}
    assert asked == [(files[precision], kernel, None) for precision, kernel in each]


def failing(folder: Path, manifest: Manifest, progress: Any) -> Mapping[Stage, Variant]:
    new_file(folder, "coarse.int8.onnx").write_bytes(b"half")
    raise MscopeError("calibration failed")


def unwritten(folder: Path, manifest: Manifest, progress: Any) -> Mapping[Stage, Variant]:
    return {"coarse": Variant(file="coarse.int8.onnx", precision="int8")}


def foreign(folder: Path, manifest: Manifest, progress: Any) -> Mapping[Stage, Variant]:
    return {"full": Variant(file="coarse.onnx", precision="int8")}


@pytest.mark.parametrize("derive", [failing, unwritten, foreign])
def test_a_derivation_that_fails_leaves_the_bundle_as_it_was(bundle: Path, derive: Derive) -> None:
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    with pytest.raises(MscopeError):
        extend_bundle(bundle, [derive])
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_what_was_asked_for_and_not_made_is_an_error(bundle: Path) -> None:
    with pytest.raises(MscopeError, match="int8 was asked for and stage 'coarse' has no such file"):
        revise_bundle(bundle, ("int8",))


def test_an_engine_of_a_replaced_graph_goes(bundle: Path) -> None:
    def engines(folder: Path, manifest: Manifest, progress: Any) -> Mapping[Stage, Variant]:
        added: dict[Stage, Variant] = {}
        for stage in manifest.stages:
            for precision in ("fp16",):
                name = f"{stage}.{precision}.engine"
                new_file(folder, name).write_bytes(b"plan")
                new_file(folder, f"{name}.json").write_bytes(b"{}")
                added[stage] = Variant(file=name, backend="tensorrt", precision="fp16")
        return added

    def other(content: bytes) -> Derive:
        def derive(folder: Path, manifest: Manifest, progress: Any) -> Mapping[Stage, Variant]:
            graph = (folder / "fine.fp16.onnx").read_bytes() + content
            new_file(folder, "fine.fp16.onnx").write_bytes(graph)
            return {"fine": Variant(file="fine.fp16.onnx", precision="fp16")}

        return derive

    held = bundle.parent / "held.onnx"
    os.link(bundle / "fine.fp16.onnx", held)
    before = held.read_bytes()
    manifest = extend_bundle(bundle, [engines, other(b"")])
    assert {"fine.fp16.engine", "fine.fp16.engine.json"} <= set(manifest.files)
    manifest = extend_bundle(bundle, [other(b"\x00\x00")])
    assert "coarse.fp16.engine" in manifest.files
    assert not {"fine.fp16.engine", "fine.fp16.engine.json"} & {
        *manifest.files,
        *(path.name for path in bundle.iterdir()),
    }
    # Files of the copy are links into the old bundle; replacing one must not write into it.
    assert held.read_bytes() == before == (bundle / "fine.fp16.onnx").read_bytes()[:-2]


def without(packages: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    """`mscope-export` where these packages are not installed."""
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({packages!r}))\n"
        "from mscope.core.console import run_app\n"
        "from mscope.export.cli import app\n"
        f"sys.exit(run_app(app, {list(arguments)!r}))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)


def test_a_device_without_torch_adds_variants(bundle: Path) -> None:
    """As on a Jetson: onnx, ONNX Runtime, Polygraphy and numpy, no PyTorch."""
    for name in ("fp16", "bf16"):
        for stage in ("coarse", "fine"):
            (bundle / f"{stage}.{name}.onnx").unlink()
    manifest = load_manifest(bundle, check_files=False)
    stages = {
        stage: record.model_copy(update={"variants": record.variants[:1]}) for stage, record in manifest.stages.items()
    }
    files = {name: record for name, record in manifest.files.items() if name in ("coarse.onnx", "fine.onnx")}
    write_manifest(bundle, manifest.model_copy(update={"stages": stages, "files": files}))
    absent = ("torch", "onnxscript", "safetensors", "sklearn")
    result = without(absent, "build", "--from", str(bundle), "--fp16", "--debug")
    assert result.returncode == 0, result.stderr
    parity = load_manifest(bundle).stages["fine"].variants[1].parity
    assert parity is not None
    assert parity.reference == "fp32"
    result = without(absent, "verify", str(bundle), "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["reference"] == "fp32"


def test_without_polygraphy_nothing_is_begun(bundle: Path) -> None:
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    line = (
        "error: variants are compared with Polygraphy 0.53.4 or newer, which is not installed: "
        "pip install 'polygraphy>=0.53.4'\n"
    )
    new = bundle.parent / "new"
    for arguments in (
        ("verify", str(bundle)),
        ("build", "--from", str(bundle), "--fp16"),
        ("build", "--size", "digits", "--fp16", "--out", str(new)),
    ):
        result = without(("polygraphy",), *arguments)
        assert (result.returncode, result.stdout, result.stderr) == (1, "", line)
    assert not new.exists()
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    result = without(("polygraphy",), "build", "--from", str(bundle), "--fp16", "--no-parity")
    assert result.returncode == 0, result.stderr


def test_bounds_are_counted_roundings() -> None:
    ti = config_for("ti")
    assert roundings(ti, "coarse") == 11 * 24 + 6
    assert roundings(ti, "fine") == 2 * roundings(ti, "coarse") + 6
    assert tolerance(ti, "coarse", "fp16", 2.0) == pytest.approx(2.0 * 2.0**-11 * 270**0.5)
    # The longest sum of the network is that of the reused features' second product, 4 x 192 terms.
    assert tolerance(ti, "coarse", "fp32", 2.0) == pytest.approx(2.0 * 2.0**-24 * (270 * 768) ** 0.5)
    assert tolerance(ti, "coarse", "int8", 2.0) is None
    bounds = [tolerance(ti, "coarse", precision, 1.0) or 0 for precision in ("fp32", "fp16", "bf16")]
    assert bounds == sorted(bounds)
    assert all(bound < 1 for bound in bounds)
    # One bit less than fp16 has is beyond what a network of the digits' depth may lose.
    digits = config_for("digits")
    assert (tolerance(digits, "coarse", "fp16", 1.0) or 0) < ROUNDING["bf16"] * 2.5
