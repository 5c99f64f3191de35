"""Which nodes of a graph compute in the low type, and which inputs and nodes stay float32, each with its reason."""

from __future__ import annotations

import onnx
from onnx import TensorProto

from mscope.core.contract import OP_BIDIRECTIONAL_SCAN, OP_CONV, OP_DOMAIN, OP_SCAN
from mscope.core.errors import InputError
from mscope.export.translations import OP_INPUTS

TYPED: dict[str, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
FLOATS = frozenset({TensorProto.FLOAT, *TYPED.values()})
# The largest finite value of each type.
LARGEST: dict[str, float] = {"fp16": 65504.0, "bf16": 3.3895313892515355e38}

# The products: what tensor cores are for, and nearly all of the time.
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"})
# Nodes that move values and compute nothing: they keep the type of what they move.
MOVERS = frozenset({"Reshape", "Transpose", "Slice", "Split", "Gather", "Squeeze", "Unsqueeze", "Concat", "Identity"})
# Inputs of the ops that docs/ops.md marks f32.
FLOAT32_INPUTS: dict[str, frozenset[str]] = {
    OP_CONV: frozenset(),
    OP_SCAN: frozenset({"A", "D", "delta_bias"}),
    OP_BIDIRECTIONAL_SCAN: frozenset({"dt_bias", "A", "D", "dt_bias_b", "A_b", "D_b"}),
}


def element_type(precision: str) -> int:
    """The ONNX element type of a typed precision. Raises InputError for one that is not made by typing alone."""
    if precision not in TYPED:
        raise InputError(f"{precision} is not a typed precision: choose one of {', '.join(TYPED)}")
    return TYPED[precision]


def computes_low(node: onnx.NodeProto) -> bool:
    """Whether a node computes in the low type: every product and every op, the head too.

    A float32 head would spare the logits one rounding, no larger than the noise they carry by then, and would cost
    what can run at all: TensorRT-RTX has no float32 products for sm_75.
    """
    return node.domain == OP_DOMAIN or (not node.domain and node.op_type in PRODUCTS)


def stays_float32(node: onnx.NodeProto, position: int) -> bool:
    """Whether an input of an op is float32 whatever the op's type is."""
    if node.domain != OP_DOMAIN:
        return False
    return OP_INPUTS[node.op_type][position].rstrip("?") in FLOAT32_INPUTS[node.op_type]
