"""What devices can do at best: figures of their data sheets, and what is assumed where no data sheet says.

Nothing here was measured by this project except the CPU's rates (docs/kernels.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from mscope.core.errors import InputError


@dataclass(frozen=True)
class Range:
    """From the best to the worst that is expected."""

    best: float
    worst: float


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: of the device and its mode.
        multiprocessors: each with 4 schedulers, 128 lanes and 16 special-function results a cycle.
        clock_ghz: the highest of the mode that is named.
        fp16_tflops: dense, on tensor cores with float32 accumulation.
        fp32_tflops: on CUDA cores.
        int8_tops: dense, on tensor cores.
        bandwidth_gb_s: of the memory.
        cache_mb: of level 2.
        kernel_us: one kernel inside a CUDA graph beside its work: start, drain, the gap before the next. An assumption.
        source: where the figures are from.
    """

    name: str
    multiprocessors: int
    clock_ghz: float
    fp16_tflops: float
    fp32_tflops: float
    int8_tops: float
    bandwidth_gb_s: float
    cache_mb: float
    kernel_us: Range
    source: str


# A kernel in a CUDA graph costs one to three microseconds on desktop and server cards; on Orin, with lower clocks and a
# slower memory system, more. Assumed, not measured: it rules at batch 1.
_DESKTOP_US = Range(1.2, 3.0)
_ORIN_US = Range(2.5, 7.0)
_DATA_CENTER = "https://www.nvidia.com/en-us/data-center/"
_ORIN = "https://developer.nvidia.com/embedded/jetson-modules"
_ORIN_NANO = "https://developer.nvidia.com/embedded/learn/get-started-jetson-orin-nano-devkit"
_SUPER = "https://developer.nvidia.com/blog/nvidia-jetson-orin-nano-developer-kit-gets-a-super-boost/"


def _orin(name: str, multiprocessors: int, clock_ghz: float, bandwidth: float, cache_mb: float, source: str) -> Gpu:
    """Orin's GPU by its width and clock.

    A multiprocessor has 128 lanes (2 operations a cycle each) and 4 tensor cores, which do 512 dense float16 operations
    a cycle each: the modules' published sparse int8 TOPS of the GPU over 4 (AGX 64GB 170 / 4, Nano Super 67 / 4). Dense
    int8 is half of the sparse.
    """
    fp16 = multiprocessors * 4 * 512 * clock_ghz / 1e3
    fp32 = multiprocessors * 128 * 2 * clock_ghz / 1e3
    return Gpu(name, multiprocessors, clock_ghz, fp16, fp32, 2 * fp16, bandwidth, cache_mb, _ORIN_US, source)


GPUS: dict[str, Gpu] = {
    "orin-agx-64": _orin("Jetson AGX Orin 64GB, MAXN", 16, 1.3, 204.8, 4.0, _ORIN),
    "orin-agx-32": _orin("Jetson AGX Orin 32GB, MAXN", 14, 0.93, 204.8, 4.0, _ORIN),
    "orin-nx-16": _orin("Jetson Orin NX 16GB, 25 W", 8, 0.918, 102.4, 2.0, _ORIN),
    "orin-nx-16-super": _orin("Jetson Orin NX 16GB, Super", 8, 1.173, 102.4, 2.0, _SUPER),
    "orin-nx-8": _orin("Jetson Orin NX 8GB, 20 W", 8, 0.765, 102.4, 2.0, _ORIN),
    "orin-nx-8-super": _orin("Jetson Orin NX 8GB, Super", 8, 1.173, 102.4, 2.0, _SUPER),
    "orin-nano-8": _orin("Jetson Orin Nano 8GB, 15 W", 8, 0.625, 68.0, 2.0, _ORIN_NANO),
    "orin-nano-8-super": _orin("Jetson Orin Nano 8GB, Super", 8, 1.02, 102.0, 2.0, _SUPER),
    "orin-nano-4": _orin("Jetson Orin Nano 4GB, 10 W", 4, 0.625, 34.0, 2.0, _ORIN_NANO),
    "orin-nano-4-super": _orin("Jetson Orin Nano 4GB, Super", 4, 1.02, 51.0, 2.0, _SUPER),
    # Dense figures; float16 with float32 accumulation (half of what GeForce data sheets print for float16 sums, so that
    # int8 is 4 times as fast there, twice elsewhere).
    "h100": Gpu("H100 SXM", 132, 1.755, 989.0, 67.0, 1979.0, 3350.0, 50.0, _DESKTOP_US, _DATA_CENTER + "h100/"),
    "h200": Gpu("H200 SXM", 132, 1.755, 989.0, 67.0, 1979.0, 4800.0, 50.0, _DESKTOP_US, _DATA_CENTER + "h200/"),
    "rtx-4090": Gpu(
        "GeForce RTX 4090", 128, 2.52, 165.2, 82.6, 660.6, 1008.0, 72.0, _DESKTOP_US,
        "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf",
    ),
    "rtx-3060": Gpu(
        "GeForce RTX 3060 12GB", 28, 1.777, 25.5, 12.7, 102.0, 360.0, 3.0, _DESKTOP_US,
        "https://www.nvidia.com/en-us/geforce/graphics-cards/30-series/rtx-3060-3060ti/",
    ),
}  # fmt: skip
# Names that people say, and which of the modes or sizes they then get.
ALIASES = {
    "orin-agx": "orin-agx-64",
    "orin-nx": "orin-nx-16",
    "orin-nano": "orin-nano-8",
    "orin-nano-super": "orin-nano-8-super",
}


@dataclass(frozen=True)
class Cpu:
    """A processor that runs the native kernels in float32.

    Attributes:
        gflops_core: of matrix products on one core.
        scan_ns, conv_ns: one token, channel and direction on one core; states beyond 16 take longer.
        scaling: what a second core adds, as a fraction of the first.
        node_us: one node of the graph beside its work.
    """

    name: str
    gflops_core: Range
    scan_ns: Range
    conv_ns: Range
    scaling: Range
    node_us: Range
    source: str


# docs/kernels.md, "Where the time goes": 108 GFLOP/s a core of 118, 3.3 ns (ti) to 3.9 ns (s), 0.4 ns; a second
# thread makes it 1.79 to 1.85 times as fast. What a node costs, and by how much few rows are slower, is assumed.
CPU = Cpu(
    "AMD EPYC (Zen 4), AVX-512, two threads",
    Range(118.0, 80.0),
    Range(3.3, 4.4),
    Range(0.4, 0.6),
    Range(0.92, 0.75),
    Range(2.0, 6.0),
    "docs/kernels.md",
)


def gpu_named(name: str) -> Gpu:
    """A GPU of the table. Raises InputError that lists the names."""
    found = GPUS.get(ALIASES.get(name, name))
    if found is None:
        raise InputError(f"unknown device '{name}': one of {', '.join(['cpu', *sorted({*GPUS, *ALIASES})])}")
    return found
