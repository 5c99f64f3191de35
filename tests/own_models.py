"""Modules as other people write them, against mamba-ssm's functions; small, for tests/export and tests/model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mscope.model import mamba_ssm_interface as interface


def example() -> Any:
    """examples/own_module.py as a module: four groups, no gate."""
    path = Path(__file__).parents[1] / "examples" / "own_module.py"
    spec = importlib.util.spec_from_file_location("own_module", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["own_module"] = module
    spec.loader.exec_module(module)
    return module


class Block(nn.Module):
    """The parameters of one Mamba block, the names that every descendant gives them; 6 channels, 3 states, rank 2."""

    def __init__(self, channels: int = 6, d_state: int = 3, dt_rank: int = 2, d_model: int = 4) -> None:
        super().__init__()
        self.in_proj = nn.Linear(d_model, 2 * channels, bias=False)
        self.conv1d = nn.Conv1d(channels, channels, 4, groups=channels, padding=3)
        self.x_proj = nn.Linear(channels, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, channels)
        self.A_log = nn.Parameter(torch.rand(channels, d_state))
        self.D = nn.Parameter(torch.randn(channels))
        self.out_proj = nn.Linear(channels, d_model)

    def inner(self) -> tuple[Tensor | None, ...]:
        """The arguments of mamba-ssm's inner functions up to A, less xz and out_proj's."""
        return self.conv1d.weight, self.conv1d.bias, self.x_proj.weight, self.dt_proj.weight

    def A(self) -> Tensor:
        """(C, N), negative."""
        return -torch.exp(self.A_log.float())


class Mamba(Block):
    """(B, L, 4) to (B, L, 4) by `mamba_inner_fn`: a gated scan with a bias."""

    def forward(self, tokens: Tensor) -> Tensor:
        xz = self.in_proj(tokens).transpose(1, 2)
        return interface.mamba_inner_fn(
            xz, *self.inner(), self.out_proj.weight, self.out_proj.bias, self.A(), None, None, self.D.float(),
            delta_bias=self.dt_proj.bias.float(), delta_softplus=True,
        )  # fmt: skip


class Words(nn.Module):
    """(B, L) int64 to (B, L, 11) and the last token's features: two outputs, an embedding, two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.blocks = nn.ModuleList(Mamba() for _ in range(2))
        self.drop = nn.Dropout(0.5)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = x + block(x)
        return self.drop(x) @ self.embedding.weight.T, x[:, -1]


class Windows(nn.Module):
    """(1, 4, 8) to (1, 4, 8): takes its batch for a number, as MambaVision's windows do, and has no gate."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        x = x.reshape(int(x.shape[0]), 4, 8)
        x, rest = block.in_proj(x.transpose(1, 2)).transpose(1, 2).chunk(2, dim=1)
        dt, B, C = torch.split(block.x_proj(F.silu(x).transpose(1, 2)), [2, 3, 3], dim=-1)
        y = interface.selective_scan_fn(
            x, (dt @ block.dt_proj.weight.T).transpose(1, 2), block.A(), B.transpose(1, 2), C.transpose(1, 2), block.D,
            z=None, delta_bias=block.dt_proj.bias, delta_softplus=True, return_last_state=None,
        )  # fmt: skip
        return block.out_proj((y * rest).transpose(1, 2)).transpose(1, 2)
