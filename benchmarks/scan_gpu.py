"""The CUDA kernels against mamba-ssm (or Triton) and against what the device allows: `make bench-gpu`.

    python benchmarks/scan_gpu.py [--batches 1 8 64] [--lengths 50 125 197 1024] [--channels 384 768 1536] [--dry-run]

For every size, medians over interleaved rounds of CUDA-graph replays, in microseconds a call:

    block    CausalConv1dSiLU and BidirectionalSelectiveScan: all that a Vim block does between its projections
    conv     the first of them
    scan     the second: both directions with dt_proj and gate, one launch
    rival    the same as `scan` from the same inputs with another's one-direction kernel: dt_proj, flips, two calls
    rival2   the rival's two calls alone, on inputs laid out for it beforehand
    floor    of `scan`: the larger of bytes over copy bandwidth and exponentials over their rate, both measured first

Writes benchmarks/results/scan_gpu.json. Inputs rotate among sets that together exceed the L2 cache, where they are not
so small that the network would find them there as well.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "scan_gpu.json"
STATES = 16
CALLS = 24  # of a graph
MOST_SETS = 8


@dataclass(frozen=True)
class Size:
    """One line of the table."""

    batch: int
    length: int
    channels: int

    @property
    def rank(self) -> int:
        return -(-self.channels // 32)  # dt_rank = ceil(d_model / 16), d_inner = 2 d_model

    @property
    def exponentials(self) -> int:
        return 2 * self.batch * self.length * self.channels * STATES

    def scan_bytes(self, item: int) -> int:
        """Every input read once, the output written once."""
        token = 4 * self.channels + 2 * (self.rank + 2 * STATES)  # z, x and its mirror, y; dbc of both directions
        weights = 2 * self.channels * (self.rank * item + 4 * (STATES + 2))
        return self.batch * self.length * token * item + weights


def inputs(size: Size, dtype: Any, seed: int) -> dict[str, Any]:
    """Random tensors by the names of docs/ops.md."""
    import torch

    draw = torch.Generator("cuda").manual_seed(seed)

    def normal(*shape: int, kind: Any = dtype, scale: float = 1.0) -> Any:
        return (torch.randn(shape, generator=draw, device="cuda") * scale).to(kind)

    tokens, channels, rank = (size.batch, size.length), size.channels, size.rank
    made = {"xz": normal(*tokens, 2 * channels)}
    made["x"] = normal(2, size.batch * size.length, channels)
    made["dbc"] = normal(2, size.batch * size.length, rank + 2 * STATES)
    for suffix in ("", "_b"):
        made[f"weight{suffix}"] = normal(channels, 4, scale=0.5)
        made[f"bias{suffix}"] = normal(channels)
        made[f"dt_weight{suffix}"] = normal(channels, rank, scale=rank**-0.5)
        made[f"dt_bias{suffix}"] = normal(channels, kind=torch.float32) - 4
        made[f"A{suffix}"] = -torch.arange(1.0, STATES + 1, device="cuda").expand(channels, STATES).contiguous()
        made[f"D{suffix}"] = normal(channels, kind=torch.float32)
    made["y"] = torch.full((*tokens, channels), float("nan"), dtype=dtype, device="cuda")
    made["conv_x"] = torch.full_like(made["x"], float("nan"))
    return made


def our_conv(given: dict[str, Any]) -> None:
    import torch

    from mscope.plugins import cuda

    arrays = [given[name] for name in ("xz", "weight", "bias", "weight_b", "bias_b")]
    stream = torch.cuda.current_stream().cuda_stream
    cuda.causal_conv1d_silu(*arrays, out=given["conv_x"], stream=stream)


def our_scan(given: dict[str, Any]) -> None:
    import torch

    from mscope.plugins import cuda

    names = ["xz", "x", "dbc"]
    names += [f"{name}{suffix}" for suffix in ("", "_b") for name in ("dt_weight", "dt_bias", "A", "D")]
    cuda.bidirectional_selective_scan(
        *(given[name] for name in names), out=given["y"], stream=torch.cuda.current_stream().cuda_stream,
        allocate=lambda count: torch.empty(count, dtype=torch.uint8, device="cuda"),
    )  # fmt: skip


def our_block(given: dict[str, Any]) -> None:
    our_conv(given)
    our_scan(given)


@dataclass(frozen=True)
class Rival:
    """Another implementation of one direction: its name, the whole job with it, and its two calls prepared."""

    name: str
    whole: Callable[[dict[str, Any]], Any]
    prepared: Callable[[dict[str, Any]], Callable[[], Any]]


def direction_of(given: dict[str, Any], suffix: str) -> tuple[Any, ...]:
    """x (B, L, C), dt, B and C of one direction."""
    x, dbc = (given[name][int(suffix == "_b")].unflatten(0, given["xz"].shape[:2]) for name in ("x", "dbc"))
    return x, *dbc.split([given["dt_weight"].shape[1], STATES, STATES], dim=-1)


def mamba_ssm() -> Rival:
    """mamba-ssm's kernel: channels first, one direction, so that the backward one flips."""
    import torch.nn.functional as F
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def prepare(given: dict[str, Any], suffix: str) -> tuple[Any, ...]:
        reverse, channels = suffix == "_b", given["A"].shape[0]
        x, dt, B, C = direction_of(given, suffix)
        delta = F.linear(dt, given[f"dt_weight{suffix}"])
        rows = [x, delta, B, C, given["xz"][..., channels:]]
        return tuple((row.flip(1) if reverse else row).transpose(1, 2).contiguous() for row in rows)

    def run(given: dict[str, Any], suffix: str, rows: tuple[Any, ...]) -> Any:
        x, delta, B, C, z = rows
        return selective_scan_fn(
            x, delta, given[f"A{suffix}"], B, C, given[f"D{suffix}"], z=z, delta_bias=given[f"dt_bias{suffix}"],
            delta_softplus=True,
        )  # fmt: skip

    def whole(given: dict[str, Any]) -> Any:
        forward = run(given, "", prepare(given, ""))
        backward = run(given, "_b", prepare(given, "_b"))
        return ((forward + backward.flip(2)) / 2).transpose(1, 2).contiguous()

    def prepared(given: dict[str, Any]) -> Callable[[], Any]:
        rows = [(suffix, prepare(given, suffix)) for suffix in ("", "_b")]
        return lambda: [run(given, suffix, each) for suffix, each in rows]

    return Rival("mamba-ssm", whole, prepared)


def triton_version() -> Rival:
    """scan_triton.py: tokens first and with a direction, so that nothing is flipped."""
    import torch.nn.functional as F
    from scan_triton import selective_scan

    def prepare(given: dict[str, Any], suffix: str) -> tuple[Any, ...]:
        x, dt, B, C = direction_of(given, suffix)
        return x, F.linear(dt, given[f"dt_weight{suffix}"]), B, C

    def run(given: dict[str, Any], suffix: str, rows: tuple[Any, ...]) -> Any:
        x, delta, B, C = rows
        z = given["xz"][..., given["A"].shape[0] :]
        weights = (given[f"A{suffix}"], B, C, given[f"D{suffix}"], z, given[f"dt_bias{suffix}"])
        return selective_scan(x, delta, *weights, reverse=suffix == "_b")

    def whole(given: dict[str, Any]) -> Any:
        forward = run(given, "", prepare(given, ""))
        return (forward + run(given, "_b", prepare(given, "_b"))) / 2

    def prepared(given: dict[str, Any]) -> Callable[[], Any]:
        rows = [(suffix, prepare(given, suffix)) for suffix in ("", "_b")]
        return lambda: [run(given, suffix, each) for suffix, each in rows]

    return Rival("triton", whole, prepared)


def find_rival(said: list[str]) -> Rival | None:
    """mamba-ssm, else Triton, else none; why one is missing goes to `said`."""
    for make in (mamba_ssm, triton_version):
        try:
            return make()
        except Exception as error:  # a broken extension fails in its own way; the benchmark goes on and says so
            said.append(f"{make.__name__}: {type(error).__name__}: {error}")
    return None


def graph_of(calls: list[Callable[[], Any]]) -> Any:
    """A CUDA graph of CALLS calls that go through the list in turn."""
    import torch
    from gpu_timing import Recorded

    for call in calls:  # what is compiled or allocated once must not fall into the capture
        call()
    torch.cuda.synchronize()
    return Recorded(list(itertools.islice(itertools.cycle(calls), CALLS)))


def replay_us(graph: Any) -> float:
    """Microseconds of one call, by the device's clock."""
    return float(graph.milliseconds()) * 1000 / CALLS


def median_us(graph: Any) -> float:
    """Of a few replays, once the clocks are up: a floor that was measured below them would flatter."""
    from gpu_timing import warm_up

    warm_up([graph.milliseconds])
    return statistics.median(replay_us(graph) for _ in range(7))


def copy_rate() -> float:
    """Bytes a second of a large copy on the device, read and written."""
    import torch

    a = torch.empty(1 << 28, dtype=torch.float32, device="cuda").normal_()
    b = torch.empty_like(a)
    graph = graph_of([lambda: b.copy_(a)])
    return 2 * a.nbytes / (median_us(graph) * 1e-6)


def exponential_rate() -> float:
    """Exponentials a second of exp2_rate.cu."""
    import torch

    from mscope.plugins import build_cuda

    major, minor = torch.cuda.get_device_capability()
    blocks = 64 * torch.cuda.get_device_properties(0).multi_processor_count
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "libexp2_rate.so"
        command = [*build_cuda.find_nvcc().command, "-O3", "-shared", "-Xcompiler", "-fPIC", "-cudart", "static"]
        command += [f"-arch=sm_{major}{minor}", str(ROOT / "benchmarks" / "exp2_rate.cu"), "-o", str(library)]
        subprocess.run(command, check=True)
        function = ctypes.CDLL(str(library)).exp2_rate
    function.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    out = torch.empty(blocks * 256, device="cuda")

    def call() -> None:
        assert function(out.data_ptr(), blocks, torch.cuda.current_stream().cuda_stream) == 0

    graph = graph_of([call])
    return blocks * 256 * 8 * 512 / (median_us(graph) * 1e-6)


def measure(size: Size, dtype: Any, rival: Rival | None, rounds: int, said: list[str]) -> dict[str, Any]:
    """Medians of every column for one size, and how far the rival's numbers are from ours."""
    import torch
    from gpu_timing import warm_up

    cache = torch.cuda.get_device_properties(0).L2_cache_size
    count = min(MOST_SETS, max(1, -(-3 * cache // size.scan_bytes(dtype.itemsize))))
    sets = [inputs(size, dtype, seed) for seed in range(count)]
    graphs: dict[str, Any] = {}
    for name, function in (("block", our_block), ("conv", our_conv), ("scan", our_scan)):
        graphs[name] = graph_of([lambda given=given, function=function: function(given) for given in sets])
    result: dict[str, Any] = {**asdict(size), "sets": count}
    if rival is not None:
        try:
            ours, theirs = sets[0]["y"].double(), rival.whole(sets[0]).double()
            result["difference"] = float((ours - theirs).norm() / theirs.norm())
            graphs["rival"] = graph_of([lambda given=given: rival.whole(given) for given in sets])
            graphs["rival2"] = graph_of([rival.prepared(given) for given in sets])
        except Exception as error:  # the rival's failure is a finding, and ours are still worth having
            said.append(f"{rival.name} on {size}: {type(error).__name__}: {error}")
    warm_up([graph.milliseconds for graph in graphs.values()])
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, graph in graphs.items():
            times[name].append(replay_us(graph))
    result |= {f"{name}_us": statistics.median(values) for name, values in times.items()}
    result |= {f"{name}_spread": max(values) / min(values) for name, values in times.items()}
    return result


def goals(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """What issue and README promise: ti at batch 1, the floor at batch 64, the rival at short sequences."""
    ti = [line["block_us"] for line in lines if (line["batch"], line["channels"]) == (1, 384) and line["length"] <= 197]
    full = [line["scan_us"] / line["floor_us"] for line in lines if line["batch"] == 64]
    short = [line["rival_us"] / line["scan_us"] for line in lines if line["length"] <= 200 and "rival_us" in line]
    return {
        "ti batch 1, slowest block in us (goal: at most 8)": max(ti, default=None),
        "batch 64, worst ratio to the floor (goal: at most 1.5)": max(full, default=None),
        "up to 200 tokens, smallest speed-up over the rival (goal: at least 2)": min(short, default=None),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--lengths", type=int, nargs="+", default=[50, 125, 197, 1024])
    parser.add_argument("--channels", type=int, nargs="+", default=[384, 768, 1536], help="d_inner")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float16")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--dry-run", action="store_true", help="print bytes and exponentials of every size and stop")
    options = parser.parse_args(arguments)
    sizes = [Size(*each) for each in itertools.product(options.batches, options.lengths, options.channels)]
    item = 4 if options.dtype == "float32" else 2
    if options.dry_run:
        for size in sizes:
            print(f"{size}: {size.scan_bytes(item) / 1e6:.2f} MB, {size.exponentials / 1e6:.1f} M exponentials")
        return 0
    try:
        import torch
    except ImportError as error:
        print(f"{error}: the kernels are timed under torch (--dry-run lists the sizes without)", file=sys.stderr)
        return 1
    if not torch.cuda.is_available():
        print("there is no CUDA device: nothing to measure (--dry-run lists the sizes)", file=sys.stderr)
        return 1
    from gpu_report import heading, save

    from mscope.plugins import cuda

    if reason := cuda.why_missing():
        print(reason, file=sys.stderr)
        return 1
    said: list[str] = []
    rival, bandwidth, rate = find_rival(said), copy_rate(), exponential_rate()
    print(f"{torch.cuda.get_device_name()}: {bandwidth / 1e12:.2f} TB/s, {rate / 1e12:.2f} T exponentials/s")
    print(f"rival: {rival.name if rival else 'none'}; microseconds a call")
    lines: list[dict[str, Any]] = []
    report = {
        **heading(),
        "dtype": options.dtype,
        "rival": rival.name if rival else None,
        "copy_bytes_a_second": bandwidth,
        "exponentials_a_second": rate,
        "sizes": lines,
        "notes": said,
    }
    for size in sizes:
        line = measure(size, getattr(torch, options.dtype), rival, options.rounds, said)
        line["bytes_us"] = size.scan_bytes(item) / bandwidth * 1e6
        line["exponentials_us"] = size.exponentials / rate * 1e6
        line["floor_us"] = max(line["bytes_us"], line["exponentials_us"])
        lines.append(line)
        columns = ("block_us", "conv_us", "scan_us", "floor_us", "rival_us", "rival2_us")
        shown = "  ".join(f"{name[:-3]} {line[name]:9.2f}" for name in columns if name in line)
        print(f"B {size.batch:3d}  L {size.length:5d}  C {size.channels:5d}   {shown}", flush=True)
        save(report | {"goals": goals(lines)}, options.out)
        torch.cuda.empty_cache()
    for name, value in goals(lines).items():
        print(f"{name}: {value if value is None else round(value, 2)}")
    for note in said:
        print(f"note: {note}")
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
