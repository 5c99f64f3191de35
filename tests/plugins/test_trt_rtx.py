"""The plugin in TensorRT-RTX: engines of each op are built here, for GPUs that are not. Needs nvcc and tensorrt-rtx.

Each TensorRT runs in a process of its own: what ends a process is a failed test and not the end of all tests. What this
cannot see is an engine that runs: tests/gpu.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import trt_library
from mscope.core.contract import OP_BIDIRECTIONAL_SCAN, OP_CONV, OP_SCAN
from mscope.plugins import find

PROGRAM = Path(__file__).parents[1] / "trt_rtx.py"
DTYPES = ("float32", "float16", "bfloat16")
OPS = (OP_CONV, OP_SCAN, OP_BIDIRECTIONAL_SCAN)
#: What TensorRT-RTX 1.7 builds for. Neither Orin (87) nor Hopper (90) is among them.
CAPABILITIES = ("75", "80", "86", "89", "120")
# Batch 4, 300 tokens, 32 channels: the sums of one direction; no segments below 1024 tokens.
STASH = 4 * 4 * 300 * 32

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None or importlib.util.find_spec("onnx") is None,
    reason="needs tensorrt_rtx and onnx: pip install 'mambascope-deploy[trt]'",
)


def converse(folder: Path, requests: list[dict[str, Any]], *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {find.PLUGIN_DIR: str(folder), "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.run(
        command, input=lines, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def request(op: str, dtype: str = "float32", **more: Any) -> dict[str, Any]:
    return {"op": op, "dtype": dtype, "capabilities": ["89"], **more}


REQUESTS = {
    **{f"{op} {dtype}": request(op, dtype, attributes=_set) for op, _set in (
        (OP_CONV, {}), (OP_SCAN, {"reverse": 1, "delta_softplus": 1}), (OP_BIDIRECTIONAL_SCAN, {}),
    ) for dtype in DTYPES},
    **{f"sm_{name}": request(OP_BIDIRECTIONAL_SCAN, "float16", capabilities=[name]) for name in CAPABILITIES},
    "several": request(OP_BIDIRECTIONAL_SCAN, "float16", capabilities=["86", "89", "120"]),
    "no z": request(OP_SCAN, without=["z", "dt_bias"]),
    "no bias": request(OP_SCAN, without=["dt_bias"]),
    "bias without z": request(OP_SCAN, without=["z"]),
    "one direction": request(OP_CONV, without=["weight_b", "bias_b"]),
    "functions kept": request(OP_BIDIRECTIONAL_SCAN, functions=True),
    "wrong attribute": request(OP_SCAN, attributes={"reverse": 3}),
    "wrong type": request(OP_BIDIRECTIONAL_SCAN, halved="dt_bias"),
}  # fmt: skip


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    done = converse(trt_library.built(), list(REQUESTS.values()))
    assert done.returncode == 0, done.stderr[-3000:]
    capabilities, *rest = (json.loads(line) for line in done.stdout.splitlines() if line.startswith(("[", "{")))
    return {"capabilities": capabilities, **dict(zip(REQUESTS, rest, strict=True))}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_engines_of_every_op(answers: dict[str, Any], op: str, dtype: str) -> None:
    answer = answers[f"{op} {dtype}"]
    assert answer["errors"] == []
    assert answer["plan_bytes"] > 10_000
    kinds = [kind for kind, _ in answer["network"]]
    # The plugin, its constants and, in 16 bits, the casts around it: no loop, no elementwise body.
    assert kinds.count("PLUGIN_V3") == 1
    assert set(kinds) <= {"PLUGIN_V3", "CONSTANT", "CAST"}
    (layers,) = answer["engine"]
    (custom,) = (line for line in layers.splitlines() if "LayerType: custom_layer" in line)
    assert "[ONNX Layer: node]" in custom
    wide = {"float32": "Float", "float16": "Half", "bfloat16": "BFloat16"}[dtype]
    outputs = custom[custom.index("Outputs:") :]
    assert f"Datatype: {wide}" in outputs


@pytest.mark.parametrize(
    "name, fields",
    [
        (f"{OP_CONV} float16", "inputs=31"),
        (f"{OP_SCAN} float16", "reverse=1 delta_softplus=1 inputs=255"),
        (f"{OP_BIDIRECTIONAL_SCAN} float16", "inputs=2047"),
        ("no z", "reverse=0 delta_softplus=1 inputs=63"),
        ("no bias", "reverse=0 delta_softplus=1 inputs=127"),
        ("one direction", "inputs=7"),
    ],
)
def test_what_goes_into_the_engine(answers: dict[str, Any], name: str, fields: str) -> None:
    answer = answers[name]
    assert answer["plan_bytes"] > 0
    written = {text.split(" is written with ")[1] for text in answer["plugin"] if " is written with " in text}
    assert written == {fields}


def test_the_workspace_is_asked_for_at_the_largest_shapes(answers: dict[str, Any]) -> None:
    said = [text for text in answers[f"{OP_BIDIRECTIONAL_SCAN} float16"]["plugin"] if "scratch memory" in text]
    assert f"mambascope BidirectionalSelectiveScan 'node' asks for {STASH} bytes of scratch memory" in said


@pytest.mark.parametrize("name", [*(f"sm_{name}" for name in CAPABILITIES), "several"])
def test_compute_capabilities(answers: dict[str, Any], name: str) -> None:
    assert answers[name]["errors"] == []
    assert answers[name]["plan_bytes"] > 0


def test_which_devices_this_tensorrt_rtx_builds_for(answers: dict[str, Any]) -> None:
    """docs/tensorrt-plugin.md says that Orin and Hopper are not among them: a version that changes it fails here."""
    assert set(CAPABILITIES) <= set(answers["capabilities"])
    assert not {"87", "90"} & set(answers["capabilities"])


def test_a_body_in_the_file_hides_the_plugin(answers: dict[str, Any]) -> None:
    """Why functions are taken out before parsing."""
    kinds = [kind for kind, _ in answers["functions kept"]["network"]]
    assert "PLUGIN_V3" not in kinds
    assert any(kind.startswith(("LOOP", "RECURRENCE", "TRIP_LIMIT", "ITERATOR")) for kind in kinds)


def test_what_tensorrt_refuses_itself(answers: dict[str, Any]) -> None:
    """An input left out in the middle."""
    left_out = answers["bias without z"]
    assert not left_out["parsed"]
    assert any("(input) != nullptr" in text for text in left_out["errors"])


def test_refusals_reach_the_log_of_tensorrt(answers: dict[str, Any]) -> None:
    answer = answers["wrong attribute"]
    assert not answer["parsed"]
    line = "mambascope SelectiveScan 'node', createPlugin: attribute reverse is 3: expected a value from 0 to 1"
    assert line in answer["errors"]
    answer = answers["wrong type"]
    assert answer["plan_bytes"] == 0
    reason = "dt_bias is float16: expected float32, whatever xz is"
    assert f"mambascope BidirectionalSelectiveScan 'node', getOutputDataTypes: {reason}" in answer["errors"]


def test_without_the_unversioned_name_the_parser_ends_the_process() -> None:
    """The reason for build_trt.rtx_name_path; should this fail, TensorRT-RTX has been mended."""
    done = converse(trt_library.built(), [request(OP_SCAN)], "bare")
    assert done.returncode < 0


def test_both_ways_of_registering() -> None:
    """Twice in one process is once; and MSCOPE_TRT_REGISTER, for hosts that only dlopen."""
    library = trt_library.built() / "libmscope_trt.so"
    load = "from mscope.plugins import trt; trt.load('tensorrt-rtx'); print(len(trt.registered('tensorrt-rtx')));"
    by_itself = f"import ctypes, tensorrt_rtx; ctypes.CDLL({str(library)!r});" + load
    environment = os.environ | {
        find.PLUGIN_DIR: str(library.parent), "PYTHONPATH": os.pathsep.join(map(str, sys.path)),
    }  # fmt: skip
    for code, more in ((load + load, {}), (by_itself, {"MSCOPE_TRT_REGISTER": "1"})):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment | more, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert set(done.stdout.split()) == {"6"}
    lonely = f"import ctypes; ctypes.CDLL({str(library)!r})"
    done = subprocess.run(
        [sys.executable, "-c", lonely], env=environment | {"MSCOPE_TRT_REGISTER": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "no TensorRT is loaded in this process yet" in done.stderr
