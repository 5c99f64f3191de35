"""The CUDA library: compiled for every target where nvcc is, nothing spilled, nothing exported by accident.

The library is built once for its sources (build_cuda.py stamps it), so only the first run after a change compiles.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from mscope.core.errors import BackendError, InputError
from mscope.plugins import build, build_cuda, cuda, find
from mscope.plugins.build_cuda import ARCHITECTURES, PTX, Resources, parse_resources

ROOT = Path(__file__).parents[2]

# Three scan layouts and the two that can be summarised, and the convolution.
KERNELS_A_DTYPE = 3 + 2 + 1
DTYPES = 3
# The resampling of one and of three channels, and the selection.
OTHER_KERNELS = 2 + 1


@pytest.fixture
def library(cuda_library: Path) -> Path:
    return cuda_library


@pytest.mark.slow
def test_every_kernel_is_compiled_for_every_target(library: Path) -> None:
    loaded = ctypes.CDLL(str(library))
    loaded.mscope_cuda_targets.restype = ctypes.c_char_p
    assert loaded.mscope_cuda_targets().decode().split() == [*ARCHITECTURES, *(f"ptx{a}" for a in PTX)]
    found = Counter(r.architecture for r in build_cuda.read_resources(library) if "mscope" in r.kernel)
    assert found == dict.fromkeys(ARCHITECTURES, KERNELS_A_DTYPE * DTYPES + OTHER_KERNELS)


@pytest.mark.slow
def test_no_kernel_spills(library: Path) -> None:
    """Numbers that leave the registers cost the scan a trip through memory for every token."""
    spilled = [r for r in build_cuda.read_resources(library) if r.spill_stores or r.spill_loads or r.stack]
    assert spilled == []


@pytest.mark.slow
def test_launch_bounds_hold(library: Path) -> None:
    """65536 registers: one wide block of 512 threads, or three dense ones of 256."""
    for r in build_cuda.read_resources(library):
        if "scan_kernel" in r.kernel:
            wide = "Li16ELi1E" in r.kernel
            assert r.registers <= (65536 // 512 if wide else 65536 // (3 * 256)), r


@pytest.mark.slow
def test_only_the_interface_is_exported(library: Path) -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm on this machine")
    said = subprocess.run([nm, "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True)
    exported = {line.split()[-1] for line in said.stdout.splitlines()}
    header = (ROOT / "plugins" / "csrc" / "cuda" / "api.h").read_text(encoding="utf-8")
    declared = {
        line.split("(")[0].split()[-1].lstrip("*") for line in header.splitlines() if "MSCOPE_CUDA_API " in line
    }
    declared.discard("__attribute__")
    assert exported == {name for name in declared if name.startswith("mscope_")}


@pytest.mark.slow
def test_it_loads_and_says_why_it_cannot_run(library: Path) -> None:
    """Without a device the kernels are unavailable with a reason, and refuse host arrays."""
    torch = pytest.importorskip("torch")
    assert find.library("cuda") == library
    cuda.load()
    if not torch.cuda.is_available():
        assert not cuda.available()
        assert "CUDA finds no device" in cuda.why_missing()
    x = torch.zeros(1, 2, 3)
    with pytest.raises(InputError, match="the arrays are on cpu"):
        cuda.causal_conv1d_silu(x, torch.zeros(3, 4), torch.zeros(3), out=x.clone())


def test_a_library_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_library", None)
    monkeypatch.setattr(build, "OUTPUT", tmp_path)
    monkeypatch.delenv(find.PLUGIN_DIR, raising=False)
    assert "install nvcc and run 'python -m mscope.plugins.build_cuda'" in cuda.why_missing()
    with pytest.raises(BackendError, match="is not built"):
        cuda.load()


def test_the_assembler_report_is_read() -> None:
    report = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4scanv' for 'sm_90'
ptxas info    : Function properties for _Z4scanv
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 8 bytes cumulative stack size
"""
    assert parse_resources(report) == [Resources("_Z4scanv", "90", 64, 8, 4, 12)]


def test_unknown_architectures_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build_cuda.ARCHS, "90 42")
    with pytest.raises(build.BuildError, match="names 42: choose from 75"):
        build_cuda.architectures()
    monkeypatch.setenv(build_cuda.ARCHS, "90")
    assert build_cuda.architectures() == (("90",), ())


def test_an_older_nvcc_builds_for_what_it_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA 12.4 to 12.6, of JetPack 6.2; one that says nothing is trusted to know all."""
    monkeypatch.delenv(build_cuda.ARCHS, raising=False)
    fake = tmp_path / "nvcc"

    def known(*names: str, only: tuple[str, ...] = ()) -> tuple[tuple[str, ...], tuple[str, ...]]:
        lines = "".join(f"echo compute_{name}\n" for name in names)
        fake.write_text(f"#!/bin/sh\n{lines}", encoding="utf-8")
        fake.chmod(0o755)
        return build_cuda.known_architectures(build.Compiler((str(fake),), ""), only)

    older = ("50", "75", "80", "86", "87", "89", "90")
    assert known(*older) == (("75", "80", "86", "87", "89", "90"), ("90",))
    assert known(*older, "100", "120") == (ARCHITECTURES, PTX)
    assert known() == (ARCHITECTURES, PTX)
    assert known(*older, only=("87",)) == (("87",), ())
    with pytest.raises(build.BuildError, match="nvcc does not know the architectures 120: take a newer CUDA toolkit"):
        known(*older, only=("87", "120"))


def test_without_nvcc_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC", "no-such-compiler")
    with pytest.raises(build.BuildError, match="install the CUDA toolkit"):
        build_cuda.find_nvcc()
