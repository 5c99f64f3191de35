"""`VimMixer` instead of the two ops and the product of a block, and back: the one for CPUs, the other for all else.

The file of a stage holds VimMixer, which ONNX Runtime runs as one kernel on a CPU. Where a graph is read node by node,
to be typed, quantised, counted or handed to TensorRT, whose GEMMs run x_proj, it is taken apart first. Both ways are
exact: a graph that was joined and split is what it was.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from mscope.core.contract import OP_BIDIRECTIONAL_SCAN, OP_CONV, OP_DOMAIN, OP_MIXER
from mscope.core.errors import BundleError
from mscope.core.onnx_file import check_self_contained
from mscope.core.text import readable
from mscope.export.passes.edit import producers, replace_uses, use_counts, value_types
from mscope.export.translations import OP_INPUTS, OP_OUTPUTS

_CONV_INPUTS = len(OP_INPUTS[OP_CONV])
_PRODUCT = "x_proj"


def join_mixers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Puts VimMixer in the place of every CausalConv1dSiLU, MatMul and BidirectionalSelectiveScan of one block.

    Only where nothing else reads what passes between them, and they are named as mscope.export.passes.names names them.
    The functions in the file are left to the caller.
    """
    graph = model.graph
    made, uses = producers(graph), use_counts(graph)
    types = value_types(graph)
    joined: dict[str, onnx.NodeProto] = {}
    renamed: dict[str, str] = {}
    gone: set[str] = set()
    for scan in graph.node:
        parts = _parts(scan, made, uses)
        if parts is None:
            continue
        conv, product = parts
        path = scan.name.removesuffix(OP_BIDIRECTIONAL_SCAN)
        inputs = [*conv.input, product.input[1], *scan.input[3:]]
        mixer = onnx.helper.make_node(
            OP_MIXER, inputs, [_output(path, OP_MIXER)], name=f"{path}{OP_MIXER}", domain=OP_DOMAIN
        )
        renamed[scan.output[0]] = mixer.output[0]
        joined[scan.output[0]] = mixer
        gone |= {conv.output[0], product.output[0]}
    nodes = [joined.get(node.output[0], node) for node in graph.node if node.output[0] not in gone]
    _rewire(graph, nodes, renamed, gone)
    for old, new in renamed.items():
        if old in types:
            graph.value_info.append(_info(new, types[old]))
    return model


def split_mixers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Undoes `join_mixers`, functions included: VimMixer's body goes, those of the ops in it stay."""
    graph = model.graph
    types = value_types(graph)
    nodes: list[onnx.NodeProto] = []
    renamed: dict[str, str] = {}
    for mixer in graph.node:
        if (mixer.domain, mixer.op_type) != (OP_DOMAIN, OP_MIXER):
            nodes.append(mixer)
            continue
        path = mixer.name.removesuffix(OP_MIXER)
        xz, x_proj = mixer.input[0], mixer.input[_CONV_INPUTS]
        x, dbc, y = _output(path, OP_CONV), f"{path}{_PRODUCT}", _output(path, OP_BIDIRECTIONAL_SCAN)
        conv = onnx.helper.make_node(
            OP_CONV, mixer.input[:_CONV_INPUTS], [x], name=f"{path}{OP_CONV}", domain=OP_DOMAIN
        )
        product = onnx.helper.make_node("MatMul", [x, x_proj], [dbc], name=f"{path}{_PRODUCT}")
        inputs = [xz, x, dbc, *mixer.input[_CONV_INPUTS + 1 :]]
        scan = onnx.helper.make_node(
            OP_BIDIRECTIONAL_SCAN, inputs, [y], name=f"{path}{OP_BIDIRECTIONAL_SCAN}", domain=OP_DOMAIN
        )
        nodes += [conv, product, scan]
        renamed[mixer.output[0]] = y
        old = types.get(mixer.output[0])
        if old is not None:
            matrix = types[x_proj].shape.dim
            graph.value_info.extend([_info(x, _both(old, matrix[1])), _info(dbc, _both(old, matrix[2])), _info(y, old)])
    _rewire(graph, nodes, renamed, set())
    kept = [function for function in model.functions if function.name != OP_MIXER]
    del model.functions[:]
    model.functions.extend(kept)
    return model


def load_split(path: Path) -> onnx.ModelProto:
    """The graph of a bundle's file with the mixers taken apart. Raises BundleError as `load_graph` does."""
    model = load_graph(path)
    try:
        return split_mixers(model)
    except (IndexError, KeyError, ValueError):
        raise BundleError(f"{path}: a {OP_MIXER} in it is not of this program: build the bundle again") from None


def load_graph(path: Path) -> onnx.ModelProto:
    """The graph of a bundle's file as it is.

    Raises:
        BundleError: it is no ONNX file, has data outside the file, or its graph cannot be run: a cycle, an unknown
            operator or opset, a value that nothing makes, types or shapes that do not fit together.
    """
    check_self_contained(path)
    try:
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # protobuf and ONNX have no base in common
        reason = readable(" ".join(str(error).split())[:200])
        raise BundleError(f"{path} does not hold a graph that can be run ({reason}): build the bundle again") from None
    return model


def _parts(
    scan: onnx.NodeProto, made: dict[str, onnx.NodeProto], uses: dict[str, int]
) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """The convolution and the product of a scan's block; None where these three are not one mixer."""
    if (scan.domain, scan.op_type) != (OP_DOMAIN, OP_BIDIRECTIONAL_SCAN):
        return None
    path = scan.name.removesuffix(OP_BIDIRECTIONAL_SCAN)
    xz, x, dbc = scan.input[:3]
    conv, product = made.get(x), made.get(dbc)
    if conv is None or product is None:
        return None
    whole = (
        (conv.domain, conv.op_type, product.domain, product.op_type) == (OP_DOMAIN, OP_CONV, "", "MatMul")
        and len(conv.input) == _CONV_INPUTS
        and all(conv.input)
        and (conv.input[0], product.input[0]) == (xz, x)
        and (uses[x], uses[dbc]) == (2, 1)
        and (conv.name, product.name) == (f"{path}{OP_CONV}", f"{path}{_PRODUCT}")
    )
    return (conv, product) if whole else None


def _output(path: str, op: str) -> str:
    return f"{path}{op}:{OP_OUTPUTS[op][0]}"


def _rewire(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], renamed: dict[str, str], gone: set[str]) -> None:
    """Makes `nodes` the graph's, with values renamed, and forgets the shapes of those that are no more."""
    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del graph.node[:]
    graph.node.extend(copies)
    replace_uses(graph, renamed)
    known = [info for info in graph.value_info if info.name not in gone | set(renamed)]
    del graph.value_info[:]
    graph.value_info.extend(known)
    for output in graph.output:
        assert output.name not in renamed, "the interface names its tensors itself"


def _info(name: str, kind: onnx.TypeProto.Tensor) -> onnx.ValueInfoProto:
    info = onnx.ValueInfoProto(name=name)
    info.type.tensor_type.CopyFrom(kind)
    return info


def _both(y: onnx.TypeProto.Tensor, columns: onnx.TensorShapeProto.Dimension) -> onnx.TypeProto.Tensor:
    """(2, B L, columns) for y of (B, L, C)."""
    batch, tokens, _ = y.shape.dim
    kind = onnx.TypeProto.Tensor(elem_type=y.elem_type)
    kind.shape.dim.add().dim_value = 2
    rows = kind.shape.dim.add()
    if batch.HasField("dim_value") and tokens.HasField("dim_value"):
        rows.dim_value = batch.dim_value * tokens.dim_value
    else:
        rows.dim_param = f"{tokens.dim_value or tokens.dim_param}*{batch.dim_value or batch.dim_param}"
    kind.shape.dim.add().CopyFrom(columns)
    return kind
