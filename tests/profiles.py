"""A complete profile made of invented numbers, for whatever reads profiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mscope.runtime.profiling.exit_rates import eta_of_rate
from mscope.runtime.profiling.expectation import Paths, break_even_rate, expected_at
from mscope.runtime.profiling.schema import (
    BatchProfile,
    BundleIdentity,
    ColdRun,
    ColdStart,
    ExitRates,
    IdleGap,
    LayerRow,
    LayerTable,
    Machine,
    Memory,
    PathProfile,
    Profile,
    RuntimeIdentity,
    Settings,
    WarmUp,
)
from mscope.runtime.profiling.statistics import series_of

Floats = npt.NDArray[np.float64]
# (eta, exit rate, accuracy)
CURVE = ((0.3, 0.97, 0.861), (0.6, 0.8, 0.93), (0.8, 0.55, 0.962), (0.9, 0.25, 0.975), (0.99, 0.02, 0.976))
# Medians of the parts of each path at batch 1, milliseconds.
PARTS = {
    "exit": {"preprocess": 1.2, "check": 0.1, "coarse": 7.0, "select": 0.1, "postprocess": 0.2},
    "refine": {"preprocess": 1.2, "check": 0.1, "coarse": 7.0, "select": 0.2, "fine": 14.1, "postprocess": 0.2},
    "plain": {"preprocess": 1.2, "check": 0.1, "full": 20.7, "postprocess": 0.2},
}


def skewed(median: float, count: int, rng: np.random.Generator) -> Floats:
    """Latencies as machines have them: a floor, and a tail to the right."""
    samples: Floats = median * (0.97 + 0.03 * rng.lognormal(0.0, 0.8, count))
    return samples


def sample_profile(*, seed: int = 0, count: int = 200, slower: float = 1.0, **changes: Any) -> Profile:
    """A profile of batches 1 and 8 with every section but power; `slower` scales all latencies."""
    rng = np.random.default_rng(seed)
    batches = tuple(_batch(batch, count, slower, rng) for batch in (1, 8))
    identity = BundleIdentity(
        name="ti", folder="/bundles/ti", manifest_sha256="ab" * 32, arch="mambascope", size="ti",
        resolution=(224, 224), alpha=0.5, weights="vim_t.pth (sha256 0123456789ab)", trained=True, default_eta=0.6,
        gmacs={"coarse": 0.38, "fine": 0.98},
    )  # fmt: skip
    plain = identity.model_copy(
        update={
            "name": "ti-vim", "folder": "/bundles/ti-vim", "manifest_sha256": "cd" * 32, "arch": "vim", "alpha": None,
            "default_eta": None, "gmacs": {"full": 1.5},
        }
    )  # fmt: skip
    runtime = RuntimeIdentity(backend="ort-cpu", kernel="native", precision="fp32", threads=2)
    fields: dict[str, Any] = {
        "created": "2026-01-02T03:04:05Z",
        "versions": {"mambascope-deploy": "0.1.0", "python": "3.11.9", "onnxruntime": "1.32.0", "numpy": "2.4.6"},
        "machine": Machine(
            system="Linux 6.1", architecture="x86_64", cpu="Invented CPU", cores=2, memory_bytes=8 << 30,
            load_before=0.1, load_after=1.2,
        ),
        "bundle": identity,
        "runtime": runtime,
        "compare": plain,
        "compare_runtime": runtime,
        "settings": Settings(duration_s=10.0, batches=(1, 8), etas=(0.6, 0.9), input="data", images=1000),
        "exit_rates": ExitRates(source="curve", images=1000, points=tuple((eta, rate) for eta, rate, _ in CURVE)),
        "batches": batches,
        "cold_start": ColdStart(
            runs=tuple(ColdRun(import_ms=90 + i, load_ms=200 + i, first_ms=30, total_ms=380 + i) for i in range(3)),
            total_p50_ms=381.0,
        ),
        "memory": Memory(batch=8, loaded_bytes=150 << 20, peak_bytes=210 << 20),
        "idle_gaps": tuple(
            IdleGap(gap_s=gap, total=series_of(skewed(22.8 * slower * (1 + gap / 5), 20, rng))) for gap in (0, 0.1, 1)
        ),
        "layers": (_layers("coarse", rng), _layers("fine", rng)),
        "verdict": ("on this machine adaptive saves 45 % at eta 0.6; it would lose above eta 0.99",),
        "warnings": ("the latencies scatter",),
    }  # fmt: skip
    return Profile(**(fields | changes))


def _batch(batch: int, count: int, slower: float, rng: np.random.Generator) -> BatchProfile:
    paths: dict[str, PathProfile] = {}
    totals: dict[str, Floats] = {}
    for name, medians in PARTS.items():
        parts = {part: skewed(ms * slower * batch**0.9, count, rng) for part, ms in medians.items()}
        totals[name] = np.sum(list(parts.values()), axis=0)
        if name == "refine":
            fine = parts["fine"]
        paths[name] = PathProfile(
            total=series_of(totals[name]),
            parts={part: series_of(samples) for part, samples in parts.items()},
            split_gap=0.001,
            images_per_second=batch / float(totals[name].mean()) * 1e3,
        )
    one = series_of(skewed(14.1 * slower, count, rng)) if batch > 1 else None
    mixed = Paths(
        batch, totals["exit"], totals["refine"], fine,
        None if one is None else one.summary.p50_ms, float(totals["plain"].mean()),
    )  # fmt: skip
    rate = break_even_rate(mixed)
    return BatchProfile(
        batch=batch,
        warmup=WarmUp(rounds=12, seconds=0.7, steady=True),
        rounds=count,
        paths=paths,  # type: ignore[arg-type]
        fine_one=one,
        expected=tuple(expected_at(mixed, rate, eta=eta, accuracy=accuracy) for eta, rate, accuracy in CURVE),
        expected_by_exit_rate=tuple(expected_at(mixed, i / 10) for i in range(11)),
        break_even_exit_rate=rate,
        break_even_eta=None if rate is None else eta_of_rate(rate, [(eta, exits) for eta, exits, _ in CURVE]),
    )


def _layers(stage: str, rng: np.random.Generator) -> LayerTable:
    names = [("patch_embed/MatMul", "MatMul", "patch_embed", "projection")]
    for block in range(4):
        at = f"layers.{block}"
        names += [
            (f"{at}/norm", "SimplifiedLayerNormalization", at, "norm"),
            (f"{at}/mixer/in_proj", "MatMul", at, "projection"),
            (f"{at}/mixer/CausalConv1dSiLU", "CausalConv1dSiLU", at, "conv"),
            (f"{at}/mixer/BidirectionalSelectiveScan", "BidirectionalSelectiveScan", at, "scan"),
            (f"{at}/mixer/out_proj", "MatMul", at, "projection"),
        ]
    times = rng.uniform(0.05, 0.5, len(names))
    rows = tuple(
        LayerRow(name=name, op=op, block=block, kind=kind, mean_ms=ms, median_ms=ms, share=ms / times.sum())  # type: ignore[arg-type]
        for (name, op, block, kind), ms in zip(names, times, strict=True)
    )
    return LayerTable(source="onnxruntime", stage=stage, batch=1, runs=20, stage_ms=float(times.sum()) * 1.1, rows=rows)
