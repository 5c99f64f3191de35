"""What can be told of an .onnx file without the onnx package, which a device that runs bundles need not have."""

from __future__ import annotations

import mmap
from pathlib import Path

from mscope.core.errors import BundleError

# Of each message of ONNX's protobuf the fields through which tensors are reached, and their messages.
_FIELDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check_self_contained(path: Path) -> None:
    """Raises BundleError where a tensor of an .onnx file has its data in another one, or it is no such file.

    ONNX Runtime would read the other file, which no hash of a manifest need cover.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            whole = not _has_external_data(content)
    except (IndexError, KeyError, ValueError):
        raise BundleError(f"{path} is not a whole ONNX file: build the bundle again") from None
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror or error}") from None
    if not whole:
        raise BundleError(f"{path} has data outside the file, which its hash does not cover: build the bundle again")


def _has_external_data(content: mmap.mmap) -> bool:
    # Weights are stepped over: thousands of fields, whatever the size.
    waiting = [("model", 0, len(content))]
    while waiting:
        message, at, end = waiting.pop()
        while at < end:
            key, at = _varint(content, at)
            field, wire = key >> 3, key & 7
            if message == "tensor" and field == _EXTERNAL_DATA:
                return True
            if wire == _VARINT:
                value, at = _varint(content, at)
                if message == "tensor" and field == _DATA_LOCATION and value:
                    return True
            elif wire == _BYTES:
                size, at = _varint(content, at)
                if field in _FIELDS[message]:
                    waiting.append((_FIELDS[message][field], at, at + size))
                at += size
            else:
                at += {_FIXED64: 8, _FIXED32: 4}[wire]
        if at > end:
            raise ValueError("a field is longer than what holds it")
    return False


def _varint(content: mmap.mmap, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and the place behind it."""
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than ten bytes")
