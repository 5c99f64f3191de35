"""The ONNX Runtime library: what it refuses and what it says then, how its use is proven, its build with sanitizers."""

from __future__ import annotations

import ast
import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

import ort_graphs
from mscope.core.contract import OP_BIDIRECTIONAL_SCAN, OP_CONV, OP_MIXER, OP_SCAN
from mscope.plugins import build, ort
from op_cases import Case, Inputs
from ort_graphs import FLOAT32, LIBRARY, model_of, run, session_of, usable_isas, values_of
from ort_refusals import WRONG_SHAPES

# Members of OrtCustomOp, in words: GetName and InferOutputShapeFn.
_NAME, _INFER = 2, 19
needs_library = pytest.mark.skipif(LIBRARY is None, reason=ort_graphs.WHY_MISSING)


@needs_library
class TestRefusals:
    @pytest.mark.parametrize("constants", [True, False], ids=["constants", "inputs"])
    @pytest.mark.parametrize(("op", "name", "shape", "message"), WRONG_SHAPES, ids=lambda v: str(v).split(" has")[0])
    def test_wrong_shapes_name_both_sides(
        self, op: str, name: str, shape: tuple[int, ...], message: str, constants: bool
    ) -> None:
        """Wherever they are found out: when the session is made, for constants and declared shapes, or when it runs."""
        values = values_of(op, Inputs(Case(9), FLOAT32)) | {name: np.zeros(shape, np.float32)}
        with pytest.raises(Exception, match=f"{op} 'node': {message}"):
            run(f"native-{usable_isas()[0]}", op, values, constants=constants)

    def test_constants_are_checked_before_anything_runs(self) -> None:
        values = values_of(OP_SCAN, Inputs(Case(9), FLOAT32)) | {"D": np.zeros(6, np.float32)}
        with pytest.raises(Exception, match=r"SelectiveScan 'node': D has shape \(6,\), expected \(C\) = \(7,\)"):
            session_of(model_of(OP_SCAN, values))

    @pytest.mark.parametrize("attribute", ["reverse", "delta_softplus"])
    def test_attributes(self, attribute: str) -> None:
        model = model_of(OP_SCAN, values_of(OP_SCAN, Inputs(Case(9), FLOAT32)), **{attribute: 2})
        with pytest.raises(Exception, match=f"SelectiveScan 'node': attribute {attribute} is 2, expected 0 or 1"):
            session_of(model)

    @pytest.mark.parametrize(("without", "message"), [
        (("weight_b",), "got bias_b without weight_b, expected both or neither"),
        (("bias_b",), "got weight_b without bias_b, expected both or neither"),
    ])  # fmt: skip
    def test_half_a_direction(self, without: tuple[str, ...], message: str) -> None:
        values = values_of(OP_CONV, Inputs(Case(9), FLOAT32), without=without)
        with pytest.raises(Exception, match=f"CausalConv1dSiLU 'node': {message}"):
            session_of(model_of(OP_CONV, values))

    def test_types_that_the_contract_does_not_have(self) -> None:
        """float64 anywhere, and 16-bit storage of one tensor only: no kernel, and ONNX Runtime says for what."""
        values = values_of(OP_SCAN, Inputs(Case(9), FLOAT32))
        for name, dtype in (("x", np.float64), ("B", np.float16)):
            array = values[name]
            assert array is not None
            with pytest.raises(Exception, match=OP_SCAN):
                session_of(model_of(OP_SCAN, values | {name: array.astype(dtype)}))

    def test_an_instruction_set_that_is_not_here(self) -> None:
        with pytest.raises(ValueError, match="no instruction set 'mmx'"):
            ort.force_instruction_set("mmx")
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from mscope.plugins import ort\n"
            "print(ort.instruction_set() or 'none')"
        )
        for isa, expected in [("mmx", "none"), ("scalar", "scalar" if "scalar" in usable_isas() else "none")]:
            result = subprocess.run(
                [sys.executable, "-c", code],
                env=os.environ | {"MSCOPE_ISA": isa},
                capture_output=True,
                text=True,
                check=True,
            )
            assert result.stdout.strip() == expected

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits its memory as Linux does")
    def test_no_memory_for_scratch_is_an_error_of_the_run(self) -> None:
        """ONNX Runtime's allocator throws then; let through to this library it would end the process."""
        code = f"""
import sys; sys.path[:] = {sys.path!r}
import resource
from pathlib import Path
import numpy as np
import ort_graphs
from op_cases import Case, Inputs
values = ort_graphs.values_of({OP_MIXER!r}, Inputs(Case(50), "float32"))
session = ort_graphs.session_of(ort_graphs.model_of({OP_MIXER!r}, values), threads=1)
session.run(None, {{"xz": values["xz"]}})
xz = np.zeros((1, 400_000, 14), np.float32)  # wants 168 MiB of scratch, and 11 for its output
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
try:
    session.run(None, {{"xz": xz}})
except Exception as error:
    print(error)
"""
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-500:]
        assert "VimMixer node. Name:'node'" in result.stdout
        assert "allocate" in result.stdout.lower()

    @pytest.mark.parametrize(
        ("version", "left_out"),
        [("1.17.3", True), ("1.23.2", True), ("1.24.0", False), ("1.32.0", False), ("2.0.1", False)],
    )
    def test_shapes_of_an_op_with_a_gap_in_its_inputs(self, version: str, left_out: bool) -> None:
        """Before 1.24 the runtime reads the type of the input that was left out, and ends the process.

        A runtime of that version is played: what it is given is looked at, in a process of its own, as the ops are made
        once in each.
        """
        code = f"""
import ctypes
C = ctypes
api = (C.c_void_p * 400)()
ops = []
def domain(name, out):
    out[0] = 4711
    return None
def add(domain, op):
    ops.append(op)
    return None
kept = [
    C.CFUNCTYPE(C.c_void_p, C.c_char_p, C.POINTER(C.c_void_p))(domain),
    C.CFUNCTYPE(C.c_void_p, C.c_void_p, C.c_void_p)(add),
    C.CFUNCTYPE(C.c_void_p, C.c_void_p, C.c_void_p)(lambda options, domain: None),
]
for slot, function in zip((26, 27, 28), kept):
    api[slot] = C.cast(function, C.c_void_p)
version = C.create_string_buffer({version.encode()!r})
kept.append(C.CFUNCTYPE(C.c_size_t, C.c_uint32)(lambda wanted: C.addressof(api)))
kept.append(C.CFUNCTYPE(C.c_size_t)(lambda: C.addressof(version)))
base = (C.c_void_p * 2)(*(C.cast(function, C.c_void_p) for function in kept[3:]))
library = C.CDLL({str(LIBRARY)!r})
library.RegisterCustomOps.argtypes, library.RegisterCustomOps.restype = [C.c_void_p, C.c_void_p], C.c_void_p
assert library.RegisterCustomOps(None, C.addressof(base)) is None
seen = set()
for op in ops:
    words = (C.c_size_t * {_INFER + 1}).from_address(op)
    name = C.CFUNCTYPE(C.c_char_p, C.c_void_p)(words[{_NAME}])(op).decode()
    seen.add((name, bool(words[{_INFER}])))
print(sorted(seen))
"""
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-800:]
        infers = dict(ast.literal_eval(result.stdout))
        assert set(infers) == {OP_CONV, OP_SCAN, OP_BIDIRECTIONAL_SCAN, OP_MIXER}
        assert [name for name in infers if not infers[name]] == ([OP_SCAN] if left_out else [])

    def test_a_runtime_that_is_too_old(self) -> None:
        """GetApi gives null for the version that is asked for; the oldest one still carries the message."""
        api_of = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_uint32)
        create_status = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p)
        messages: list[str] = []
        oldest = (ctypes.c_void_p * 1)()

        def note(code: int, text: bytes) -> int:
            messages.append(text.decode())
            return 4321

        status = create_status(note)
        oldest[0] = ctypes.cast(status, ctypes.c_void_p)
        get_api = api_of(lambda version: ctypes.addressof(oldest) if version == 1 else 0)
        version = ctypes.create_string_buffer(b"1.2.3")
        get_version = ctypes.CFUNCTYPE(ctypes.c_size_t)(lambda: ctypes.addressof(version))
        base = (ctypes.c_void_p * 2)(ctypes.cast(get_api, ctypes.c_void_p), ctypes.cast(get_version, ctypes.c_void_p))
        register = ctypes.CDLL(str(LIBRARY)).RegisterCustomOps
        register.argtypes, register.restype = [ctypes.c_void_p, ctypes.c_void_p], ctypes.c_void_p
        assert register(None, ctypes.addressof(base)) == 4321
        assert "1.2.3" in messages[0]
        assert "install onnxruntime 1.17 or newer" in messages[0]


@needs_library
class TestTheyAreUsed:
    """What `kernel: native` may be claimed from: the kernels that sessions create are counted."""

    def test_a_session_with_the_library_creates_its_kernels_and_runs_them(self) -> None:
        from mscope.export.functions import attach_functions

        values = values_of(OP_BIDIRECTIONAL_SCAN, Inputs(Case(20), FLOAT32))
        model = model_of(OP_BIDIRECTIONAL_SCAN, values)
        attach_functions(model)
        kernels, calls = ort.kernels_created(), ort.calls()
        session = session_of(model)
        assert ort.kernels_created() == kernels + 1
        feeds = {i.name: values[i.name] for i in session.get_inputs()}
        (by_kernel,) = session.run(None, feeds)
        assert ort.calls() == calls + 1
        plain = session_of(model, library=False)
        (by_body,) = plain.run(None, feeds)
        assert ort.kernels_created() == kernels + 1, "the body's session must not count"
        assert ort.calls() == calls + 1
        np.testing.assert_allclose(by_kernel, by_body, rtol=1e-4, atol=1e-5)

    def test_outputs_have_inferred_shapes(self) -> None:
        model = model_of(OP_CONV, values_of(OP_CONV, Inputs(Case(20), FLOAT32)))
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("xz", TensorProto.FLOAT, ["batch", 20, 14]))
        (output,) = session_of(model).get_outputs()
        assert output.shape == [2, "20*batch", 7]

    def test_only_what_is_meant_is_exported(self) -> None:
        result = subprocess.run(
            ["nm", "-D", "--defined-only", str(LIBRARY)], capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            pytest.skip("no nm here")
        names = {line.split()[-1] for line in result.stdout.splitlines()}
        assert {name for name in names if not name.startswith("mscope_")} == {"RegisterCustomOps"}


@pytest.mark.slow
class TestCompiled:
    def test_sanitizers_find_nothing(self, tmp_path: Path) -> None:
        """Every instruction set here over odd sizes, in buffers of the exact size."""
        flags = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
        driver = compile_driver(tmp_path, flags)
        result = subprocess.run([str(driver)], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr[-3000:]
        assert [line.split(":")[0] for line in result.stdout.splitlines()] == sorted(
            usable_isas() or ["scalar"], key=["scalar", "neon", "avx2", "avx512"].index
        )

    def test_the_official_header_agrees_with_ours(self, tmp_path: Path) -> None:
        """Both have every function at the same slot: the assertions are in abi/onnxruntime_slots.h."""
        source = tmp_path / "both.cpp"
        source.write_text(
            '#include "abi/onnxruntime.h"\nextern "C" const char* header() { return MSCOPE_ORT_HEADER; }\n'
        )
        command = [*compiler(), "-std=c++17", "-fsyntax-only", f"-I{build.sources_dir()}", str(source)]
        subprocess.run(command, check=True)
        official = os.environ.get("ONNXRUNTIME_INCLUDE_DIR")
        if not official:
            pytest.skip("ours compiles; set ONNXRUNTIME_INCLUDE_DIR to hold it to the official one")
        subprocess.run([*command, f"-I{official}"], check=True)


def compiler() -> tuple[str, ...]:
    try:
        return build.find_compiler().command
    except build.BuildError as error:
        pytest.skip(str(error))


def compile_driver(folder: Path, flags: tuple[str, ...]) -> Path:
    """inference_driver.cpp with the kernels of every instruction set. Skips where the compiler has no sanitizers."""
    command, root = compiler(), build.sources_dir()
    probe = folder / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    tried = subprocess.run([*command, *flags, str(probe), "-o", str(folder / "probe")], capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"the compiler has no sanitizers: {tried.stderr[-200:]}")
    isas = build.instruction_sets()
    common = [*command, *flags, "-std=c++17", f"-I{root}", "-Wno-maybe-uninitialized"]
    common.append("-DMSCOPE_FOR_EACH_ISA(X)=" + " ".join(f"X({isa})" for isa in isas))
    jobs = []
    for source in (root / "cpu" / "inference.cpp", Path(__file__).with_name("inference_driver.cpp")):
        jobs.append([*common, "-c", str(source), "-o", str(folder / f"{source.stem}.o")])
    for isa, isa_flags in isas.items():
        for source in sorted((root / "cpu").glob("inference*_isa.cpp")):
            target = folder / f"{source.stem}-{isa}.o"
            jobs.append([*common, *isa_flags, f"-DMSCOPE_ISA_NAME={isa}", "-c", str(source), "-o", str(target)])
    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(lambda job: subprocess.run(job, capture_output=True, text=True, check=False), jobs):
            assert result.returncode == 0, result.stderr[-3000:]
    driver = folder / "driver"
    objects = [job[-1] for job in jobs]
    subprocess.run([*command, *flags, *objects, "-o", str(driver)], check=True)
    return driver
