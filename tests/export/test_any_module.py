"""Modules of other people as ONNX files: one node a scan, the files run anywhere, and what cannot be is refused."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

import own_models
import trt_library
from mscope.core.console import run_app
from mscope.core.contract import OP_DOMAIN
from mscope.core.errors import InputError, MscopeError, ParityError
from mscope.export import any_module
from mscope.export.any_module import ModuleFile, export_module
from mscope.export.cli import app
from mscope.export.engine.process import build_in_process
from mscope.export.engine.request import EngineRequest
from mscope.model import mamba_ssm_interface


@pytest.fixture(scope="module")
def cross_scan(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, list[ModuleFile]]:
    """The example, run: its module again, and both files."""
    example, told = own_models.example(), io.StringIO()
    with contextlib.redirect_stdout(told):
        files = example.main(str(tmp_path_factory.mktemp("cross") / "cross.onnx"))
    assert told.getvalue() == "".join(f"{file.describe()}\n" for file in files)
    torch.manual_seed(0)
    return example.CrossScan(), files


def run(path: Path, **feeds: Any) -> list[Any]:
    """By ONNX Runtime as it comes, without our library."""
    return list(onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds))


def test_groups_become_nodes_and_any_batch_runs(cross_scan: tuple[nn.Module, list[ModuleFile]]) -> None:
    module, files = cross_scan
    assert [(file.path.name, file.precision, file.ops) for file in files] == [
        ("cross.onnx", "fp32", {"SelectiveScan": 4}),
        ("cross.fp16.onnx", "fp16", {"SelectiveScan": 4}),
    ]
    model = onnx.load(files[0].path)
    assert [function.name for function in model.functions] == ["SelectiveScan"]
    assert not {"Loop", "Scan", "SplitToSequence"} & {node.op_type for node in model.graph.node}
    assert {"head.weight", "dt_bias"} & {tensor.name for tensor in model.graph.initializer}
    assert model.graph.name == "mambascope_CrossScan"
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        expected = module.eval()(images).numpy()
    for count in (5, 1, 0):
        (logits,) = run(files[0].path, image=images[:count].numpy())
        assert logits.shape == (count, 10)
        np.testing.assert_allclose(logits, expected[:count], rtol=0, atol=1e-6)


def test_fp16_is_proved(cross_scan: tuple[nn.Module, list[ModuleFile]]) -> None:
    file = cross_scan[1][1]
    assert file.proof is not None
    # The patches, x_proj and dt_proj, the scans, the head.
    assert file.proof.low == {"Conv": 1, "Einsum": 2, "SelectiveScan": 4, "Gemm": 1}
    model = onnx.load(file.path)
    onnx.checker.check_model(model, full_check=True)
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert stored["patches.weight"] == TensorProto.FLOAT16
    assert file.distances["logits"].max_abs > 0
    text = file.describe()
    assert re.search(r"cross\.fp16\.onnx, fp16, \d+ kB: \d+ nodes, 4 SelectiveScan among them\n", text)
    assert "  proved   fp16: 1 Conv, " in text
    assert re.search(r"\n  parity   logits: within \S+ of PyTorch, cosine (1\.0000|0\.9999)\d\d, on function", text)


def test_the_module_is_left_as_it_was(tmp_path: Path) -> None:
    module = own_models.Words()
    module.blocks[0].eval()
    tokens = torch.randint(0, 11, (3, 6))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    (file,) = export_module(module, [tokens], tmp_path / "words.onnx")
    assert file.ops == {"SelectiveScan": 2}
    assert [module.training, module.drop.training, module.blocks[0].training, module.blocks[1].training] == [
        True, True, False, True,
    ]  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    with torch.no_grad():
        expected = [value.numpy() for value in module.eval()(tokens)]
    got = run(file.path, input_0=tokens.numpy())
    assert list(file.distances) == ["output_0", "output_1"]
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    # A gated scan takes its bias along, and its body has both.
    (scan, _) = (node for node in onnx.load(file.path).graph.node if node.domain == OP_DOMAIN)
    assert len(scan.input) == 8


def test_a_module_that_fixes_its_batch(tmp_path: Path) -> None:
    module, x = own_models.Windows(), torch.randn(2, 4, 8)
    with pytest.raises(InputError, match=r"cannot trace the module \(.*\); dynamic_batch=False exports it"):
        export_module(module, [x], tmp_path / "windows.onnx")
    assert list(tmp_path.iterdir()) == []
    (file,) = export_module(module, [x[:1]], tmp_path / "windows.onnx", dynamic_batch=False)
    (got,) = run(file.path, input_0=x[:1].numpy())
    with torch.no_grad():
        np.testing.assert_allclose(got, module(x[:1]).numpy(), rtol=0, atol=1e-6)
    (scan,) = (node for node in onnx.load(file.path).graph.node if node.domain == OP_DOMAIN)
    assert len(scan.input) == 6


class _Returning(nn.Module):
    """The block, and what a test makes of its result."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.block, self.change = own_models.Mamba(), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.block(x))


def _never_double(x: Tensor) -> Tensor:
    if x.dtype == torch.float64:
        raise RuntimeError("expected Float but found Double")
    return x


TOKENS = torch.randn(2, 5, 4)


@pytest.mark.parametrize(
    ("module", "inputs", "options", "words"),
    [
        (own_models.Mamba().double(), [TOKENS], {}, "is torch.float64 on cpu: the module is exported from the CPU in"),
        (own_models.Mamba().to("meta"), [TOKENS], {}, "is torch.float32 on meta: the module is exported from the CPU"),
        (own_models.Mamba(), [], {}, "inputs: none given"),
        (own_models.Mamba(), [TOKENS.half()], {}, r"inputs\[0\] is torch.float16 on cpu, expected a float32 or int64"),
        (own_models.Mamba(), [[1.0]], {}, r"inputs\[0\] is list, expected a float32 or int64 tensor"),
        (own_models.Mamba(), [TOKENS[:1]], {}, r"inputs\[0\] has shape \(1, 5, 4\): with a dynamic batch every input"),
        (own_models.Mamba(), [TOKENS, TOKENS[0]], {}, r"inputs\[1\] has shape \(5, 4\): with a dynamic batch"),
        (own_models.Mamba(), [TOKENS], {"input_names": ["a", "b"]}, "input_names: got .*, expected 1 different ones"),
        (_Returning(lambda y: (y, y)), [TOKENS], {"output_names": ["a", "a"]}, "output_names: got .*, expected 2"),
        (_Returning(lambda y: {"y": y}), [TOKENS], {}, "the module returns dict, expected a tensor or a tuple"),
        (_Returning(lambda y: y.sum()), [TOKENS], {}, "the module returns Tensor, expected .* with axes"),
        (_Returning(lambda y: y.mean(0)), [TOKENS], {}, r"output_0 has shape \(5, 4\) where PyTorch has \(1, 4\)"),
        (_Returning(_never_double), [TOKENS], {}, r"does not run in float64 \(expected Float.*: give tolerance="),
        (_Returning(torch.special.i1), [TOKENS], {}, r"torch.onnx has no ONNX for the module \(.*bessel_i1"),
        (nn.Linear(4, 4), [TOKENS], {}, "no selective scan of this project is in the module's graph"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_no_file(
    module: nn.Module, inputs: Any, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words) as refusal:
        export_module(module, inputs, tmp_path / "out.onnx", **options)
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_scans_with_and_without_a_gate_cannot_share_one_function_body(tmp_path: Path) -> None:
    def ungated(y: Tensor) -> Tensor:
        u = y.transpose(1, 2)
        return mamba_ssm_interface.selective_scan_fn(u, u, -torch.ones(4, 2), u[:, :2], u[:, :2])

    with pytest.raises(MscopeError, match="SelectiveScan is used with different optional inputs: one body cannot"):
        export_module(_Returning(ungated), [TOKENS], tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_tolerance_is_taken_instead_of_float64_and_held(tmp_path: Path) -> None:
    module = _Returning(_never_double)
    (file,) = export_module(module, [TOKENS], tmp_path / "out.onnx", tolerance=1e-5)
    assert file.distances["output_0"].tolerance == 1e-5
    differs = _Returning(lambda y: y + 2e-5 if torch.compiler.is_exporting() else y)
    with pytest.raises(ParityError, match="fp32 graph is not the module: output_0, on the function kernels, differs"):
        export_module(differs, [TOKENS], tmp_path / "other.onnx", tolerance=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]


def test_a_low_precision_that_is_far_off_leaves_no_file_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def upside_down(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
        typed = original(model, precision)
        (bias,) = (tensor for tensor in typed.graph.initializer if tensor.name == "out_proj.bias")
        bias.raw_data = (-100 * np.frombuffer(bias.raw_data, np.float32)).tobytes()
        return typed

    original = any_module.typed_graph
    monkeypatch.setattr(any_module, "typed_graph", upside_down)
    torch.manual_seed(0)
    with pytest.raises(ParityError, match=r"fp16 graph is not the module: output_0, .* has cosine"):
        export_module(own_models.Mamba(), [TOKENS], tmp_path / "out.onnx", fp16=True)
    assert list(tmp_path.iterdir()) == []


def test_where_the_file_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for out in (tmp_path / "none" / "out.onnx", tmp_path / "folder.onnx"):
        (tmp_path / "folder.onnx").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=r"\.onnx cannot be written: it is a folder, or .* is none"):
            export_module(own_models.Mamba(), [TOKENS], out)
    with pytest.raises(InputError, match="needs a suffix"):
        export_module(own_models.Mamba(), [TOKENS], tmp_path / "out")
    (tmp_path / "folder.onnx").rmdir()

    def full(source: str, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    # Also where the disk is found full when a file is closed.
    monkeypatch.setattr("mscope.core.files.os.replace", full)
    with pytest.raises(InputError, match=r"/out\.fp16\.onnx cannot be written: No space left on device"):
        export_module(own_models.Mamba(), [TOKENS], tmp_path / "out.onnx", fp16=True)
    assert list(tmp_path.iterdir()) == []


def test_its_files_for_trtexec(
    cross_scan: tuple[nn.Module, list[ModuleFile]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = cross_scan[1][1].path
    assert run_app(app, ["plugins", "onnx", str(half), str(tmp_path / "onnx"), "--batch", "1,2,4"]) == 0
    assert capsys.readouterr().out == (
        "trtexec --onnx=cross.fp16.plugin.onnx --staticPlugins=./libmscope_trt.so --stronglyTyped --noTF32 "
        "--minShapes=image:1x3x32x32 --optShapes=image:2x3x32x32 --maxShapes=image:4x3x32x32 "
        "--saveEngine=cross.fp16.engine --skipInference\n"
    )
    model = onnx.load(tmp_path / "onnx" / "cross.fp16.plugin.onnx")
    assert not model.functions
    assert all(
        {attribute.name for attribute in node.attribute} == {"reverse", "delta_softplus"}
        for node in model.graph.node if node.domain == OP_DOMAIN
    )  # fmt: skip


def _identity(*axes: int | str, op: str = "Relu") -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name in "xy"]
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], domain="")], "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_other_files_for_trtexec(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = export_module(own_models.Windows(), [torch.randn(1, 4, 8)], tmp_path / "w.onnx", dynamic_batch=False)
    assert run_app(app, ["plugins", "onnx", str(file.path), str(tmp_path / "one"), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["files"]
    assert told == {
        "file": "w.plugin.onnx", "stage": None, "precision": None, "shapes": {"input_0": [1, 4, 8]},
        "trtexec": "trtexec --onnx=w.plugin.onnx --staticPlugins=./libmscope_trt.so --stronglyTyped --noTF32 "
        "--saveEngine=w.engine --skipInference",
    }  # fmt: skip
    open_length = onnx.load(file.path)
    open_length.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "length"
    for name, model, words in (
        ("relu", _identity("batch", 4), "no op of this project is in it"),
        ("length", open_length, "input 'input_0' has an open axis that is not the batch"),
    ):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(model.SerializeToString())
        assert run_app(app, ["plugins", "onnx", str(path), str(tmp_path / name)]) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / name).exists()
    (tmp_path / "broken.onnx").write_bytes(b"\x08\xff not a graph")
    assert run_app(app, ["plugins", "onnx", str(tmp_path / "broken.onnx"), str(tmp_path / "broken")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.slow
def test_tensorrt_rtx_builds_it_with_the_plugin(cross_scan: tuple[nn.Module, list[ModuleFile]], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")
    with trt_library.in_use() as library:
        for file, precision in zip(cross_scan[1], ("fp32", "fp16"), strict=True):
            request = EngineRequest(
                flavour="tensorrt-rtx", stage="full", precision=precision, onnx=str(file.path),  # type: ignore[arg-type]
                engine=str(tmp_path / "engine"), plugin=str(library), gpus=("sm_89",), shapes={"image": (3, 32, 32)},
                batch=(1, 2, 4),
            )  # fmt: skip
            result = build_in_process(request)
            assert result.strongly_typed
            plugins = [layer for layer in result.network if layer.kind == "PLUGIN_V3"]
            wanted = {"fp32": "float32", "fp16": "float16"}[precision]
            assert [layer.outputs for layer in plugins] == [(wanted,)] * 4
            assert not {"LOOP_OUTPUT", "RECURRENCE"} & {layer.kind for layer in result.network}
            assert (tmp_path / "engine").stat().st_size > 1000
