"""The trunk of ViM on the CPU, by every way of running it, in one run with interleaved rounds.

    python benchmarks/scan_cpu.py [--sizes ti s] [--tokens 50 125 197] [--rounds 15] [--compile] [--isa avx2] [--busy]

What is compared: the ONNX graph with the native mixers (on two threads and one), the same taken apart into the two
native ops and x_proj's product, the file with the ops' function bodies, its MatMul nodes alone (the floor that no scan
can get under), PyTorch eager with the reference loop, and torch.compile. Ratios carry over to other machines and busy
moments, milliseconds do not: one round times every contender once, and a ratio is the median of the rounds' ratios. On
a machine that others use, two threads that wait for each other measure the others: there the processor time of one
thread is what to look at.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from mscope.core.config import ModelConfig, config_for
from mscope.core.contract import OP_DOMAIN, OP_MIXER, OP_VERSION, OPSET
from mscope.export.functions import attach_functions
from mscope.export.passes.mixers import split_mixers
from mscope.model import scan
from mscope.model.mixer import Block
from mscope.plugins import find

RESULTS = Path(__file__).parent / "results"
IDLE_S = 0.05  # torch's workers spin for a while after their last task, and would take a core from ONNX Runtime


class Trunk(torch.nn.Module):
    """The blocks of a ViM between the patch embedding and the final norm: (B, L, d_model) to the same."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block(config) for _ in range(config.depth))
        for block in self.blocks:
            block.mixer.initialise(config.depth, backward_delta=True)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        residual = torch.zeros_like(hidden)
        for block in self.blocks:
            residual = residual + hidden
            hidden = block.mixer(block.norm(residual))[0]
        return residual + hidden


class TrunkGraph:
    """The same trunk as an ONNX graph, tokens-major, one op of ours a block."""

    def __init__(self, trunk: Trunk, config: ModelConfig, tokens: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.count = 0
        self.floor: list[np.ndarray] = []  # the MatMuls' weights, (in, out), or (2, in, out) of both directions
        residual = "input"
        for block in trunk.blocks:
            hidden = self._mixer(block.mixer, self._norm(residual, block.norm.weight))
            residual = self._node("Add", residual, hidden)
        self.model = self._model(residual, (1, tokens, config.d_model))
        attach_functions(self.model)

    def _model(self, output: str, shape: tuple[int, int, int]) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [output], ["output"]))
        graph = helper.make_graph(
            self.nodes,
            "trunk",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
            self.constants,
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(OP_DOMAIN, OP_VERSION)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    def _node(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        self.count += 1
        self.nodes.append(helper.make_node(op, list(inputs), [f"v{self.count}"], domain=domain, **attributes))
        return f"v{self.count}"

    def _constant(self, value: torch.Tensor | float | list[int]) -> str:
        self.count += 1
        array = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        array = np.ascontiguousarray(array.astype(np.int64 if array.dtype == np.int64 else np.float32))
        self.constants.append(numpy_helper.from_array(array, f"c{self.count}"))
        return f"c{self.count}"

    def _matmul(self, x: str, weight: torch.Tensor) -> str:
        self.floor.append(np.ascontiguousarray(weight.mT.detach().numpy()))
        return self._node("MatMul", x, self._constant(weight.mT))

    def _norm(self, x: str, weight: torch.Tensor) -> str:
        mean = self._node("ReduceMean", self._node("Pow", x, self._constant(2.0)), self._constant([-1]), keepdims=1)
        scale = self._node("Sqrt", self._node("Add", mean, self._constant(1e-5)))
        return self._node("Mul", self._node("Div", x, scale), self._constant(weight))

    def _mixer(self, mixer: torch.nn.Module, u: str) -> str:
        m: Any = mixer
        c = self._constant
        xz = self._matmul(u, m.in_proj.weight)
        taps = [m.conv1d.weight.squeeze(1), m.conv1d.bias, m.conv1d_b.weight.squeeze(1), m.conv1d_b.bias]
        products = torch.stack([m.x_proj.weight, m.x_proj_b.weight]).mT
        self.floor.append(np.ascontiguousarray(products.detach().numpy()))
        y = self._node(
            OP_MIXER, xz, *map(c, taps), c(products),
            c(m.dt_proj.weight), c(m.dt_proj.bias), c(-torch.exp(m.A_log)), c(m.D),
            c(m.dt_proj_b.weight), c(m.dt_proj_b.bias), c(-torch.exp(m.A_b_log)), c(m.D_b),
            domain=OP_DOMAIN, name=f"{self.count}/{OP_MIXER}",
        )  # fmt: skip
        return self._matmul(y, m.out_proj.weight)

    def matmuls(self, tokens: int) -> onnx.ModelProto:
        """The MatMul nodes alone, of the same shapes and weights, each on a graph input and to a graph output."""
        shapes, nodes, constants, outputs = {}, [], [], []
        for i, weight in enumerate(self.floor):
            stacked, width = (weight.shape[0] if weight.ndim == 3 else 1), weight.shape[-2]
            name = f"x{stacked}_{width}"
            shapes[name] = (stacked, tokens, width)
            nodes.append(helper.make_node("MatMul", [name, f"w{i}"], [f"y{i}"]))
            constants.append(numpy_helper.from_array(weight, f"w{i}"))
            shape = (stacked, tokens, weight.shape[-1])
            outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, shape))
        inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
        graph = helper.make_graph(nodes, "matmuls", inputs, outputs, constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)


def session(model: onnx.ModelProto, threads: int, library: Path | None) -> onnxruntime.InferenceSession:
    """A CPU session, with the native ops registered where a library is given."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if library is not None:
        options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def runner(opened: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]) -> Callable[[], Any]:
    """Runs a session on bound values, so that no time goes into copies."""
    binding = opened.io_binding()
    for name, value in feeds.items():
        binding.bind_cpu_input(name, value)
    for output in opened.get_outputs():
        # Into memory made once: that of a run's own making would be page-faulted in again every time.
        binding.bind_ortvalue_output(
            output.name, onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(output.shape, np.float32))
        )
    return lambda: opened.run_with_iobinding(binding)


def measure(contenders: dict[str, Callable[[], Any]], slow: set[str], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every contender in every round; slow ones run in one round of five."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for name, run in contenders.items():
        for _ in range(1 if name in slow else 3):
            run()
    for index in range(rounds):
        for name, run in contenders.items():
            if name in slow and index % 5:
                continue
            if name not in slow:
                time.sleep(IDLE_S)  # the workers of other sessions spin as well
                run()
            repeats = 1 if name in slow else 3
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            times[name].append((time.perf_counter() - start) * 1e3 / repeats)
    return times


def processor_time(contenders: dict[str, Callable[[], Any]], slow: set[str], rounds: int) -> dict[str, float]:
    """Milliseconds of processor time of runs on one thread, the least of the rounds: steady on a busy machine too."""
    least = dict.fromkeys(contenders, float("inf"))
    for index in range(rounds):
        for name, run in contenders.items():
            if name in slow and index % 5:
                continue
            start = time.thread_time()
            run()
            least[name] = min(least[name], (time.thread_time() - start) * 1e3)
    return {name: round(value, 3) for name, value in least.items()}


def ratio(times: dict[str, list[float]], numerator: str, denominator: str) -> float | None:
    """Median over the rounds of one contender's time over another's."""
    a, b = times.get(numerator), times.get(denominator)
    if not a or not b:
        return None
    if len(a) == len(b):
        return statistics.median(x / y for x, y in zip(a, b, strict=True))
    return statistics.median(a) / statistics.median(b)


SLOWER = ("eager", "compile", "function", "apart")
RATIOS = {
    "apart / native": ("apart", "native"),
    "eager / native": ("eager", "native"),
    "compile / native": ("compile", "native"),
    "function / native": ("function", "native"),
    "native / matmuls": ("native", "matmuls"),
    "one thread / two": ("native, 1 thread", "native"),
}


def bench(size: str, tokens: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One size and number of tokens. The outputs of the ways that compute the same are compared as well."""
    torch.manual_seed(0)
    config = config_for(size, "vim")
    trunk = Trunk(config).eval()
    graph = TrunkGraph(trunk, config, tokens)
    library = find.require("ort")
    x = np.random.default_rng(0).standard_normal((1, tokens, config.d_model)).astype(np.float32)
    floor = {threads: session(graph.matmuls(tokens), threads, None) for threads in (1, 2)}
    floor_feeds = {
        entry.name: np.random.default_rng(entry.shape[2]).standard_normal(entry.shape).astype(np.float32)
        for entry in floor[1].get_inputs()
    }
    two, function = session(graph.model, 2, library), session(graph.model, 2, None)
    apart = split_mixers(copy.deepcopy(graph.model))
    alone = {
        "native": runner(session(graph.model, 1, library), {"input": x}),
        "apart": runner(session(apart, 1, library), {"input": x}),
        "matmuls": runner(floor[1], floor_feeds),
        "function": runner(session(graph.model, 1, None), {"input": x}),
    }
    contenders = {
        "native": runner(two, {"input": x}),
        "native, 1 thread": alone["native"],
        "apart": runner(session(apart, 2, library), {"input": x}),
        "matmuls": runner(floor[2], floor_feeds),
        "function": runner(function, {"input": x}),
    }
    slow = {"function"} if size != "ti" else set()
    expected = two.run(None, {"input": x})[0]
    difference = {"function": float(np.abs(function.run(None, {"input": x})[0] - expected).max())}
    torch.set_num_threads(1 if arguments.busy else 2)
    if not arguments.no_torch:
        add_torch(contenders, slow, trunk, x, arguments.compile, expected, difference)
    with torch.inference_mode():
        times = {} if arguments.busy else measure(contenders, slow, arguments.rounds)
        torch.set_num_threads(1)
        alone |= {name: run for name, run in contenders.items() if name in {"eager", "compile"}}
        cpu_ms = processor_time(alone, slow, 2 * arguments.rounds)
    result: dict[str, Any] = {
        "size": size,
        "tokens": tokens,
        "median_ms": {name: round(statistics.median(values), 3) for name, values in times.items()},
        "p10_ms": {name: round(float(np.percentile(values, 10)), 3) for name, values in times.items()},
        "one_thread_processor_ms": cpu_ms,
        "ratios": {},
        "one_thread_ratios": {
            **{f"{name} / native": round(cpu_ms[name] / cpu_ms["native"], 3) for name in cpu_ms if name in SLOWER},
            "native / matmuls": round(cpu_ms["native"] / cpu_ms["matmuls"], 3),
        },
        "max_difference_to_native": difference,
        "largest_output": float(np.abs(expected).max()),
    }
    for name, (numerator, denominator) in RATIOS.items():
        value = ratio(times, numerator, denominator)
        if value is not None:
            result["ratios"][name] = round(value, 3)
    return result


def add_torch(
    contenders: dict[str, Callable[[], Any]],
    slow: set[str],
    trunk: Trunk,
    x: np.ndarray,
    compiled: bool,
    expected: np.ndarray,
    difference: dict[str, float],
) -> None:
    """PyTorch with the reference loop, eager and, where asked for, each block compiled."""
    image = torch.from_numpy(x)

    def reference() -> torch.Tensor:
        with scan.implementation("reference"):
            return trunk(image)

    contenders["eager"] = reference
    slow.add("eager")
    with torch.inference_mode():
        difference["eager"] = float(np.abs(reference().numpy() - expected).max())
        if not compiled:
            return
        # One block, compiled once and called with each block's parameters: the loops over tokens are unrolled, and the
        # whole trunk would take an hour to compile.
        forward = torch.compile(type(trunk.blocks[0].mixer).forward, dynamic=False)

        def compiled_trunk() -> torch.Tensor:
            with scan.implementation("reference"):
                residual, hidden = torch.zeros_like(image), image
                for block in trunk.blocks:
                    residual = residual + hidden
                    hidden = forward(block.mixer, block.norm(residual))[0]
                return residual + hidden

        start = time.perf_counter()
        difference["compile"] = float(np.abs(compiled_trunk().numpy() - expected).max())
        print(f"  torch.compile took {time.perf_counter() - start:.0f} s", flush=True)
        contenders["compile"] = compiled_trunk
        slow.add("compile")


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    library = ctypes.CDLL(str(find.require("ort")))
    library.mscope_ort_isa.restype = ctypes.c_char_p
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "isa": library.mscope_ort_isa().decode(),
        "load_average": round(os.getloadavg()[0], 2),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes"),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
        "threads": 2,
        "batch": 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["ti", "s"], choices=["ti", "s", "b"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[50, 125, 197])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="torch.compile too: minutes of compilation")
    parser.add_argument("--no-torch", action="store_true", help="only the ONNX graphs")
    parser.add_argument(
        "--busy", action="store_true", help="only processor times of one thread: others use the machine"
    )
    parser.add_argument("--isa", help="force an instruction set: scalar, avx2, avx512, neon")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; default: benchmarks/results/scan_cpu.json")
    parser.add_argument("--dry", action="store_true", help="write no file")
    arguments = parser.parse_args()
    if arguments.isa:
        os.environ["MSCOPE_ISA"] = arguments.isa
    about = machine()
    print(json.dumps(about))
    results = []
    for size in arguments.sizes:
        for tokens in arguments.tokens:
            result = bench(size, tokens, arguments)
            results.append(result)
            print(f"{size} {tokens:4d} tokens")
            for title, part in (
                ("two threads, ms", "median_ms"),
                ("           ratios", "ratios"),
                ("one thread, processor ms", "one_thread_processor_ms"),
                ("           ratios", "one_thread_ratios"),
            ):
                if result[part]:
                    print(f"  {title}: " + "  ".join(f"{k} {v:.2f}" for k, v in result[part].items()), flush=True)
    if not arguments.dry:
        path = arguments.out or RESULTS / "scan_cpu.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": about, "results": results}, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
