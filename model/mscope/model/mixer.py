"""The Vim block: RMSNorm on an fp32 residual stream, and the bidirectional ("v2") Mamba mixer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mscope.core.config import ModelConfig
from mscope.model import scan
from mscope.model.alignment import aligned_scan
from mscope.model.sequence import Gaps

NORM_EPS = 1e-5
# Range of the initial delta, as in Mamba.
_DELTA_MIN, _DELTA_MAX, _DELTA_FLOOR = 1e-3, 1e-1, 1e-4


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-5) * weight over the last axis, computed in at least float32."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + NORM_EPS)
        return (wide * scale).to(self.weight.dtype) * self.weight


class DirectionsLinear(nn.Linear):
    """x_proj of both directions as one product, y_d = x_d W_d^T: its own weight, and the backward direction's."""

    def forward(self, x: Tensor, weight_b: Tensor) -> Tensor:  # type: ignore[override]
        """x: (2, M, in), weight_b: (out, in), as `weight`; (2, M, out)."""
        return torch.bmm(x, torch.stack([self.weight, weight_b]).mT)


class Mixer(nn.Module):
    """Bidirectional selective state-space mixer; parameter names are those of Vim's checkpoints."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d_model, d_inner, d_state, dt_rank = config.d_model, config.d_inner, config.d_state, config.dt_rank
        self.alignment = config.prune_alignment
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, config.d_conv, groups=d_inner, padding=config.d_conv - 1)
        self.x_proj = DirectionsLinear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.empty(d_inner, d_state))
        self.D = nn.Parameter(torch.empty(d_inner))
        self.conv1d_b = nn.Conv1d(d_inner, d_inner, config.d_conv, groups=d_inner, padding=config.d_conv - 1)
        self.x_proj_b = nn.Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj_b = nn.Linear(dt_rank, d_inner)
        self.A_b_log = nn.Parameter(torch.empty(d_inner, d_state))
        self.D_b = nn.Parameter(torch.empty(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def initialise(self, depth: int, *, backward_delta: bool) -> None:
        """Draws the parameters as Vim does for a network of `depth` blocks.

        Vim re-initialises dt_proj_b.bias to zero, so that the backward scan starts with a memory of one or two tokens.
        `backward_delta` draws it like the forward one instead, which training from scratch needs.
        """
        with torch.no_grad():
            for A_log, D in ((self.A_log, self.D), (self.A_b_log, self.D_b)):
                A_log.copy_(torch.log(torch.arange(1, A_log.shape[1] + 1, dtype=torch.float32)).expand_as(A_log))
                D.fill_(1.0)
            for layer, drawn in ((self.dt_proj, True), (self.dt_proj_b, backward_delta)):
                bound = layer.in_features**-0.5
                nn.init.uniform_(layer.weight, -bound, bound)
                if drawn:
                    span = math.log(_DELTA_MAX) - math.log(_DELTA_MIN)
                    delta = torch.exp(torch.rand_like(layer.bias) * span + math.log(_DELTA_MIN)).clamp_min(_DELTA_FLOOR)
                    layer.bias.copy_(delta + torch.log(-torch.expm1(-delta)))  # the inverse of softplus
                else:
                    nn.init.zeros_(layer.bias)
            # The GPT-2 rule: residual branches start smaller the more of them are summed.
            self.out_proj.reset_parameters()  # drawn anew: a second initialise() must not divide twice
            self.out_proj.weight.div_(math.sqrt(depth))

    def forward(self, u: Tensor, *, score_before_gate: bool = False, gaps: Gaps | None = None) -> tuple[Tensor, Tensor]:
        """(B, L, d_model) -> out (B, L, d_model), and Y (B, L, d_inner): the scan's output that importance scores.

        Y is what enters out_proj, or with `score_before_gate` the same before the gate SiLU(z).
        With `gaps` the scan passes over pruned tokens (mscope.model.alignment); then Y is gated.
        """
        xz = self.in_proj(u)
        x = scan.bidirectional_conv1d_silu(xz, *_taps(self.conv1d), *_taps(self.conv1d_b))
        dbc = self.x_proj(x, self.x_proj_b.weight)
        if gaps is not None:
            (x_forward, x_backward), (dbc_forward, dbc_backward) = (scan.directions_of(t, xz) for t in (x, dbc))
            y = aligned_scan(self, xz, x_forward, x_backward, dbc_forward, dbc_backward, gaps)
            return self.out_proj(y), y
        A, A_b = -torch.exp(self.A_log), -torch.exp(self.A_b_log)
        if score_before_gate:
            (x_forward, x_backward), (dbc_forward, dbc_backward) = (scan.directions_of(t, xz) for t in (x, dbc))
            forward = scan.direction(x_forward, dbc_forward, self.dt_proj.weight, self.dt_proj.bias, A, self.D, None)
            backward = scan.direction(
                x_backward, dbc_backward, self.dt_proj_b.weight, self.dt_proj_b.bias, A_b, self.D_b, None, reverse=True
            )
            scored = (forward + backward) / 2
            y = scored * F.silu(xz[..., scored.shape[-1] :])
        else:
            y = scored = scan.bidirectional_selective_scan(
                xz, x, dbc,
                self.dt_proj.weight, self.dt_proj.bias, A, self.D,
                self.dt_proj_b.weight, self.dt_proj_b.bias, A_b, self.D_b,
            )  # fmt: skip
        return self.out_proj(y), scored


def _taps(conv: nn.Conv1d) -> tuple[Tensor, Tensor]:
    """Weight (C, W) and bias (C,) of a depthwise convolution."""
    assert conv.bias is not None
    return conv.weight.squeeze(1), conv.bias


class Block(nn.Module):
    """residual += hidden (fp32); hidden = mixer(RMSNorm(residual))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.d_model)
        self.mixer = Mixer(config)
