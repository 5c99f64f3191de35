"""Latency of the coarse, fine and plain-ViM graphs on the CPU, in one run: interleaved rounds, medians, ratios.

python benchmarks/latency.py --size ti --threads 2
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

from mscope.core.bundle import load_manifest
from mscope.core.contract import Graph, graphs
from mscope.core.cost import break_even_exit_rate
from mscope.export.build import build_bundle
from mscope.export.options import BuildOptions, config_from_options
from mscope.plugins import find
from mscope.runtime.backends.base import Kernel, Runner
from mscope.runtime.backends.ort import OrtRunner

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def feeds_for(graph: Graph, batch: int) -> dict[str, np.ndarray]:
    """Random inputs of a graph; region indices are valid ones, in spatial order."""
    rng = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {}
    for tensor in graph.inputs:
        shape = (batch, *(int(axis) for axis in tensor.axes[1:]))
        if tensor.dtype == "int64":
            feeds[tensor.name] = np.tile(np.arange(shape[1], dtype=np.int64), (batch, 1))
        else:
            feeds[tensor.name] = rng.standard_normal(shape, dtype=np.float32)
    return feeds


def cpu_name() -> str:
    """The processor as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def bundle_for(size: str, arch: str, folder: Path) -> Path:
    """A bundle with random weights below `folder`, built if it is not there."""
    target = folder / f"{size}-{arch}"
    if not (target / "manifest.json").exists():
        build_bundle(BuildOptions(config=config_from_options(size, arch), seed=0, out=target))
    return target


def measure(runners: dict[str, Runner], batch: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every runner over `rounds` interleaved rounds, after two to warm up."""
    feeds = {name: feeds_for(runner.graph, batch) for name, runner in runners.items()}
    times: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(rounds + 2):
        for name, runner in runners.items():
            start = time.perf_counter()
            runner.infer(feeds[name])
            if turn >= 2:
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="ti", choices=["ti", "s", "b", "digits"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--bundles", type=Path, default=ROOT / "build" / "bench", help="where bundles are kept")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; default below benchmarks/results")
    options = parser.parse_args()

    kernels: list[Kernel] = ["function"] if find.library("ort") is None else ["native", "function"]
    runners: dict[str, Runner] = {}
    for arch in ("mambascope", "vim"):
        folder = bundle_for(options.size, arch, options.bundles)
        manifest = load_manifest(folder)
        for graph in graphs(manifest.config):
            for kernel in kernels:
                file = folder / manifest.stages[graph.stage].variants[0].file
                runner = OrtRunner(graph, file, threads=options.threads, kernel=kernel)
                runner.activate()
                runners[f"{graph.stage} {kernel}"] = runner
    times = measure(runners, options.batch, options.rounds)
    for runner in runners.values():
        runner.close()

    medians = {name: statistics.median(values) for name, values in times.items()}
    setting = f"{options.threads} threads, {options.size}, batch {options.batch}, medians of {options.rounds} rounds"
    print(f"{cpu_name()}, {setting}")
    rows = {}
    for kernel in kernels:
        coarse, fine, full = (medians[f"{stage} {kernel}"] for stage in ("coarse", "fine", "full"))
        rate = break_even_exit_rate(coarse, fine, full)
        rows[kernel] = {"coarse": coarse, "fine": fine, "full": full, "break_even_exit_rate": rate}
        print(
            f"  {kernel:9s} coarse {coarse:7.2f} ms  fine {fine:7.2f} ms  plain ViM {full:7.2f} ms  "
            f"plain / coarse {full / coarse:4.2f}  break-even exit rate {rate:6.1%}"
        )
    if len(kernels) == 2:
        print("  function / native: " + ", ".join(f"{s} {rows['function'][s] / rows['native'][s]:.1f}x"
              for s in ("coarse", "fine", "full")))  # fmt: skip
    result = {
        "date": date.today().isoformat(),
        "cpu": cpu_name(),
        "threads": options.threads,
        "size": options.size,
        "batch": options.batch,
        "rounds": options.rounds,
        "versions": {package: version(package) for package in ("onnxruntime", "numpy")},
        "median_ms": rows,
    }
    out = options.out or RESULTS / f"latency-cpu-{options.size}-b{options.batch}-t{options.threads}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {out}")


if __name__ == "__main__":
    main()
