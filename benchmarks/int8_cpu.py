"""int8 beside fp32 on the CPU, in one run: sizes, latency by interleaved rounds, and for the digits model accuracy.

python benchmarks/int8_cpu.py --size ti --threads 2

The ti, s and b networks have random weights, whose speed is that of trained ones: they are calibrated on crops of the
two photographs that come with scikit-learn, and say nothing about accuracy. The digits network is the shipped one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterable, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
from latency import RESULTS, ROOT, bundle_for, cpu_name, measure

from mscope.calib.calibrate import calibrate, smoothed_models
from mscope.calib.dataset import open_dataset
from mscope.calib.gate import compare, decide
from mscope.calib.quantize import quantized
from mscope.calib.ranges import check_method
from mscope.calib.split import Pictures
from mscope.core.bundle import load_manifest
from mscope.core.contract import Stage, graph_for
from mscope.core.manifest import Manifest
from mscope.export.build import build_bundle
from mscope.export.options import BuildOptions, config_from_options
from mscope.export.passes.mixers import load_split
from mscope.runtime.backends.base import Runner
from mscope.runtime.backends.ort import OrtRunner
from mscope.runtime.preprocess import Preprocessor

CROPS = 16
TEST_PICTURES = 4000
Batches = list[np.ndarray]


def photographs(manifest: Manifest) -> Batches:
    """CROPS squares of scikit-learn's photographs, prepared as the network wants them."""
    from sklearn.datasets import load_sample_images

    preprocess = Preprocessor(manifest.preprocessing, manifest.config)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(CROPS):
        picture = load_sample_images().images[number % 2]
        side = int(rng.integers(224, 400))
        top, left = (int(rng.integers(0, size - side + 1)) for size in picture.shape[:2])
        rows.append(preprocess(picture[top : top + side, left : left + side], f"crop {number}").tensor)
    return [np.stack(rows[start : start + 4]) for start in range(0, CROPS, 4)]


def digits_bundle(folder: Path) -> Path:
    """The shipped digits model as a bundle; built anew, the shipped weights may have changed."""
    target = folder / "digits-shipped"
    build_bundle(BuildOptions(config=config_from_options("digits"), out=target, parity=False))
    return target


def pictures(manifest: Manifest, spec: str, count: int) -> Pictures:
    data = open_dataset(spec, manifest, limit=count)
    return Pictures(data, Preprocessor(manifest.preprocessing, manifest.config))


def accuracy_of(
    manifest: Manifest, fp32: Mapping[Stage, onnx.ModelProto], int8: Mapping[Stage, onnx.ModelProto]
) -> dict[str, object]:
    """The gate's figures on the test pictures, which neither training nor calibration has seen."""
    test = pictures(manifest, "digits:test", TEST_PICTURES)

    def batches() -> Iterable[tuple[np.ndarray, np.ndarray]]:
        return ((batch.tensor, batch.labels) for batch in test())

    both = [decide(manifest.config, models, batches) for models in (int8, fp32)]
    return compare(*both, eta=manifest.default_eta, held_out=True).model_dump()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="ti", choices=["ti", "s", "b", "digits"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--method", default="percentile")
    parser.add_argument("--bundles", type=Path, default=ROOT / "build" / "bench", help="where bundles are kept")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; default below benchmarks/results")
    options = parser.parse_args()

    digits = options.size == "digits"
    folder = digits_bundle(options.bundles) if digits else bundle_for(options.size, "mambascope", options.bundles)
    manifest = load_manifest(folder)
    files = {stage: folder / record.variants[0].file for stage, record in manifest.stages.items()}
    fp32 = {stage: load_split(path) for stage, path in files.items()}
    seen_pictures = (
        [batch.tensor for batch in pictures(manifest, "digits:validation", 256)()] if digits else photographs(manifest)
    )
    seen = calibrate(manifest.config, fp32, lambda: seen_pictures, check_method(options.method), 0.5)
    base = smoothed_models(fp32, seen.stages)
    int8 = {stage: quantized(base[stage], "int8", seen.stages[stage].limits) for stage in base}

    with tempfile.TemporaryDirectory() as scratch:
        runners: dict[str, Runner] = {}
        sizes: dict[str, int] = {}
        for stage in ("coarse", "fine"):
            path = Path(scratch) / f"{stage}.int8.onnx"
            path.write_bytes(int8[stage].SerializeToString())
            for precision, file in (("fp32", files[stage]), ("int8", path)):
                name = f"{stage} {precision}"
                runner = OrtRunner(graph_for(manifest.config, stage), file, threads=options.threads)
                runner.activate()
                runners[name], sizes[name] = runner, file.stat().st_size
        times = measure(runners, options.batch, options.rounds)
        kernels = {name: runner.kernel for name, runner in runners.items()}
        for runner in runners.values():
            runner.close()

    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {stage: medians[f"{stage} fp32"] / medians[f"{stage} int8"] for stage in ("coarse", "fine")}
    # Of each round: fp32 and int8 ran one after the other, so that a busy machine slows both.
    rounds = {
        stage: statistics.median(a / b for a, b in zip(times[f"{stage} fp32"], times[f"{stage} int8"], strict=True))
        for stage in ("coarse", "fine")
    }
    result: dict[str, object] = {
        "date": date.today().isoformat(),
        "cpu": cpu_name(),
        "threads": options.threads,
        "size": options.size,
        "batch": options.batch,
        "rounds": options.rounds,
        "method": options.method,
        "versions": {package: version(package) for package in ("onnxruntime", "numpy")},
        "kernels": kernels,
        "bytes": sizes,
        "median_ms": medians,
        "fp32_over_int8": ratios,
        "fp32_over_int8_by_round": rounds,
    }
    if digits:
        result["accuracy"] = accuracy_of(manifest, fp32, int8)
    print(f"{cpu_name()}, {options.threads} threads, {options.size}, batch {options.batch}, {options.rounds} rounds")
    for stage in ("coarse", "fine"):
        print(
            f"  {stage:6s} fp32 {medians[f'{stage} fp32']:7.2f} ms  int8 {medians[f'{stage} int8']:7.2f} ms  "
            f"ratio {ratios[stage]:.2f} (by round {rounds[stage]:.2f})  "
            f"{sizes[f'{stage} fp32'] / 1e6:.1f} -> {sizes[f'{stage} int8'] / 1e6:.1f} MB  {kernels[f'{stage} int8']}"
        )
    if digits:
        print(f"  accuracy {result['accuracy']}")
    out = options.out or RESULTS / f"int8-cpu-{options.size}-b{options.batch}-t{options.threads}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {out}")


if __name__ == "__main__":
    main()
