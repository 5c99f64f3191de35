"""The ops as ONNX functions of standard operators, so that any engine runs an exported file without native kernels.

The bodies are ONNX's text format. Choices, with figures in docs/export.md: the recurrence is the standard `Scan`
operator, both directions in one, its directions given by attributes; inside it the state is (B, N, C), channels
innermost, 1.7 times as fast as (B, C, N); sequences are turned to (L, B, C) first, because ONNX Runtime's Scan over
another axis than the first kills the process when the batch is empty; softplus is spelled out, which ONNX Runtime runs
faster than its own Softplus; the convolution is four shifted multiply-adds.
"""

from __future__ import annotations

import re

import onnx
import onnx.parser

from mscope.core.contract import OP_BIDIRECTIONAL_SCAN, OP_CONV, OP_DOMAIN, OP_MIXER, OP_SCAN, OP_VERSION, OPSET
from mscope.core.errors import MscopeError
from mscope.export.translations import OP_INPUTS, OP_OUTPUTS

_HEADER = f'<opset_import: ["" : {OPSET}], domain: "{OP_DOMAIN}">'
# Of a body that uses ops itself.
_NESTED_HEADER = f'<opset_import: ["" : {OPSET}, "{OP_DOMAIN}" : {OP_VERSION}], domain: "{OP_DOMAIN}">'
_MAX_TAPS = 4


def attach_functions(model: onnx.ModelProto) -> None:
    """Puts the body of every op that `model` uses into it, replacing what was there.

    `del model.functions[:]` takes them out again, for an engine that has kernels and must not see the bodies.
    """
    del model.functions[:]
    for node in model.graph.node:
        while node.domain == OP_DOMAIN and not node.input[-1]:
            node.input.pop()
    model.functions.extend(functions_for(model.graph))


def functions_for(graph: onnx.GraphProto) -> list[onnx.FunctionProto]:
    """One function for each op used in `graph`, in the order of first use, and after it those that its body uses."""
    forms: dict[str, tuple[bool, ...]] = {}
    for node in graph.node:
        if node.domain == OP_DOMAIN:
            form = _form(node)
            if forms.setdefault(node.op_type, form) != form:
                raise MscopeError(f"{node.op_type} is used with different optional inputs: one body cannot serve both")
    if OP_MIXER in forms:
        for name, form in ((OP_CONV, (True, True)), (OP_BIDIRECTIONAL_SCAN, ())):
            if forms.setdefault(name, form) != form:
                raise MscopeError(f"{name} is used by {OP_MIXER} and in another form: one body cannot serve both")
    return [_function(name, form) for name, form in forms.items()]


def _form(node: onnx.NodeProto) -> tuple[bool, ...]:
    """Which of a node's optional inputs are there."""
    given = [*node.input, *[""] * len(OP_INPUTS[node.op_type])]
    return tuple(bool(given[i]) for i, name in enumerate(OP_INPUTS[node.op_type]) if name.endswith("?"))


def _function(name: str, form: tuple[bool, ...]) -> onnx.FunctionProto:
    if name == OP_CONV:
        return conv_function(bidirectional=form[0])
    if name == OP_SCAN:
        return scan_function(gated=form[0], biased=form[1])
    if name == OP_MIXER:
        return mixer_function()
    return bidirectional_scan_function()


def _parse(
    name: str, body: str, attributes: str = "", header: str = _HEADER, *, given: int | None = None
) -> onnx.FunctionProto:
    """`given`: how many inputs a node has, where its last ones are left out; TensorRT wants as many here as there."""
    inputs = ", ".join(text.rstrip("?") for text in OP_INPUTS[name][:given])
    results = ", ".join(OP_OUTPUTS[name])
    body = re.sub(r"value_ints = \[([^\]]*)\]", _as_tensor, body)
    function = onnx.parser.parse_function(f"{header} {name} {attributes} ({inputs}) => ({results}) {{ {body} }}")
    for number, node in enumerate(function.node):
        # An engine that inlines the body keeps its nodes' names: what a profiler reports can be told apart.
        node.name = f"{name}/{node.op_type}_{number}"
    return function


def _as_tensor(ints: re.Match[str]) -> str:
    """A list of integers: ONNX Runtime 1.17 takes one for a number where it infers shapes through a body in a body."""
    return f"value = int64[{ints[1].count(',') + 1}] {{{ints[1]}}}"


def conv_function(*, bidirectional: bool = True) -> onnx.FunctionProto:
    """`CausalConv1dSiLU`; `bidirectional` with the second pair of taps. Any width up to 4: narrower taps are padded."""
    offsets = range(2 * _MAX_TAPS - 1 if bidirectional else _MAX_TAPS)
    # Row t + j of `padded` is x at t + j - 3: j = 0..3 are the causal taps, 3..6 the anti-causal ones.
    windows = "".join(
        f"start{j} = Constant<value_ints = [{j}]>() end{j} = Add(start{j}, length) "
        f"window{j} = Slice(padded, start{j}, end{j}, one1) "
        for j in offsets
    )
    body = f"""
        zero = Constant<value_float = 0.0>()
        zero1 = Constant<value_ints = [0]>()
        one1 = Constant<value_ints = [1]>()
        taps1 = Constant<value_ints = [{_MAX_TAPS}]>()
        last = Constant<value_ints = [-1]>()
        channels = Shape<start = 0, end = 1>(weight)
        width = Shape<start = 1, end = 2>(weight)
        length = Shape<start = 1, end = 2>(xz)
        x_any = Slice(xz, zero1, channels, last)
        x32 = Cast<to = 1>(x_any)
        around = Constant<value_ints = [0, {_MAX_TAPS - 1}, 0, 0, {_MAX_TAPS - 1 if bidirectional else 0}, 0]>()
        padded = Pad(x32, around, zero)
        missing = Sub(taps1, width)
        before = Concat<axis = 0>(zero1, missing, zero1, zero1)
        {windows}
        {_taps("", "weight", "bias", range(_MAX_TAPS))}
    """
    if bidirectional:
        body += _taps("_b", "weight_b", "bias_b", range(2 * _MAX_TAPS - 2, _MAX_TAPS - 2, -1))
    body += f"""
        batch = Shape<start = 0, end = 1>(xz)
        directions = Constant<value_ints = [{2 if bidirectional else 1}]>()
        rows = Mul(batch, length)
        shape = Concat<axis = 0>(directions, rows, channels)
        stacked = {"Concat<axis = 0>(silu, silu_b)" if bidirectional else "Identity(silu)"}
        flat = Reshape<allowzero = 1>(stacked, shape)
        x = CastLike(flat, xz)
    """
    return _parse(OP_CONV, body, given=None if bidirectional else 3)


def _taps(suffix: str, weight: str, bias: str, windows: range) -> str:
    """SiLU(sum_j taps[j] * windows[j] + bias), in float32: silu, or silu_b."""
    s, first, *rest = suffix, *windows
    sums = "".join(
        f"product{j}{s} = Mul(window{j}, tap{j}{s}) sum{j}{s} = Add(sum{i}{s}, product{j}{s}) "
        for i, j in zip(windows, rest, strict=False)
    )
    return f"""
        weight32{s} = Cast<to = 1>({weight})
        bias32{s} = Cast<to = 1>({bias})
        wide{s} = Pad(weight32{s}, before, zero)
        taps{s} = Transpose<perm = [1, 0]>(wide{s})
        {", ".join(f"tap{j}{s}" for j in windows)} = Split<axis = 0, num_outputs = {_MAX_TAPS}>(taps{s})
        sum{first}{s} = Mul(window{first}, tap{first}{s})
        {sums}
        biased{s} = Add(sum{windows[-1]}{s}, bias32{s})
        sigmoid{s} = Sigmoid(biased{s})
        silu{s} = Mul(biased{s}, sigmoid{s})
    """


def _softplus(v: str, output: str, suffix: str) -> str:
    """max(v, 0) + log1p(e), e = exp(-|v|); log1p(e) = log(u) * e / (u - 1) with u = 1 + e as rounded (Kahan)."""
    s = suffix
    return f"""
        magnitude{s} = Abs({v})
        exponent{s} = Neg(magnitude{s})
        e{s} = Exp(exponent{s})
        u{s} = Add(e{s}, one)
        log_u{s} = Log(u{s})
        rounded_e{s} = Sub(u{s}, one)
        scaled{s} = Mul(log_u{s}, e{s})
        quotient{s} = Div(scaled{s}, rounded_e{s})
        vanishing{s} = Equal(u{s}, one)
        log1p{s} = Where(vanishing{s}, e{s}, quotient{s})
        positive{s} = Max({v}, zero)
        {output} = Add(positive{s}, log1p{s})
    """


def _scan_inputs(suffix: str, delta: str) -> str:
    """What one direction's Scan takes, each with a unit axis for broadcasting: delta, delta * x, B and C."""
    s = suffix
    return f"""
        dx{s} = Mul({delta}, x_major{s})
        delta4{s} = Unsqueeze({delta}, axis2)
        dx4{s} = Unsqueeze(dx{s}, axis2)
        B4{s} = Unsqueeze(B_major{s}, axis3)
        C4{s} = Unsqueeze(C_major{s}, axis2)
        rows_A{s} = Transpose<perm = [1, 0]>(A{s})
    """


def _step_inputs(suffix: str) -> str:
    s = suffix
    return f"float[b, 1, c] d_t{s}, float[b, 1, c] dx_t{s}, float[b, n, 1] B_t{s}, float[b, 1, n] C_t{s}"


def _step(suffix: str) -> str:
    """h_next = exp(d * A) * h + dx * B ; y = C . h_next."""
    s = suffix
    return f"""
        dA_t{s} = Mul(d_t{s}, rows_A{s})
        decay_t{s} = Exp(dA_t{s})
        kept_t{s} = Mul(decay_t{s}, h{s})
        taken_t{s} = Mul(dx_t{s}, B_t{s})
        h_next{s} = Add(kept_t{s}, taken_t{s})
        y_t{s} = MatMul(C_t{s}, h_next{s})
    """


_CONSTANTS = """
    zero = Constant<value_float = 0.0>()
    one = Constant<value_float = 1.0>()
    half = Constant<value_float = 0.5>()
    last = Constant<value_ints = [-1]>()
    axis2 = Constant<value_ints = [2]>()
    axis3 = Constant<value_ints = [3]>()
    channels = Shape<start = 0, end = 1>(A)
    states = Shape<start = 1, end = 2>(A)
"""


def bidirectional_scan_function() -> onnx.FunctionProto:
    """`BidirectionalSelectiveScan`: one Scan with two states, the backward sequences read and written in reverse."""
    directions = "".join(
        f"""
        dbc_major{s} = Squeeze(dbc_major1{s}, axis0)
        dt{s}, B_major{s}, C_major{s} = Split<axis = -1>(dbc_major{s}, parts)
        dt_weight32{s} = Cast<to = 1>(dt_weight{s})
        dt_rows{s} = Transpose<perm = [1, 0]>(dt_weight32{s})
        product{s} = MatMul(dt{s}, dt_rows{s})
        v{s} = Add(product{s}, dt_bias{s})
        x_major{s} = Squeeze(x_major1{s}, axis0)
        {_softplus(f"v{s}", f"delta{s}", s)}
        {_scan_inputs(s, f"delta{s}")}
        """
        for s in ("", "_b")
    )

    def majors(name: str, columns: str) -> str:
        return f"""
        {name}32 = Cast<to = 1>({name})
        {name}_shape = Concat<axis = 0>(two, batch, length, {columns})
        {name}_4 = Reshape<allowzero = 1>({name}32, {name}_shape)
        {name}_both = Transpose<perm = [0, 2, 1, 3]>({name}_4)
        {name}_major1, {name}_major1_b = Split<axis = 0, num_outputs = 2>({name}_both)
        """

    body = f"""
        {_CONSTANTS}
        rank = Shape<start = 1, end = 2>(dt_weight)
        parts = Concat<axis = 0>(rank, states, states)
        axis0 = Constant<value_ints = [0]>()
        two = Constant<value_ints = [2]>()
        batch = Shape<start = 0, end = 1>(xz)
        length = Shape<start = 1, end = 2>(xz)
        columns = Shape<start = 2, end = 3>(dbc)
        {majors("x", "channels")}
        {majors("dbc", "columns")}
        {directions}
        state_shape = Concat<axis = 0>(batch, states, channels)
        start = ConstantOfShape(state_shape)
        end, end_b, ys4, ys4_b = Scan<num_scan_inputs = 8,
            scan_input_directions = [0, 0, 0, 0, 1, 1, 1, 1], scan_output_directions = [0, 1],
            body = step (float[b, n, c] h, float[b, n, c] h_b, {_step_inputs("")}, {_step_inputs("_b")})
                => (float[b, n, c] h_next, float[b, n, c] h_next_b, float[b, 1, c] y_t, float[b, 1, c] y_t_b)
            {{ {_step("")} {_step("_b")} }}
        >(start, start, delta4, dx4, B4, C4, delta4_b, dx4_b, B4_b, C4_b)
        ys = Squeeze(ys4, axis2)
        ys_b = Squeeze(ys4_b, axis2)
        skip = Mul(D, x_major)
        skip_b = Mul(D_b, x_major_b)
        whole = Add(ys, skip)
        whole_b = Add(ys_b, skip_b)
        sum = Add(whole, whole_b)
        both = Transpose<perm = [1, 0, 2]>(sum)
        width = Shape<start = 2, end = 3>(xz)
        z = Slice(xz, channels, width, last)
        z32 = Cast<to = 1>(z)
        sigmoid = Sigmoid(z32)
        gate = Mul(z32, sigmoid)
        half_gate = Mul(gate, half)
        gated = Mul(both, half_gate)
        y = CastLike(gated, xz)
    """
    return _parse(OP_BIDIRECTIONAL_SCAN, body)


def mixer_function() -> onnx.FunctionProto:
    """`VimMixer`: the two ops of a block with x_proj of both directions between them."""
    conv = ", ".join(OP_INPUTS[OP_CONV]).replace("?", "")
    scan = ", ".join(OP_INPUTS[OP_BIDIRECTIONAL_SCAN])
    body = f"""
        x = {OP_DOMAIN}.{OP_CONV}({conv})
        dbc = MatMul(x, x_proj_weight)
        y = {OP_DOMAIN}.{OP_BIDIRECTIONAL_SCAN}({scan})
    """
    function = _parse(OP_MIXER, body, header=_NESTED_HEADER)
    function.node[1].name = f"{OP_MIXER}/x_proj"
    return function


def scan_function(*, gated: bool, biased: bool) -> onnx.FunctionProto:
    """`SelectiveScan` with the gate z or without, with delta_bias or without."""

    def branch(reverse: int) -> str:
        # Scan's directions are attributes of a kind that a function's own attribute cannot be passed on to.
        return f"""branch{reverse} () => (float[l, b, 1, c] ys4_{reverse}) {{
            end_{reverse}, ys4_{reverse} = Scan<num_scan_inputs = 4,
                scan_input_directions = [{reverse}, {reverse}, {reverse}, {reverse}],
                scan_output_directions = [{reverse}],
                body = step (float[b, n, c] h, {_step_inputs("")}) => (float[b, n, c] h_next, float[b, 1, c] y_t)
                {{ {_step("")} }}
            >(start, delta4, dx4, B4, C4)
        }}"""

    gate = "result = Identity(whole)"
    if gated:
        gate = "z32 = Cast<to = 1>(z) sigmoid = Sigmoid(z32) gate = Mul(z32, sigmoid) result = Mul(whole, gate)"
    majors = "".join(
        f"{name}32 = Cast<to = 1>({name}) {name}_major = Transpose<perm = [1, 0, 2]>({name}32) "
        for name in ("x", "delta", "B", "C")
    )
    body = f"""
        {_CONSTANTS}
        {majors}
        v = {"Add(delta_major, delta_bias)" if biased else "Identity(delta_major)"}
        {_softplus("v", "positive_delta", "")}
        softplus_flag = Constant<value_int: int = @delta_softplus>()
        with_softplus = Cast<to = 9>(softplus_flag)
        d = Where(with_softplus, positive_delta, v)
        {_scan_inputs("", "d")}
        batch = Shape<start = 0, end = 1>(x)
        state_shape = Concat<axis = 0>(batch, states, channels)
        start = ConstantOfShape(state_shape)
        reverse_flag = Constant<value_int: int = @reverse>()
        backward = Cast<to = 9>(reverse_flag)
        ys4 = If(backward) <then_branch = {branch(1)}, else_branch = {branch(0)}>
        ys = Squeeze(ys4, axis2)
        skip = Mul(D, x_major)
        sum = Add(ys, skip)
        whole = Transpose<perm = [1, 0, 2]>(sum)
        {gate}
        y = CastLike(result, x)
    """
    given = len(OP_INPUTS[OP_SCAN]) if biased else 7 if gated else 6
    return _parse(OP_SCAN, body, "<reverse: int = 0, delta_softplus: int = 1>", given=given)
