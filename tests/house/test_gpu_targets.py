"""`make test-gpu` and `make bench-gpu` where something is missing: one line that says what, or a test that says why it
is skipped; never a traceback, and never a module that cannot be collected."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: What a GPU machine may lack beside torch, numpy and pytest, and what only the runtime and the exporter need.
ALL_OPTIONAL = "pydantic PIL typer rich platformdirs onnx onnxruntime onnxscript safetensors cuda tensorrt tensorrt_rtx"

_ABSENT = """
import os, sys
class _Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in os.environ["MSCOPE_TEST_ABSENT"].split():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, _Absent())
"""


def run_without(tmp_path: Path, absent: str, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python on `command` from the bare tree, as the Makefile's GPU targets run it, without some packages."""
    (tmp_path / "sitecustomize.py").write_text(_ABSENT, encoding="utf-8")
    roots = [str(tmp_path), *("core", "plugins", "model", "runtime", "export", "calib", "tests")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(roots), "MSCOPE_TEST_ABSENT": absent, **environment}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def no_gpu() -> bool:
    if importlib.util.find_spec("torch") is None:
        return True
    import torch

    return not torch.cuda.is_available()


@pytest.mark.parametrize("absent, reason", [("torch", "torch cannot be imported"), ("", "there is no CUDA device")])
def test_a_required_gpu_that_is_not_there_is_one_line(tmp_path: Path, absent: str, reason: str) -> None:
    if not absent and not no_gpu():
        pytest.skip("there is a GPU")
    result = run_without(tmp_path, absent, "-m", "pytest", "tests/gpu", "-rs", MSCOPE_REQUIRE_GPU="1")
    said = (result.stdout + result.stderr).strip()
    assert result.returncode == 1
    assert said.startswith(f"Exit: MSCOPE_REQUIRE_GPU is set and {reason}")
    assert said.count("\n") == 0


@pytest.mark.parametrize("absent", ["torch", "PIL", ALL_OPTIONAL])
def test_every_gpu_test_is_collected_without_optional_packages(tmp_path: Path, absent: str) -> None:
    result = run_without(tmp_path, absent, "-m", "pytest", "tests/gpu", "--collect-only", "-q", "-rs")
    said = result.stdout + result.stderr
    assert result.returncode == 0, said[-3000:]
    assert "test_sanitizers.py::test_clean" in said
    if absent != "torch":
        assert "test_ops.py::test_case_table" in said
        assert "test_trt_plugin.py::test_engines" in said
    assert f"No module named '{absent.split()[0]}'" in said, "what is skipped says what is missing"


@pytest.mark.parametrize("program", ["scan_gpu", "latency_gpu"])
@pytest.mark.parametrize("absent", ["torch", ""])
def test_a_benchmark_that_cannot_run_says_so_in_one_line(tmp_path: Path, absent: str, program: str) -> None:
    if not absent and not no_gpu():
        pytest.skip("there is a GPU")
    out = tmp_path / "result.json"
    result = run_without(tmp_path, absent, f"benchmarks/{program}.py", "--out", str(out))
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert ("No module named 'torch'" if absent else "there is no CUDA device: nothing to measure") in result.stderr
    assert not out.exists()


def test_the_sizes_are_listed_without_torch(tmp_path: Path) -> None:
    command = ("benchmarks/scan_gpu.py", "--dry-run", "--batches", "1", "--lengths", "50", "--channels", "384")
    result = run_without(tmp_path, "torch " + ALL_OPTIONAL, *command)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "Size(batch=1, length=50, channels=384): 0.24 MB, 0.6 M exponentials\n"


def test_the_networks_need_pydantic_alone(tmp_path: Path) -> None:
    """latency_gpu.py beside torch: pydantic; what the runtime needs for its engines becomes a note."""
    others = ALL_OPTIONAL.removeprefix("pydantic ")
    code = "import sys; sys.path.insert(0, 'benchmarks'); import latency_gpu; "
    code += "import mscope.model.mambascope, mscope.model.vim; "
    code += "print(*latency_gpu.absent_backends())"
    result = run_without(tmp_path, others, "-c", code)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout == "engines: No module named 'platformdirs'\n"
