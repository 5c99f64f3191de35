"""The ops in ONNX Runtime's real CUDA provider, over stand-ins for CUDA's libraries (ort_cuda_provider.py).

Not in CI, which has no onnxruntime-gpu; it needs no GPU, and was run with 1.31.1 (docs/gpu-runtime.md).
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import op_cases as cases
import ort_cuda_host
import ort_cuda_provider
from mscope.core.contract import OP_BIDIRECTIONAL_SCAN, OP_CONV, OP_SCAN
from mscope.export.build import build_bundle
from mscope.export.options import BuildOptions, config_from_options
from mscope.runtime.backends import ort_cuda
from op_cases import Case, Inputs
from ort_graphs import ALWAYS_FLOAT32, model_of, values_of

if _reason := ort_cuda_provider.why_not():
    pytest.skip(_reason, allow_module_level=True)

CUDA = "CUDAExecutionProvider"
#: As in test_ort_cuda_ops.py.
TOLERANCE = 4.0
OPTIONS = ort_cuda._options_of(SimpleNamespace(index=0), "1.31")  # type: ignore[arg-type]


def job(model: onnx.ModelProto, feeds: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"model": model.SerializeToString(), "feeds": feeds, "options": OPTIONS}


def without_casts(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph that takes and gives its 16-bit storage: casts are the provider's own kernels, which do not run here."""
    (node,) = [node for node in model.graph.node if node.op_type != "Cast"]
    del model.graph.node[:]
    model.graph.node.append(node)
    model.graph.output[0].name = node.output[0]
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    jobs = {}
    for op in (OP_CONV, OP_SCAN, OP_BIDIRECTIONAL_SCAN):
        for case in (Case(50, batch=2), Case(1500, channels=16)):
            for constants in (True, False):
                values = values_of(op, Inputs(case, "float32"))
                model = model_of(op, values, constants=constants)
                feeds = {i.name: values[i.name] for i in model.graph.input}
                jobs[f"{op} {case} float32 {constants}"] = job(model, feeds)
        values = values_of(op, Inputs(Case(50, batch=2), "float16"))
        halves: Any = {k: v if k in ALWAYS_FLOAT32 or v is None else v.astype(np.float16) for k, v in values.items()}
        model = without_casts(model_of(op, halves, dtype="float16", constants=False))
        jobs[f"{op} {Case(50, batch=2)} float16 False"] = job(model, halves)
    bundle = tmp_path_factory.mktemp("digits") / "bundle"
    build_bundle(BuildOptions(config=config_from_options("digits"), out=bundle, precisions=("fp16",)))
    for name in ("coarse", "fine", "coarse.fp16", "fine.fp16"):
        jobs[name] = job(onnx.load(bundle / f"{name}.onnx"))
    library = ort_cuda_host.compiled_for(CUDA, "ort_cuda_provider.so")
    return ort_cuda_provider.run(tmp_path_factory.mktemp("stand-ins"), library, jobs)


@pytest.mark.parametrize("name", ["coarse", "fine", "coarse.fp16", "fine.fp16"])
def test_the_provider_takes_a_bundles_graphs(answers: dict[str, dict[str, Any]], name: str) -> None:
    """The mixers are taken apart, both ops of each block are the library's, and only shapes are left to the CPU."""
    answer, depth = answers[name], config_from_options("digits").depth
    assert answer["providers"][0] == CUDA
    assert answer["kernels"] == 2 * depth
    assert answer["nodes"][CUDA][OP_CONV] == answer["nodes"][CUDA][OP_BIDIRECTIONAL_SCAN] == depth
    assert answer["nodes"][CUDA]["MatMul"] >= 3 * depth
    strayed = set(answer["nodes"].get("CPUExecutionProvider", {}))
    assert not strayed & ort_cuda._HEAVY


def test_our_ops_get_its_device_its_stream_and_its_memory(answers: dict[str, dict[str, Any]]) -> None:
    """Against float64: memory that the provider copied to, and scratch of its own arena, one block for both runs."""
    ran = 0
    for name, answer in answers.items():
        if not answer["outputs"]:
            continue
        op, text, dtype, _ = name.split(" ")
        case = next(case for case in (Case(50, batch=2), Case(1500, channels=16)) if str(case) == text)
        inputs = Inputs(case, dtype)
        expected = {
            OP_CONV: cases.conv,
            OP_SCAN: lambda inputs: cases.scan(inputs, False, gated=True),
            OP_BIDIRECTIONAL_SCAN: cases.bidirectional,
        }[op](inputs)
        for (y,) in answer["outputs"]:
            assert expected.worst(y, dtype) < TOLERANCE, name
            ran += 1
        assert answer["kernels"] == 1
        assert answer["workspaces"] == (1 if case.length > 1000 and op != OP_CONV else 0)
    assert ran == 2 * 15


def test_the_programs_words_for_a_missing_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ort_cuda_provider.PYTHON, "false")
    assert "MSCOPE_ORT_GPU_PYTHON" in ort_cuda_provider.why_not()
