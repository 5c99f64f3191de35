"""Shapes that the ops for ONNX Runtime refuse, and what they say then, whichever provider they are for."""

from __future__ import annotations

from mscope.core.contract import OP_BIDIRECTIONAL_SCAN, OP_CONV, OP_MIXER, OP_SCAN

#: Op, input by its name in op_cases.Inputs, its shape where the others are those of Case(9), a pattern of the message.
WRONG_SHAPES = [
    (OP_CONV, "bias", (8,), r"bias has shape \(8,\), expected \(C\) = \(7,\)"),
    (OP_CONV, "weight_b", (7, 3), r"weight_b has shape \(7, 3\), expected \(C, W\) = \(7, 4\)"),
    (OP_CONV, "weight", (7, 5), r"weight has 5 taps, expected W from 2 to 4"),
    (OP_CONV, "weight", (7,), r"weight has shape \((7|\?),\), expected \(C, W\)"),
    (OP_CONV, "xz", (1, 9, 5), r"xz has shape \(1, 9, 5\), expected at least C = 7"),
    (OP_CONV, "xz", (9, 14), r"xz has shape \((9, 14|\?, \?)\), expected \(B, L, C \+ Cz\)"),
    (OP_CONV, "xz", (1, 0, 14), r"xz has no tokens, expected L of at least 1"),
    (OP_SCAN, "delta", (1, 9, 8), r"delta has shape \(1, 9, 8\), expected \(B, L, C\) = \(1, 9, 7\)"),
    (OP_SCAN, "B", (1, 9, 15), r"B has shape \(1, 9, 15\), expected \(B, L, N\) = \(1, 9, 16\).* N from A \(7, 16\)"),
    (OP_SCAN, "C", (2, 9, 16), r"C has shape \(2, 9, 16\), expected \(B, L, N\) = \(1, 9, 16\)"),
    (OP_SCAN, "A", (6, 16), r"(x|D) has shape \(.*7,?\), expected .*6,?\), with C and N from A \(6, 16\)"),
    (OP_SCAN, "D", (6,), r"D has shape \(6,\), expected \(C\) = \(7,\)"),
    (OP_SCAN, "z", (1, 8, 7), r"z has shape \(1, 8, 7\), expected \(B, L, C\) = \(1, 9, 7\)"),
    (OP_SCAN, "dt_bias", (1, 7), r"delta_bias has shape \((1, 7|\?, \?)\), expected \(C\) = \((7|\?),\)"),
    (OP_BIDIRECTIONAL_SCAN, "xz", (1, 9, 13), r"xz has shape \(1, 9, 13\), expected \(B, L, 2C\) = \(\?, \?, 14\)"),
    (OP_BIDIRECTIONAL_SCAN, "dbc", (2, 9, 45),
     r"dbc has shape \(2, 9, 45\), expected \(2, B L, R \+ 2N\) = \(2, 9, 44\).* R from dt_weight \(7, 12\)"),
    (OP_BIDIRECTIONAL_SCAN, "x_both", (2, 8, 7),
     r"x has shape \(2, 8, 7\), expected \(2, B L, C\) = \(2, 9, 7\).*, B and L from xz \(1, 9, 14\)"),
    (OP_BIDIRECTIONAL_SCAN, "x_both", (1, 9, 7), r"x has shape \(1, 9, 7\), expected .* \(2, (9|\?), 7\)"),
    (OP_BIDIRECTIONAL_SCAN, "dt_weight_b", (7, 11), r"dt_weight_b has shape \(7, 11\), expected .* = \(7, 12\)"),
    (OP_BIDIRECTIONAL_SCAN, "A_b", (7, 8), r"A_b has shape \(7, 8\), expected \(C, N\) = \(7, 16\)"),
    (OP_BIDIRECTIONAL_SCAN, "D", (8,), r"D has shape \(8,\), expected \(C\) = \(7,\)"),
    (OP_MIXER, "xz", (1, 9, 13),
     r"xz has shape \(1, 9, 13\), expected \(B, L, 2C\) = \(\?, \?, 14\).* C and N from A \(7, 16\)"),
    (OP_MIXER, "xz", (1, 0, 14), r"xz has no tokens, expected L of at least 1"),
    (OP_MIXER, "weight", (7, 5), r"weight has 5 taps, expected W from 2 to 4"),
    (OP_MIXER, "weight_b", (7, 3), r"weight_b has shape \(7, 3\), expected \(C, W\) = \(7, 4\)"),
    (OP_MIXER, "bias", (8,), r"bias has shape \(8,\), expected \(C\) = \(7,\)"),
    (OP_MIXER, "x_proj_weight", (2, 44, 7),
     r"x_proj_weight has shape \(2, 44, 7\), expected \(2, C, R \+ 2N\) = \(2, 7, 44\).* R from dt_weight \(7, 12\)"),
    (OP_MIXER, "dt_bias_b", (6,), r"dt_bias_b has shape \(6,\), expected \(C\) = \(7,\)"),
    (OP_MIXER, "A_b", (7, 8), r"A_b has shape \(7, 8\), expected \(C, N\) = \(7, 16\)"),
]  # fmt: skip
