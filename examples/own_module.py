"""Exports a module of one's own: a block that scans a picture's patches row by row and column by column, both ways.

Written against mamba-ssm's interface, as VMamba is; mamba-ssm itself need not be installed.

    python examples/own_module.py cross_scan.onnx
"""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mscope.export.any_module import ModuleFile, export_module
from mscope.model.mamba_ssm_interface import selective_scan_fn


class CrossScan(nn.Module):
    """(B, 3, 32, 32) to (B, classes): patches of 4 x 4, one scan in each of four orders, their mean, a head."""

    def __init__(self, channels: int = 24, d_state: int = 8, dt_rank: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.sizes = (dt_rank, d_state, d_state)
        self.patches = nn.Conv2d(3, channels, 4, stride=4)
        self.x_proj = nn.Parameter(torch.randn(4, dt_rank + 2 * d_state, channels) / channels**0.5)
        self.dt_proj = nn.Parameter(torch.randn(4, channels, dt_rank) / dt_rank**0.5)
        self.dt_bias = nn.Parameter(torch.zeros(4 * channels))
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(4 * channels, 1))
        self.D = nn.Parameter(torch.ones(4 * channels))
        self.head = nn.Linear(channels, classes)

    def forward(self, image: Tensor) -> Tensor:
        grid = self.patches(image)
        rows, columns = grid.flatten(2), grid.transpose(2, 3).flatten(2)
        orders = torch.stack([rows, columns, rows.flip(2), columns.flip(2)], dim=1)
        dt, B, C = torch.split(torch.einsum("bkcl,kdc->bkdl", orders, self.x_proj), self.sizes, dim=2)
        delta = torch.einsum("bkrl,kcr->bkcl", dt, self.dt_proj)
        # Four groups of channels, one an order: each has B and C of its own.
        y = selective_scan_fn(
            orders.flatten(1, 2), delta.flatten(1, 2), -self.A_log.exp(), B, C, self.D,
            delta_bias=self.dt_bias, delta_softplus=True,
        )  # fmt: skip
        ahead, across, back, up = y.unflatten(1, (4, -1)).unbind(1)
        by_row, by_column = ahead + back.flip(2), across + up.flip(2)
        merged = by_row + by_column.unflatten(2, grid.shape[2:]).transpose(2, 3).flatten(2)
        answer: Tensor = self.head(F.silu(merged / 4).mean(2))
        return answer


def main(out: str) -> list[ModuleFile]:
    torch.manual_seed(0)
    files = export_module(
        CrossScan(), [torch.randn(2, 3, 32, 32)], out, input_names=["image"], output_names=["logits"], fp16=True
    )
    for file in files:
        print(file.describe())
    return files


if __name__ == "__main__":
    main(sys.argv[1])
