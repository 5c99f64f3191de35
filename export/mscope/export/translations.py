"""How torch's nodes become ONNX nodes where the exporter's own way does not do: our ops, plain gathers, softplus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mscope.core.contract import OP_BIDIRECTIONAL_SCAN, OP_CONV, OP_DOMAIN, OP_MIXER, OP_SCAN, OP_VERSION

# Inputs and outputs of the ops as docs/ops.md names them; `?` marks an optional one.
OP_INPUTS: dict[str, tuple[str, ...]] = {
    OP_CONV: ("xz", "weight", "bias", "weight_b?", "bias_b?"),
    OP_SCAN: ("x", "delta", "A", "B", "C", "D", "z?", "delta_bias?"),
    OP_BIDIRECTIONAL_SCAN: (
        "xz", "x", "dbc", "dt_weight", "dt_bias", "A", "D", "dt_weight_b", "dt_bias_b", "A_b", "D_b",
    ),
    OP_MIXER: (
        "xz", "weight", "bias", "weight_b", "bias_b", "x_proj_weight",
        "dt_weight", "dt_bias", "A", "D", "dt_weight_b", "dt_bias_b", "A_b", "D_b",
    ),
}  # fmt: skip
OP_OUTPUTS: dict[str, tuple[str, ...]] = {
    OP_CONV: ("x",),
    OP_SCAN: ("y",),
    OP_BIDIRECTIONAL_SCAN: ("y",),
    OP_MIXER: ("y",),
}


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """`custom_translation_table` of torch.onnx.export: torch operator -> function that emits ONNX nodes."""
    import torch
    from onnxscript import opset18

    from mscope.model import torch_ops  # noqa: F401 - registers torch.ops.mambascope

    conv, scan, bidirectional = (_onnxscript_op(name) for name in (OP_CONV, OP_SCAN, OP_BIDIRECTIONAL_SCAN))

    def causal_conv1d_silu(xz: Any, weight: Any, bias: Any, weight_b: Any, bias_b: Any) -> Any:
        return conv(xz, weight, bias, weight_b, bias_b)

    def bidirectional_selective_scan(
        xz: Any, x: Any, dbc: Any, dt_weight: Any, dt_bias: Any, A: Any, D: Any,
        dt_weight_b: Any, dt_bias_b: Any, A_b: Any, D_b: Any,
    ) -> Any:  # fmt: skip
        return bidirectional(xz, x, dbc, dt_weight, dt_bias, A, D, dt_weight_b, dt_bias_b, A_b, D_b)

    def selective_scan(
        x: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any, delta_bias: Any, reverse: bool,
        delta_softplus: bool,
    ) -> Any:  # fmt: skip
        return scan(x, delta, A, B, C, D, z, delta_bias, reverse=int(reverse), delta_softplus=int(delta_softplus))

    def index_select(table: Any, dim: int, index: Any) -> Any:
        return opset18.Gather(table, index, axis=dim)

    def softplus(value: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
        # The exporter's own adds PyTorch's switch to the identity above the threshold: six nodes for less than 1e-8.
        # Operator and kernels compute it without overflow.
        assert beta == 1.0
        return opset18.Softplus(value)

    def arange(end: Any, **others: Any) -> Any:
        # The exporter's own casts through floats: its types are not settled when it runs.
        zero, one = (opset18.Constant(value_int=value) for value in (0, 1))
        return opset18.Range(zero, end, one)

    return {
        torch.ops.mambascope.causal_conv1d_silu.default: causal_conv1d_silu,
        torch.ops.mambascope.bidirectional_selective_scan.default: bidirectional_selective_scan,
        torch.ops.mambascope.selective_scan.default: selective_scan,
        torch.ops.aten.index_select.default: index_select,
        torch.ops.aten.softplus.default: softplus,
        torch.ops.aten.arange.default: arange,
    }


def _onnxscript_op(name: str) -> Callable[..., Any]:
    import onnxscript
    from onnx.defs import OpSchema

    def parameter(text: str) -> Any:
        options = OpSchema.FormalParameterOption
        option = options.Optional if text.endswith("?") else options.Single
        return OpSchema.FormalParameter(text.rstrip("?"), "T", param_option=option)

    # The schema is the exporter's alone, not registered with onnx: shapes are inferred through the function bodies.
    schema = OpSchema(
        name,
        OP_DOMAIN,
        OP_VERSION,
        inputs=[parameter(text) for text in OP_INPUTS[name]],
        outputs=[parameter(text) for text in OP_OUTPUTS[name]],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")],
        attributes=[
            OpSchema.Attribute(key, OpSchema.AttrType.INT, "", required=False) for key in _ATTRIBUTES.get(name, ())
        ],
    )
    op: Callable[..., Any] = onnxscript.values.Op(onnxscript.values.Opset(OP_DOMAIN, OP_VERSION), name, schema)
    return op


_ATTRIBUTES = {OP_SCAN: ("reverse", "delta_softplus")}
