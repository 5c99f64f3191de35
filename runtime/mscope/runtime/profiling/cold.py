"""Cold start and memory, in a fresh process: `python -m mscope.runtime.profiling.cold REQUEST` is that process."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from typing import Literal

from mscope.core.errors import BackendError
from mscope.core.python import module_command
from mscope.runtime.profiling.schema import ColdRun, ColdStart, Memory

_TIMEOUT_S = 600


@dataclass(frozen=True)
class ColdRequest:
    """What the fresh process is to load and run: as `Scope.load` takes it, and the batch for its peak of memory."""

    bundle: str
    backend: str
    precision: str
    kernel: str
    threads: int | None
    batch: int
    preprocess: Literal["host", "device"] = "host"
    decide: Literal["host", "device"] = "host"


def cold_start(request: ColdRequest, times: int) -> tuple[ColdStart, Memory]:
    """Starts that many fresh processes, one after the other.

    The system's file cache is warm from the second one on at the latest: a start after booting is slower.

    Raises:
        BackendError: the process failed; its last line says why.
    """
    runs: list[ColdRun] = []
    memory: dict[str, int | None] = {}
    for _ in range(times):
        run, memory = _one(request)
        runs.append(run)
    median = statistics.median(run.total_ms for run in runs)
    return (
        ColdStart(runs=tuple(runs), total_p50_ms=median),
        Memory(batch=request.batch, loaded_bytes=memory["loaded_bytes"], peak_bytes=memory["peak_bytes"]),
    )


def _one(request: ColdRequest) -> tuple[ColdRun, dict[str, int | None]]:
    command = module_command("mscope.runtime.profiling.cold", json.dumps(asdict(request)))
    # A file, not a pipe: nobody reads a pipe while the lines of stdout are waited for.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints:
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True) as process:
            assert process.stdout is not None
            guard = threading.Timer(_TIMEOUT_S, process.kill)
            guard.start()
            try:
                first = process.stdout.readline()
                total_ms = (time.perf_counter() - started) * 1e3
                second = process.stdout.readline()
                status = process.wait()
            finally:
                guard.cancel()
                process.kill()
        if status != 0 or not first or not second:
            complaints.seek(0)
            said = complaints.read().strip().splitlines()[-1:] or [f"exit status {status}"]
            raise BackendError(f"a fresh process could not run the bundle: {said[0]}")
    times = json.loads(first)
    return ColdRun(total_ms=total_ms, **times), json.loads(second)


def main() -> None:
    """The fresh process: a line of times after its first answer, a line of memory after one refined batch."""
    began = time.perf_counter()
    request = ColdRequest(**json.loads(sys.argv[1]))

    import numpy as np

    from mscope.runtime.profiling.machine import process_memory_bytes
    from mscope.runtime.profiling.workload import Workload, made_up_picture
    from mscope.runtime.scope import Scope

    imported = time.perf_counter()
    with Scope.load(
        request.bundle, request.backend, threads=request.threads, kernel=request.kernel, precision=request.precision,  # type: ignore[arg-type]
        preprocess=request.preprocess, decide=request.decide,
    ) as scope:  # fmt: skip
        loaded = time.perf_counter()
        loaded_bytes = process_memory_bytes("VmRSS")
        picture = made_up_picture(scope.manifest.preprocessing)
        path = "plain" if scope.config.arch == "vim" else "refine"
        work = Workload(scope, [np.asarray(picture)])
        ready = time.perf_counter()
        work.path(path, 1)()  # type: ignore[arg-type]
        first = time.perf_counter()
        times = {
            "import_ms": (imported - began) * 1e3,
            "load_ms": (loaded - imported) * 1e3,
            "first_ms": (first - ready) * 1e3,
        }
        print(json.dumps(times), flush=True)
        work.path(path, request.batch)()  # type: ignore[arg-type]
        print(json.dumps({"loaded_bytes": loaded_bytes, "peak_bytes": process_memory_bytes("VmHWM")}), flush=True)


if __name__ == "__main__":
    main()
