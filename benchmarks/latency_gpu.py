"""Latency of the coarse, fine and plain-ViM stages on a GPU: `make bench-gpu`.

    python benchmarks/latency_gpu.py [--sizes ti s] [--batches 1 8 64] [--bundle DIR ...] [--dry-run]

Two ways, each in its own table:

    torch     the networks with the project's CUDA kernels, each stage one CUDA graph, device clock (events around a
              replay, without its launch); beside DeiT of the same size under torch.compile, as one CUDA graph too
    engines   for every --bundle: its TensorRT engines through the runtime (with --backend ort-cuda its ONNX graphs,
              by the native ops and by the function bodies), host clock from the call to the end, tensors
              on the device; the whole cascade through Scope.run, tensors on the host (run_exit, run_refined), and at
              batch 1 the same with --decide device (..._decided); 1080p frames from the decoded picture to the answer,
              scaled on the host (frame) and with --preprocess device (frame_scaled)

Rounds are interleaved, so that a change of clock meets all columns alike. Weights are random and in float16; A, D, the
biases of delta and the residual are in float32. A = -exp(A_log) is made anew in every pass, as the networks do. Writes
benchmarks/results/latency_gpu.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "latency_gpu.json"
WARM_UP = 10
FRAME = (1080, 1920)
# What stays float32 in a float16 network (the contract of the ops, docs/ops.md).
FLOAT32 = ("A_log", "A_b_log", "D", "D_b", "dt_proj.bias", "dt_proj_b.bias")
DEIT = {"ti": (192, 3), "s": (384, 6), "b": (768, 12)}

# Of a backend that has more than what an engine was built with.
KERNELS = {"ort-cuda": ("native", "function")}

Call = Callable[[], Any]


def typed(network: Any, dtype: Any) -> Any:
    """A network in `dtype`, what must not be reduced left in float32."""
    network = network.to(dtype).eval()
    for name, parameter in network.named_parameters():
        if name.endswith(FLOAT32):
            parameter.data = parameter.data.float()
    return network


def stages(size: str, batch: int, device: str, dtype: Any) -> dict[str, Call]:
    """A call for each stage of both networks, on inputs that stay where they are."""
    import torch

    from mscope.core.config import config_for
    from mscope.model.mambascope import MambaScope
    from mscope.model.vim import Vim

    torch.manual_seed(0)
    config = config_for(size, "mambascope")
    network = typed(MambaScope(config), dtype).to(device)
    plain = typed(Vim(config_for(size, "vim")), dtype).to(device)
    image = torch.randn(batch, config.channels, config.height, config.width).to(device, dtype)
    with torch.inference_mode():
        seen = network.coarse(image)
        selected, remaining = network.split(seen.importance)
    return {
        "coarse": lambda: network.coarse(image),
        "fine": lambda: network.fine(image, seen.features, seen.embeddings, selected, remaining),
        "full": lambda: plain(image),
    }


def deit(size: str, batch: int, device: str, dtype: Any, *, compiled: bool) -> Call:
    """DeiT of that size: 12 layers on 16 x 16 patches, as the runtime of a transformer of the same width."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    width, heads = DEIT[size]

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: torch.Tensor) -> Any:
            parts = self.qkv(self.norm1(x)).unflatten(-1, (3, heads, width // heads)).permute(2, 0, 3, 1, 4)
            x = x + self.out(F.scaled_dot_product_attention(*parts.unbind()).transpose(1, 2).flatten(2))
            return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    class Deit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, width, 16, stride=16)
            self.cls = nn.Parameter(torch.zeros(1, 1, width))
            self.pos = nn.Parameter(torch.zeros(1, 197, width))
            self.layers = nn.Sequential(*(Layer() for _ in range(12)))
            self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, 1000)

        def forward(self, image: torch.Tensor) -> Any:
            x = self.embed(image).flatten(2).transpose(1, 2)
            x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1) + self.pos
            return self.head(self.norm(self.layers(x))[:, 0])

    plain = Deit().to(device, dtype).eval()
    network: Callable[..., Any] = torch.compile(plain) if compiled else plain
    image = torch.randn(batch, 3, 224, 224).to(device, dtype)
    return lambda: network(image)


def replays(call: Call) -> Call:
    """A call as one CUDA graph: what it gives is the milliseconds of a replay, by the device's clock."""
    import torch
    from gpu_timing import Recorded

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())  # which still makes weights and inputs
    with torch.cuda.stream(side):
        for _ in range(3):  # what is compiled or allocated once must not fall into the capture
            given = call()
    torch.cuda.synchronize()
    logits = given[0] if isinstance(given, tuple) else given
    if not bool(torch.isfinite(logits).all()):
        raise RuntimeError("the network gave NaN or infinity: nothing worth timing")
    return Recorded([call]).milliseconds


def interleaved(timers: dict[str, Call], rounds: int) -> dict[str, dict[str, float]]:
    """p50, p99 and the least of `rounds` turns of every timer, in milliseconds."""
    from gpu_timing import warm_up

    warm_up(timers.values(), WARM_UP)
    times: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            times[name].append(timer())
    return {
        name: {
            "p50_ms": float(np.percentile(values, 50)),
            "p99_ms": float(np.percentile(values, 99)),
            "min_ms": min(values),
        }
        for name, values in times.items()
    }


def torch_line(size: str, batch: int, dtype: Any, rounds: int, notes: list[str]) -> dict[str, Any]:
    """One size and batch under torch."""
    import torch

    from mscope.model import scan

    with torch.inference_mode(), scan.implementation("cuda"):
        timers = {name: replays(call) for name, call in stages(size, batch, "cuda", dtype).items()}
        try:
            timers["deit"] = replays(deit(size, batch, "cuda", dtype, compiled=True))
        except Exception as error:  # the rival's failure is a finding; ours are still worth having
            notes.append(f"DeiT-{size} at batch {batch}: {type(error).__name__}: {str(error)[:200]}".splitlines()[0])
        return {"way": "torch", "size": size, "batch": batch, **with_rate(interleaved(timers, rounds))}


def with_device_work(
    stack: ExitStack, folder: Path, backend: str, kernel: str, *, adaptive: bool
) -> tuple[dict[str, Any], list[str]]:
    """Scopes on which the device decides and scales, as far as they are to be had; and why the others are not."""
    from mscope.core.errors import MscopeError
    from mscope.runtime import Scope

    scopes, notes = {}, []
    for name in ("decide", "preprocess") if adaptive else ("preprocess",):
        try:
            given: dict[str, Any] = {"backend": backend, "kernel": kernel, name: "device"}
            scopes[name] = stack.enter_context(Scope.load(folder, **given))
        except MscopeError as error:
            notes.append(f"{folder.name}: {error}")
    return scopes, notes


def frames(scope: Any, batch: int) -> Call:
    """1080p frames, decoded, to their answers: every image refined where there is something to refine."""
    pictures = [np.random.default_rng(row).integers(0, 256, (*FRAME, 3), dtype=np.uint8) for row in range(batch)]
    adaptive = scope.config.arch != "vim"

    def once() -> float:
        start = time.perf_counter()
        ready = scope.stack([scope.prepare(picture) for picture in pictures])
        scope.run(ready, refine_all=adaptive)
        return (time.perf_counter() - start) * 1e3

    return once


def filled(runner: Any, batch: int, memory: Any, stream: Any) -> dict[str, int]:
    """Addresses of all tensors of a graph on the device; the inputs hold random numbers, and each region's index once.

    Zeros would be faster: what switches less takes less power, and leaves the clocks higher.
    """
    from mscope.runtime.device.tensors import DeviceTensor, StagedTensor

    draw, first, addresses = np.random.default_rng(0), 0, {}
    for tensor in (*runner.graph.inputs, *runner.graph.outputs):
        place = DeviceTensor(memory, stream, tensor, batch)
        addresses[tensor.name] = place.address
        if tensor.name not in runner.graph.input_names:
            continue
        staged = StagedTensor(runner.device, memory, stream, tensor, batch)
        if tensor.dtype == "float32":
            staged.host[:] = draw.normal(size=staged.host.shape)
        else:
            count = staged.host.shape[1]
            staged.host[:] = np.arange(first, first + count)
            first += count
        staged.upload(batch)
        stream.copy(place.address, staged.address, batch * place.row_bytes, "DeviceToDevice")
    stream.synchronize()
    return addresses


def engine_lines(
    folder: Path, backend: str, batches: list[int], rounds: int, kernel: str = "auto"
) -> list[dict[str, Any]]:
    """The engines or graphs of a bundle, each stage alone and the cascade whole."""
    from mscope.runtime import Scope
    from mscope.runtime.backends.device_runner import DeviceRunner
    from mscope.runtime.device.cuda import Memory
    from mscope.runtime.device.stream import Stream

    lines = []
    with ExitStack() as stack:
        scope = stack.enter_context(Scope.load(folder, backend=backend, kernel=kernel))  # type: ignore[arg-type]
        runners = {stage: runner for stage, runner in scope._runners.items() if isinstance(runner, DeviceRunner)}
        if not runners:
            raise SystemExit(f"{folder}: backend {backend} runs on the host: nothing to measure")
        device = next(iter(runners.values())).device
        others, notes = with_device_work(stack, folder, backend, kernel, adaptive=scope.config.arch != "vim")
        for batch in batches:
            if batch > min(runner.largest for runner in runners.values()):
                print(f"{folder}: its engines take no batch of {batch}", file=sys.stderr)
                continue
            memory, stream = Memory(device), Stream(device)
            stack.callback(memory.release)
            stack.callback(stream.close)
            timers: dict[str, Call] = {}
            for stage, runner in runners.items():
                addresses = filled(runner, batch, memory, stream)

                def once(runner: DeviceRunner = runner, addresses: dict[str, int] = addresses) -> float:
                    start = time.perf_counter()
                    runner.enqueue(batch, addresses, stream)  # noqa: B023 (called before the loop goes on)
                    stream.synchronize()  # noqa: B023
                    return (time.perf_counter() - start) * 1e3

                timers[stage] = once
            images = np.random.default_rng(0).normal(size=(batch, *scope._shape)).astype(np.float32)

            def whole(on: Any, refine: bool, images: Any = images) -> float:
                start = time.perf_counter()
                on.run(images, None if on.config.arch == "vim" else 0.0, refine_all=refine)
                return (time.perf_counter() - start) * 1e3

            timers["run_exit"] = partial(whole, scope, False)
            if scope.config.arch != "vim":
                timers["run_refined"] = partial(whole, scope, True)
            if "decide" in others and batch == 1:
                timers["run_exit_decided"] = partial(whole, others["decide"], False)
                timers["run_refined_decided"] = partial(whole, others["decide"], True)
            timers["frame"] = frames(scope, batch)
            if "preprocess" in others:
                timers["frame_scaled"] = frames(others["preprocess"], batch)
            head = {"way": scope.backend, "bundle": folder.name, "kernel": scope.kernel, "precision": scope.precision}
            lines.append(
                {**head, "batch": batch, **with_rate(interleaved(timers, rounds)), "notes": [*scope.notes, *notes]}
            )
    return lines


def with_rate(medians: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Adds the break-even exit rate where all three stages were timed."""
    from mscope.core.cost import break_even_exit_rate

    if not {"coarse", "fine", "full"} <= set(medians):
        return dict(medians)
    times = (medians[stage]["p50_ms"] for stage in ("coarse", "fine", "full"))
    return {**medians, "break_even_exit_rate": break_even_exit_rate(*times)}


def shown(line: dict[str, Any]) -> str:
    """A line of the table on stdout."""
    columns = [f"{name} {value['p50_ms']:8.3f} / {value['p99_ms']:8.3f}" for name, value in line.items()
               if isinstance(value, dict)]  # fmt: skip
    rate = line.get("break_even_exit_rate")
    tail = "" if rate is None else f"  pays from {max(rate, 0.0):.0%} exits"
    what = line.get("size") or f"{line['bundle']} {line['kernel']}"
    return f"{line['way']} {what} B {line['batch']:3d}  {'  '.join(columns)}{tail}"


def absent_backends() -> list[str]:
    """Why the runtime's backends cannot be had here, a line each."""
    try:
        from mscope.runtime.backends.registry import available_backends

        return [f"{found.name}: {found.missing}" for found in available_backends() if not found.available]
    except ImportError as error:  # the networks need less than the runtime does
        return [f"engines: {error}"]


def dry_run(sizes: list[str]) -> int:
    """Every network once on the CPU: that the program is whole, nothing more."""
    import torch

    with torch.inference_mode():
        for size in sizes:
            calls = stages(size, 1, "cpu", torch.float32) | {
                "deit": deit(size, 1, "cpu", torch.float32, compiled=False)
            }
            for name, call in calls.items():
                given = call()
                logits = given[0] if isinstance(given, tuple) else given
                print(f"{size} {name}: {tuple(logits.shape)}, finite {bool(torch.isfinite(logits).all())}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["ti", "s"], choices=list(DEIT))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float16")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--bundle", type=Path, action="append", default=[], help="a bundle with engines for this GPU")
    parser.add_argument("--backend", default="tensorrt", help="of the bundles: tensorrt, tensorrt-rtx or ort-cuda")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--dry-run", action="store_true", help="run every network once on the CPU, time nothing")
    options = parser.parse_args(arguments)
    try:
        import pydantic  # noqa: F401
        import torch
    except ImportError as error:
        print(f"{error}: the networks need torch and pydantic", file=sys.stderr)
        return 1
    if options.dry_run:
        return dry_run(options.sizes)
    if not torch.cuda.is_available():
        print("there is no CUDA device: nothing to measure (--dry-run tries the program)", file=sys.stderr)
        return 1
    from gpu_report import heading, save

    from mscope.core.errors import MscopeError
    from mscope.plugins import cuda

    if reason := cuda.why_missing():
        print(reason, file=sys.stderr)
        return 1
    print(f"{torch.cuda.get_device_name()}; milliseconds p50 / p99")
    notes = absent_backends()
    lines: list[dict[str, Any]] = []
    report = {**heading(), "dtype": options.dtype, "rounds": options.rounds, "lines": lines, "notes": notes}
    for size in options.sizes:
        for batch in options.batches:
            lines.append(torch_line(size, batch, getattr(torch, options.dtype), options.rounds, notes))
            print(shown(lines[-1]), flush=True)
            save(report, options.out)
            torch.cuda.empty_cache()
    for folder in options.bundle:
        kernels = KERNELS.get(options.backend, ("auto",))
        for kernel in kernels:
            try:
                timed = engine_lines(folder, options.backend, options.batches, options.rounds, kernel)
            except MscopeError as error:
                if len(kernels) == 1:
                    raise
                notes.append(f"{folder.name} by {options.backend} with kernel {kernel}: {error}")
                continue
            for line in timed:
                lines.append(line)
                print(shown(line), flush=True)
                save(report, options.out)
    for note in notes:
        print(f"note: {note}")
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
