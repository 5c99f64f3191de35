"""Predicted latency of a stage on a device that is not here: every kernel's work against what the device can do.

A prediction, never a measurement: a range from what goes well to what goes badly, to be replaced by `mscope-profile` on
the device. docs/prediction.md says what is counted and how far it was checked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mscope.core.config import ModelConfig
from mscope.core.cost import MLP_RATIO
from mscope.core.errors import InputError
from mscope.core.geometry import coarse_grid, fine_grid, regions_refined, token_counts
from mscope.runtime.profiling.devices import Cpu, Gpu, Range

StageName = Literal["coarse", "fine", "full"]
Precision = Literal["fp32", "fp16", "int8"]
Kind = Literal["product", "scan", "conv", "other"]

# What well and badly tuned kernels reach of a tile's peak on the tensor cores or lanes, and of the memory's bandwidth.
_COMPUTE = Range(0.70, 0.30)
_BANDWIDTH = Range(0.85, 0.50)
# Rows and columns of the output that one multiprocessor makes at a time. Few tokens make few tiles: that, not the peak,
# limits batch 1. The best case is a library that splits what does not fill the device.
_TILE = 64
_SPLIT = 4
# The scan: cycles a token at the shortest (docs/cuda.md counts 15.5 instructions), and how far from the rate of the
# special-function unit (16 exponentials a cycle and multiprocessor) a full device stays.
_SCAN_CYCLES = Range(16.0, 40.0)
_SCAN_FULL = Range(1.5, 2.5)
_SFU = 16
# Bytes of a float32.
_WIDE = 4
# Small kernels of a block beside products, convolution and scan: norm and residual sum in one, or in three.
_SMALL = Range(1, 3)


@dataclass(frozen=True)
class Work:
    """One kind of kernel, `times` in a row.

    Attributes:
        rows, columns, depth: of a product (rows x depth) by (depth x columns); else rows tokens of `columns` channels.
        states: of a scan.
        elements: read and written by one, beside weights.
        weights: read by one.
    """

    kind: Kind
    times: float
    rows: int = 0
    columns: int = 0
    depth: int = 0
    states: int = 0
    batch: int = 1
    elements: int = 0
    weights: int = 0

    @property
    def macs(self) -> int:
        return self.rows * self.columns * self.depth


def _product(times: float, rows: int, depth: int, columns: int, matrices: int = 1) -> Work:
    """Of `rows` rows in all, a share of them by each of `matrices`."""
    weights = matrices * depth * columns
    return Work("product", times, rows, columns, depth, elements=rows * (depth + columns), weights=weights)


def stage_work(config: ModelConfig, stage: StageName, batch: int = 1) -> list[Work]:
    """The kernels of one stage for a batch: what docs/ops.md and the exported graphs have, biases left out.

    Its multiply-accumulates are those of `mscope.core.cost` without convolution and scan, which are not products.
    """
    tokens = token_counts(config)
    length = {"coarse": tokens.coarse, "fine": tokens.fine, "full": tokens.full}[stage]
    refined = regions_refined(config.alpha, coarse_grid(config).count)
    patches = {"coarse": coarse_grid(config).count, "fine": 4 * refined, "full": fine_grid(config).count}[stage]
    rows, d_model, inner = batch * length, config.d_model, config.d_inner
    mixed = config.dt_rank + 2 * config.d_state
    layers = config.depth
    work = [
        _product(1, batch * patches, config.patch**2 * config.channels, d_model),
        _product(layers, rows, d_model, 2 * inner),
        Work("conv", layers, rows, inner, batch=batch, elements=rows * inner * 3),
        _product(layers, 2 * rows, inner, mixed, matrices=2),  # x_proj of both directions
        # dt_proj is inside the op: small, and counted as part of the scan's own time.
        Work("scan", layers, rows, inner, states=config.d_state, batch=batch, elements=rows * (5 * inner + 2 * mixed)),
        _product(layers, rows, inner, d_model),
        Work("other", layers, rows, d_model, elements=3 * rows * d_model),
        _product(1, batch, d_model, config.classes),
    ]
    if stage == "coarse" and config.arch == "mambascope":
        work.append(Work("other", len(config.importance_layers), rows, inner, elements=rows * inner))
    if stage == "fine":
        reused = batch * (refined + (1 if config.reuse_class_token else 0))
        if config.reuse == "mlp":
            work += [
                _product(1, reused, d_model, MLP_RATIO * d_model),
                _product(1, reused, MLP_RATIO * d_model, d_model),
            ]
        elif config.reuse == "linear":
            work.append(_product(1, reused, d_model, d_model))
        work.append(Work("other", 4, rows, d_model, elements=2 * rows * d_model))
    return work


@dataclass(frozen=True)
class Prediction:
    """Milliseconds of one stage for a batch, from `best` to `worst`; `limits`: what limits, as shares of the mean."""

    stage: StageName
    batch: int
    best_ms: float
    worst_ms: float
    limits: dict[str, float]


def predict(
    config: ModelConfig,
    stage: StageName,
    device: Gpu | Cpu,
    *,
    batch: int = 1,
    precision: Precision = "fp16",
    threads: int = 2,
) -> Prediction:
    """The latency of a stage, without preprocessing, transfer of the image and the decision on the host.

    Raises:
        InputError: a ViM whose tokens are reduced, a batch below 1, or another precision than fp32 on the CPU.
    """
    if config.reductions:
        raise InputError(
            f"a ViM reduced by {config.reduce} cannot be predicted: the time to rank and move tokens is not known; "
            "measure it with 'mscope-profile'"
        )
    if batch < 1:
        raise InputError(f"a batch is 1 image or more, got {batch}")
    if isinstance(device, Cpu):
        if precision != "fp32":
            raise InputError(f"of the CPU fp32 alone is predicted, not {precision}: measure that with 'mscope-profile'")
        if threads not in (1, 2):
            raise InputError(f"the CPU's rates are known for 1 or 2 threads, not {threads}")
    sums: dict[str, float] = {}
    ends = []
    for good in (True, False):
        total = 0.0
        for work in stage_work(config, stage, batch):
            if isinstance(device, Cpu):
                costs = _cpu_costs(work, device, good, threads)
            else:
                costs = _gpu_costs(work, device, good, precision)
            for name, seconds in costs.items():
                sums[name] = sums.get(name, 0.0) + seconds / 2
                total += seconds
        ends.append(total * 1e3)
    whole = sum(sums.values())
    return Prediction(stage, batch, ends[0], ends[1], {name: seconds / whole for name, seconds in sums.items()})


def _gpu_costs(work: Work, device: Gpu, good: bool, precision: Precision) -> dict[str, float]:
    """Seconds by what limits: kernels' starts, and the longer of arithmetic and memory."""
    activations, weights = _bytes(work, precision)
    # What stays in the cache between two kernels is not read from memory again, if all goes well.
    stays = good and activations < device.cache_mb * 1e6 / 2
    moved = weights + (0 if stays else activations)
    kernels = _end(_SMALL, good) if work.kind == "other" else 1
    if precision == "int8" and work.kind == "product" and not good:
        # Rounding to int8 is a kernel of its own where it cannot be joined to what comes before, such as a plugin.
        kernels += 1
        moved += (_WIDE + 1) * work.rows * work.depth
    memory = moved / (device.bandwidth_gb_s * 1e9 * _end(_BANDWIDTH, good))
    compute = 0.0
    if work.kind == "product":
        compute = _product_seconds(work, device, good, precision)
    elif work.kind == "scan":
        compute = _scan_seconds(work, device, good)
    found = {"kernel starts": work.times * kernels * _end(device.kernel_us, good) * 1e-6}
    name = "memory" if memory >= compute else "scan" if work.kind == "scan" else "arithmetic"
    found[name] = work.times * max(memory, compute)
    return found


def _bytes(work: Work, precision: Precision) -> tuple[int, int]:
    """What a kernel reads and writes, and its weights. In int8 only the products are low: the rest is float32."""
    if precision == "int8" and work.kind == "product":
        return work.rows * work.depth + _WIDE * work.rows * work.columns, work.weights
    width = 2 if precision == "fp16" else _WIDE
    return width * work.elements, width * work.weights


def _product_seconds(work: Work, device: Gpu, good: bool, precision: Precision) -> float:
    # Engines are built without TF32 (docs/decisions.md): fp32 is the lanes' rate, not the tensor cores'.
    peak = {"fp32": device.fp32_tflops, "fp16": device.fp16_tflops, "int8": device.int8_tops}[precision]
    one = peak * 1e12 * _end(_COMPUTE, good) / device.multiprocessors
    tiles = math.ceil(work.rows / _TILE) * math.ceil(work.columns / _TILE)
    flops = 2.0 * _TILE * _TILE * work.depth
    waves = float(math.ceil(tiles / device.multiprocessors))
    if good:
        # Tiles may be split along the depth until the device is full.
        waves = max(tiles / device.multiprocessors, 1.0 / _SPLIT)
    return waves * flops / one


def _scan_seconds(work: Work, device: Gpu, good: bool) -> float:
    tokens = work.rows // work.batch
    hertz = device.clock_ghz * 1e9
    shortest = tokens * _end(_SCAN_CYCLES, good) / hertz
    exponentials = 2.0 * work.rows * work.columns * work.states
    full = exponentials * _end(_SCAN_FULL, good) / (_SFU * device.multiprocessors * hertz)
    return max(shortest, full)


def _cpu_costs(work: Work, device: Cpu, good: bool, threads: int) -> dict[str, float]:
    cores = 1.0 + (threads - 1) * _end(device.scaling, good)
    nodes = _end(_SMALL, good) + 1 if work.kind == "other" else 1
    found = {"graph nodes": work.times * nodes * _end(device.node_us, good) * 1e-6}
    if work.kind == "product":
        found["arithmetic"] = work.times * 2.0 * work.macs / (_end(device.gflops_core, good) * 1e9 * cores)
    elif work.kind == "scan":
        each = _end(device.scan_ns, good) * max(1.0, work.states / 16)
        found["scan"] = work.times * 2.0 * work.rows * work.columns * each * 1e-9 / cores
    elif work.kind == "conv":
        found["scan"] = work.times * 2.0 * work.rows * work.columns * _end(device.conv_ns, good) * 1e-9 / cores
    return found


def _end(values: Range, good: bool) -> float:
    return values.best if good else values.worst
