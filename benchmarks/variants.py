"""Size, accuracy and latency of every precision in one run: the table of variants in the README.

python benchmarks/variants.py --threads 2

Sizes and latency are of ti (random weights, whose speed is that of trained ones; int8 is calibrated on photographs), by
interleaved rounds; accuracy is of the shipped digits model on its test pictures. ONNX Runtime's CPU provider runs fp8
by reference kernels and has no products in bf16: their latency is not measured here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import numpy as np
from int8_cpu import digits_bundle, photographs, pictures
from latency import RESULTS, ROOT, bundle_for, cpu_name, measure

from mscope.calib.calibrate import calibrate, smoothed_models
from mscope.calib.chain import Models
from mscope.calib.gate import Decisions, compare, decide
from mscope.calib.quantize import quantized
from mscope.core.bundle import load_manifest
from mscope.core.contract import Stage, graph_for
from mscope.core.manifest import Manifest, Precision
from mscope.export.passes.mixers import load_split
from mscope.export.precision.typed import typed_graph
from mscope.runtime.backends.base import Kernel, Runner
from mscope.runtime.backends.ort import OrtRunner

STAGES: tuple[Stage, ...] = ("coarse", "fine")
CALIBRATED = 256
TIMED: tuple[Precision, ...] = ("fp32", "fp16", "int8")
JUDGED: tuple[Precision, ...] = ("fp32", "fp16", "int8", "fp8")


def every_precision(manifest: Manifest, folder: Path, seen: list[np.ndarray]) -> dict[Precision, Models]:
    """The graphs of a bundle at each precision, as a build derives them; int8 and fp8 are calibrated on `seen`."""
    fp32: Models = {stage: load_split(folder / manifest.stages[stage].variants[0].file) for stage in STAGES}
    ranges = {
        "int8": calibrate(manifest.config, fp32, lambda: seen, "percentile", 0.5),
        "fp8": calibrate(manifest.config, fp32, lambda: seen, "minmax", 0.5),
    }
    made: dict[Precision, Models] = {"fp32": fp32}
    for precision in get_args(Precision)[1:]:
        if precision in ranges:
            base = smoothed_models(fp32, ranges[precision].stages)
            made[precision] = {
                stage: quantized(base[stage], precision, ranges[precision].stages[stage].limits) for stage in STAGES
            }
        else:
            made[precision] = {stage: typed_graph(fp32[stage], precision) for stage in STAGES}
    return made


def timed(
    manifest: Manifest, models: dict[Precision, Models], folder: Path, threads: int, rounds: int
) -> tuple[dict[str, int], dict[str, list[float]], dict[str, str]]:
    """Bytes by precision (both stages), and milliseconds and kernel by "stage precision"; fp32 without kernels too."""
    sizes: dict[str, int] = {}
    runners: dict[str, Runner] = {}
    for precision, stages in models.items():
        for stage, model in stages.items():
            path = folder / f"{stage}.{precision}.onnx"
            path.write_bytes(model.SerializeToString())
            sizes[precision] = sizes.get(precision, 0) + path.stat().st_size
            kernels: tuple[Kernel, ...] = ("native", "function") if precision == "fp32" else ("native",)
            for kernel in kernels if precision in TIMED else ():
                runner = OrtRunner(graph_for(manifest.config, stage), path, threads=threads, kernel=kernel)
                runner.activate()
                runners[f"{stage} {precision}" + (" function" if kernel == "function" else "")] = runner
    times = measure(runners, 1, rounds)
    kernels_used = {name: runner.kernel for name, runner in runners.items()}
    for runner in runners.values():
        runner.close()
    return sizes, times, kernels_used


def accuracies(manifest: Manifest, models: dict[Precision, Models], count: int) -> dict[str, object]:
    """What the gate says of each precision on the test pictures, beside fp32."""
    test = pictures(manifest, "digits:test", count)

    def batches() -> Iterable[tuple[np.ndarray, np.ndarray]]:
        return ((batch.tensor, batch.labels) for batch in test())

    decisions: dict[str, Decisions] = {name: decide(manifest.config, models[name], batches) for name in JUDGED}
    return {
        name: compare(made, decisions["fp32"], eta=manifest.default_eta, held_out=True).model_dump()
        for name, made in decisions.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--pictures", type=int, default=4000, help="of the digits test split")
    parser.add_argument("--bundles", type=Path, default=ROOT / "build" / "bench", help="where bundles are kept")
    parser.add_argument("--out", type=Path, default=RESULTS / "variants.json")
    options = parser.parse_args()

    ti = bundle_for("ti", "mambascope", options.bundles)
    manifest = load_manifest(ti)
    with tempfile.TemporaryDirectory() as scratch:
        models = every_precision(manifest, ti, photographs(manifest))
        sizes, times, kernels = timed(manifest, models, Path(scratch), options.threads, options.rounds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    # Of each round, so that a busy moment slows both sides of a ratio.
    ratios = {
        name: statistics.median(a / b for a, b in zip(times[f"{name.split()[0]} fp32"], values, strict=True))
        for name, values in times.items()
    }

    digits = digits_bundle(options.bundles)
    digits_manifest = load_manifest(digits)
    seen = [batch.tensor for batch in pictures(digits_manifest, "digits:validation", CALIBRATED)()]
    accuracy = accuracies(digits_manifest, every_precision(digits_manifest, digits, seen), options.pictures)

    print(f"{cpu_name()}, {options.threads} threads, ti, batch 1, medians of {options.rounds} rounds")
    for name in (*get_args(Precision), "fp32 function"):
        words = [f"{name:14s}", f"{sizes[name] / 1e6:6.1f} MB" if name in sizes else " " * 9]
        if name in accuracy:
            row: dict[str, dict[str, float]] = accuracy[name]  # type: ignore[assignment]
            words.append("  ".join(f"{path} {100 * value:.2f} %" for path, value in row["accuracy"].items()))
        for stage in STAGES:
            if f"{stage} {name}" in medians:
                words.append(f"{stage} {medians[f'{stage} {name}']:.2f} ms ({ratios[f'{stage} {name}']:.2f}x)")
        print("  " + "  ".join(words))
    report = {
        "date": date.today().isoformat(),
        "cpu": cpu_name(),
        "threads": options.threads,
        "rounds": options.rounds,
        "pictures": options.pictures,
        "eta": digits_manifest.default_eta,
        "digits_weights": digits_manifest.weights.sha256,
        "versions": {package: version(package) for package in ("onnxruntime", "onnx", "numpy")},
        "ti_bytes": sizes,
        "ti_median_ms": medians,
        "ti_times_faster_than_fp32": ratios,
        "ti_kernels": kernels,
        "digits": accuracy,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
