"""Each pass on a graph of a few nodes: what it removes, and what it must leave alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from mscope.core.contract import Stage
from mscope.core.errors import BundleError
from mscope.export.passes import clean
from mscope.export.passes.constants import fold_constants
from mscope.export.passes.dead import remove_dead
from mscope.export.passes.duplicates import merge_duplicates
from mscope.export.passes.identities import remove_identities
from mscope.export.passes.mixers import load_graph, load_split
from mscope.export.passes.names import clean_names
from mscope.export.passes.reshapes import make_reshapes_static
from mscope.export.passes.rms_norm import fold_reciprocal

HEADER = '<ir_version: 9, opset_import: ["": 18]>'


def parse(text: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f"{HEADER} {text}")
    onnx.checker.check_model(model)
    return model


def kinds(model: onnx.ModelProto) -> list[str]:
    onnx.checker.check_model(model)
    return [node.op_type for node in model.graph.node]


def test_weights_are_folded_under_their_own_name() -> None:
    model = parse("""g (float[b, 2] x) => (float[b, 3] y)
        <float[3, 2] weight = {1, 2, 3, 4, 5, 6}>
        { turned = Transpose<perm = [1, 0]>(weight) y = MatMul(x, turned) }""")
    model.graph.initializer[0].name = model.graph.node[0].input[0] = "model.weight"
    assert kinds(fold_constants(model)) == ["MatMul"]
    (tensor,) = model.graph.initializer
    assert tensor.name == "model.weight"
    assert list(tensor.dims) == [2, 3]
    clean_names(model)
    assert model.graph.node[0].input[1] == "weight"


def test_a_weight_that_is_also_read_itself_keeps_its_name() -> None:
    model = parse("""g (float[b, 2] x) => (float[b, 2] y)
        <float[2, 2] weight = {1, 2, 3, 4}>
        { turned = Transpose<perm = [1, 0]>(weight) z = MatMul(x, turned) y = MatMul(z, weight) }""")
    model.graph.initializer[0].name = model.graph.node[0].input[0] = model.graph.node[2].input[1] = "model.weight"
    fold_constants(model)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert set(values) == {"model.weight", "model.weight.2"}
    np.testing.assert_array_equal(values["model.weight"], [[1, 2], [3, 4]])
    assert model.graph.node[0].input[1] == "model.weight.2"


def test_a_weight_of_two_products_is_stored_once() -> None:
    model = parse("""g (float[b, 2] x) => (float[b, 2] y)
        <float[2, 2] weight = {1, 2, 3, 4}>
        { one = Transpose<perm = [1, 0]>(weight) z = MatMul(x, one)
          two = Transpose<perm = [1, 0]>(weight) y = MatMul(z, two) }""")
    model.graph.initializer[0].name = model.graph.node[0].input[0] = model.graph.node[2].input[0] = "model.weight"
    clean(model)
    assert [node.input[1] for node in model.graph.node] == ["weight", "weight"]
    (tensor,) = model.graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), [[1, 3], [2, 4]])


def test_equal_numbers_are_merged_and_equal_weights_are_not() -> None:
    model = parse("""g (float[b, 2] x) => (float[b, 2] y)
        <float[2] first = {1, 1}, float[2] second = {1, 1}>
        { one = Constant<value_float = 1.0>() also = Constant<value_float = 1.0>()
          a = Add(x, one) b1 = Add(a, also) c = Mul(b1, first) y = Mul(c, second) }""")
    for tensor, node in zip(model.graph.initializer, (model.graph.node[4], model.graph.node[5]), strict=True):
        tensor.name = node.input[1] = f"model.{tensor.name}"
    fold_constants(model)
    assert kinds(model) == ["Add", "Add", "Mul", "Mul"]
    assert len(model.graph.initializer) == 3
    assert len({node.input[1] for node in model.graph.node[:2]}) == 1


def test_identities_go_and_the_graphs_own_output_stays() -> None:
    model = parse("""g (float[b, 4] x) => (float[b, 4] y, float[b, 2] part)
        <int64[1] zero = {0}, int64[1] two = {2}, int64[1] far = {9223372036854775807}, int64[1] axis = {1}>
        { a = Identity(x) c = Cast<to = 1>(a) d = Slice(c, zero, far, axis) e = Concat<axis = 0>(d)
          f = Abs(e) part = Slice(f, zero, two, axis) y = Identity(f) }""")
    model = onnx.shape_inference.infer_shapes(model)
    # y is the graph's output: removing it would take the name away.
    for _ in range(3):
        remove_identities(model)
    assert kinds(model) == ["Abs", "Slice", "Identity"]
    assert model.graph.node[0].input[0] == "x"


def test_a_cast_to_another_type_stays() -> None:
    model = parse("g (float[b] x) => (int64[b] y) { c = Cast<to = 7>(x) y = Abs(c) }")
    assert kinds(remove_identities(onnx.shape_inference.infer_shapes(model))) == ["Cast", "Abs"]


def test_reshapes_become_static_unless_two_sizes_are_open() -> None:
    model = parse("""g (float[b, 6] x, float[b, l] z) => (float[b, 2, 3] y, float[l, b] w)
        <int64[2] tail = {2, 3}>
        { batch = Shape<start = 0, end = 1>(x) target = Concat<axis = 0>(batch, tail) y = Reshape(x, target)
          rows = Shape<start = 0, end = 1>(z) cols = Shape<start = 1, end = 2>(z)
          turned = Concat<axis = 0>(cols, rows) w = Reshape(z, turned) }""")
    make_reshapes_static(model)
    remove_dead(model)
    assert kinds(model) == ["Reshape", "Shape", "Shape", "Concat", "Reshape"]
    x, z = np.arange(12, dtype=np.float32).reshape(2, 6), np.zeros((2, 5), np.float32)
    np.testing.assert_array_equal(ReferenceEvaluator(model).run(["y"], {"x": x, "z": z})[0], x.reshape(2, 2, 3))


def test_reciprocal_becomes_division_unless_it_is_read_twice() -> None:
    once = parse("g (float[b] x) => (float[b] y) { s = Sqrt(x) r = Reciprocal(s) y = Mul(r, x) }")
    assert kinds(fold_reciprocal(once)) == ["Sqrt", "Div"]
    assert list(once.graph.node[1].input) == ["x", "s"]
    twice = parse("g (float[b] x) => (float[b] y) { r = Reciprocal(x) m = Mul(x, r) y = Add(m, r) }")
    assert kinds(fold_reciprocal(twice)) == ["Reciprocal", "Mul", "Add"]
    shown = parse("g (float[b] x) => (float[b] y, float[b] r) { s = Sqrt(x) r = Reciprocal(s) y = Mul(r, x) }")
    assert kinds(fold_reciprocal(shown)) == ["Sqrt", "Reciprocal", "Mul"], "the graph's output is a reader too"


def test_duplicates_are_merged_by_attributes_too() -> None:
    model = parse("""g (float[2, 2] x) => (float[2, 2] y)
        { a = Transpose<perm = [1, 0]>(x) c = Transpose<perm = [1, 0]>(x) d = Transpose<perm = [0, 1]>(x)
          s = Add(a, c) y = Add(s, d) }""")
    assert kinds(merge_duplicates(model)) == ["Transpose", "Transpose", "Add", "Add"]


def test_dead_nodes_and_weights_go_and_unread_inputs_stay() -> None:
    model = parse("""g (float[b] x, float[b] unread) => (float[b] y)
        <float[1] used = {1}, float[1] unused = {2}>
        { nothing = Exp(unread) y = Add(x, used) }""")
    assert kinds(remove_dead(model)) == ["Add"]
    assert [tensor.name for tensor in model.graph.initializer] == ["used"]
    assert len(model.graph.input) == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", r"coarse\.onnx is not a whole ONNX file: build the bundle again$"),
        ("gone", r"^cannot read .*coarse\.onnx: No such file or directory$"),
        ("beside", r"coarse\.onnx has data outside the file, which its hash does not cover: build the bundle again$"),
    ],
)
def test_a_file_that_is_no_whole_graph_is_one_line(files: dict[Stage, Path], damage: str, message: str) -> None:
    path = files["coarse"]
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "gone":
        path.unlink()
    else:
        onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    for load in (load_graph, load_split):
        with pytest.raises(BundleError, match=message):
            load(path)


def cycle(graph: onnx.GraphProto) -> None:
    graph.node[0].input[0] = graph.node[-1].output[0]


def unknown(graph: onnx.GraphProto) -> None:
    graph.node[0].op_type = "NoSuchOperator"


def missing(graph: onnx.GraphProto) -> None:
    del graph.initializer[:]


def untyped(graph: onnx.GraphProto) -> None:
    del graph.value_info[:]
    mixer = next(node for node in graph.node if node.op_type == "VimMixer")
    del mixer.input[4:]


@pytest.mark.parametrize("damage", [cycle, unknown, missing, untyped, None])
def test_a_graph_that_cannot_be_run_is_one_line(
    files: dict[Stage, Path], damage: Callable[[onnx.GraphProto], None] | None
) -> None:
    path = files["coarse"]
    model = load_graph(path)
    if damage is None:
        model.opset_import[0].version = 999
    else:
        damage(model.graph)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=r"coarse\.onnx.*: build the bundle again$"):
        load_split(path)
