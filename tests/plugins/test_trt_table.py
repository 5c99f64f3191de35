"""The plugin's table of ops (csrc/trt/ops.h), as the library tells it, against the contract and the exporter."""

from __future__ import annotations

import ctypes
import json
from types import SimpleNamespace
from typing import Any

import pytest

import cuda_host
import trt_driver
from mscope.core.contract import OP_BIDIRECTIONAL_SCAN, OP_CONV, OP_DOMAIN, OP_SCAN
from mscope.plugins import trt

# docs/ops.md, spelled as there: T is one of three storage types, f32 is float32 always.
CONTRACT = {
    OP_CONV: "xz (B, L, C+) T, weight (C, W) T, bias (C) T, weight_b? (C, W) T, bias_b? (C) T -> x (K, BL, C) T",
    OP_SCAN: "x (B, L, C) T, delta (B, L, C) T, A (C, N) f32, B (B, L, N) T, C (B, L, N) T, D (C) f32,"
    " z? (B, L, C) T, delta_bias? (C) f32 -> y (B, L, C) T",
    OP_BIDIRECTIONAL_SCAN: "xz (B, L, 2C) T, x (2, BL, C) T, dbc (2, BL, R+2N) T,"
    " dt_weight (C, R) T, dt_bias (C) f32, A (C, N) f32, D (C) f32,"
    " dt_weight_b (C, R) T, dt_bias_b (C) f32, A_b (C, N) f32, D_b (C) f32 -> y (B, L, C) T",
}


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    if cuda_host.compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    library = ctypes.CDLL(str(trt_driver.host_plugin()))
    library.mscope_trt_describe.restype = ctypes.c_char_p
    content: dict[str, Any] = json.loads(library.mscope_trt_describe())
    return content


def spelled(tensors: list[dict[str, Any]]) -> str:
    return ", ".join(
        f"{t['name']}{'?' * t['optional']} ({t['shape'].replace(' ', ', ')}) {t['type'].replace('float32', 'f32')}"
        for t in tensors
    )


def test_names_and_versions(table: dict[str, Any]) -> None:
    # Not OP_VERSION: it is what TensorRT's parser looks for where a node does not say (csrc/trt/ops.h).
    assert table["version"] == trt.PLUGIN_VERSION == "1"
    assert tuple(table["namespaces"]) == trt.NAMESPACES == (OP_DOMAIN, "")
    names = tuple(op["name"] for op in table["ops"])
    assert names == trt.PLUGIN_NAMES == (OP_CONV, OP_SCAN, OP_BIDIRECTIONAL_SCAN)
    assert table["types"] == ["float32", "float16", "bfloat16"]


def test_tensors_are_those_of_the_contract(table: dict[str, Any]) -> None:
    found = {op["name"]: f"{spelled(op['inputs'])} -> {spelled(op['outputs'])}" for op in table["ops"]}
    assert found == CONTRACT


def test_tensors_are_those_of_the_exporter(table: dict[str, Any]) -> None:
    translations = pytest.importorskip("mscope.export.translations")
    for op in table["ops"]:
        for role, expected in (("inputs", translations.OP_INPUTS), ("outputs", translations.OP_OUTPUTS)):
            assert tuple(t["name"] + "?" * t["optional"] for t in op[role]) == expected[op["name"]]


def test_attributes_are_those_of_the_exporter(table: dict[str, Any]) -> None:
    functions = pytest.importorskip("mscope.export.functions")
    attributes = {op["name"]: {a["name"]: a["default"] for a in op["attributes"]} for op in table["ops"]}
    bodies = {OP_CONV: functions.conv_function(), OP_SCAN: functions.scan_function(gated=True, biased=True)}
    bodies[OP_BIDIRECTIONAL_SCAN] = functions.bidirectional_scan_function()
    for name, body in bodies.items():
        assert attributes[name] == {a.name: a.i for a in body.attribute_proto}
    ranges = {a["name"]: (a["least"], a["most"]) for op in table["ops"] for a in op["attributes"]}
    assert ranges == {"reverse": (0, 1), "delta_softplus": (0, 1)}


@pytest.mark.parametrize("listed", [True, False], ids=["all_creators", "the binding gave up"])
def test_what_is_registered_is_found(listed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT's all_creators is None where some other library's plugin is of a kind that its binding does not know."""
    creators = [
        SimpleNamespace(name=name, plugin_namespace=space, plugin_version=version)
        for name, space, version in (
            ("SelectiveScan", "", "1"), ("SelectiveScan", "mambascope", "2"), ("NMS", "", "1"),
            ("CausalConv1dSiLU", "mambascope", "1"),
        )
    ]  # fmt: skip

    class Registry:
        all_creators = creators if listed else None

        def get_creator(self, type: str, version: str, plugin_namespace: str = "") -> Any:
            wanted = (type, plugin_namespace, version)
            found = (c for c in creators if (c.name, c.plugin_namespace, c.plugin_version) == wanted)
            return next(found, None)

    monkeypatch.setattr(trt, "import_flavour", lambda flavour: SimpleNamespace(get_plugin_registry=Registry))
    assert trt.registered("tensorrt") == (("CausalConv1dSiLU", "mambascope", "1"), ("SelectiveScan", "", "1"))
