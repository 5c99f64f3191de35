"""AdamW with weight decay where it belongs (4.3)."""

from __future__ import annotations

import torch
from torch import nn

# Beside one-dimensional parameters (biases, norms, D): the scan's dynamics, and embeddings.
_NO_DECAY = ("A_log", "A_b_log", "D", "D_b", "cls_token", "pos_embed", "pos_embed_coarse")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter takes weight decay: matrices do; A_log, D, norms, biases and embeddings do not."""
    return parameter.dim() > 1 and name.rsplit(".", 1)[-1] not in _NO_DECAY


def adamw(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over two groups, decayed and not. The learning rate is set before every step by the schedule."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[decays(name, parameter)].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.999),
        fused=True,
    )
