"""The shipped digits model from its weights to answers on pictures: what `make demo` shows, checked."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cuda_host
import fake_gpu
import fakes
import ort_cuda_host
from fake_cuda import FakeCuda
from mscope.core.bundle import load_manifest
from mscope.core.errors import BackendError
from mscope.export.build import build_bundle
from mscope.export.options import BuildOptions, config_from_options
from mscope.model.training.digits import write_samples
from mscope.plugins import find, ort
from mscope.runtime import Scope

ROOT = Path(__file__).parents[1]
needs_native = pytest.mark.skipif(find.library("ort") is None, reason=f"no native kernels: {find.why_missing('ort')}")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "bundle"
    build_bundle(BuildOptions(config=config_from_options("digits"), out=folder, precisions=("fp16",)))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_samples(tmp_path_factory.mktemp("pictures"), 60)


def test_the_bundle_carries_the_eta_chosen_for_the_shipped_weights_and_its_curve(bundle: Path, tmp_path: Path) -> None:
    manifest = load_manifest(bundle)
    assert manifest.default_eta == 0.9
    assert manifest.eta_curve is not None
    at = {point.eta: point for point in manifest.eta_curve}
    assert at[0.9].accuracy > at[0.6].accuracy > at[0.0].accuracy
    assert at[0.9].gmacs < 0.7 * manifest.baseline.gmacs
    # Another alpha has another curve, so that neither is taken over.
    other = BuildOptions(config=config_from_options("digits", alpha=0.5), out=tmp_path / "other", parity=False)
    manifest = build_bundle(other).manifest
    assert (manifest.default_eta, manifest.eta_curve) == (0.6, None)


def test_answers_are_right_easy_pictures_leave_early_and_hard_ones_are_refined(
    bundle: Path, pictures: list[Path]
) -> None:
    with Scope.load(bundle) as scope:
        results = {path: scope(path) for path in pictures}
    right = [result.topk[0].label == path.stem[-1] for path, result in results.items()]
    # 97.5 % of 4,000 test pictures; half of these are the smallest digits, 94 % of which are right.
    assert np.mean(right) >= 0.9
    refined = {
        kind: np.mean([result.stage == "fine" for path, result in results.items() if path.stem.startswith(kind)])
        for kind in ("easy", "hard")
    }
    assert refined["hard"] > refined["easy"] + 0.2
    assert not any(result.untrained for result in results.values())


@needs_native
def test_native_kernels_and_function_bodies_agree(bundle: Path, pictures: list[Path]) -> None:
    answers = {}
    for kernel in ("native", "function"):
        with Scope.load(bundle, kernel=kernel) as scope:  # type: ignore[arg-type]
            assert scope.kernel == kernel
            tensor = scope.stack([scope.preprocess(path) for path in pictures])
            answers[kernel] = scope.run(tensor, eta=0.9)
    native, function = answers["native"], answers["function"]
    assert native.stages == function.stages
    np.testing.assert_array_equal(native.selected, function.selected)
    # float32 differs from float64 by about 1e-5 in the logits, in any correct order of operations.
    np.testing.assert_allclose(native.logits, function.logits, rtol=0, atol=1e-4)


@needs_native
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_ops_for_cuda_give_the_answers_of_those_for_the_cpu(
    bundle: Path, pictures: list[Path], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backend ort-cuda with its native ops, compiled for the host and on ONNX Runtime's CPU provider: each block's
    mixer is taken apart, and both of its ops are the library's."""
    if cuda_host.compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    with Scope.load(bundle, kernel="native", precision=precision) as scope:
        depth = scope.config.depth
        tensor = scope.stack([scope.preprocess(path) for path in pictures])
        stages = scope.run(tensor, eta=0.9).stages
        # Two that exit and two that go on: the host runs a kernel thread by thread.
        some = sorted(
            [*np.flatnonzero([s == "coarse" for s in stages])[:2], stages.index("fine"), stages.index("fine", 30)]
        )
        expected = scope.run(tensor[some], eta=0.9)
    cuda = FakeCuda(host_addresses=True)
    fake_gpu.install(monkeypatch, fakes.FakeNetwork(fakes.fake_config()), cuda)
    fake_gpu.put_ort_cuda_on_the_cpu(monkeypatch, largest=4)
    monkeypatch.setenv(find.PLUGIN_DIR, str(ort_cuda_host.library().parent))
    kernels, calls = ort.kernels_created("ort_cuda"), ort.calls("ort_cuda")
    with Scope.load(bundle, backend="ort-cuda", kernel="native", precision=precision) as scope:
        assert (scope.kernel, scope.notes) == ("native", ())
        assert ort.kernels_created("ort_cuda") - kernels == 2 * 2 * depth, "two stages, two ops a block"
        got = scope.run(tensor[some], eta=0.9)
        assert ort.calls("ort_cuda") - calls == 2 * 2 * depth
    assert got.stages == expected.stages
    assert set(got.stages) == {"coarse", "fine"}
    np.testing.assert_array_equal(got.selected, expected.selected)
    # fp32: as above. fp16: a number between two blocks may be rounded to its other neighbour, 2^-10 of it away.
    close = 1e-4 if precision == "fp32" else 2.0**-10 * np.abs(expected.logits).max()
    np.testing.assert_allclose(got.logits, expected.logits, rtol=0, atol=close)
    assert cuda.live == 0


@needs_native
def test_a_graph_without_the_ops_is_not_called_native(tmp_path: Path) -> None:
    folder = tmp_path / "fake"
    fakes.write_fake_bundle(folder, fakes.FakeNetwork(fakes.fake_config()))
    with Scope.load(folder) as scope:
        assert scope.kernel == "function"
    with pytest.raises(BackendError, match="took none of the native kernels"):
        Scope.load(folder, kernel="native")


def test_the_command_agrees_with_the_library(bundle: Path, pictures: list[Path]) -> None:
    command = [sys.executable, "-m", "mscope.runtime.cli", *map(str, pictures[:6]), "--bundle", str(bundle), "--json"]
    paths = ":".join(str(ROOT / part) for part in ("core", "plugins", "model", "runtime", "export"))
    result = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": paths})
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    with Scope.load(bundle) as scope:
        for line, path in zip(lines, pictures, strict=False):
            answer = scope(path)
            assert line["topk"][0]["label"] == answer.topk[0].label
            assert line["stage"] == answer.stage
            assert line["source"] == str(path)
            assert line["selected"] == (list(answer.selected) if answer.selected else None)
    assert len(lines) == 6
