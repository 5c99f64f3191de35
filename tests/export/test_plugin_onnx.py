"""ONNX files for a TensorRT parser that is not called from here: `mscope-export plugins onnx`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx
import pytest

from mscope.core.console import run_app
from mscope.core.contract import OP_DOMAIN
from mscope.export.cli import app
from mscope.export.engine.network import strip_functions
from mscope.export.passes.mixers import load_split


def test_the_files_for_trtexec_are_what_the_builder_hands_over(
    one_block: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "onnx"
    assert run_app(app, ["plugins", "onnx", str(one_block), str(out), "--batch", "1,2,16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [f"{stage}{precision}.plugin.onnx" for stage in ("coarse", "fine") for precision in ("", ".fp16")]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    assert [re.match(r"trtexec --onnx=(\S+) ", line)[1] for line in lines] == names  # type: ignore[index]
    for name in names:
        model = onnx.load(out / name)
        assert len(model.functions) == 0
        assert [node.op_type for node in model.graph.node if node.domain == OP_DOMAIN] == [
            "CausalConv1dSiLU", "BidirectionalSelectiveScan",
        ]  # fmt: skip
        handed = load_split(one_block / name.replace(".plugin", ""))
        strip_functions(handed)
        assert model == handed
    assert all(" --staticPlugins=./libmscope_trt.so --stronglyTyped --noTF32 " in line for line in lines)
    image, region = "image:{}x3x24x40", "selected:{0}x8,remaining:{0}x7"
    assert f"--minShapes={image.format(1)} --optShapes={image.format(2)} --maxShapes={image.format(16)} " in lines[0]
    assert f"{region.format(16)} --saveEngine=fine.fp16.engine --skipInference" in lines[3]


def test_the_files_for_trtexec_as_json(one_block: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "onnx"
    assert run_app(app, ["plugins", "onnx", str(one_block), str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["folder"], told["batch"], len(told["files"])) == (str(out), [1, 1, 8], 4)
    assert told["files"][0]["shapes"] == {"image": [3, 24, 40]}
    assert run_app(app, ["plugins", "onnx", str(one_block), str(out)]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert run_app(app, ["plugins", "onnx", str(tmp_path / "none"), str(tmp_path / "other")]) == 2
    assert "no bundle at" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
