"""What each way of calibrating costs the shipped digits model: every method, smoothed or not, int8 and fp8, in one run.

python benchmarks/int8_accuracy.py --pictures 2000
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
from int8_cpu import RESULTS, ROOT, digits_bundle, pictures

from mscope.calib.calibrate import calibrate, smoothed_models
from mscope.calib.gate import compare, decide
from mscope.calib.quantize import EightBit, quantized
from mscope.calib.ranges import METHODS, Method
from mscope.core.bundle import load_manifest
from mscope.export.passes.mixers import load_split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000, help="of the test split")
    parser.add_argument("--calibration", type=int, default=256, help="of the validation split")
    parser.add_argument("--bundles", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--out", type=Path, default=RESULTS / "int8_accuracy.json")
    options = parser.parse_args()

    folder = digits_bundle(options.bundles)
    manifest = load_manifest(folder)
    models = {stage: load_split(folder / record.variants[0].file) for stage, record in manifest.stages.items()}
    calibration = pictures(manifest, "digits:validation", options.calibration)
    test = pictures(manifest, "digits:test", options.pictures)

    def images() -> Iterable[np.ndarray]:
        return (batch.tensor for batch in calibration())

    def labelled() -> Iterable[tuple[np.ndarray, np.ndarray]]:
        return ((batch.tensor, batch.labels) for batch in test())

    reference = decide(manifest.config, models, labelled)
    rows = []
    cases: list[tuple[EightBit, Method, float | None]] = [
        ("int8", method, smoothing) for method in METHODS for smoothing in (None, 0.5)
    ]
    cases += [("fp8", "minmax", None), ("fp8", "minmax", 0.5)]
    for precision, method, smoothing in cases:
        seen = calibrate(manifest.config, models, images, method, smoothing)
        base = smoothed_models(models, seen.stages)
        made = {stage: quantized(base[stage], precision, seen.stages[stage].limits) for stage in base}
        decisions = decide(manifest.config, made, labelled)
        result = compare(decisions, reference, eta=manifest.default_eta, held_out=True)
        errors = {
            stage: float(np.std(decisions.logits[stage] - exact) / np.std(exact))
            for stage, exact in reference.logits.items()
        }
        rows.append(
            {"precision": precision, "method": method, "smoothing": smoothing, "logits_error": errors}
            | result.model_dump()
        )
        points = "  ".join(f"{path} {100 * value:.2f}" for path, value in result.accuracy.items())
        print(
            f"{precision} {method:10s} smoothing {smoothing or '-':>3}  {points}  "
            f"answers changed {100 * result.changed['adaptive']:.2f} %  exits {100 * (result.exit_flips or 0):.2f} %  "
            f"regions {100 * (result.selected_agreement or 0):.1f} %  "
            f"logits {errors['coarse']:.3f} {errors['fine']:.3f}",
            flush=True,
        )
    before = "  ".join(f"{path} {100 * value:.2f}" for path, value in rows[0]["reference"].items())  # type: ignore[attr-defined]
    print(f"fp32 {before}")
    report = {
        "date": date.today().isoformat(),
        "weights": manifest.weights.sha256,
        "eta": manifest.default_eta,
        "pictures": options.pictures,
        "calibration": options.calibration,
        "versions": {package: version(package) for package in ("onnxruntime", "onnx", "numpy")},
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
