"""Rows of a batched table by index, in the one form of a gather that every engine has and runs fast."""

from __future__ import annotations

import torch
from torch import Tensor


def rows(table: Tensor, index: Tensor) -> Tensor:
    """table (B, n, F), index (B, k) or (1, k) int64 -> (B, k, F). A gather along one flattened axis."""
    batch, count, width = table.shape
    if index.shape[1] == 0:
        return table[:, :0]
    offsets = torch.arange(batch, device=index.device).unsqueeze(1) * count
    return table.reshape(-1, width).index_select(0, (index + offsets).reshape(-1)).reshape(-1, index.shape[1], width)


def largest(values: Tensor, count: int) -> Tensor:
    """Where the `count` largest of (B, n) are, the largest first, (B, count) int64; of equal ones the lower index.

    ONNX's TopK promises that order of equal values; torch.topk does not, so that eager code sorts.
    """
    if torch.compiler.is_exporting():
        return torch.topk(values, count, dim=1).indices
    return torch.sort(values, dim=1, descending=True, stable=True).indices[:, :count]


def ascending(values: Tensor) -> tuple[Tensor, Tensor]:
    """(B, n) distinct numbers in ascending order, and where each was."""
    ordered, places = torch.topk(values, values.shape[1], dim=1, largest=False)
    return ordered, places
