"""The library of ops for ONNX Runtime's CUDA provider as nvcc builds it: what is in it, and sessions without CUDA."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ort_graphs
import trt_library
from mscope.core.contract import OP_BIDIRECTIONAL_SCAN, OP_CONV, OP_MIXER
from mscope.core.errors import BackendError
from mscope.export.functions import attach_functions
from mscope.plugins import build, build_cuda, build_ort_cuda, find, ort
from op_cases import Case, Inputs
from ort_graphs import FLOAT32, model_of, session_of, values_of
from shared_objects import symbols


@pytest.fixture(scope="module")
def library() -> Path:
    """By `python -m mscope.plugins.build_cuda`, for one architecture, over the kernels that the TensorRT tests link.

    Skips where there is no nvcc.
    """
    try:
        build_cuda.find_nvcc()
    except build.BuildError as error:
        pytest.skip(str(error))
    folder = trt_library.FOLDER / f"cuda-{'-'.join(trt_library.ARCHITECTURES)}"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setattr(build, "OUTPUT", folder)
        patch.setenv(build_cuda.ARCHS, " ".join(trt_library.ARCHITECTURES))
        assert build_cuda.main([]) == 0
    kernels, ops = map(Path, said.getvalue().splitlines())
    assert (kernels, ops) == (folder / "libmscope_cuda.so", folder / "libmscope_ort_cuda.so")
    return ops


def test_it_exports_what_onnxruntime_looks_for_and_our_own(library: Path) -> None:
    exported = symbols(library, "--defined-only")
    assert {name for name in exported if not name.startswith("mscope_ort_")} == {
        "RegisterCustomOps",
        "mscope_abi_version",
    }


def test_it_needs_neither_onnxruntime_nor_cuda_nor_a_c_plus_plus_runtime(library: Path) -> None:
    wanted = symbols(library, "--undefined-only")
    assert {name for name in wanted if name.startswith(("cu", "Ort", "_ZN", "_ZS", "__cxa_throw", "mscope"))} == set()
    said = subprocess.run(["ldd", str(library)], capture_output=True, text=True, check=True).stdout
    needed = {line.split()[0].split(".so")[0] for line in said.splitlines()}
    assert not {name for name in needed if "cuda" in name or "onnxruntime" in name or "stdc++" in name}


def test_it_loads_alone_and_says_what_it_is(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import ctypes, sys; l = ctypes.CDLL(sys.argv[1]); print(l.mscope_abi_version())"
    done = subprocess.run([sys.executable, "-c", code, str(library)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(build.ABI_VERSION), done.stderr
    monkeypatch.setenv(find.PLUGIN_DIR, str(library.parent))
    assert find.library("ort_cuda") == library
    assert tuple(ort.targets().split()) == trt_library.ARCHITECTURES


def test_a_second_build_does_nothing(library: Path) -> None:
    before = library.stat().st_mtime_ns
    assert build_ort_cuda.build_ort_cuda(library.parent, only=trt_library.ARCHITECTURES) == library
    assert library.stat().st_mtime_ns == before


def test_the_stamp_sees_every_ingredient(tmp_path: Path) -> None:
    root = tmp_path / "csrc"
    shutil.copytree(build.sources_dir(), root)
    nvcc = build.Compiler(("nvcc",), "13.0")

    def identity(only: str = "87") -> str:
        return build_ort_cuda.recipe(root).identity(nvcc, root, (only,))

    seen = {identity(), identity(), identity("90")}
    assert len(seen) == 2
    files = ("ort/contract.cpp", "ort/shapes.h", "ort/cuda/scratch.cpp", "ort/cuda/kernel.h", "ort/cuda/exports.map",
             "abi/onnxruntime_minimal.h", "abi/ops.h", "cuda/dense.h", "scan/math.h")  # fmt: skip
    for name in files:
        with (root / name).open("a", encoding="utf-8") as file:
            file.write("// changed\n")
        seen.add(identity())
    assert len(seen) == 2 + len(files)


def test_another_abi_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "other.c"
    source.write_text("int mscope_abi_version(void) { return 999; }\n", encoding="utf-8")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    path = build.library_path("ort_cuda", tmp_path)
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
    monkeypatch.setenv(find.PLUGIN_DIR, str(tmp_path))
    with pytest.warns(RuntimeWarning, match=r"has ABI version 999, this package needs"):
        assert find.library("ort_cuda") is None
    assert "rebuild it with 'python -m mscope.plugins.build_cuda --force'" in find.why_missing("ort_cuda")
    with pytest.warns(RuntimeWarning), pytest.raises(BackendError, match="has ABI version 999"):
        ort.kernels_created("ort_cuda")


def test_a_library_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "OUTPUT", tmp_path)
    monkeypatch.delenv(find.PLUGIN_DIR, raising=False)
    why = find.why_missing("ort_cuda")
    assert "libmscope_ort_cuda.so is not built: install nvcc and run 'python -m mscope.plugins.build_cuda'" in why


@pytest.mark.parametrize("op", [OP_CONV, OP_BIDIRECTIONAL_SCAN, OP_MIXER])
def test_a_session_without_cuda_refuses_the_ops_by_name(library: Path, op: str) -> None:
    """The library declares the ops, so that ONNX Runtime no longer looks for a function body: without the CUDA provider
    the graph is refused, never run on the CPU in silence. `ort_cuda.py` then says what is missing of the provider.
    """
    inputs = Inputs(Case(9), FLOAT32)
    values = values_of(op, inputs)
    model = model_of(op, values)
    attach_functions(model)
    named = OP_CONV if op == OP_MIXER else op
    with pytest.raises(Exception, match=f"NOT_IMPLEMENTED.*{named}"):
        session_of(model, library=library)
    # What does not need it is not kept from it.
    plain = session_of(model, library=False)
    (y,) = plain.run(None, {i.name: values[i.name] for i in plain.get_inputs()})
    assert np.isfinite(y).all()
    if ort_graphs.LIBRARY is not None:
        session_of(model)
