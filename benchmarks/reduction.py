"""Static token reduction beside the adaptive cascade: accuracy on digits, latency on the CPU, one plot.

    python benchmarks/reduction.py build     [--size digits] [--folder build/reduction]   # bundles, seconds each
    python benchmarks/reduction.py accuracy  [--pictures 4000]
    python benchmarks/reduction.py latency   [--size digits] [--threads 2] [--rounds 40] [--folder ...]
    python benchmarks/reduction.py plot

Results go to benchmarks/results/reduction_*.json, the plot to docs/images/reduction.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mscope.core.bundle import load_manifest
from mscope.core.config import ModelConfig, config_for
from mscope.core.contract import Graph, graphs
from mscope.core.cost import stage_cost
from mscope.runtime.backends.ort import OrtRunner

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PLOT = ROOT / "docs" / "images" / "reduction.png"
Right = npt.NDArray[np.bool_]

# Every way to reduce, and how much; below 0.34 two merging steps cannot go. Of ti: what the originals take for Vim-S,
# and R-MeeTo for Vim-Ti.
WAYS: dict[str, dict[str, Any]] = {
    "prune": {"reduce": "prune"},
    "prune, zero": {"reduce": "prune", "prune_alignment": "zero"},
    "prune, not aligned": {"reduce": "prune", "prune_alignment": "none"},
    "merge": {"reduce": "merge"},
    "merge, residual": {"reduce": "merge", "merge_features": "residual"},
}
KEEPS = (0.9, 0.7, 0.5, 0.35)
TIMED: dict[str, tuple[tuple[str, float], ...]] = {
    "digits": tuple((way, keep) for way in ("prune", "prune, not aligned", "merge") for keep in (0.5, 0.35)),
    "ti": (("prune", 0.512), ("prune, zero", 0.512), ("prune, not aligned", 0.512), ("merge", 0.383), ("merge", 0.719)),
}
LEVEL, RESAMPLES, SEED = 0.95, 2000, 0


def configured(size: str, way: str, keep: float) -> ModelConfig:
    """A reduced ViM."""
    return config_for(size, "vim", keep=keep, **WAYS[way])


def bundle_of(folder: Path, size: str, way: str, keep: float) -> Path:
    """Where the bundle of one setting is kept."""
    return folder / f"{size}-{way.replace(', ', '-').replace(' ', '-')}-{keep:g}"


def build(size: str, folder: Path) -> None:
    """The bundles that `latency` runs, shipped weights where there are some; those that are there stay."""
    from mscope.export.build import build_bundle
    from mscope.export.options import BuildOptions

    wanted = [(folder / f"{size}-{arch}", config_for(size, arch)) for arch in ("vim", "mambascope")]
    wanted += [(bundle_of(folder, size, way, keep), configured(size, way, keep)) for way, keep in TIMED[size]]
    for target, config in wanted:
        if not (target / "manifest.json").exists():
            print(f"{target.name} ...", flush=True)
            build_bundle(BuildOptions(config, out=target, parity=False))


def accuracy(pictures: int) -> dict[str, Any]:
    """Every way on the same weights and pictures, with paired intervals against plain ViM and the cascade."""
    import torch

    from mscope.core.cascade import confidence, exits_early
    from mscope.model.checkpoint import model_from_checkpoint
    from mscope.model.mambascope import MambaScope
    from mscope.model.shipped import shipped_weights
    from mscope.model.training.digits import Digits
    from mscope.model.training.evaluate import plain_logits, stage_outputs

    torch.set_num_threads(1)
    data = Digits("test").batch(0, pictures)

    def network(config: ModelConfig) -> Any:
        path = shipped_weights(config.size, config.arch)
        assert path is not None
        return model_from_checkpoint(config, path).model

    plain_config = config_for("digits", "vim")
    right: dict[str, Right] = {"plain": plain_logits(network(plain_config), data).argmax(-1) == data.labels}
    macs = {"plain": 1e3 * stage_cost(plain_config).full}
    reduced = {}
    for way in WAYS:
        for keep in KEEPS:
            config, name = configured("digits", way, keep), f"{way} {keep:g}"
            right[name] = plain_logits(network(config), data).argmax(-1) == data.labels
            macs[name], reduced[name] = 1e3 * stage_cost(config).full, (way, keep)
            print(f"{name}: {right[name].mean():.4f}, {macs[name]:.2f} M", flush=True)
    scope_config = config_for("digits")
    scope = network(scope_config)
    assert isinstance(scope, MambaScope)
    outputs = stage_outputs(scope, data)
    cost, sure = stage_cost(scope_config), confidence(outputs.coarse_logits)
    answers = [logits.argmax(-1) == data.labels for logits in (outputs.coarse_logits, outputs.fine_logits)]
    adaptive = {}
    for eta in (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0):
        leaves, name = exits_early(sure, eta), f"adaptive {eta:g}"
        right[name] = np.where(leaves, *answers)
        macs[name], adaptive[name] = 1e3 * cost.adaptive(float(leaves.mean())), eta
    intervals = Intervals(right)
    rows = [
        {"way": way, "keep": keep, "mmacs": macs[name], "accuracy": float(right[name].mean()),
         "minus_plain": intervals.of(name, "plain"), "minus_adaptive": beside(name, adaptive, macs, intervals)}
        for name, (way, keep) in reduced.items()
    ]  # fmt: skip
    curve = [
        {"eta": eta, "mmacs": macs[name], "accuracy": float(right[name].mean()),
         "minus_plain": intervals.of(name, "plain")}
        for name, eta in adaptive.items()
    ]  # fmt: skip
    plain = {"mmacs": macs["plain"], "accuracy": float(right["plain"].mean())}
    return {"pictures": pictures, "level": LEVEL, "plain": plain, "reduced": rows, "adaptive": curve}


class Intervals:
    """Paired bootstrap: the same resampled pictures for both sides of a difference."""

    def __init__(self, right: dict[str, Right]) -> None:
        from mscope.calib.intervals import resampled_counts

        self._right = right
        images = len(right["plain"])
        counts = np.stack(list(resampled_counts(images, RESAMPLES, SEED))) / images
        table = np.stack(list(right.values()), axis=1).astype(np.float64)
        self._draws = dict(zip(right, (counts @ table).T, strict=True))

    def of(self, name: str, other: str) -> dict[str, float]:
        """Accuracy of `name` minus that of `other`, and the interval."""
        from mscope.calib.intervals import estimate

        value = float(self._right[name].mean() - self._right[other].mean())
        found = estimate(value, self._draws[name] - self._draws[other], LEVEL)
        return {"value": found.value, "low": found.low, "high": found.high}


def beside(name: str, adaptive: dict[str, float], macs: dict[str, float], intervals: Intervals) -> dict[str, Any]:
    """The difference from the dearest point of the cascade that costs no more MACs than `name`."""
    affordable = [other for other in adaptive if macs[other] <= macs[name]]
    other = max(affordable, key=lambda candidate: macs[candidate])
    return {"eta": adaptive[other], "mmacs": macs[other], **intervals.of(name, other)}


def feeds_for(graph: Graph) -> dict[str, np.ndarray]:
    """One random picture; regions in spatial order."""
    rng, feeds = np.random.default_rng(0), {}
    for tensor in graph.inputs:
        shape = (1, *(int(axis) for axis in tensor.axes[1:]))
        valid = np.arange(shape[1], dtype=np.int64)[None] if tensor.dtype == "int64" else None
        feeds[tensor.name] = rng.standard_normal(shape, dtype=np.float32) if valid is None else valid
    return feeds


def latency(size: str, threads: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Medians of interleaved rounds, native kernels, batch 1, and the time over plain ViM's of the same round."""
    names = {f"{size}-{arch}": folder / f"{size}-{arch}" for arch in ("vim", "mambascope")}
    names |= {f"{way} {keep:g}": bundle_of(folder, size, way, keep) for way, keep in TIMED[size]}
    runners, macs = {}, {}
    for name, path in names.items():
        manifest = load_manifest(path)
        for graph in graphs(manifest.config):
            runner = OrtRunner(graph, path / f"{graph.stage}.onnx", threads=threads, kernel="native")
            runner.activate()
            label = {f"{size}-vim": "plain", f"{size}-mambascope": graph.stage}.get(name, name)
            runners[label], macs[label] = runner, 1e3 * manifest.stages[graph.stage].gmacs
    feeds = {label: feeds_for(runner.graph) for label, runner in runners.items()}
    times: dict[str, list[float]] = {label: [] for label in runners}
    for turn in range(rounds + 3):
        for label, runner in runners.items():
            start = time.perf_counter()
            runner.infer(feeds[label])
            if turn >= 3:
                times[label].append((time.perf_counter() - start) * 1e3)
    for runner in runners.values():
        runner.close()
    rows = {}
    for label, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(values, times["plain"], strict=True))
        rows[label] = {"ms": statistics.median(values), "over_plain": ratio, "mmacs": macs[label],
                       "macs_over_plain": macs[label] / macs["plain"]}  # fmt: skip
        print(f"{label:24s} {rows[label]['ms']:7.2f} ms  {ratio:5.2f} x  MACs {rows[label]['macs_over_plain']:5.2f} x")
    return {"size": size, "threads": threads, "rounds": rounds, "batch": 1, "kernel": "native", "rows": rows}


def plot() -> None:
    """Accuracy over MACs of every way and of the cascade, on digits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = json.loads((RESULTS / "reduction_accuracy.json").read_text())
    retrained = RESULTS / "reduction_retrain.json"
    colours = {"prune": "#c2410c", "prune, not aligned": "#f0a27a", "merge": "#15803d", "merge, residual": "#84cc99"}
    figure, axes = plt.subplots(figsize=(8.2, 4.8), dpi=150)
    curve = found["adaptive"]
    axes.plot([p["mmacs"] for p in curve], [100 * p["accuracy"] for p in curve], "-o", color="#1565c0", lw=2, ms=4.5,
              label="MambaScope, adaptive (each point one $\\eta$)", zorder=4)  # fmt: skip
    for way, colour in colours.items():
        rows = [row for row in found["reduced"] if row["way"] == way]
        axes.plot([r["mmacs"] for r in rows], [100 * r["accuracy"] for r in rows], "-s", color=colour, ms=4,
                  label=f"plain ViM, {way}")  # fmt: skip
    if retrained.exists():
        for method, marker in (("prune", "v"), ("merge", "^")):
            runs = [run for run in json.loads(retrained.read_text())["runs"] if run["method"] == method]
            axes.plot([r["mmacs"] for r in runs], [100 * r["accuracy_after"] for r in runs], marker, mfc="none", ms=9,
                      color=colours[method], label=f"{method}, re-trained shortly")  # fmt: skip
    plain = found["plain"]
    axes.plot(plain["mmacs"], 100 * plain["accuracy"], "D", color="#1f2933", label="plain ViM", zorder=5)
    axes.set_xlabel("mean cost of a picture, million multiply-accumulates")
    axes.set_ylabel("accuracy, %")
    axes.set_title(f"Cluttered digits, {found['pictures']} test pictures", loc="left", size=12)
    axes.set_ylim(60, 100)
    axes.grid(color="#e4e7eb", lw=0.8)
    axes.legend(loc="lower right", frameon=False, fontsize=8.5)
    figure.tight_layout()
    figure.savefig(PLOT)
    plt.close(figure)
    print(PLOT)


def write(name: str, content: dict[str, Any]) -> None:
    """One result file, with the day and the versions."""
    versions = {package: version(package) for package in ("numpy", "onnxruntime", "torch")}
    path = RESULTS / f"reduction_{name}.json"
    path.write_text(json.dumps({"date": date.today().isoformat(), "versions": versions, **content}, indent=1) + "\n")
    print(f"written: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("build", "accuracy", "latency", "plot"))
    parser.add_argument("--size", default="digits", choices=tuple(TIMED))
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "reduction")
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    if options.what == "build":
        build(options.size, options.folder)
    elif options.what == "accuracy":
        write("accuracy", accuracy(options.pictures))
    elif options.what == "latency":
        found = latency(options.size, options.threads, options.rounds, options.folder)
        write(f"latency-{options.size}-t{options.threads}", found)
    else:
        plot()


if __name__ == "__main__":
    main()
