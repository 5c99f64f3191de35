"""Any PyTorch module with selective scans as one ONNX file, checked against it: a VMamba, a MambaVision, one's own.

docs/own-models.md shows it. The module calls mscope.model.scan or mscope.model.mamba_ssm_interface; each scan becomes
one node, whose function body the file carries, as in a bundle.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from mscope.core.contract import BATCH, OP_DOMAIN
from mscope.core.errors import BackendError, InputError, ParityError
from mscope.core.files import replacing
from mscope.core.manifest import Precision
from mscope.export import passes
from mscope.export.bounds import COSINE
from mscope.export.comparison import Distance, check_comparator, compare_outputs
from mscope.export.functions import attach_functions
from mscope.export.precision.proof import PrecisionProof, prove_precision
from mscope.export.precision.typed import typed_graph
from mscope.export.to_onnx import describe, onnx_from_program, quiet, with_shapes
from mscope.export.verify import kernels_here, reference_scan, tolerance_of
from mscope.runtime.backends.base import Kernel
from mscope.runtime.backends.ort_ops import NativeOps, first_line

Array = npt.NDArray[Any]
# A file of ONNX is one protobuf message.
_MAX_BYTES = 2**31 - 1
_DTYPES = (torch.float32, torch.int64)
_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")


@dataclass(frozen=True)
class ModuleFile:
    """One file that was written.

    Attributes:
        path: where.
        precision: "fp32" or "fp16".
        ops: how many nodes there are of each of this project's ops.
        nodes: of the whole graph.
        proof: what computes in fp16; None of fp32.
        distances: of each output, by name, from PyTorch in float32: the worst over kernels and batches.
        kernels: what the file was run on: "function", and "native" where the kernels are built.
    """

    path: Path
    precision: Precision
    ops: dict[str, int]
    nodes: int
    proof: PrecisionProof | None
    distances: dict[str, Distance]
    kernels: tuple[Kernel, ...]

    def describe(self) -> str:
        """A few lines for people."""
        size = self.path.stat().st_size / 1e3
        ops = ", ".join(f"{count} {name}" for name, count in self.ops.items())
        lines = [f"{self.path}, {self.precision}, {size:,.0f} kB: {self.nodes} nodes, {ops} among them"]
        if self.proof is not None:
            lines.append(f"  proved   {self.proof.describe()}")
        for name, distance in self.distances.items():
            allowed = "" if distance.tolerance is None else f" ({distance.tolerance:.1e} allowed)"
            lines.append(
                f"  parity   {name}: within {distance.max_abs:.1e} of PyTorch{allowed}, cosine {distance.cosine:.6f}, "
                f"on {' and '.join(self.kernels)} kernels"
            )
        return "\n".join(lines)


def export_module(
    module: nn.Module,
    inputs: Sequence[Tensor],
    out: str | Path,
    *,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    dynamic_batch: bool = True,
    fp16: bool = False,
    tolerance: float | None = None,
) -> list[ModuleFile]:
    """Traces a module, writes it as ONNX and compares the files with it, on the function bodies and the native kernels.

    Args:
        module: on the CPU, in float32; traced in evaluation mode and left as it was. Returns a tensor or a tuple of
            them, float32.
        inputs: what `forward` takes, float32 or int64 on the CPU; also what files and module are compared on.
        out: the .onnx file of fp32; there is none where anything fails.
        input_names: one for each of `inputs`; () calls them input_0, input_1 ...
        output_names: likewise for what the module returns.
        dynamic_batch: the first axis of every input and output is the batch and may vary; `inputs` then have 2 or more.
        fp16: a strongly typed graph is written beside it, `NAME.fp16.onnx`, as of a bundle: products and scans in fp16.
            There is no bf16: a Conv of ONNX's opset 18, which TensorRT 10.3 takes, has none.
        tolerance: how far an fp32 output may be from PyTorch's; None runs the module in float64 too, and allows ten
            times the distance of PyTorch's own float32 from that.

    Returns:
        What was written, fp32 first.

    Raises:
        InputError: unusable inputs, a module that cannot be traced, has no scan of this project in it, or does not run
            in float64 where no tolerance is given; `out` cannot be written.
        ParityError: a file does not compute what the module does.
        MscopeError: a weight is too large for fp16; the module has scans with a gate and scans without one.
    """
    check_comparator()
    inputs, out = tuple(inputs), Path(out)
    _check(module, inputs, out, dynamic_batch)
    names = _names("input", input_names, len(inputs))
    with _evaluating(module):
        single = _run(module, inputs)
        results = _names("output", output_names, len(single))
        model = _onnx_of(module, inputs, names, results, dynamic_batch)
        allowed = _tolerances(module, inputs, single, tolerance)
    expected, bounds = dict(zip(results, single, strict=True)), dict(zip(results, allowed, strict=True))
    feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    written, contents = [], []
    for precision in _PRECISIONS[: 1 + fp16]:
        path = out if precision == "fp32" else out.with_suffix(f".{precision}{out.suffix}")
        graph = model if precision == "fp32" else typed_graph(model, precision)
        contents.append((path, _content(graph)))
        written.append(
            ModuleFile(
                path=path,
                precision=precision,
                ops=dict(Counter(node.op_type for node in graph.graph.node if node.domain == OP_DOMAIN)),
                nodes=len(graph.graph.node),
                proof=None if precision == "fp32" else prove_precision(graph, precision),
                distances=_compare(graph, precision, feeds, expected, bounds, dynamic_batch),
                kernels=kernels_here(),
            )
        )
    try:
        with contextlib.ExitStack() as files:
            # Renamed when all are written.
            for path, content in contents:
                files.enter_context(replacing(path)).write(content)
    except OSError as error:
        raise InputError(f"{error.filename or out} cannot be written: {error.strerror}") from None
    return written


def _check(module: nn.Module, inputs: tuple[Tensor, ...], out: Path, dynamic_batch: bool) -> None:
    if not out.suffix:
        raise InputError(f"{out}: the file's name needs a suffix, as in model.onnx")
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"{out} cannot be written: it is a folder, or {out.parent} is none")
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if value.device.type != "cpu" or (value.is_floating_point() and value.dtype != torch.float32):
            raise InputError(
                f"{name} is {value.dtype} on {value.device}: the module is exported from the CPU in float32 "
                "(module.cpu().float())"
            )
    if not inputs:
        raise InputError("inputs: none given, tracing needs one for each argument of forward")
    for place, value in enumerate(inputs):
        if not isinstance(value, Tensor) or value.device.type != "cpu" or value.dtype not in _DTYPES:
            what = f"{value.dtype} on {value.device}" if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"inputs[{place}] is {what}, expected a float32 or int64 tensor on the CPU")
        if dynamic_batch and (value.ndim == 0 or len(value) < 2 or len(value) != len(inputs[0])):
            raise InputError(
                f"inputs[{place}] has shape {tuple(value.shape)}: with a dynamic batch every input has the same first "
                "axis of 2 or more (torch.export takes a 1 for a constant); or give dynamic_batch=False"
            )


def _names(kind: str, given: Sequence[str], count: int) -> tuple[str, ...]:
    if not given:
        return tuple(f"{kind}_{place}" for place in range(count))
    if len(given) != count or len(set(given)) != count:
        raise InputError(f"{kind}_names: got {list(given)}, expected {count} different ones")
    return tuple(given)


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _run(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Array]:
    with reference_scan():
        got = module(*inputs)
    outputs = [got] if isinstance(got, Tensor) else got
    if not isinstance(outputs, (list, tuple)) or not all(isinstance(part, Tensor) and part.ndim for part in outputs):
        raise InputError(f"the module returns {type(got).__name__}, expected a tensor or a tuple of tensors, with axes")
    return [output.numpy() for output in outputs]


class _Named(nn.Module):
    """`passes` cut the prefix that this gives every parameter off again."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Any:
        return self.model(*inputs)


def _onnx_of(
    module: nn.Module, inputs: tuple[Tensor, ...], names: Sequence[str], results: Sequence[str], dynamic_batch: bool
) -> onnx.ModelProto:
    batch = torch.export.Dim(BATCH)
    shapes = (tuple({0: batch} for _ in inputs),) if dynamic_batch else None
    with torch.no_grad(), quiet():
        try:
            program = torch.export.export(_Named(module).eval(), inputs, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            # Whatever the module's own code raises on torch's symbolic tensors.
            hint = "; dynamic_batch=False exports it for the batch of `inputs`" if dynamic_batch else ""
            raise InputError(f"torch.export cannot trace the module ({first_line(error)}){hint}") from error
        try:
            # Its optimiser knows what other people's modules hold: torch.split, for one, is a sequence without it,
            # which TensorRT has not.
            model = onnx_from_program(program, names, results, optimize=True)
        except torch.onnx.OnnxExporterError as error:
            reason = first_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
            raise InputError(f"torch.onnx has no ONNX for the module ({reason})") from error
    model = passes.clean(model)
    if not any(node.domain == OP_DOMAIN for node in model.graph.node):
        raise InputError(
            "no selective scan of this project is in the module's graph: let it call selective_scan_fn of "
            "mscope.model.mamba_ssm_interface (docs/own-models.md)"
        )
    describe(model, type(module).__name__)
    attach_functions(model)
    model = with_shapes(model)
    onnx.checker.check_model(model)
    return model


def _content(model: onnx.ModelProto) -> bytes:
    if model.ByteSize() > _MAX_BYTES:
        raise InputError(f"the graph takes {model.ByteSize() / 1e9:.1f} GB, an ONNX file holds 2 at most")
    return model.SerializeToString()


def _tolerances(
    module: nn.Module, inputs: tuple[Tensor, ...], single: list[Array], tolerance: float | None
) -> list[float]:
    if tolerance is not None:
        return [tolerance] * len(single)
    double = tuple(value.double() if value.is_floating_point() else value for value in inputs)
    try:
        exact = _run(copy.deepcopy(module).double(), double)
    except RuntimeError as error:
        raise InputError(
            f"the module does not run in float64 ({first_line(error)}), which would tell what float32 explains: give "
            "tolerance=, how far an output may be from PyTorch's"
        ) from error
    return [tolerance_of(ours.astype(np.float64), truth) for ours, truth in zip(single, exact, strict=True)]


def _compare(
    model: onnx.ModelProto,
    precision: Precision,
    feeds: dict[str, Array],
    expected: dict[str, Array],
    bounds: dict[str, float],
    dynamic_batch: bool,
) -> dict[str, Distance]:
    """The distance of each output from `expected`: of the whole batch, and of its first row where it may vary."""
    fp32 = precision == "fp32"
    content = model.SerializeToString()
    worst: dict[str, Distance] = {}
    for kernel in kernels_here():
        session = _session(content, kernel)
        for count in (None, 1) if dynamic_batch else (None,):
            got = session.run(list(expected), {name: value[:count] for name, value in feeds.items()})
            pairs = {name: (ours, expected[name][:count]) for name, ours in zip(expected, got, strict=True)}
            for name, (ours, theirs) in pairs.items():
                if ours.shape != theirs.shape:
                    raise InputError(
                        f"{name} has shape {ours.shape} where PyTorch has {theirs.shape}: the first axis of every "
                        "output is the batch; or give dynamic_batch=False"
                    )
            for name, distance in compare_outputs(pairs, lambda name, _: bounds[name] if fp32 else None).items():
                what = f"the exported {precision} graph is not the module: {name}, on the {kernel} kernels,"
                if fp32 and not distance.max_abs <= bounds[name]:  # also when it is NaN
                    raise ParityError(f"{what} differs by {distance.max_abs:.2g}, {bounds[name]:.2g} is allowed")
                if not distance.cosine >= COSINE[precision]:
                    raise ParityError(f"{what} has cosine {distance.cosine:.6f}, {COSINE[precision]} is the least")
                if name not in worst or distance.max_abs > worst[name].max_abs:
                    worst[name] = distance
    return worst


def _session(model: bytes, kernel: Kernel) -> Any:
    import onnxruntime as ort

    ops = NativeOps("ort", kernel)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    ops.register(options, ort.__version__)
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # ONNX Runtime's exceptions have no common base beside Exception.
        raise BackendError(f"ONNX Runtime {ort.__version__} cannot load the graph ({first_line(error)})") from None
    ops.taken("the module's graph")
    return session
