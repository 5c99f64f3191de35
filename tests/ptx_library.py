"""libmscope_cuda as nvcc compiled it, over plugins/fake_cudart.cpp, with the PTX machine running what it launches: the
library's own host code plans and launches, the code that nvcc generated computes."""

from __future__ import annotations

import ctypes
import functools
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cuda_calls import ResampleCall, SelectCall
from cuda_host import CSRC
from mscope.plugins import build, build_cuda
from mscope.plugins.cuda_arguments import Array
from ptx.machine import Machine
from ptx.program import Function, parse

#: Devices of fake_cudart.cpp.
H100, SINGLE, VAST = 0, 3, 4
_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p)
)
_FAILED = 719  # cudaErrorLaunchFailure


@functools.cache
def functions(architecture: str) -> dict[str, Function]:
    """The kernels in PTX of a virtual architecture, such as "90"; compiled once a process, with the library's flags."""
    nvcc = build_cuda.find_nvcc().command
    flags = list(build_cuda.KERNEL_FLAGS)
    common = [
        *nvcc, *flags, f"-I{CSRC}", "-ptx", f"-arch=compute_{architecture}",
        f"-DMSCOPE_ABI_VERSION={build.ABI_VERSION}", f'-DMSCOPE_CUDA_TARGETS="ptx{architecture}"',
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:

        def compiled(source: Path) -> str:
            target = Path(folder) / f"{source.stem}.ptx"
            command = [*common, str(source), "-o", str(target)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stderr[-3000:]
            return target.read_text(encoding="utf-8")

        with ThreadPoolExecutor(2) as pool:
            texts = list(pool.map(compiled, build_cuda.sources(CSRC)))
    # Names of an anonymous namespace hold a hash of the file's; nothing but the probe has one, and it is not launched.
    return {name: function for text in texts for name, function in parse(text).items() if "mscope" in name}


class PtxDevice:
    """In place of libmscope_cuda and a device.

    Args:
        library: over fake_cudart.cpp; launches of it run here until `close`.
        architecture: whose PTX is run.
        index: which of the devices that fake_cudart.cpp has.
    """

    def __init__(self, library: ctypes.CDLL, architecture: str = "90", index: int = H100) -> None:
        self.library, self.index = library, index
        self.machine = Machine(functions=dict(functions(architecture)))
        self.launches: list[str] = []
        self.error: Exception | None = None
        self._callback = _LAUNCH(self._launch)
        library.fake_run_launches(self._callback)

    def close(self) -> None:
        self.library.fake_run_launches(None)

    def _launch(self, name: bytes, blocks: int, threads: int, shared: int, arguments: Any) -> int:
        kernel = name.decode()
        self.launches.append(kernel)
        try:
            count = len(self.machine.functions[kernel].parameters)
            self.machine.launch(kernel, blocks, threads, shared, [arguments[i] for i in range(count)])
        except Exception as error:  # it cannot pass through C
            self.error = error
            return _FAILED
        return 0

    def host_select(self, params: Any, order: int) -> int:
        return int(self.library.mscope_cuda_select(params, self.index, None))

    def host_resample(self, params: Any, order: int) -> int:
        return int(self.library.mscope_cuda_resample(params, self.index, None))

    def allow_arrays(self, call: SelectCall | ResampleCall) -> None:
        """What a launch reads and writes may be touched."""
        for arrays, writable in ((call.reads, False), (call.writes, True)):
            for name, array in arrays.items():
                if array.size:
                    self.machine.memory.allow(name, array.ctypes.data, array.nbytes, writable=writable)

    def seen(self, view: Callable[..., Array], writable: Sequence[str] = ("out",)) -> Callable[..., Array]:
        """`cuda_arrays.view`, whose arrays the kernels may then touch, and write where the name is in `writable`."""

        def seen(array: Any, name: str = "an array") -> Array:
            found = view(array, name)
            if 0 not in found.shape:
                each = {"float32": 4, "float64": 8}.get(found.dtype, 2)
                steps = zip(found.shape, found.strides, strict=True)
                span = sum((size - 1) * stride for size, stride in steps) + 1
                self.machine.memory.allow(name, found.pointer, span * each, writable=name in writable)
            return found

        return seen


def template_of(kernel: str) -> tuple[int, int, int]:
    """(lanes, states a lane, whether it only sums a segment up) of a scan kernel, from its mangled name."""
    found = re.search(r"Li(\d+)ELi(\d+)ELb(\d)", kernel)
    assert found is not None, kernel
    return int(found[1]), int(found[2]), int(found[3])
