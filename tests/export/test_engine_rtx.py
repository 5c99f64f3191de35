"""Real engines without a GPU: TensorRT-RTX builds both stages with our plugin, and its list of layers is held to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

import trt_library
from mscope.core.bundle import load_manifest
from mscope.core.config import ModelConfig, config_for
from mscope.core.engine import load_engine_record
from mscope.core.errors import BackendError, InputError
from mscope.export.build import build_bundle
from mscope.export.engine import cache
from mscope.export.engine.wish import EngineWish
from mscope.export.engine.worker import take_memory_from_user
from mscope.export.info import info_from_bundle
from mscope.export.options import BuildOptions
from mscope.export.revise import revise_bundle
from mscope.export.verification import verify
from mscope.plugins import build_trt, trt
from mscope.plugins.trt_source import source_folder

pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The plugin library; the data folder of its own."""
    with pytest.MonkeyPatch.context() as patch, trt_library.in_use():
        patch.setenv("MSCOPE_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def check_engines(folder: Path, report: Any, precision: str, depth: int) -> None:
    """Both engines of a precision: proved, with the plugin's layers and no fallback body, six launches a block."""
    manifest = load_manifest(folder)
    for stage, record in manifest.stages.items():
        (variant,) = [v for v in record.variants if (v.backend, v.precision) == ("tensorrt-rtx", precision)]
        proof = report.steps.engine_proofs[variant.file]
        assert proof.ops_by_plugin == 2 * depth
        assert proof.source == "builder"
        assert proof.proved == proof.products == 3 * depth + (4 if stage == "fine" else 2)
        engine = load_engine_record(folder / variant.file)
        assert engine.compute_capabilities == ("sm_89",)
        assert (engine.gpu_name, engine.stage, engine.precision) == ("", stage, precision)
        assert (
            engine.graph_sha256
            == manifest.files[f"{stage}{'' if precision == 'fp32' else '.' + precision}.onnx"].sha256
        )
        assert engine.plugin_sha256 is not None
        assert engine.batch == (1, 2, 4)
        # norm with the sum before it, in_proj, conv, x_proj of both directions, scan, out_proj
        assert engine.launches_per_block == 6
        assert {variant.file, f"{variant.file}.json"} <= set(manifest.files)
        # A plain plan: what TensorRT wrote, nothing in front of it.
        assert (folder / variant.file).read_bytes()[1:4] == b"trt"


WISH = EngineWish("trt-rtx", ("sm_89",), (1, 2, 4), "plugin")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """The digits bundle with fp16, then engines of fp16, then of fp32; and both reports."""
    folder = tmp_path_factory.mktemp("digits") / "bundle"
    config = config_for("digits")
    first = build_bundle(BuildOptions(config, out=folder, precisions=("fp16",), engines=WISH))
    second = revise_bundle(folder, ("fp32",), WISH)
    return folder, first, second


def test_both_engines_of_digits_with_the_plugin(digits: tuple[Path, Any, Any]) -> None:
    folder, first, second = digits
    check_engines(folder, first, "fp16", 6)
    check_engines(folder, second, "fp32", 6)
    launches = info_from_bundle(folder)["launches"]
    assert launches["coarse.fp16.tensorrt-rtx.engine"]["per_block"] == launches["coarse.fp16.onnx"]["per_block"] == 6
    assert all(" not run" not in report.name for report in second.steps.reports)
    assert [r.not_run != "" for r in second.steps.reports if r.backend == "tensorrt-rtx"]


def test_the_same_engine_is_not_built_twice(digits: tuple[Path, Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def build_again(*arguments: Any) -> Any:
        raise AssertionError("the cache has it")

    monkeypatch.setattr("mscope.export.engine.derive.build_in_process", build_again)
    folder, _, _ = digits
    before = (folder / "fine.fp16.tensorrt-rtx.engine").read_bytes()
    revise_bundle(folder, ("fp16",), WISH, parity=False)
    assert (folder / "fine.fp16.tensorrt-rtx.engine").read_bytes() == before
    with pytest.raises(AssertionError, match="the cache has it"):
        revise_bundle(folder, ("fp16",), EngineWish("trt-rtx", ("sm_89",), (1, 2, 5), "plugin"), parity=False)


@pytest.fixture(scope="module")
def tiny(small: Callable[..., ModelConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One block, fp32 and fp16 graphs."""
    folder = tmp_path_factory.mktemp("tiny") / "bundle"
    build_bundle(BuildOptions(small(depth=1), seed=1, out=folder, precisions=("fp16",)))
    return folder


@pytest.mark.parametrize("loops", [False, True])
def test_an_engine_without_loops_allocates_nothing_while_it_runs(loops: bool) -> None:
    """What a CUDA graph of it needs; the engines above are built with it, those of function bodies cannot be."""
    import tensorrt_rtx as module

    builder = module.Builder(module.Logger())
    config = builder.create_builder_config()
    take_memory_from_user(module, config, loops=loops)
    assert config.get_flag(module.BuilderFlag.REQUIRE_USER_ALLOCATION) is not loops


def test_what_it_builds_for_and_what_is_left_to_the_device(tiny: Path) -> None:
    report = revise_bundle(tiny, ("fp16",), EngineWish("auto", ("sm_87", "sm_89"), ops="plugin"), parity=False)
    engine = load_engine_record(tiny / "fine.fp16.tensorrt-rtx.engine")
    assert engine.compute_capabilities == ("sm_89",)
    assert {name for name in load_manifest(tiny).files if "/" in name} == {f"plugin/{name}" for name in source_folder()}
    (line,) = report.warnings
    assert line.startswith("no engines for sm_87: tensorrt_rtx")


def test_function_bodies_are_compiled_where_asked(tiny: Path) -> None:
    report = revise_bundle(tiny, ("fp32",), EngineWish("trt-rtx", ("sm_120",), ops="function"))
    assert "compiled function bodies, far slower than the plugin, as asked" in report.warnings[-1]
    engine = load_engine_record(tiny / "coarse.fp32.tensorrt-rtx.engine")
    assert engine.plugin_sha256 is None
    proof = report.steps.engine_proofs["coarse.fp32.tensorrt-rtx.engine"]
    assert (proof.ops_by_plugin, proof.proved) == (0, proof.products)
    json.dumps(report.to_json())


def test_a_graph_that_the_parser_refuses_leaves_the_bundle_as_it_was(
    digits: tuple[Path, Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, _ = digits
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["B", 1, 64, 64])
    logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["B", 10])
    # Of a domain of its own: one that ONNX itself refuses does not come as far as the parser.
    node = onnx.helper.make_node("NoSuchOp", ["image"], ["logits"], domain="foreign")
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("foreign", 1)]
    foreign = tmp_path / "foreign.onnx"
    graph = onnx.helper.make_graph([node], "g", [image], [logits])
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets), foreign)
    monkeypatch.setattr("mscope.export.engine.derive.onnx_file", lambda *arguments: str(foreign))
    monkeypatch.setattr(cache, "take", lambda *arguments: None)
    with pytest.raises(BackendError, match=r"tensorrt-rtx engine coarse fp16: the ONNX parser of .* refuses the graph"):
        revise_bundle(folder, ("fp16",), WISH, parity=False)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_a_gpu_without_fp32_products_is_told_in_the_builders_words(tiny: Path) -> None:
    before = sorted(path.name for path in tiny.iterdir())
    with pytest.raises(BackendError, match=r"coarse fp32: .*FP32 GEMM is not supported"):
        revise_bundle(tiny, ("fp32",), EngineWish("trt-rtx", ("sm_75",), ops="plugin"))
    assert sorted(path.name for path in tiny.iterdir()) == before
    # The fp16 graph has no float32 product, the head included.
    report = revise_bundle(tiny, ("fp16",), EngineWish("trt-rtx", ("sm_75",), ops="plugin"))
    assert all(proof.proved == proof.products for proof in report.steps.engine_proofs.values())


@pytest.mark.slow
def test_both_engines_of_ti_with_the_plugin(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    options = BuildOptions(config_for("ti"), seed=0, out=folder, parity=False, precisions=("fp16",), engines=WISH)
    check_engines(folder, build_bundle(options), "fp16", 24)
    check_engines(folder, revise_bundle(folder, ("fp32",), WISH, parity=False), "fp32", 24)


def test_the_gpu_here_is_named_too() -> None:
    """Otherwise TensorRT-RTX builds for every GPU that it knows, and the record would name one."""
    import tensorrt_rtx

    from mscope.export.engine.worker import set_gpus

    builder = tensorrt_rtx.Builder(tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR))
    config = builder.create_builder_config()
    set_gpus(tensorrt_rtx, config, ())
    assert config.num_compute_capabilities == 1
    assert config.get_compute_capability(0) == tensorrt_rtx.ComputeCapability.CURRENT
    set_gpus(tensorrt_rtx, config, ("sm_89", "sm_120"))
    assert config.num_compute_capabilities == 2
    assert config.get_compute_capability(1) == tensorrt_rtx.ComputeCapability.SM120

    class Refusing:
        num_compute_capabilities = 0

        def set_compute_capability(self, capability: Any, index: int) -> bool:
            return index == 0

    with pytest.raises(InputError, match=r"--gpu sm_120: tensorrt_rtx .* refuses it beside sm_89, sm_120"):
        set_gpus(tensorrt_rtx, Refusing(), ("sm_89", "sm_120"))


@pytest.mark.parametrize(
    ("changes", "ops"),
    [
        # After block 1 every scan is two of one direction, past gaps.
        ({"reduce": "prune", "keep": 0.5, "reduce_after": (1, 2)}, 3 + 1 + 2 * 2),
        ({"reduce": "merge", "keep": 0.5, "reduce_after": (1, 2)}, 3 + 3),
    ],
    ids=["prune", "merge"],
)
def test_a_reduced_vim_is_compiled_with_the_plugin(
    changes: dict[str, Any], ops: int, small: Callable[..., ModelConfig], tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    options = BuildOptions(
        small(arch="vim", **changes), seed=1, out=folder, parity=False, precisions=("fp16",), engines=WISH
    )
    proof = build_bundle(options).steps.engine_proofs["full.fp16.tensorrt-rtx.engine"]
    assert proof.ops_by_plugin == ops
    assert proof.proved == proof.products


def test_polygraphy_builds_engines_with_the_plugin(digits: tuple[Path, Any, Any], tmp_path: Path) -> None:
    """By the lines of `verify --polygraphy`, as a shell runs them, up to the driver that a machine without GPU lacks.

    TensorRT-RTX besides needs the name under which its parser opens it, and polygraphy to be told of it.
    """
    lines = verify(digits[0], polygraphy=tmp_path / "files").polygraphy
    assert len(lines) == 4
    environment = os.environ | {
        "POLYGRAPHY_USE_TENSORRT_RTX": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(map(str, sys.path)),
    }

    def run(line: str) -> str:
        with_name = line.replace("--plugins", f"--plugins {build_trt.rtx_name_path(trt.library_path())}")
        done = subprocess.run(with_name, shell=True, env=environment, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    for line in lines:
        said = run(line)
        assert "Finished engine building" in said, said
        assert "Plugin not found" not in said
    # What the line has, and why: polygraphy opens the library and does not register it, and before TensorRT's.
    assert "Plugin not found" in run(lines[0].removeprefix("MSCOPE_TRT_REGISTER=1 "))
    assert "libtensorrt_rtx.so" in (said := run(lines[0].replace("--profiling-verbosity detailed ", "")))
    assert "Finished engine building" not in said
