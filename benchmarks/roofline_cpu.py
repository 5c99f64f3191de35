"""The predicted range beside the measured latency on this CPU, over resolutions and batches, sizes ti and s.

python benchmarks/roofline_cpu.py --resolutions 224,384,512 --threads 2

The ranges are those of `mscope-profile predict --device cpu`, whose rates come from other measurements. Bundles with
random weights are built below --bundles if they are not there; a minute or two each. Meaningful on the processor that
the rates were measured on, with nothing else running.
"""

from __future__ import annotations

import argparse
import json
import statistics
from datetime import date
from pathlib import Path

from latency import RESULTS, ROOT, cpu_name, measure

from mscope.core.bundle import load_manifest
from mscope.core.contract import graphs
from mscope.export.build import build_bundle
from mscope.export.options import BuildOptions, config_from_options
from mscope.runtime.backends.base import Runner
from mscope.runtime.backends.ort import OrtRunner
from mscope.runtime.profiling.devices import CPU
from mscope.runtime.profiling.roofline import predict

# Rounds are fewer where one takes long.
_SECONDS = 25.0
_MOST_ROUNDS, _FEWEST_ROUNDS = 30, 5


def bundle_for(size: str, arch: str, side: int, folder: Path) -> Path:
    """A bundle with random weights, built if it is not there."""
    target = folder / f"{size}-{arch}-{side}"
    if not (target / "manifest.json").exists():
        config = config_from_options(size, arch, resolution=str(side))
        build_bundle(BuildOptions(config=config, seed=0, out=target, parity=False))
    return target


def compare(size: str, side: int, batch: int, threads: int, folder: Path) -> list[dict[str, object]]:
    """One row a stage: predicted ends and measured median, interleaved over the stages."""
    runners: dict[str, Runner] = {}
    configs = {}
    for arch in ("mambascope", "vim"):
        bundle = bundle_for(size, arch, side, folder)
        manifest = load_manifest(bundle)
        for graph in graphs(manifest.config):
            runner = OrtRunner(
                graph, bundle / manifest.stages[graph.stage].variants[0].file, threads=threads, kernel="native"
            )
            runner.activate()
            runners[graph.stage] = runner
            configs[graph.stage] = manifest.config
    once = sum(statistics.median(times) for times in measure(runners, batch, 1).values()) / 1e3
    rounds = max(_FEWEST_ROUNDS, min(_MOST_ROUNDS, int(_SECONDS / once)))
    times = measure(runners, batch, rounds)
    rows: list[dict[str, object]] = []
    for stage, runner in runners.items():
        found = predict(configs[stage], stage, CPU, batch=batch, precision="fp32", threads=threads)  # type: ignore[arg-type]
        measured = statistics.median(times[stage])
        inside = found.best_ms <= measured <= found.worst_ms
        rows.append(
            {
                "size": size, "resolution": side, "batch": batch, "stage": stage, "rounds": rounds,
                "measured_ms": round(measured, 3), "best_ms": round(found.best_ms, 3),
                "worst_ms": round(found.worst_ms, 3), "inside": inside,
            }
        )  # fmt: skip
        print(
            f"{size} {side:5d} batch {batch} {stage:6s} {measured:9.2f} ms, predicted {found.best_ms:8.2f} to "
            f"{found.worst_ms:8.2f}{'' if inside else '   OUTSIDE'}",
            flush=True,
        )
        runner.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="ti")
    parser.add_argument("--resolutions", default="224,384,512,768,1024")
    parser.add_argument("--batches", default="1")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bundles", type=Path, default=ROOT / "build" / "bench", help="where bundles are kept")
    parser.add_argument("--out", type=Path, default=RESULTS / "roofline-cpu.json", help="rows are added to those there")
    options = parser.parse_args()
    kept = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    rows = [
        row
        for size in options.sizes.split(",")
        for side in map(int, options.resolutions.split(","))
        for batch in map(int, options.batches.split(","))
        for row in compare(size, side, batch, options.threads, options.bundles)
    ]
    asked = {(row["size"], row["resolution"], row["batch"]) for row in rows}
    kept = [row for row in kept if (row["size"], row["resolution"], row["batch"]) not in asked]
    result = {
        "date": date.today().isoformat(), "cpu": cpu_name(), "threads": options.threads, "rows": [*kept, *rows],
    }  # fmt: skip
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
