"""What `verify --polygraphy` writes: Polygraphy reads it, runs it and judges by it. On TensorRT: test_engine_rtx.py."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from mscope.core.bundle import load_manifest
from mscope.core.cascade import select_regions
from mscope.core.config import ModelConfig, config_for
from mscope.core.console import run_app
from mscope.core.contract import graph_for
from mscope.core.errors import InputError
from mscope.export import polygraphy_files, verification
from mscope.export.bounds import tolerance
from mscope.export.build import build_bundle
from mscope.export.cli import app
from mscope.export.engine import plugin_onnx
from mscope.export.extend import extend_bundle, new_file
from mscope.export.options import BuildOptions
from mscope.export.verification import Verification, verify

Small = Callable[..., ModelConfig]
IMAGES = 6
pytestmark = pytest.mark.filterwarnings("ignore:SelectableGroups:DeprecationWarning")


@pytest.fixture(autouse=True)
def as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A data folder of its own; Polygraphy's tools change its log for the whole process."""
    from polygraphy.logger import G_LOGGER

    monkeypatch.setenv("MSCOPE_HOME", str(tmp_path / "home"))
    with G_LOGGER.verbosity(G_LOGGER.module_severity):
        yield


@pytest.fixture(scope="module")
def bundle(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "bundle"
    build_bundle(BuildOptions(small(), seed=4, out=out, precisions=("fp16",)))
    return out


@pytest.fixture(scope="module")
def written(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Verification]:
    """The folder, in a place whose name a shell must not split, and the report; not to be modified."""
    folder = tmp_path_factory.mktemp("for polygraphy") / "files"
    return folder, verify(bundle, polygraphy=folder)


def graph_of(bundle: Path, line: str) -> Path:
    """The bundle's file that a command line is about, which has the function bodies that ONNX Runtime needs."""
    return bundle / Path(shlex.split(line)[3]).name.replace(".plugin", "")


def on_onnx_runtime(bundle: Path, line: str, outputs: Path | None = None) -> list[str]:
    """The arguments of a command line, for the bundle's own graph, with ONNX Runtime instead of TensorRT."""
    words = shlex.split(line)
    assert words[:3] == ["MSCOPE_TRT_REGISTER=1", "polygraphy", "run"]
    at = words.index("--load-inputs")
    assert words[4:at] == [
        "--trt", "--strongly-typed", "--profiling-verbosity", "detailed", "--plugins", "$(mscope-export plugins path)",
    ]  # fmt: skip
    arguments = ["run", str(graph_of(bundle, line)), "--onnxrt", *words[at:]]
    if outputs is not None:
        arguments[arguments.index("--load-outputs") + 1] = str(outputs)
    return arguments


def polygraphy(arguments: list[str]) -> int:
    """The program's exit status, in this process."""
    from polygraphy.tools import main

    return int(main(arguments))


def results_of(folder: Path, stage: str) -> Any:
    from polygraphy.comparator import RunResults

    return RunResults.load(str(folder / f"{stage}.outputs.json"))


def test_polygraphy_passes_every_line_on_onnx_runtime(bundle: Path, written: tuple[Path, Verification]) -> None:
    _, report = written
    assert [graph_of(bundle, line).name for line in report.polygraphy] == [
        "coarse.onnx", "coarse.fp16.onnx", "fine.onnx", "fine.fp16.onnx",
    ]  # fmt: skip
    for line in report.polygraphy:
        assert polygraphy(on_onnx_runtime(bundle, line)) == 0, line


def test_the_program_itself(bundle: Path, written: tuple[Path, Verification]) -> None:
    _, report = written
    program = shutil.which("polygraphy", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert program is not None
    done = subprocess.run(
        [program, *on_onnx_runtime(bundle, report.polygraphy[-1])], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert f"Passed: {IMAGES}/{IMAGES} iterations" in done.stdout


@pytest.mark.parametrize("stage", ["coarse", "fine"])
def test_polygraphy_fails_what_is_beyond_the_bound(
    bundle: Path, written: tuple[Path, Verification], stage: str, tmp_path: Path
) -> None:
    """One value of one image off by twice the bound is found, by a tenth of it is not."""
    folder, report = written
    (line,) = [line for line in report.polygraphy if graph_of(bundle, line).name == f"{stage}.fp16.onnx"]
    bound = float(line.partition("logits:")[2].split()[0])
    for factor, status in ((0.1, 0), (2.0, 1)):
        results = results_of(folder, stage)
        results["pytorch"][3]["logits"][0, 2] += factor * bound
        results.save(str(tmp_path / "changed.json"))
        assert polygraphy(on_onnx_runtime(bundle, line, tmp_path / "changed.json")) == status


def test_polygraphy_shows_the_data(written: tuple[Path, Verification], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = written
    assert polygraphy(["inspect", "data", str(folder / "fine.inputs.json")]) == 0
    assert polygraphy(["inspect", "data", str(folder / "fine.outputs.json")]) == 0
    out = capsys.readouterr().out
    for name in ("image", "features", "embeddings", "selected", "remaining", "logits"):
        assert name in out
    assert f"{IMAGES} iterations" in out


def test_what_the_data_is(bundle: Path, written: tuple[Path, Verification]) -> None:
    """An image each; the fine stage's are refined where the reference refines; both as the contract declares."""
    from polygraphy.json import load_json

    folder, _ = written
    config = load_manifest(bundle).config
    outputs: dict[str, Any] = {}
    for stage in ("coarse", "fine"):
        inputs = load_json(str(folder / f"{stage}.inputs.json"))
        outputs[stage] = results_of(folder, stage)["pytorch"]
        graph = graph_for(config, stage)  # type: ignore[arg-type]
        assert len(inputs) == len(outputs[stage]) == IMAGES
        for declared, rows in ((graph.inputs, inputs), (graph.outputs, outputs[stage])):
            for row in rows:
                got = {name: (value.dtype.name, value.shape) for name, value in row.items()}
                assert got == {tensor.name: (tensor.dtype, (1, *tensor.axes[1:])) for tensor in declared}
    for first, row in zip(outputs["coarse"], inputs, strict=True):
        selected, remaining = select_regions(first["importance"], row["selected"].shape[1])
        np.testing.assert_array_equal(row["selected"], selected)
        np.testing.assert_array_equal(row["remaining"], remaining)
        np.testing.assert_array_equal(row["features"], first["features"])


def test_the_graphs_are_what_takes_the_plugin(bundle: Path, written: tuple[Path, Verification]) -> None:
    _, report = written
    for line in report.polygraphy:
        model = onnx.load(shlex.split(line)[3])
        assert not model.functions
        ops = [node.op_type for node in model.graph.node if node.domain == "mambascope"]
        assert set(ops) == {"CausalConv1dSiLU", "BidirectionalSelectiveScan"}
        assert len(ops) == 2 * load_manifest(bundle).config.depth


def test_the_bounds_are_those_of_verify(bundle: Path, written: tuple[Path, Verification]) -> None:
    folder, report = written
    config = load_manifest(bundle).config
    (variant,) = [variant for variant in report.variants if variant.name == "ort-cpu fp16 function"]
    (line,) = [line for line in report.polygraphy if graph_of(bundle, line).name == "coarse.fp16.onnx"]
    bounds = dict(item.split(":") for item in line.partition("--atol ")[2].split())
    assert {f"coarse.{name}": float(bound) for name, bound in bounds.items()} == {
        name: pytest.approx(distance.tolerance, rel=5e-3)
        for name, distance in variant.outputs.items()
        if name.startswith("coarse.")
    }
    logits = results_of(folder, "fine")["pytorch"]
    scale = max(float(np.abs(row["logits"]).max()) for row in logits)
    expected = tolerance(config, "fine", "fp16", scale)
    assert float(report.polygraphy[-1].partition("logits:")[2]) == pytest.approx(expected, rel=5e-3)


def test_plain_vim_and_a_precision_that_is_reported_only(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def derive(folder: Path, manifest: Any, progress: Any) -> Any:
        shutil.copyfile(folder / "full.onnx", new_file(folder, "full.int8.onnx"))
        return {"full": manifest.stages["full"].variants[0].model_copy(
            update={"file": "full.int8.onnx", "precision": "int8"}
        )}  # fmt: skip

    built, folder = tmp_path / "vim", tmp_path / "files"
    folder.mkdir()  # an empty one does
    build_bundle(BuildOptions(small(arch="vim", depth=2), seed=0, out=built))
    extend_bundle(built, [derive])
    assert run_app(app, ["verify", str(built), "--polygraphy", str(folder), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = json.loads(captured.out)["polygraphy"]
    assert [line.endswith("--atol logits:inf") for line in lines] == [False, True]
    assert {path.name for path in folder.iterdir()} == {
        "full.inputs.json", "full.outputs.json", "full.plugin.onnx", "full.int8.plugin.onnx",
    }  # fmt: skip
    for line in lines:
        assert polygraphy(on_onnx_runtime(built, line)) == 0


def test_the_command_prints_the_lines(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "files"
    assert run_app(app, ["verify", str(bundle), "--polygraphy", str(folder)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    at = lines.index("to run on a device with TensorRT and the plugin:")
    assert [line.startswith(f"MSCOPE_TRT_REGISTER=1 polygraphy run {folder}/") for line in lines[at + 1 :]] == [
        True
    ] * 4


def refused(monkeypatch: pytest.MonkeyPatch, bundle: Path, folder: Path, pictures: list[str], match: str) -> None:
    """In one line, before anything is computed."""

    def compare(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("the work was begun")

    monkeypatch.setattr(verification, "check_comparator", lambda: None)
    monkeypatch.setattr(verification, "compare_variants", compare)
    monkeypatch.setattr(verification, "GraphReference", compare)
    with pytest.raises(InputError, match=match):
        verify(bundle, pictures=pictures, polygraphy=folder)


def test_what_is_there_stays(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for target in (tmp_path / "full", tmp_path / "full" / "mine", bundle):
        before = sorted(tmp_path.rglob("*"))
        refused(monkeypatch, bundle, target, [], r"exists and is not an empty folder: name another one")
        assert sorted(tmp_path.rglob("*")) == before


def test_as_many_images_as_the_files_may_hold(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is of what is written; the largest network takes all the pictures that `verify` does."""
    polygraphy_files.check_target(tmp_path / "new", config_for("b"), 64 + IMAGES)
    with pytest.raises(InputError, match=r"would write \d+ MiB of inputs and outputs for 70 images, at most 256 MiB"):
        polygraphy_files.check_target(tmp_path / "new", config_for("b", height=448, width=448), 64 + IMAGES)
    folder = tmp_path / "files"
    config = load_manifest(bundle).config
    verify(bundle, polygraphy=folder)
    size = sum(path.stat().st_size for path in folder.glob("*.json"))
    monkeypatch.setattr(polygraphy_files, "_MOST_BYTES", size)
    polygraphy_files.check_target(tmp_path / "new", config, IMAGES)
    with pytest.raises(InputError, match="name fewer --images"):
        polygraphy_files.check_target(tmp_path / "new", config, 2 * IMAGES)


def test_a_failure_leaves_nothing(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plugin_onnx, "plugin_graph", full)
    with pytest.raises(OSError, match="No space left"):
        verify(bundle, polygraphy=tmp_path / "files")
    assert list(tmp_path.iterdir()) == []
