from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from mscope.core.errors import BundleError
from mscope.core.onnx_file import check_self_contained


def tensor(data_location: int = TensorProto.EXTERNAL) -> TensorProto:
    made = TensorProto(name="w", dims=[1], data_type=TensorProto.FLOAT, data_location=data_location)
    made.external_data.add(key="location", value="beside.bin")
    return made


def graph(**parts: object) -> onnx.GraphProto:
    return onnx.GraphProto(name="g", **parts)


def node(**value: object) -> onnx.NodeProto:
    return onnx.NodeProto(op_type="Constant", attribute=[onnx.AttributeProto(name="value", **value)])


def sparse(part: str) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(**{part: tensor()})


def function(**parts: object) -> list[onnx.FunctionProto]:
    return [onnx.FunctionProto(name="f", **parts)]


# Everywhere that ONNX has tensors.
HELD: list[Callable[[], onnx.ModelProto]] = [
    lambda: onnx.ModelProto(graph=graph(initializer=[tensor()])),
    lambda: onnx.ModelProto(graph=graph(sparse_initializer=[sparse("values")])),
    lambda: onnx.ModelProto(graph=graph(sparse_initializer=[sparse("indices")])),
    lambda: onnx.ModelProto(graph=graph(node=[node(t=tensor())])),
    lambda: onnx.ModelProto(graph=graph(node=[node(tensors=[tensor()])])),
    lambda: onnx.ModelProto(graph=graph(node=[node(sparse_tensor=sparse("values"))])),
    lambda: onnx.ModelProto(graph=graph(node=[node(sparse_tensors=[sparse("values")])])),
    lambda: onnx.ModelProto(graph=graph(node=[node(g=graph(initializer=[tensor()]))])),
    lambda: onnx.ModelProto(graph=graph(node=[node(graphs=[graph(node=[node(t=tensor())])])])),
    lambda: onnx.ModelProto(functions=function(node=[node(t=tensor())])),
    lambda: onnx.ModelProto(functions=function(attribute_proto=[onnx.AttributeProto(name="a", t=tensor())])),
    lambda: onnx.ModelProto(training_info=[onnx.TrainingInfoProto(initialization=graph(initializer=[tensor()]))]),
    lambda: onnx.ModelProto(training_info=[onnx.TrainingInfoProto(algorithm=graph(initializer=[tensor()]))]),
    lambda: onnx.ModelProto(graph=graph(initializer=[tensor(TensorProto.DEFAULT)])),
]


@pytest.mark.parametrize("held", HELD)
def test_data_outside_the_file_is_found_wherever_a_tensor_is(
    tmp_path: Path, held: Callable[[], onnx.ModelProto]
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(held().SerializeToString())
    with pytest.raises(BundleError, match=r"m\.onnx has data outside the file, which its hash does not cover"):
        check_self_contained(path)


def test_a_location_alone_is_enough(tmp_path: Path) -> None:
    made = tensor()
    made.ClearField("external_data")
    (tmp_path / "m.onnx").write_bytes(onnx.ModelProto(graph=graph(initializer=[made])).SerializeToString())
    with pytest.raises(BundleError, match="data outside the file"):
        check_self_contained(tmp_path / "m.onnx")


def whole() -> bytes:
    made = helper.make_tensor("w", TensorProto.DOUBLE, [2], [1.0, 2.0])
    scaled = helper.make_node("LeakyRelu", ["w"], ["y"], alpha=0.5)
    return onnx.ModelProto(ir_version=9, graph=graph(initializer=[made], node=[scaled])).SerializeToString()


def test_a_whole_file_passes(tmp_path: Path) -> None:
    for before in (b"", b"\x08" + b"\xff" * 9 + b"\x01"):  # -1 in ten bytes
        (tmp_path / "m.onnx").write_bytes(before + whole())
        check_self_contained(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "content",
    [b"", whole()[:-1], b"\xff" * 20, b"\x3b" + whole(), b"\x08" + b"\x80" * 10 + b"\x01" + whole()],
    ids=["empty", "cut", "long", "group", "number"],
)
def test_a_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"m\.onnx is not a whole ONNX file: build the bundle again$"):
        check_self_contained(tmp_path / "m.onnx")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"^cannot read .*m\.onnx: No such file or directory$"):
        check_self_contained(tmp_path / "m.onnx")
