"""TensorRT's real Python bindings: all that is named of them exists in each, and the runtime runs over them.

The bindings of tensorrt-rtx are looked at where they are installed. Others are looked for in MSCOPE_TENSORRT_BINDINGS:
folders, separated by colons, that a wheel such as tensorrt-cu12-bindings was unpacked in. They are never part of the
project. No TensorRT and no GPU are needed: tests/trt_bindings.py stands in for what lies below.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest

import cuda_host
import fake_tensorrt
import strict_tensorrt
import trt_bindings
from mscope.export.engine.request import EngineRequest

ROOT = Path(__file__).parents[2]
SCRIPT, BUILDER = (ROOT / "tests" / name for name in ("trt_bindings.py", "trt_builder.py"))
SOURCES = (
    *(ROOT / "runtime/mscope/runtime/backends").glob("*.py"),
    *(ROOT / "runtime/mscope/runtime/profiling").glob("*.py"),
    *(ROOT / "export/mscope/export/engine").glob("*.py"),
    *(ROOT / "plugins/mscope/plugins").glob("trt*.py"),
)
# What TensorRT-RTX alone has, and is asked for there alone.
RTX_ONLY = {"ComputeCapability", "DynamicShapesKernelSpecializationStrategy", "IRuntimeConfig", "create_runtime_config"}

# Members of what a call returns: how many arguments a function is given, None of a property or a constant.
MEMBERS: dict[str, dict[str, int | None]] = {
    "Runtime": {"__init__": 1, "deserialize_cuda_engine": 1},
    "ICudaEngine": {
        "num_io_tensors": None, "num_optimization_profiles": None, "device_memory_size_v2": None,
        "create_execution_context": 1, "create_engine_inspector": 0, "get_tensor_name": 1, "get_tensor_mode": 1,
        "get_tensor_dtype": 1, "get_tensor_shape": 1, "get_tensor_profile_shape": 2,
    },
    "IExecutionContext": {
        "set_device_memory": 2, "set_input_shape": 2, "set_tensor_address": 2, "infer_shapes": 0, "execute_async_v3": 1,
        "profiler": None,
    },
    "EngineInspector": {"get_engine_information": 1},
    "TensorIOMode": {"INPUT": None, "OUTPUT": None},
    "DataType": {"FLOAT": None, "HALF": None, "BF16": None, "INT64": None},
    "Builder": {
        "__init__": 1, "create_network": 1, "create_builder_config": 0, "create_optimization_profile": 0,
        "build_serialized_network": 2,
    },
    "IBuilderConfig": {
        "clear_flag": 1, "add_optimization_profile": 1, "create_timing_cache": 1, "set_timing_cache": 2,
        "get_timing_cache": 0, "profiling_verbosity": None, "progress_monitor": None,
    },
    "ITimingCache": {"serialize": 0},
    "IOptimizationProfile": {"set_shape": 4},
    "OnnxParser": {"__init__": 2, "parse": 1, "get_error": 1, "num_errors": None},
    "ParserError": {"desc": 0},
    "INetworkDefinition": {"num_layers": None, "get_layer": 1, "get_flag": 1},
    "NetworkDefinitionCreationFlag": {"STRONGLY_TYPED": None},
    "ILayer": {"name": None, "type": None, "num_inputs": None, "num_outputs": None, "get_input": 1, "get_output": 1},
    "ITensor": {"dtype": None},
    "LayerType": {"PLUGIN_V3": None, "MATRIX_MULTIPLY": None, "CONVOLUTION": None},
    "IPluginRegistry": {"all_creators": None, "load_library": 1},
    "IPluginCreatorV3One": {"name": None, "plugin_namespace": None, "plugin_version": None},
    # Overridden: what they are called with.
    "ILogger": {"__init__": 0, "log": 2},
    "IProfiler": {"__init__": 0, "report_layer_time": 2},
    "IProgressMonitor": {"__init__": 0, "phase_start": 3, "step_complete": 2, "phase_finish": 1},
}  # fmt: skip
MEMBERS_OF_RTX: dict[str, dict[str, int | None]] = {
    "ICudaEngine": {"create_runtime_config": 0},
    "IRuntimeConfig": {
        "set_execution_context_allocation_strategy": 1, "create_runtime_cache": 0, "set_runtime_cache": 1,
        "dynamic_shapes_kernel_specialization_strategy": None,
    },
    "IExecutionContext": {"is_stream_capturable": 1},
    "DynamicShapesKernelSpecializationStrategy": {"EAGER": None},
    "IBuilderConfig": {"num_compute_capabilities": None, "set_compute_capability": 2},
    "ComputeCapability": {"CURRENT": None, "SM89": None},
}  # fmt: skip
# Of the strict stand-in that the exporter's tests build with.
STRICT = {
    "IBuilderConfig": strict_tensorrt._Config,
    "IOptimizationProfile": strict_tensorrt._Profile,
    "INetworkDefinition": strict_tensorrt._Network,
}


def folders() -> list[Path]:
    found = [Path(name).resolve() for name in os.environ.get("MSCOPE_TENSORRT_BINDINGS", "").split(":") if name]
    for folder in found:
        assert trt_bindings.package_in(folder), f"MSCOPE_TENSORRT_BINDINGS: {folder} has no package of bindings"
    installed = importlib.util.find_spec("tensorrt_rtx_bindings")
    if installed is not None and installed.origin is not None:
        found.append(Path(installed.origin).parents[1])
    return found


@dataclass(frozen=True)
class Bindings:
    """One package of bindings."""

    folder: Path
    version: str
    functions: frozenset[str]
    classes: dict[str, dict[str, Any]]

    @property
    def rtx(self) -> bool:
        return trt_bindings.package_in(self.folder) == "tensorrt_rtx_bindings"

    def takes(self, cls: str, function: str, count: int) -> bool:
        return any(needed <= count <= len(names) for names, needed in self.classes[cls][function])


@functools.cache
def described(folder: Path) -> Bindings:
    told = json.loads(run(folder).stdout)
    return Bindings(folder, told["version"], frozenset(told["functions"]), told["classes"])


def run(folder: Path, *arguments: str, script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
    """In a process of its own: one process holds one TensorRT."""
    command = [sys.executable, str(script), str(folder), *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result


@pytest.fixture(params=folders(), ids=lambda folder: folder.name)
def bindings(request: pytest.FixtureRequest) -> Bindings:
    if cuda_host.compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    return described(request.param)


def named_in(source: str) -> Iterator[tuple[str, ...]]:
    """`module.ILogger.Severity.ERROR` and `self._module.DataType.FLOAT`, as the names behind the module."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        while isinstance(node, ast.Attribute):
            names.insert(0, node.attr)
            node = node.value
        if isinstance(node, ast.Name):
            names.insert(0, node.id)
        for place in ("module", "_module"):
            if place in names and (chain := names[names.index(place) + 1 :]) and not chain[0].startswith("__"):
                yield tuple(chain)


def test_every_name_in_use_exists(bindings: Bindings) -> None:
    chains = {chain for path in SOURCES for chain in named_in(path.read_text())}
    assert {("ILogger", "Severity", "ERROR"), ("TensorIOMode",), ("get_plugin_registry",)} <= chains
    for first, *rest in chains:
        if first in RTX_ONLY and not bindings.rtx:
            continue
        assert first in bindings.classes or first in bindings.functions, first
        members: Any = bindings.classes.get(first)
        for name in rest:
            assert name in members, f"{first}.{'.'.join(rest)}"
            members = members[name]


def test_every_member_in_use_exists_and_takes_what_it_is_given(bindings: Bindings) -> None:
    for table in (MEMBERS, MEMBERS_OF_RTX) if bindings.rtx else (MEMBERS,):
        for cls, members in table.items():
            for name, count in members.items():
                assert name in bindings.classes[cls], f"{cls}.{name}"
                if count is not None:
                    assert bindings.takes(cls, name, count), f"{cls}.{name}: {bindings.classes[cls][name]}"
    severity = bindings.classes["ILogger"]["Severity"]
    assert [severity[name] for name in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")] == [0, 1, 2, 3, 4]
    assert [bindings.classes["ILogger"][name] for name in ("INTERNAL_ERROR", "ERROR")] == [0, 1]


@pytest.mark.parametrize(
    "name",
    [
        "Runtime",
        "ICudaEngine",
        "IExecutionContext",
        "IRuntimeConfig",
        "ILogger",
        "IProfiler",
        "DataType",
        "TensorIOMode",
    ],
)
def test_the_fake_has_nothing_beside(bindings: Bindings, name: str) -> None:
    if name in RTX_ONLY and not bindings.rtx:
        pytest.skip("of TensorRT-RTX alone")
    ours, theirs = getattr(fake_tensorrt, name), bindings.classes[name]
    public = [member for member in vars(ours) if not member.startswith("_") and member != "shape"]  # shape: its own
    assert public
    for member in public:
        if member in RTX_ONLY and not bindings.rtx:
            continue
        assert member in theirs, f"{name}.{member}"
        value = getattr(ours, member)
        if inspect.isfunction(value):
            parameters = list(inspect.signature(value).parameters)[1:]
            assert parameters in [names for names, _ in theirs[member]], member


def test_the_strict_builder_has_nothing_beside(bindings: Bindings) -> None:
    module = strict_tensorrt.make_module("10.3" if bindings.version.startswith("10.") else "11.0")
    classes = STRICT | {name: getattr(module, name) for name in ("Builder", "OnnxParser", "ILogger", "Runtime")}
    for name, ours in classes.items():
        for member, value in vars(ours).items():
            if member.startswith("_") or (name, member) == ("IBuilderConfig", "profiles"):
                continue
            assert member in bindings.classes[name], f"{name}.{member}"
            if inspect.isfunction(value):
                count = len(inspect.signature(value).parameters) - 1
                assert bindings.takes(name, member, count), f"{name}.{member}"
    for name in ("BuilderFlag", "ProfilingVerbosity", "LayerInformationFormat", "NetworkDefinitionCreationFlag"):
        for member, value in getattr(module, name).__members__.items():
            assert bindings.classes[name][member] == value, f"{name}.{member}"


def test_the_runtime_runs_over_them(bindings: Bindings) -> None:
    """The tests of engines; of bindings that were named, those of the rest of the device too."""
    tests = ["test_device_cascade.py", "test_engine_layers.py", "test_engines.py"]
    if not bindings.rtx:
        tests += ["test_device_decision.py", "test_device_clock.py", "test_device_pictures.py"]
    paths = [str(Path("tests", "runtime", name)) for name in tests]
    # CUDA's real package below as well.
    said = run(
        bindings.folder, "-q", "-p", "no:cacheprovider", "-k", "not stand-in and not stand_in and not benchmark", *paths
    ).stdout
    passed = int(said.splitlines()[-1].split(" passed")[0].split()[-1])
    assert passed > (90 if bindings.rtx else 150), said


def test_the_worker_builds_over_them(bindings: Bindings, tmp_path: Path) -> None:
    """Flags, shapes, buffers, enumerations and callbacks of a build, as C++ is told them."""
    values = [onnx.helper.make_tensor_value_info(name, 1, ["batch", 3, 4, 5]) for name in ("image", "y")]
    node = onnx.helper.make_node("Relu", ["image"], ["y"])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", values[:1], values[1:])), tmp_path / "g.onnx")
    timing = tmp_path / "timing.cache"
    timing.write_bytes(b"foreign")
    request = EngineRequest(
        flavour="tensorrt-rtx" if bindings.rtx else "tensorrt", stage="coarse", precision="fp16",
        onnx=str(tmp_path / "g.onnx"), engine=str(tmp_path / "engine"), plugin=None, gpus=(),
        shapes={"image": (3, 4, 5)}, batch=(1, 2, 4), timing_cache=None if bindings.rtx else str(timing),
    )  # fmt: skip
    (tmp_path / "request").write_text(request.model_dump_json())
    said = run(bindings.folder, str(tmp_path / "request"), str(tmp_path / "result"), script=BUILDER).stdout
    assert [json.loads(line)["kind"] for line in said.splitlines()] == ["phase", "step"]
    told = json.loads((tmp_path / "result").read_text())
    strong = 1 << bindings.classes["NetworkDefinitionCreationFlag"]["STRONGLY_TYPED"]
    if bindings.rtx:
        current = bindings.classes["ComputeCapability"]["CURRENT"]
        special = [["num_compute_capabilities", 1], ["set_compute_capability", current, 0]]
    else:
        special = [["create_timing_cache", "foreign"], ["set_timing_cache", "foreign", False]]
        special += [["create_timing_cache", ""], ["set_timing_cache", "", False]]
        assert timing.read_bytes() == b"timed"
    asked = [] if bindings.version.startswith("11.") else [["get_flag", strong.bit_length() - 1]]
    assert told["calls"] == [
        ["create_network", strong], ["parse", ["image"]],
        ["profiling_verbosity", bindings.classes["ProfilingVerbosity"]["DETAILED"]],
        ["clear_flag", bindings.classes["BuilderFlag"]["TF32"]],
        *(["set_shape", "image", which, [batch, 3, 4, 5]] for which, batch in enumerate((1, 2, 4))),
        ["add_optimization_profile", "profile"], *special, ["build", "network", "config"], ["goes on", True], *asked,
    ]  # fmt: skip
    assert (tmp_path / "engine").read_bytes() == b"a plan"
    built = told["built"]
    layer = {"name": "layers.0/mixer/in_proj", "kind": "MATRIX_MULTIPLY", "inputs": ["float16"], "outputs": ["float32"]}
    assert (built["error"], built["strongly_typed"], built["network"]) == ("", True, [layer])
    assert (built["layers_from"], [layer["kind"] for layer in built["layers"]]) == ("builder", ["gemm"])


def test_the_real_tensorrt_talks_through_our_logger() -> None:
    """No driver is needed to be told that bytes are no engine."""
    from mscope.runtime.backends.tensorrt_library import ErrorLog

    real = pytest.importorskip("tensorrt_rtx")
    log = ErrorLog(real)
    runtime = real.Runtime(log.logger)
    log.take()
    assert runtime.deserialize_cuda_engine(b"no engine") is None
    said = log.take()
    assert "Error" in said
    assert "\n" not in said
    assert log.take() == "it gave no reason"
