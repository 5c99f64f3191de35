"""Each stage of the contract as a traceable module: thin wrappers round the same weights, not a second model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mscope.core.contract import BATCH, Graph, Stage
from mscope.model.backbone import Backbone
from mscope.model.mambascope import CoarseOutput, MambaScope

# torch.export specialises sizes 0 and 1, so the example batch is neither.
_EXAMPLE_BATCH = 2


class StageModule(nn.Module):
    """One stage of a network; `forward` takes and returns what mscope.core.contract says of it, in order.

    Parameters are traced as `model.<name>`; the passes cut that prefix off (mscope.export.passes.edit.PREFIX).
    """

    def __init__(self, model: Backbone) -> None:
        super().__init__()
        self.model = model


class CoarseStage(StageModule):
    """image -> logits, importance, features, embeddings."""

    def forward(self, image: Tensor) -> CoarseOutput:
        assert isinstance(self.model, MambaScope)
        return self.model.coarse(image)


class FineStage(StageModule):
    """image, features, embeddings, selected, remaining -> logits."""

    def forward(
        self, image: Tensor, features: Tensor, embeddings: Tensor, selected: Tensor, remaining: Tensor
    ) -> Tensor:
        assert isinstance(self.model, MambaScope)
        return self.model.fine(image, features, embeddings, selected, remaining)


class FullStage(StageModule):
    """image -> logits of plain ViM."""

    def forward(self, image: Tensor) -> Tensor:
        return self.model.forward_full(image)


_STAGES: dict[Stage, type[StageModule]] = {"coarse": CoarseStage, "fine": FineStage, "full": FullStage}


def stage_module(model: Backbone, stage: Stage) -> StageModule:
    """The module to trace for a stage, in evaluation mode; it shares the network's parameters."""
    module = _STAGES[stage](model)
    module.eval()
    return module


def example_inputs(graph: Graph) -> tuple[Tensor, ...]:
    """Tensors of the right shapes to trace with; indices are valid, values mean nothing."""
    inputs = []
    for tensor in graph.inputs:
        shape = [_EXAMPLE_BATCH if axis == BATCH else int(axis) for axis in tensor.axes]
        if tensor.dtype == "int64":
            inputs.append(torch.arange(shape[1]).expand(shape).contiguous())
        else:
            inputs.append(torch.zeros(shape))
    return tuple(inputs)
