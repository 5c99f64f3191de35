"""The project's own TensorRT header against the official ones, and the plugin compiled with each of them.

Official headers are looked for in MSCOPE_TENSORRT_HEADERS (folders, separated by colons), TensorRT_INCLUDE_DIR and the
usual places. They are never part of the project.
"""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

import cuda_host
import op_cases as cases
import trt_driver
from mscope.core.contract import OP_BIDIRECTIONAL_SCAN, OP_SCAN
from mscope.plugins import build, build_cuda, build_trt
from op_cases import Case, Inputs
from trt_driver import Driver
from trt_runs import outputs_for, run, stored

LAYOUT = Path(__file__).parent / "trt_layout.cpp"
MINIMAL = ("-DMSCOPE_TENSORRT_MINIMAL",)


def official() -> dict[str, Path]:
    """Folders with official headers, by the version that they declare."""
    named = os.environ.get("MSCOPE_TENSORRT_HEADERS", "").split(":")
    named += [os.environ.get(build_trt.TENSORRT_INCLUDE_DIR, ""), "/usr/include", "/usr/local/tensorrt/include"]
    named += [f"/usr/include/{sysconfig.get_config_var('MULTIARCH')}", "/opt/tensorrt/include"]
    found = {}
    for folder in (Path(name) for name in named if name):
        if (folder / "NvInferRuntime.h").is_file():
            text = (folder / "NvInferVersion.h").read_text(encoding="utf-8")
            numbers = [re.search(rf"define (?:NV_TENSORRT|TRT)_{part}\w* (\d+)", text) for part in ("MAJOR", "MINOR")]
            found[".".join(number[1] for number in numbers if number)] = folder
    return found


OFFICIAL = official()
needs_compiler = pytest.mark.skipif(cuda_host.compiler() is None, reason="no C++ compiler on this machine")
needs_official = pytest.mark.skipif(
    not OFFICIAL, reason="no official TensorRT headers: name folders of them in MSCOPE_TENSORRT_HEADERS"
)


def flags(folder: Path) -> list[str]:
    """TensorRT's headers include CUDA's."""
    try:
        toolkit = Path(build_cuda.find_nvcc().command[0])
    except build.BuildError as error:
        pytest.skip(str(error))
    include = next((p for p in (Path("/usr/local/cuda/include"), toolkit.resolve().parent.parent / "include")
                    if (p / "cuda_runtime_api.h").is_file()), None)  # fmt: skip
    if include is None:
        pytest.skip("no cuda_runtime_api.h beside nvcc")
    return ["-isystem", str(folder), "-isystem", str(include)]


def layout(header: list[str] | tuple[str, ...], name: str) -> dict[str, str]:
    """What trt_layout.cpp prints; TensorRT's own functions are never called, so they may be missing."""
    options = ["-O0", *header, "-Wl,--unresolved-symbols=ignore-all"]
    program = trt_driver.compile_cached(name, [LAYOUT], options)
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    return {" ".join(line.split(" ")[:-1]) if "::" in line else line: line.split(" ")[-1] for line in said}


@needs_compiler
def test_slots_of_the_minimal_header() -> None:
    """As they are in TensorRT 10.0 and ever since: 0 and 1 are IVersionedInterface's, 2 and 3 its destructors."""
    slots = layout(MINIMAL, "layout-minimal")
    order = {
        "IPluginV3": ("getCapabilityInterface", "clone"),
        "IPluginV3OneCore": ("getPluginName", "getPluginVersion", "getPluginNamespace"),
        "IPluginV3OneBuild": (
            "configurePlugin", "getOutputDataTypes", "getOutputShapes", "supportsFormatCombination", "getNbOutputs",
            "getWorkspaceSize", "getValidTactics", "getNbTactics", "getTimingCacheID", "getFormatCombinationLimit",
            "getMetadataString",
        ),
        "IPluginV3OneRuntime": ("setTactic", "onShapeChange", "enqueue", "attachToContext", "getFieldsToSerialize"),
        "IPluginCreatorV3One": (
            "createPlugin", "getFieldNames", "getPluginName", "getPluginVersion", "getPluginNamespace",
        ),
    }  # fmt: skip
    for interface, functions in order.items():
        for slot, function in enumerate(functions, start=4):
            assert slots[f"{interface}::{function}"] == str(slot), f"{interface}::{function}"


@needs_compiler
@needs_official
@pytest.mark.parametrize("version", OFFICIAL)
def test_the_minimal_header_is_laid_out_like_the_official_one(version: str) -> None:
    """Slots here, sizes, offsets and values by tensorrt_layout.h while this compiles."""
    theirs, ours = layout(flags(OFFICIAL[version]), f"layout-{version}"), layout(MINIMAL, "layout-minimal")
    own = [line for line in theirs if line.startswith("version ")]
    for line in own:
        del theirs[line]
    assert theirs == ours
    # And what is called by slot with no declaration at all: register.cpp, logger.cpp.
    (said,) = own
    assert said in (
        "version 10 registerCreator 12 findLogger 0 log 0",
        "version 11 registerCreator 8 findLogger 4 log 4",
    )


@needs_compiler
@needs_official
@pytest.mark.parametrize("version", OFFICIAL)
def test_compiled_with_an_official_header_it_behaves_the_same(version: str) -> None:
    """Driven through the minimal header's declarations: two headers, one interface."""
    header = [*flags(OFFICIAL[version]), "-Wno-deprecated-declarations"]
    driver = Driver(trt_driver.host_plugin(header, f"plugin-{version}.so"))
    driver.exported("host_stream").restype = trt_driver.ctypes.c_void_p
    driver.set_logger(10 if version.startswith("10.") else 11)
    case = Case(300, channels=9, batch=2)
    for op, expected in ((OP_SCAN, cases.scan), (OP_BIDIRECTIONAL_SCAN, cases.bidirectional)):
        inputs = Inputs(case, "float16")
        (y,) = results = outputs_for(op, inputs)
        run(driver, op, stored(inputs, op), results)
        reference = expected(inputs, False, True) if op == OP_SCAN else expected(inputs)
        assert reference.worst(y, "float16") < 4.0
    with pytest.raises(trt_driver.Refused, match="attribute reverse is 2: expected a value from 0 to 1"):
        driver.create(OP_SCAN, {"reverse": 2})
