"""The roofline: its counts against the analytic cost, its behaviour, and the range against what was measured."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import typer

from mscope.core.config import config_for
from mscope.core.console import run_app
from mscope.core.cost import SCAN_MACS_PER_STATE, stage_cost
from mscope.core.errors import InputError
from mscope.core.geometry import token_counts
from mscope.core.manifest import CurvePoint
from mscope.runtime.profiling.devices import ALIASES, CPU, GPUS, Gpu, Range, gpu_named
from mscope.runtime.profiling.roofline import StageName, predict, stage_work
from mscope.runtime.profiling.roofline_cli import predict as command
from mscope.runtime.profiling.roofline_words import SWEEP_BATCHES, SWEEP_RESOLUTIONS, Question, answer, exit_rate_of

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
STAGES: tuple[StageName, ...] = ("coarse", "fine", "full")


@pytest.mark.parametrize(
    ("size", "choices"),
    [
        ("ti", {}), ("s", {}), ("b", {}), ("digits", {}), ("ti", {"reuse": "linear"}), ("ti", {"reuse": "none"}),
        ("ti", {"reuse_class_token": True}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stage", STAGES)
def test_the_products_are_those_of_the_analytic_cost(size: str, choices: dict[str, Any], stage: StageName) -> None:
    config = config_for(size, **choices)
    length = getattr(token_counts(config), stage)
    # What the cost counts and is no product: convolution, dt_proj (inside the op) and the scan, both directions.
    each = config.d_conv + config.dt_rank + SCAN_MACS_PER_STATE * config.d_state
    elsewhere = 2 * config.depth * length * config.d_inner * each
    counted = sum(work.times * work.macs for work in stage_work(config, stage)) + elsewhere
    assert counted == pytest.approx(getattr(stage_cost(config), stage) * 1e9, rel=1e-12)


def test_the_kernels_are_those_of_the_graphs() -> None:
    """A block has in_proj, x_proj of both directions, out_proj, a scan and a convolution; ti has 24."""
    count = dict.fromkeys(("product", "scan", "conv"), 0.0)
    for work in stage_work(config_for("ti"), "full"):
        if work.kind in count and work.times > 1:
            count[work.kind] += work.times
    assert count == {"product": 72, "scan": 24, "conv": 24}


def test_a_batch_multiplies_the_work_and_not_the_weights() -> None:
    config = config_for("ti")
    for one, eight in zip(stage_work(config, "fine", 1), stage_work(config, "fine", 8), strict=True):
        assert eight.macs == 8 * one.macs
        assert eight.elements == 8 * one.elements
        assert eight.weights == one.weights
        assert eight.times == one.times


def test_the_cpu_s_range_holds_what_was_measured() -> None:
    """Rates were measured one by one on another day: the stages' whole latencies were not used for them."""
    measured = json.loads((RESULTS / "latency-cpu-ti-b1-t2.json").read_text())["median_ms"]["native"]
    for stage in STAGES:
        found = predict(config_for("ti"), stage, CPU, precision="fp32", threads=2)
        assert found.best_ms <= measured[stage] <= found.worst_ms
        assert found.worst_ms / found.best_ms < 2.0, "a range that holds everything says nothing"


def test_the_cpu_s_range_holds_over_resolutions_and_batches() -> None:
    """benchmarks/roofline_cpu.py: whole stages from 224 to 1024 pixels, and batches; none of it made the rates."""
    result = json.loads((RESULTS / "roofline-cpu.json").read_text())
    rows = result["rows"]
    assert {row["resolution"] for row in rows} >= set(SWEEP_RESOLUTIONS)
    assert {row["batch"] for row in rows} >= {1, 4, 8}
    for row in rows:
        config = config_for(row["size"], height=row["resolution"], width=row["resolution"])
        found = predict(config, row["stage"], CPU, batch=row["batch"], precision="fp32", threads=result["threads"])
        assert found.best_ms <= row["measured_ms"] <= found.worst_ms, row


def test_the_cpu_s_range_holds_the_trunk_on_one_thread() -> None:
    results = json.loads((RESULTS / "scan_cpu.json").read_text())["results"]
    stages: dict[int, StageName] = {50: "coarse", 197: "full"}
    seen = 0
    for row in results:
        stage = stages.get(row["tokens"])
        if stage is None or row["size"] not in ("ti", "s", "b"):
            continue
        found = predict(config_for(row["size"]), stage, CPU, precision="fp32", threads=1)
        # The trunk lacks patch embedding and head, a few per cent of the stage.
        assert 0.95 * found.best_ms <= row["one_thread_processor_ms"]["native"] <= found.worst_ms
        seen += 1
    assert seen >= 4


@pytest.mark.parametrize("device", sorted(GPUS))
def test_more_work_takes_longer_and_the_range_is_one(device: str) -> None:
    gpu = GPUS[device]
    for precision in ("fp16", "fp32", "int8"):
        for stage in STAGES:
            last = (0.0, 0.0)
            for side in SWEEP_RESOLUTIONS:
                found = predict(config_for("ti", height=side, width=side), stage, gpu, precision=precision)  # type: ignore[arg-type]
                assert 0.0 < found.best_ms < found.worst_ms
                assert (found.best_ms, found.worst_ms) > last
                assert sum(found.limits.values()) == pytest.approx(1.0)
                last = (found.best_ms, found.worst_ms)
        batches = [predict(config_for("s"), "full", gpu, batch=batch).best_ms for batch in (1, 8, 64)]
        assert batches[0] < batches[1] < batches[2]
        # A large batch is at most a little dearer an image: its activations leave the cache.
        assert batches[2] < 1.2 * 64 * batches[0]


def test_a_wider_faster_device_is_not_slower() -> None:
    for slow, fast in (
        ("orin-nano-4", "orin-nano-8"),
        ("orin-nano-8", "orin-nano-8-super"),
        ("orin-nx-16", "orin-agx-64"),
        ("h100", "h200"),
    ):
        for stage in STAGES:
            a, b = (predict(config_for("b"), stage, GPUS[name], batch=8) for name in (slow, fast))
            assert b.best_ms <= a.best_ms
            assert b.worst_ms <= a.worst_ms


def test_it_never_beats_the_data_sheet() -> None:
    for gpu in GPUS.values():
        found = predict(config_for("b"), "full", gpu, batch=64)
        floor = 64 * 2 * stage_cost(config_for("b")).full * 1e9 * 0.9 / (gpu.fp16_tflops * 1e12) * 1e3
        assert found.best_ms > floor


# Nothing costs any time on it.
FREE = Gpu("free", 8, math.inf, math.inf, math.inf, math.inf, math.inf, 0.0, Range(0.0, 0.0), "https://")


def ends(device: Gpu, precision: Any = "fp16") -> tuple[float, float]:
    """Milliseconds of plain ti at best and at worst: 197 tokens, 24 blocks, 384 inner channels, 16 states, rank 12."""
    found = predict(config_for("ti", "vim"), "full", device, precision=precision)
    return found.best_ms, found.worst_ms


def test_starts_alone_by_hand() -> None:
    # A block has 3 products, a convolution, a scan, and norm and residual sum in one kernel or in three.
    kernels = 24 * (3 + 1 + 1) + 2
    assert ends(replace(FREE, kernel_us=Range(1.0, 2.0))) == pytest.approx(
        ((kernels + 24) * 1e-3, (kernels + 24 * 3) * 2e-3), rel=1e-12
    )


def test_memory_alone_by_hand() -> None:
    weights = 768 * 192 + 24 * (192 * 768 + 2 * 384 * 44 + 384 * 192) + 192 * 1000
    products = 196 * (768 + 192) + 24 * 197 * ((192 + 768) + 2 * (384 + 44) + (384 + 192)) + 192 + 1000
    others = 24 * 197 * (3 * 384 + (5 * 384 + 2 * 44) + 3 * 192)
    for precision, width in (("fp16", 2), ("fp32", 4)):
        low = width * weights / 0.85e6, width * (weights + products + others) / 0.5e6
        # Where half of the cache holds what a kernel reads and writes, at best the weights alone are read.
        for cache_mb, best in ((0.0, low[1] * 0.5 / 0.85), (1e3, low[0])):
            device = replace(FREE, bandwidth_gb_s=1.0, cache_mb=cache_mb)
            assert ends(device, precision) == pytest.approx((best, low[1]), rel=1e-12)
    # Half of 1 MB holds all but the scan's 2 x 197 x 2008 bytes.
    scan = 24 * 197 * (5 * 384 + 2 * 44)
    device = replace(FREE, bandwidth_gb_s=1.0, cache_mb=1.0)
    assert ends(device)[0] == pytest.approx(2 * (weights + scan) / 0.85e6, rel=1e-12)
    # int8: products read bytes and write float32, all else is float32; at worst a kernel reads float32, writes bytes.
    read = 196 * 768 + 24 * 197 * (192 + 2 * 384 + 384) + 192
    written = 196 * 192 + 24 * 197 * (768 + 2 * 44 + 192) + 1000
    moved = weights + read + 4 * written + 4 * others
    int8 = moved / 0.85e6, (moved + 5 * read) / 0.5e6
    assert ends(replace(FREE, bandwidth_gb_s=1.0), "int8") == pytest.approx(int8, rel=1e-12)


def test_the_scan_alone_by_hand() -> None:
    # At 1 GHz: 16 to 40 cycles a token, or 1.5 to 2.5 times the exponentials over 16 a cycle and multiprocessor.
    wide = 24 * 197 * 16e-6, 24 * 197 * 40e-6
    assert ends(replace(FREE, clock_ghz=1.0, multiprocessors=10_000)) == pytest.approx(wide, rel=1e-12)
    exponentials = 24 * 2 * 197 * 384 * 16
    narrow = exponentials * 1.5e-6 / (16 * 8), exponentials * 2.5e-6 / (16 * 8)
    assert ends(replace(FREE, clock_ghz=1.0)) == pytest.approx(narrow, rel=1e-12)


@pytest.mark.parametrize("multiprocessors", [2, 8, 132])
def test_products_alone_by_hand(multiprocessors: int) -> None:
    """Tiles of 64 x 64: at best spread evenly, or split into four; at worst in whole waves."""
    best = worst = 0.0
    for times, rows, depth, columns in (
        (1, 196, 768, 192), (24, 197, 192, 768), (24, 2 * 197, 384, 44), (24, 197, 384, 192), (1, 1, 192, 1000),
    ):  # fmt: skip
        tiles = math.ceil(rows / 64) * math.ceil(columns / 64)
        # Milliseconds of a tile on one multiprocessor of a device of 1 TFLOP/s.
        each = times * 2 * 64 * 64 * depth * multiprocessors / 1e9
        best += each * max(tiles / multiprocessors, 0.25) / 0.70
        worst += each * math.ceil(tiles / multiprocessors) / 0.30
    for precision, peak in (("fp16", "fp16_tflops"), ("fp32", "fp32_tflops"), ("int8", "int8_tops")):
        device = replace(FREE, multiprocessors=multiprocessors, **{peak: 1.0})
        assert ends(device, precision) == pytest.approx((best, worst), rel=1e-12)


@pytest.mark.parametrize(("threads", "speed_up"), [(1, (1.0, 1.0)), (2, (1.92, 1.75))])
def test_the_cpu_by_hand(threads: int, speed_up: tuple[float, float]) -> None:
    """docs/prediction.md: GFLOP/s and ns a core, what a second thread adds, microseconds a node of the graph."""
    macs = 196 * 768 * 192 + 24 * 197 * (192 * 768 + 2 * 384 * 44 + 384 * 192) + 192 * 1000
    steps = 24 * 2 * 197 * 384
    found = predict(config_for("ti", "vim"), "full", CPU, precision="fp32", threads=threads)
    best = (2 * macs / 118 + steps * (3.3 + 0.4)) * 1e-6 / speed_up[0] + (24 * (5 + 2) + 2) * 2e-3
    worst = (2 * macs / 80 + steps * (4.4 + 0.6)) * 1e-6 / speed_up[1] + (24 * (5 + 4) + 2) * 6e-3
    assert (found.best_ms, found.worst_ms) == pytest.approx((best, worst), rel=1e-12)


def test_int8_speeds_up_the_products_and_nothing_else() -> None:
    for gpu in GPUS.values():
        for size in ("ti", "b"):
            fp32, int8 = (predict(config_for(size), "full", gpu, batch=8, precision=p) for p in ("fp32", "int8"))
            floor = predict(config_for(size), "full", replace(gpu, int8_tops=1e9), batch=8, precision="int8")
            assert floor.best_ms <= int8.best_ms < fp32.best_ms
            scan = [entry.limits.get("scan", 0.0) * (entry.best_ms + entry.worst_ms) for entry in (fp32, int8)]
            assert scan[0] == pytest.approx(scan[1])
    # A kernel that rounds for each of 74 products, at worst: its start alone at batch 1.
    nano = GPUS["orin-nano-8"]
    fp32, int8 = (predict(config_for("ti"), "full", nano, precision=p) for p in ("fp32", "int8"))
    ratio = (int8.limits["kernel starts"] * (int8.best_ms + int8.worst_ms)) / (
        fp32.limits["kernel starts"] * (fp32.best_ms + fp32.worst_ms)
    )
    starts = 24 * (3 + 1 + 1) + 2
    best, worst = starts + 24, starts + 24 * 3
    assert ratio == pytest.approx((best * 2.5 + (worst + 74) * 7.0) / (best * 2.5 + worst * 7.0))


def test_orin_s_figures_are_the_published_ones() -> None:
    """Published sparse int8 TOPS of the GPU and float32 TFLOPS; the table computes from width and clock."""
    for name, tops, tflops in (
        ("orin-agx-64", 170, 5.3),
        ("orin-agx-32", 108, 3.3),
        ("orin-nx-16", 60, 1.9),
        ("orin-nano-8", 40, 1.3),
        ("orin-nano-8-super", 67, 2.1),
        ("orin-nano-4", 20, 0.6),
    ):
        assert GPUS[name].fp16_tflops == pytest.approx(tops / 4, rel=0.03)
        assert GPUS[name].int8_tops == pytest.approx(tops / 2, rel=0.03)
        assert GPUS[name].fp32_tflops == pytest.approx(tflops, rel=0.07)
    assert all(target in GPUS for target in ALIASES.values())
    assert all(gpu.source.startswith("https://") for gpu in GPUS.values())


def asked(**changes: Any) -> Question:
    return Question(**({"config": config_for("ti"), "device": "orin-nano", "precision": "fp16"} | changes))


def test_answers_in_words() -> None:
    easy = answer(asked(fps=10.0))
    assert easy.words[0].startswith("predicted: yes, 10 images a second leave 100 ms; even a refined image")
    hopeless = answer(asked(fps=50_000.0))
    assert hopeless.words[0].startswith("predicted: no, ")
    assert "no exit rate" in " ".join(hopeless.words)
    refine = easy.paths["refine"]
    between = answer(asked(fps=1e3 / ((refine.best_ms + refine.worst_ms) / 2)))
    assert between.words[0].startswith("predicted: perhaps, ")
    assert "on average it holds when at least 0% (best case)" in " ".join(between.words)
    # A device that is full: what exits holds the rate for sure, what is refined for sure not.
    full = {"config": config_for("s", height=1024, width=1024), "batch": 32}
    leave, refine = (answer(asked(**full)).paths[name] for name in ("exit", "refine"))
    assert leave.worst_ms < refine.best_ms
    split = answer(asked(fps=32e3 / ((leave.worst_ms + refine.best_ms) / 2), **full))
    assert split.words[0].startswith("predicted: not every frame, ")
    assert "faster than plain ViM" in easy.words[-1]


def test_an_exit_rate_gives_a_mean() -> None:
    found = answer(asked(fps=60.0, eta=0.6, exit_rate=0.25))
    leave, refine = found.paths["exit"], found.paths["refine"]
    line = next(line for line in found.words if "25% early exits at eta 0.6" in line)
    ends = (0.25 * leave.best_ms + 0.75 * refine.best_ms, 0.25 * leave.worst_ms + 0.75 * refine.worst_ms)
    assert f"the mean is {ends[0]:.3g} to {ends[1]:.3g} ms" in line
    unknown = answer(asked(fps=60.0, eta=0.6))
    assert any("--exit-rate" in line for line in unknown.words)


def test_where_launches_rule_adaptivity_may_never_pay() -> None:
    """digits is so small that two stages start more kernels than one: GMACs say otherwise."""
    line = answer(asked(config=config_for("digits"))).words[-1]
    assert "at worst never" in line
    assert "slower than plain ViM" in answer(asked(config=config_for("digits"), device="rtx-4090")).words[-1]


def test_plain_vim_has_one_path() -> None:
    found = answer(asked(config=config_for("s", "vim"), fps=60.0))
    assert list(found.paths) == ["plain"]
    assert len(found.words) == 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"device": "gameboy"}, "unknown device 'gameboy': one of cpu, h100"),
        ({"device": "cpu"}, "fp32"),
        ({"device": "cpu", "precision": "int8"}, "of the CPU fp32 alone is predicted, not int8: measure"),
        ({"device": "cpu", "precision": "fp32", "threads": 8}, "1 or 2 threads"),
        ({"batch": 0}, "batch"),
        ({"fps": 0.0}, "--fps"),
        ({"eta": 1.5}, "--eta"),
        ({"exit_rate": -0.1}, "--exit-rate"),
    ],
)
def test_what_cannot_be_asked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        answer(asked(**changes))


def app() -> typer.Typer:
    typed = typer.Typer()
    typed.command()(command)
    return typed


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    question = ["--size", "ti", "--device", "orin-nano", "--eta", "0.6", "--fps", "60"]
    assert run_app(app(), question) == 0
    shown = capsys.readouterr().out
    assert "a prediction, not a measurement" in shown
    assert "60 images a second leave 16.7 ms" in shown
    assert "assumed" in shown
    assert run_app(app(), [*question, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prediction"] is True
    assert found["stages"]["coarse"]["best_ms"] < found["stages"]["coarse"]["worst_ms"]
    assert run_app(app(), ["--device", "h200", "--sweep"]) == 0
    table = capsys.readouterr().out
    assert "a prediction" in table
    assert len(table.splitlines()) == 2 + len(SWEEP_RESOLUTIONS) * len(SWEEP_BATCHES)
    assert run_app(app(), ["--resolution", "225"]) == 2
    assert run_app(app(), ["--device", "cpu", "--precision", "fp16"]) == 2
    assert gpu_named("orin-nano") is GPUS["orin-nano-8"]


def test_a_full_device_s_scan_takes_what_its_exponentials_take() -> None:
    """16 exponentials a cycle and multiprocessor; b at batch 64 has enough of them to hide everything else."""
    config, gpu = config_for("b"), GPUS["orin-nano-4"]
    found = predict(config, "full", gpu, batch=64)
    count = 2 * 24 * 64 * 197 * config.d_inner * config.d_state
    shortest = count / (16 * gpu.multiprocessors * gpu.clock_ghz * 1e9) * 1e3
    scan = found.limits["scan"] * (found.best_ms + found.worst_ms) / 2
    assert scan == pytest.approx(shortest * (1.5 + 2.5) / 2, rel=1e-6)


def test_the_exit_rate_of_a_bundle_s_curve() -> None:
    curve = tuple(
        CurvePoint(eta=eta, accuracy=0.9, exit_rate=rate, gmacs=1.0) for eta, rate in ((0.8, 0.5), (0.4, 0.9))
    )
    manifest: Any = SimpleNamespace(eta_curve=curve)
    assert exit_rate_of(manifest, 0.5) == pytest.approx(0.8)
    assert exit_rate_of(manifest, 0.8) == pytest.approx(0.5)
    assert exit_rate_of(manifest, 0.9) is None, "nothing is known beyond the curve"
    assert exit_rate_of(cast(Any, SimpleNamespace(eta_curve=None)), 0.5) is None
