"""Time by node of a graph, mapped back to the network's blocks and kinds of work."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mscope.core.contract import OP_BIDIRECTIONAL_SCAN, OP_CONV, OP_MIXER, OP_SCAN
from mscope.runtime.profiling.schema import LayerKind, LayerRow

# Nodes that run other nodes: theirs is the time of what they run.
_CONTROL_FLOW = frozenset({"Scan", "Loop", "If"})
_PROJECTIONS = frozenset({"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "MatMulInteger", "QLinearMatMul", "QGemm",
                          "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits"})  # fmt: skip
_NORMS = frozenset({"SimplifiedLayerNormalization", "LayerNormalization", "SkipSimplifiedLayerNormalization",
                    "RMSNormalization", "SkipLayerNormalization"})  # fmt: skip
# What an engine's layer is named after that does not tell its operation.
_PROJECTION_NAMES = re.compile(r"\b(in_proj|x_proj|out_proj|fc1|fc2|head)(?![a-z])")
# A mixer is convolution, x_proj and scan in one kernel.
_KINDS: dict[str, LayerKind] = {OP_CONV: "conv", OP_SCAN: "scan", OP_BIDIRECTIONAL_SCAN: "scan", OP_MIXER: "mixer"}
# How ONNX Runtime names a node of an inlined function body: its op, which copy it is, and the name in the body.
_INLINED = re.compile(rf"_inlfunc_({'|'.join(map(re.escape, _KINDS))})_(?:token_\d+_)?(.*)")
_BLOCK = re.compile(r"layers\.\d+")
_UNTIL_FIRST = "input"


@dataclass(frozen=True)
class NodeEvent:
    """One execution of a node: microseconds from some start. `index` tells nodes of one name apart; `op` may be ""."""

    name: str
    op: str
    index: int
    start_us: float
    us: float


@dataclass
class _Node:
    name: str
    op: str
    block: str
    kind: LayerKind
    ms: list[float] = field(default_factory=list)


class LayerTimes:
    """Collects the node events of run after run and makes a table of them."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[str, int], _Node] = {}
        self.runs = 0

    def add_run(self, events: Iterable[NodeEvent]) -> None:
        """Adds the events of one run, in any order."""
        block = _UNTIL_FIRST
        for event in outermost(events):
            block = block_of(event.name) or block
            key = (event.name, event.index)
            if key not in self._nodes:
                self._nodes[key] = _Node(shown_name(event.name, block), event.op, block, kind_of(event), [])
            self._nodes[key].ms.append(event.us / 1e3)
        self.runs += 1

    def rows(self) -> tuple[LayerRow, ...]:
        """One row a node, in the order of the first run. A node that some runs skipped counts 0 in those.

        Shares are of the medians: one run that the system interrupted would give its node a share of its own.
        """
        if not self.runs:
            return ()
        padded = [np.pad(node.ms, (0, max(0, self.runs - len(node.ms)))) for node in self._nodes.values()]
        medians = [float(np.median(ms)) for ms in padded]
        total = sum(medians) or 1.0
        return tuple(
            LayerRow(
                name=node.name,
                op=node.op,
                block=node.block,
                kind=node.kind,
                mean_ms=float(ms.mean()),
                median_ms=median,
                share=median / total,
            )
            for node, ms, median in zip(self._nodes.values(), padded, medians, strict=True)
        )


def outermost(events: Iterable[NodeEvent]) -> list[NodeEvent]:
    """The events of one sequential run by their start, without those that ran inside a Scan, Loop or If."""
    ordered = sorted(events, key=lambda event: (event.start_us, -event.us))
    kept: list[NodeEvent] = []
    covered_until = -1.0
    for event in ordered:
        if event.start_us + event.us <= covered_until:
            continue
        kept.append(event)
        if event.op in _CONTROL_FLOW:
            covered_until = event.start_us + event.us
    return kept


def block_of(name: str) -> str | None:
    """The block in a node's name: "layers.3"; else the first part of a name with parts; None for a bare one.

    A bare name, and one of an inlined function body, belong to the block whose node ran last: nodes run in the order of
    their data, and every block waits for the one before it.
    """
    if _INLINED.match(name):
        return None
    found = _BLOCK.search(name)
    if found:
        return found[0]
    first, _, rest = name.partition("/")
    # Optimisers append to a bare name: "Slice_1/GatherSliceToSplitFusion".
    return first if rest and not first[:1].isupper() and first else None


def kind_of(event: NodeEvent) -> LayerKind:
    """What sort of work a node is."""
    inlined = _INLINED.match(event.name)
    op = inlined[1] if inlined else event.op or event.name.rpartition("/")[2]
    if inlined and op == OP_MIXER:  # what its body has beside the ops is x_proj
        return "projection"
    if op in _KINDS:
        return _KINDS[op]
    if event.op in _NORMS or any("norm" in part for part in event.name.split("/")):
        return "norm"
    if event.op in _PROJECTIONS or (not event.op and _PROJECTION_NAMES.search(event.name)):
        return "projection"
    return "other"


def shown_name(name: str, block: str) -> str:
    """A node's name as people know it: inlined bodies below the block that they belong to."""
    inlined = _INLINED.match(name)
    return f"{block}/mixer/{inlined[2]}".rstrip("/") if inlined else name


def grouped(rows: Sequence[LayerRow], by: str) -> dict[str, float]:
    """Milliseconds of a run, medians summed over rows of one `block` or `kind`, in the order of the rows."""
    sums: dict[str, float] = {}
    for row in rows:
        key = getattr(row, by)
        sums[key] = sums.get(key, 0.0) + row.median_ms
    return sums


def events_from_layer_times(layers: Iterable[tuple[str, float]]) -> list[NodeEvent]:
    """One run as TensorRT's IProfiler reports it: (name, milliseconds) of each layer, in the order of execution.

    For `LayerTimes.add_run`. Not tried on a GPU.
    """
    events, start = [], 0.0
    for index, (name, ms) in enumerate(layers):
        events.append(NodeEvent(name, "", index, start, ms * 1e3))
        start += ms * 1e3
    return events


def event_from_ort(fields: Mapping[str, object]) -> NodeEvent | None:
    """A node's execution from one event of ONNX Runtime's profile; None for any other event."""
    name, args = fields.get("name"), fields.get("args")
    if fields.get("cat") != "Node" or not isinstance(name, str) or not isinstance(args, Mapping):
        return None
    if not name.endswith("_kernel_time"):
        return None
    start, us, index = fields.get("ts"), fields.get("dur"), args.get("node_index", "-1")
    if not isinstance(start, int) or not isinstance(us, int) or not str(index).lstrip("-").isdigit():
        return None
    return NodeEvent(name.removesuffix("_kernel_time"), str(args.get("op_name", "")), int(str(index)), start, us)
