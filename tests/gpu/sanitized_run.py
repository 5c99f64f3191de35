"""Every kernel, layout and path once, small; run under compute-sanitizer by test_sanitizers.py."""

import cuda_torch
from op_cases import ROUNDING, Case

CASES = (
    Case(50, channels=9),  # wide, one chunk
    Case(300, channels=5, rank=48),  # wide, chunks and the stash
    Case(33, channels=3, states=20, spare=3),  # states in turns, rows read element by element
    Case(20, channels=5, states=8, batch=2, width=3),  # small
    Case(40, channels=40, batch=40),  # dense
    Case(1030, channels=3, rank=4),  # segments
    Case(1030, channels=3, rank=4, states=8),
)

for dtype in ROUNDING:
    for case in CASES:
        cuda_torch.check_every_op(case, dtype)
print("all ops ran")
