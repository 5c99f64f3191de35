"""The loss of section 4.3, eq. 21."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class CascadeLoss(NamedTuple):
    """Scalars. `total` is what is minimised; the others are its parts before weighting."""

    total: Tensor
    fine: Tensor  # cross-entropy of the fine stage
    kl: Tensor  # distance of the coarse prediction from the fine one
    coarse: Tensor  # cross-entropy of the coarse stage


def kl_to_fine(coarse_logits: Tensor, fine_logits: Tensor) -> Tensor:
    """The KL term of eq. 21: how far the coarse prediction is from the fine one, which is the target.

    sum_c p_fine[c] (log p_fine[c] - log p_coarse[c]), averaged over the batch: the paper writes KL(coarse || fine) in
    the order (input, target) of torch's KLDivLoss, as CF-ViT does, from whose code this loss descends. The target is
    detached: the fine stage must not be pulled towards the coarse one.

    Args:
        coarse_logits: (B, classes).
        fine_logits: (B, classes).

    Returns:
        A scalar >= 0, zero only where both predict the same.
    """
    target = F.log_softmax(fine_logits.detach(), dim=-1)
    return F.kl_div(F.log_softmax(coarse_logits, dim=-1), target, reduction="batchmean", log_target=True)


def cascade_loss(
    coarse_logits: Tensor, fine_logits: Tensor, labels: Tensor, *, kl_weight: float = 1.0, coarse_weight: float = 0.0
) -> CascadeLoss:
    """CE(fine, label) + kl_weight * KL(coarse, fine) + coarse_weight * CE(coarse, label).

    The defaults are the paper's loss. The third term carries the coarse stage through the warm start: KL towards a
    fine stage that knows nothing yet would teach it the uniform distribution.

    Args:
        coarse_logits: (B, classes) of the coarse stage.
        fine_logits: (B, classes) of the fine stage, for every sample (eta = 1).
        labels: (B,) int64.
    """
    fine = F.cross_entropy(fine_logits, labels)
    kl = kl_to_fine(coarse_logits, fine_logits)
    coarse = F.cross_entropy(coarse_logits, labels)
    return CascadeLoss(fine + kl_weight * kl + coarse_weight * coarse, fine, kl, coarse)
