"""Nodes mapped to blocks and kinds, on invented events and on ONNX Runtime's own."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

import fakes
import profiles
from mscope.core.bundle import load_manifest
from mscope.core.config import make_config
from mscope.core.errors import BackendError, InputError
from mscope.core.manifest import Manifest
from mscope.plugins import find
from mscope.runtime.backends.registry import BACKENDS, choose_variants
from mscope.runtime.profiling.layer_files import graph_json, profile_json, write_layer_files
from mscope.runtime.profiling.layers import (
    LayerTimes,
    NodeEvent,
    event_from_ort,
    events_from_layer_times,
    grouped,
    outermost,
)
from mscope.runtime.profiling.ort_layers import ort_layer_tables, runs_from_ort
from mscope.runtime.profiling.schema import LayerTable

# Name, op, index, start, microseconds; ending with what belongs to them: block and kind.
TRACE = [
    ("Reshape_0", "Reshape", 0, 0, 5, "input", "other"),
    ("patch_embed/MatMul", "MatMul", 1, 10, 50, "patch_embed", "projection"),
    ("Slice_1/GatherSliceToSplitFusion", "Split", 2, 70, 3, "patch_embed", "other"),
    ("layers.0/norm/Mul/SimplifiedLayerNormFusion/", "SimplifiedLayerNormalization", 3, 80, 4, "layers.0", "norm"),
    ("layers.0/mixer/in_proj", "MatMul", 4, 90, 100, "layers.0", "projection"),
    ("_inlfunc_CausalConv1dSiLU_CausalConv1dSiLU/Mul_61", "Mul", 5, 200, 10, "layers.0", "conv"),
    ("layers.0/mixer/x_proj", "MatMul", 6, 220, 20, "layers.0", "projection"),
    ("_inlfunc_BidirectionalSelectiveScan_BidirectionalSelectiveScan/Scan_67", "Scan", 7, 250, 400, "layers.0", "scan"),
    ("Add_1", "Add", 8, 660, 5, "layers.0", "other"),
    ("layers.11/mixer/in_proj", "MatMul", 9, 670, 100, "layers.11", "projection"),
    ("_inlfunc_CausalConv1dSiLU_token_7_CausalConv1dSiLU/Mul_61", "Mul", 10, 780, 10, "layers.11", "conv"),
    ("layers.11/mixer/BidirectionalSelectiveScan", "BidirectionalSelectiveScan", 11, 800, 40, "layers.11", "scan"),
    ("layers.12/mixer/VimMixer", "VimMixer", 12, 841, 6, "layers.12", "mixer"),
    ("_inlfunc_VimMixer_VimMixer/x_proj", "MatMul", 13, 848, 1, "layers.12", "projection"),
    ("norm_f/Sqrt", "Sqrt", 14, 850, 2, "norm_f", "norm"),
    ("reuse/fc1", "Gemm", 15, 860, 30, "reuse", "projection"),
]
INSIDE = [("Mul_3", "Mul", 3, 260, 10), ("Exp_1", "Exp", 1, 300, 10), ("Add_10", "Add", 10, 640, 10)]


def events(scale: int = 1) -> list[NodeEvent]:
    rows = [row[:5] for row in TRACE] + INSIDE
    return [NodeEvent(name, op, index, start * scale, us * scale) for name, op, index, start, us in rows]


def test_blocks_and_kinds() -> None:
    times = LayerTimes()
    # Events come in the order in which they end: what ran inside a Scan before the Scan itself.
    times.add_run(reversed(events()))
    rows = times.rows()
    assert [(row.op, row.block, row.kind) for row in rows] == [(row[1], row[5], row[6]) for row in TRACE]
    assert [row.mean_ms for row in rows] == [row[4] / 1e3 for row in TRACE]
    assert rows[5].name == "layers.0/mixer/CausalConv1dSiLU/Mul_61"
    assert rows[10].name == "layers.11/mixer/CausalConv1dSiLU/Mul_61"
    assert sum(row.share for row in rows) == pytest.approx(1.0)
    assert grouped(rows, "kind")["scan"] == pytest.approx(0.44)
    assert list(grouped(rows, "block")) == [
        "input",
        "patch_embed",
        "layers.0",
        "layers.11",
        "layers.12",
        "norm_f",
        "reuse",
    ]


def test_what_runs_inside_a_scan_is_the_scans() -> None:
    assert {event.name for event in outermost(events())} == {row[0] for row in TRACE}
    # Only what runs other nodes covers them: two neighbours of one microsecond are both kept.
    twins = [NodeEvent("a", "Mul", 0, 5, 1), NodeEvent("b", "Mul", 1, 5, 1)]
    assert len(outermost(twins)) == 2


def test_layers_of_an_engine_by_their_names() -> None:
    layers = [
        ("patch_embed/MatMul", 0.5), ("layers.0/norm/Mul + layers.0/norm/Sqrt", 0.1), ("layers.0/mixer/in_proj", 1.0),
        ("layers.0/mixer/CausalConv1dSiLU", 0.2), ("layers.0/mixer/BidirectionalSelectiveScan", 0.4),
        ("__myl_Fc_0x12", 0.3), ("layers.1/mixer/out_proj_myl0_4", 0.7), ("head", 0.05),
    ]  # fmt: skip
    times = LayerTimes()
    times.add_run(events_from_layer_times(layers))
    rows = times.rows()
    assert [row.mean_ms for row in rows] == pytest.approx([ms for _, ms in layers])
    assert [row.kind for row in rows] == [
        "other", "norm", "projection", "conv", "scan", "other", "projection", "projection",
    ]  # fmt: skip
    assert [row.block for row in rows][1:7] == ["layers.0"] * 5 + ["layers.1"]


def test_means_and_medians_over_runs() -> None:
    times = LayerTimes()
    for scale in (1, 1, 4):
        times.add_run(events(scale))
    row = times.rows()[1]
    assert (row.mean_ms, row.median_ms) == (pytest.approx(0.1), pytest.approx(0.05))
    # A node that one run skipped counts 0 there.
    times.add_run([])
    assert times.rows()[1].mean_ms == pytest.approx(0.075)
    assert LayerTimes().rows() == ()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"cat": "Session", "name": "model_run", "ts": 1, "dur": 2, "args": {}},
        {"cat": "Node", "name": "x_fence_before", "ts": 1, "dur": 2, "args": {}},
        {"cat": "Node", "name": "x_kernel_time", "ts": "1", "dur": 2, "args": {}},
        {"cat": "Node", "name": "x_kernel_time", "ts": 1, "dur": 2, "args": {"node_index": "many"}},
        {"cat": "Node", "name": 7, "ts": 1, "dur": 2, "args": {}},
    ],
)
def test_other_events_are_none(fields: dict[str, object]) -> None:
    assert event_from_ort(fields) is None


def test_a_record_that_breaks_off(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    node = json.dumps({"cat": "Node", "name": "a_kernel_time", "ts": 1, "dur": 2, "args": {"op_name": "Mul"}})
    end = json.dumps({"cat": "Session", "name": "model_run", "ts": 1, "dur": 9, "args": {}})
    path.write_text(f"[\n{node},\n{end},\n{node},\n{end},\n{node}\n")
    assert [len(run) for run in runs_from_ort(path)] == [1, 1], "the run that was not finished is left out"
    for line in ('{"cat": "Node", ', '"text"'):
        path.write_text(f"[\n{line}\n")
        with pytest.raises(BackendError, match="profiler wrote a line"):
            list(runs_from_ort(path))


def tables_of(folder: Path, manifest: Manifest, kernel: str) -> dict[str, LayerTable]:
    _, variants = choose_variants(manifest, BACKENDS["ort-cpu"])
    image = fakes.random_images(manifest.config, 2)
    tables = ort_layer_tables(folder, manifest, variants, image, threads=1, kernel=kernel, runs=3)  # type: ignore[arg-type]
    return {table.stage: table for table in tables}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """A network of two blocks, exported as all are."""
    from mscope.export.build import build_bundle
    from mscope.export.options import BuildOptions

    config = make_config(
        {"size": "tiny", "d_model": 16, "depth": 2, "d_state": 4, "patch": 4, "channels": 3, "height": 16, "width": 24,
         "classes": 5}
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("layers") / "tiny"
    build_bundle(BuildOptions(config=config, seed=0, out=folder, parity=False))
    return folder, load_manifest(folder)


@pytest.mark.parametrize("kernel", ["function", "native"])
def test_an_exported_network_node_by_node(
    exported: tuple[Path, Manifest], kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel == "native" and find.library("ort") is None:
        pytest.skip(find.why_missing("ort"))
    recorded: list[list[NodeEvent]] = []
    add_run = LayerTimes.add_run
    monkeypatch.setattr(
        LayerTimes, "add_run", lambda times, events: recorded.append(list(events)) or add_run(times, recorded[-1])
    )
    tables = tables_of(*exported, kernel)
    assert list(tables) == ["coarse", "fine"]
    for stage, table in tables.items():
        assert (table.runs, table.batch, table.truncated, table.source) == (3, 2, False, "onnxruntime")
        assert sum(row.share for row in table.rows) == pytest.approx(1.0)
        blocks = list(grouped(table.rows, "block"))
        assert [block for block in blocks if block.startswith("layers.")] == ["layers.0", "layers.1"]
        assert {"patch_embed", "norm_f"} <= set(blocks)
        assert ("reuse" in blocks) == (stage == "fine")
        for block in ("layers.0", "layers.1"):
            kinds = {row.kind for row in table.rows if row.block == block}
            ours = {"mixer"} if kernel == "native" else {"conv", "scan"}
            assert {"projection", "norm"} | ours <= kinds, f"{stage} {block}"
        scans = [row for row in table.rows if row.kind == "scan"]
        if kernel == "native":
            assert not scans
            assert sum(row.kind == "mixer" for row in table.rows) == 2
        else:
            assert sum(row.name.endswith("/mixer/VimMixer/x_proj") for row in table.rows) == 2
            # The bodies are many nodes; the loop of each block, over both directions, is one of them.
            assert len(scans) > 50
            assert sum(row.op == "Scan" for row in scans) == 2
    # No time is counted twice: what is left of a run follows one after the other, to the profiler's microsecond, and
    # what is not lies within a Scan.
    assert len(recorded) == 6
    for events in recorded:
        kept = outermost(events)
        assert all(before.start_us + before.us <= after.start_us + 1 for before, after in pairwise(kept))
        loops = [event for event in kept if event.op == "Scan"]
        inside = set(events) - set(kept)
        assert bool(inside) == (kernel == "function")
        for event in inside:
            end = event.start_us + event.us
            assert any(loop.start_us <= event.start_us and end <= loop.start_us + loop.us for loop in loops)


def test_too_large_a_record_means_fewer_runs(exported: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mscope.runtime.profiling.ort_layers.MAX_FILE_BYTES", 1000)
    assert {table.runs for table in tables_of(*exported, "function").values()} == {1}


def test_the_pair_of_files(tmp_path: Path) -> None:
    table = profiles.sample_profile().layers[0]  # type: ignore[index]
    twice = table.model_copy(update={"rows": (*table.rows, table.rows[0])})
    graph, profile = graph_json(twice), profile_json(twice)
    assert graph["Bindings"]
    assert all({"Name", "LayerType", "Inputs", "Outputs"} <= set(layer) for layer in graph["Layers"])
    assert profile[0] == {"count": table.runs}
    names = [layer["Name"] for layer in graph["Layers"]]
    assert names == [row["name"] for row in profile[1:]]
    assert len(set(names)) == len(names)
    # What the explorer keeps of a profile: records of five fields.
    assert all(set(row) == {"name", "timeMs", "averageMs", "medianMs", "percentage"} for row in profile[1:])
    first = profile[1]
    assert first["timeMs"] == pytest.approx(first["averageMs"] * table.runs, rel=1e-4)
    assert sum(row["percentage"] for row in profile_json(table)[1:]) == pytest.approx(100, abs=0.01)
    written = write_layer_files((table,), tmp_path / "new")
    assert [path.name for path in written] == ["coarse.graph.json", "coarse.profile.json"]
    assert json.loads(written[1].read_text())[0] == {"count": 20}
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="in the way"):
        write_layer_files((table,), tmp_path / "file")


def test_function_bodies_have_names() -> None:
    from mscope.export.functions import bidirectional_scan_function, conv_function, scan_function

    for function in (conv_function(), bidirectional_scan_function(), scan_function(gated=True, biased=True)):
        names = [node.name for node in function.node]
        assert all(name.startswith(f"{function.name}/") for name in names)
        assert len(set(names)) == len(names)


def test_one_interrupted_run_does_not_change_the_shares() -> None:
    times = LayerTimes()
    for run in range(9):
        stalled = 50.0 if run == 4 else 0.0
        times.add_run(events_from_layer_times([("layers.0/in_proj", 0.3), ("layers.0/norm", 0.1 + stalled)]))
    projection, norm = times.rows()
    assert (projection.share, norm.share) == (pytest.approx(0.75), pytest.approx(0.25))
    assert grouped(times.rows(), "block") == {"layers.0": pytest.approx(0.4)}
    assert norm.mean_ms > 5.0
