"""Hidden-state alignment: tokens that follow a pruned one find the state as decayed as if it had been there.

A pruned token gives the state nothing, but time passes over it: between two kept tokens with k pruned ones

    h_t = exp((delta_t + k i) A) h_{t-1} + delta_t B_t x_t ,

where i is the step of one pruned token. `repeat`: i = delta_t, it decays the state as the kept token after it does.
`zero`: i is what the block's own dt_proj gives a token of zeros among zeros. The recurrence has one step for decay and
input, which the op `SelectiveScan` takes as it is: with the step d = delta_t + k i and the input scaled by delta_t / d
it computes exactly this. For `repeat` that ratio is 1 / (1 + k), a number a token, and scales B; else it scales x.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mscope.model import scan
from mscope.model.sequence import Gaps
from mscope.model.softplus import softplus

if TYPE_CHECKING:
    from mscope.model.mixer import Mixer

# Added to a gap and to an idle step, so that 0 / 0 cannot be where delta underflows; their product passes no time.
_NO_TIME = 1e-15


def aligned_scan(
    mixer: Mixer, xz: Tensor, x_forward: Tensor, x_backward: Tensor, dbc_forward: Tensor, dbc_backward: Tensor,
    gaps: Gaps,
) -> Tensor:  # fmt: skip
    """As scan.bidirectional_selective_scan, past gaps: the mean of both directions, gated by SiLU(z), (B, L, C)."""
    z = xz[..., x_forward.shape[-1] :]
    A, A_b = -torch.exp(mixer.A_log), -torch.exp(mixer.A_b_log)
    if mixer.alignment == "repeat":
        forward = _repeated(x_forward, dbc_forward, mixer.dt_proj, A, mixer.D, z, gaps.before, reverse=False)
        backward = _repeated(x_backward, dbc_backward, mixer.dt_proj_b, A_b, mixer.D_b, z, gaps.after, reverse=True)
        return (forward + backward) / 2
    idle = idle_step(mixer.conv1d, mixer.x_proj, mixer.dt_proj)
    idle_b = idle_step(mixer.conv1d_b, mixer.x_proj_b, mixer.dt_proj_b)
    forward = _idled(x_forward, dbc_forward, mixer.dt_proj, A, z, gaps.before, idle, reverse=False)
    backward = _idled(x_backward, dbc_backward, mixer.dt_proj_b, A_b, z, gaps.after, idle_b, reverse=True)
    skip = mixer.D * x_forward + mixer.D_b * x_backward
    return (forward + backward + skip * F.silu(z)) / 2


def idle_step(conv: nn.Conv1d, x_proj: nn.Linear, dt_proj: nn.Linear) -> Tensor:
    """(C,): delta of a token of zeros with zeros before it, which SiLU(conv) makes SiLU of its bias."""
    assert conv.bias is not None
    dt = F.linear(F.silu(conv.bias), x_proj.weight[: dt_proj.in_features])
    return softplus(F.linear(dt, dt_proj.weight, dt_proj.bias))


def _repeated(
    x: Tensor, dbc: Tensor, dt_proj: nn.Linear, A: Tensor, D: Tensor, z: Tensor, gap: Tensor, *, reverse: bool
) -> Tensor:
    delta, B, C = _step_inputs(dbc, dt_proj, A)
    steps = 1 + gap
    return _scan(x, delta * steps, A, B / steps, C, D, z, reverse)


def _idled(
    x: Tensor, dbc: Tensor, dt_proj: nn.Linear, A: Tensor, z: Tensor, gap: Tensor, idle: Tensor, *, reverse: bool
) -> Tensor:
    """Without the skip, which belongs to x and not to the scaled one."""
    delta, B, C = _step_inputs(dbc, dt_proj, A)
    decay = delta + (gap + _NO_TIME) * (idle + _NO_TIME)
    return _scan(x * (delta / decay), decay, A, B, C, torch.zeros_like(idle), z, reverse)


def _step_inputs(dbc: Tensor, dt_proj: nn.Linear, A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dt, B, C = scan.split_dbc(dbc, dt_proj.in_features, A.shape[1])
    return softplus(dt_proj(dt)), B, C


def _scan(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, reverse: bool) -> Tensor:
    # A bias of zeros: TensorRT's parser takes a function body only where every input of the node is there.
    bias = torch.zeros_like(D)
    if torch.compiler.is_exporting():
        from mscope.model import torch_ops

        return torch_ops.selective_scan(x, delta, A, B, C, D, z, bias, reverse, False)
    return scan.selective_scan(x, delta, A, B, C, D, z, bias, reverse=reverse, delta_softplus=False)
