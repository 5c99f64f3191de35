"""Engines: what is asked, and a builder that fails in every way it can."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from mscope.core.errors import BackendError, InputError
from mscope.export.engine import device, flavour, plan
from mscope.export.engine.process import build_in_process
from mscope.export.engine.request import EngineRequest, Event
from mscope.export.engine.wish import EngineWish
from mscope.export.engine.worker import build as build_here
from mscope.export.launches import launches_of
from mscope.export.precision.typed import typed_graph
from strict_tensorrt import STRONGLY_TYPED_BIT, make_module


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSCOPE_HOME", str(tmp_path / "home"))


def request_for(tmp_path: Path, **changes: Any) -> EngineRequest:
    fields = {
        "flavour": "tensorrt-rtx", "stage": "coarse", "precision": "fp32", "onnx": str(tmp_path / "coarse.onnx"),
        "engine": str(tmp_path / "coarse.engine"), "plugin": None, "gpus": ("sm_89",), "shapes": {"image": (3, 24, 40)},
        "batch": (1, 2, 4),
    }  # fmt: skip
    return EngineRequest(**(fields | changes))


# What is asked for.


def test_gpus_and_batches_are_read() -> None:
    assert device.parse_gpus("sm_89, SM_120,sm_89") == ("sm_89", "sm_120")
    assert device.parse_gpus(None) == ()
    assert device.parse_batch("1,4,16") == (1, 4, 16)
    assert device.parse_batch("8") == (8, 8, 8)
    for text in ("89", "sm_8", "", "sm_89;sm_90", "sm_x9"):
        with pytest.raises(InputError, match="compute capabilities such as"):
            device.parse_gpus(text)
    for text in ("0", "4,2,8", "1,2", "", "1,2,3,4", "-1,1,1", "a"):
        with pytest.raises(InputError, match="MIN,OPT,MAX"):
            device.parse_batch(text)


def test_auto_builds_engines_only_where_they_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"tensorrt_rtx"}
    monkeypatch.setattr(flavour.Library, "installed", property(lambda self: self.module in installed))
    choose = flavour.choose_library
    library, note = choose("auto", here="")
    assert library is None
    assert "no NVIDIA GPU here" in note
    installed.add("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", make_module("10.3.0"))
    full, _ = choose("auto", here="sm_89")
    assert full is not None
    assert full.target == "trt"
    installed.clear()
    assert choose("auto", here="sm_89")[0] is None
    assert choose("onnx", here="sm_89") == (None, "")
    with pytest.raises(BackendError, match="module tensorrt is not here: on a Jetson it comes with JetPack"):
        choose("trt", here="sm_89")
    with pytest.raises(InputError, match="unknown target 'rtx'"):
        choose("rtx", here="sm_89")


def test_a_library_that_does_not_load_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match=r"^tensorrt cannot be imported \(.*\): on a Jetson it comes with JetPack"):
        flavour.load(flavour.LIBRARIES["trt"])


def test_what_cannot_be_had_is_said_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mscope.export.engine.derive.gpu_here", lambda: None)
    with pytest.raises(InputError, match=r"sm_87: tensorrt_rtx .* builds for sm_75, .*--from BUNDLE --target trt"):
        plan.plan_engines(EngineWish("trt-rtx", ("sm_87",), ops="function"))
    with pytest.raises(BackendError, match="no NVIDIA GPU or driver here; name the GPU to build for"):
        plan.plan_engines(EngineWish("trt-rtx", ops="function"))
    with pytest.raises(InputError, match="--gpu belongs to engines"):
        plan.plan_engines(EngineWish("onnx", ("sm_89",)))
    monkeypatch.setattr("mscope.plugins.trt.why_missing", lambda: "it is not built")
    with pytest.raises(BackendError, match="--ops plugin: it is not built"):
        plan.plan_engines(EngineWish("trt-rtx", ("sm_89",), ops="plugin"))
    told = plan.plan_engines(EngineWish("trt-rtx", ("sm_89",)))
    assert "compiled function bodies, far slower than the plugin: it is not built" in told.warning
    monkeypatch.setattr(flavour.Library, "installed", property(lambda self: True))
    with pytest.raises(InputError, match="TensorRT builds for the GPU it runs on only"):
        plan.plan_engines(EngineWish("trt", ("sm_87",), ops="function"))


# TensorRT itself, by a module with its signatures.


@pytest.mark.parametrize(("version", "flags"), [("10.3.0", STRONGLY_TYPED_BIT), ("11.1.0", 1), ("12.0.0", 0)])
def test_the_network_is_strongly_typed_in_every_version(
    version: str, flags: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: dict[str, onnx.ModelProto]
) -> None:
    module = make_module(version)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    onnx.save(exported["coarse"], tmp_path / "coarse.onnx")
    timing = tmp_path / "cache" / "timing.cache"
    request = request_for(tmp_path, flavour="tensorrt", gpus=(), timing_cache=str(timing))
    result = build_here(request, os.getppid())
    assert (result.error, result.version, result.strongly_typed) == ("", version, True)
    calls = dict(module.calls)
    assert calls["create_network"] == flags
    assert calls["flags"] == set(), "TF32 is not fp32"
    assert calls["profile"] == {"image": ((1, 3, 24, 40), (2, 3, 24, 40), (4, 3, 24, 40))}
    assert (tmp_path / "coarse.engine").read_bytes() == b"plan"
    assert timing.read_bytes() == b"timed"
    for unusable in (b"foreign", b"no cache"):
        timing.write_bytes(unusable)
        assert build_here(request, os.getppid()).error == ""
        assert timing.read_bytes() == b"timed"
    # A cache that can be neither read nor written costs time and nothing else.
    timing.unlink()
    timing.mkdir()
    assert build_here(request, os.getppid()).error == ""


def test_where_a_gpu_is_the_inspector_lists_the_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: dict[str, onnx.ModelProto]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", make_module("10.3.0"))
    onnx.save(exported["coarse"], tmp_path / "coarse.onnx")
    request = request_for(tmp_path, flavour="tensorrt", gpus=())
    monkeypatch.setattr("mscope.export.engine.worker.gpu_here", lambda: None)
    assert build_here(request, os.getppid()).layers_from == ""
    monkeypatch.setattr("mscope.export.engine.worker.gpu_here", lambda: device.Gpu("Orin", "sm_87"))
    result = build_here(request, os.getppid())
    assert (result.layers_from, [layer.kind for layer in result.layers]) == ("inspector", ["gemm"])


@pytest.mark.parametrize(
    "text", ['{"Layers": [', "[]", '{"Bindings": []}', '{"Layers": [{"Name": "a", "Inputs": null}]}']
)
def test_a_list_of_layers_that_cannot_be_read_costs_no_engine(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: dict[str, onnx.ModelProto]
) -> None:
    module = make_module("10.3.0")
    module.Engine.create_engine_inspector = lambda self: SimpleNamespace(get_engine_information=lambda form: text)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr("mscope.export.engine.worker.gpu_here", lambda: device.Gpu("Orin", "sm_87"))
    onnx.save(exported["coarse"], tmp_path / "coarse.onnx")
    result = build_here(request_for(tmp_path, flavour="tensorrt", gpus=()), os.getppid())
    assert (result.error, result.layers, result.layers_from) == ("", (), "")
    assert (tmp_path / "coarse.engine").read_bytes() == b"plan"


DRIVER = """
#include <string.h>
#define STATUS (strcmp(__func__, "FAILS") ? 0 : 100)
int cuInit(unsigned flags) { return STATUS; }
int cuDeviceGet(int *device, int ordinal) { *device = 3; return ordinal + STATUS; }
int cuDeviceGetName(char *name, int length, int device)
{ strncpy(name, "Orin", length); return (device != 3) + STATUS; }
int cuDeviceGetAttribute(int *value, int attribute, int device)
{ *value = attribute == 75 ? 8 : 7; return (device != 3) + STATUS; }
"""


@pytest.mark.parametrize("fails", ["", "cuInit", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute"])
def test_the_gpu_is_found_through_the_driver_alone(fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in of the driver")
    (tmp_path / "driver.c").write_text(DRIVER.replace("FAILS", fails))
    library = tmp_path / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "driver.c"], check=True)
    load = device.ctypes.CDLL
    monkeypatch.setattr(
        device.ctypes, "CDLL", lambda name: load(str(library)) if name == "libcuda.so.1" else load(name)
    )
    assert device.gpu_here() == (device.Gpu("Orin", "sm_87") if not fails else None)


def test_the_build_is_told_of_and_stops_when_the_parent_is_gone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    exported: dict[str, onnx.ModelProto],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", make_module("10.3.0"))
    onnx.save(exported["coarse"], tmp_path / "coarse.onnx")
    request = request_for(tmp_path, flavour="tensorrt", gpus=())
    assert build_here(request, os.getppid()).error == ""
    events = [Event.model_validate_json(line) for line in capsys.readouterr().out.splitlines()]
    assert [(event.kind, event.text, event.step, event.of) for event in events] == [
        ("phase", "Building", 0, 2), ("step", "Building", 1, 2),
    ]  # fmt: skip
    assert build_here(request, os.getpid()).error == "tensorrt 10.3.0: no reason given"


def test_a_builder_without_a_plan_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: dict[str, onnx.ModelProto]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", make_module("10.3.0", None))
    onnx.save(exported["coarse"], tmp_path / "coarse.onnx")
    result = build_here(request_for(tmp_path, flavour="tensorrt", gpus=()), os.getppid())
    assert result.error == "tensorrt 10.3.0: no tactic for layers.0/mixer/in_proj"
    assert not (tmp_path / "coarse.engine").exists()


@pytest.mark.parametrize("version", ["8.6.1", "9.3.0"])
def test_old_versions_are_refused(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", make_module(version))
    with pytest.raises(BackendError, match=r"is too old: .* need 10 or newer"):
        build_here(request_for(tmp_path, flavour="tensorrt", gpus=()), os.getppid())


# A child process that misbehaves.


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    def write(body: str) -> str:
        code = "import json, os, pathlib, sys, time\nasked, answer, parent = sys.argv[1:]\n" + textwrap.dedent(body)
        (tmp_path / "bad_worker.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        return "bad_worker"

    return write


def test_an_abort_of_the_builder_is_one_line(tmp_path: Path, worker: Callable[[str], str]) -> None:
    module = worker("print('last words', file=sys.stderr, flush=True); os.abort()")
    with pytest.raises(BackendError, match=r"coarse fp32: the builder was ended by SIGABRT after 'last words'; no eng"):
        build_in_process(request_for(tmp_path), module=module)
    with pytest.raises(BackendError, match="ended with status 3 without a word"):
        build_in_process(request_for(tmp_path), module=worker("sys.exit(3)"))


def test_errors_of_the_child_keep_their_kind(tmp_path: Path, worker: Callable[[str], str]) -> None:
    write = "pathlib.Path(answer).write_text(json.dumps({{'error': 'no such thing', 'usage': {}}}))"
    with pytest.raises(InputError, match=r"^no such thing$"):
        build_in_process(request_for(tmp_path), module=worker(write.format(True)))
    with pytest.raises(BackendError, match="engine coarse fp32: no such thing"):
        build_in_process(request_for(tmp_path), module=worker(write.format(False)))


def test_progress_is_told_and_strange_lines_are_not(tmp_path: Path, worker: Callable[[str], str]) -> None:
    module = worker("""
        print('a banner of the library', flush=True)
        print(json.dumps({'kind': 'step', 'text': 'Optimizing graph', 'step': 2, 'of': 30}), flush=True)
        pathlib.Path(answer).write_text('{}')
    """)
    told: list[str] = []
    build_in_process(request_for(tmp_path), told.append, module=module)
    assert told == ["tensorrt-rtx engine coarse fp32: Optimizing graph 2/30"]


def test_ctrl_c_ends_the_child_at_once(tmp_path: Path, worker: Callable[[str], str]) -> None:
    module = worker(f"""
        import signal
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid()))
        time.sleep(60)
    """)

    def interrupt() -> None:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.02)
        # As a terminal does it: to the thread that waits for the child's lines.
        signal.pthread_kill(waiting, signal.SIGINT)

    waiting = threading.get_ident()
    threading.Thread(target=interrupt, daemon=True).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        build_in_process(request_for(tmp_path), module=module)
    assert time.monotonic() - start < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


# Launches.


def test_launches_are_counted_from_the_graph(exported: dict[str, onnx.ModelProto]) -> None:
    for precision in ("fp32", "fp16"):
        graph = exported["coarse"] if precision == "fp32" else typed_graph(exported["coarse"], precision)
        counted = launches_of(graph)
        # Norm with the sum before it, three products, two ops; casts go with what is beside them.
        assert counted.per_block == 6
        assert counted.heavy == 5 * 3 + 2
        importance = sum(node.op_type == "ReduceMax" for node in graph.graph.node)
        # Pooling, the sum with the positions before the first norm, norm_f: no more outside the blocks.
        assert counted.total <= 6 * 3 + 2 + importance + 3


def test_connected_nodes_are_one_launch_and_a_product_divides_them() -> None:
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    floats = onnx.TensorProto.FLOAT
    chain = [
        node("Exp", ["x"], ["a"], name="a"), node("Neg", ["a"], ["b"], name="b"), node("Reshape", ["b", "s"], ["c"]),
        node("MatMul", ["c", "w"], ["d"], name="product"), node("Exp", ["d"], ["e"], name="e"),
        node("Add", ["e", "b"], ["y"], name="sum"), node("Abs", ["x"], ["z"], name="apart"),
    ]  # fmt: skip
    weights = [
        onnx.numpy_helper.from_array(np.zeros((2, 2), np.float32), "w"),
        onnx.numpy_helper.from_array(np.array([-1, 2]), "s"),
    ]
    ends = [value("y", floats, ["batch", 2]), value("z", floats, ["batch", 2])]
    graph = onnx.helper.make_graph(chain, "g", [value("x", floats, ["batch", 2])], ends, weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    # {Exp, Neg, Reshape}, {MatMul}, {Exp, Add}, {Abs}.
    assert launches_of(onnx.shape_inference.infer_shapes(model)).total == 4
