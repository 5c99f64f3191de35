"""What variants are compared with: the model in PyTorch, or where that is not installed the bundle's fp32 graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from mscope.core.config import ModelConfig
from mscope.core.contract import Stage, graph_for
from mscope.runtime.backends.base import Arrays
from mscope.runtime.backends.ort import OrtRunner

if TYPE_CHECKING:
    from mscope.model.backbone import Backbone

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Regions:
    """Regions of n images: refined (n, K) and left coarse (n, Nc - K), in spatial order."""

    selected: Ints
    remaining: Ints


class Reference(Protocol):
    """One network on images (n, C, H, W) float32. Every output is float32."""

    name: Literal["pytorch", "fp32"]

    def first(self, images: Floats) -> Arrays:
        """The outputs of the coarse graph, or of the full one for plain ViM, by name."""

    def fine(self, images: Floats, coarse: Arrays, regions: Regions) -> Floats:
        """Logits of the fine stage, given `first`'s result and regions that the caller chose."""


class TorchReference:
    """PyTorch in float32 on the reference scan."""

    name: Literal["pytorch", "fp32"] = "pytorch"

    def __init__(self, model: Backbone) -> None:
        self._model: Any = model

    def first(self, images: Floats) -> Arrays:
        import torch

        from mscope.export.verify import reference_scan

        image = torch.from_numpy(images)
        with reference_scan():
            if self._model.config.arch == "vim":
                return {"logits": self._model.forward_full(image).numpy()}
            return {name: value.numpy() for name, value in self._model.coarse(image)._asdict().items()}

    def fine(self, images: Floats, coarse: Arrays, regions: Regions) -> Floats:
        import torch

        from mscope.export.verify import reference_scan

        arrays = (images, coarse["features"], coarse["embeddings"], regions.selected, regions.remaining)
        with reference_scan():
            logits: Floats = self._model.fine(*(torch.from_numpy(array) for array in arrays)).numpy()
        return logits


class GraphReference:
    """The bundle's fp32 ONNX files, on their function bodies; those were held to PyTorch when the bundle was built."""

    name: Literal["pytorch", "fp32"] = "fp32"

    def __init__(self, config: ModelConfig, files: Mapping[Stage, Path]) -> None:
        self._config = config
        self._files = files

    def first(self, images: Floats) -> Arrays:
        return self._run("full" if self._config.arch == "vim" else "coarse", {"image": images})

    def fine(self, images: Floats, coarse: Arrays, regions: Regions) -> Floats:
        handed_on = {name: coarse[name] for name in ("features", "embeddings")}
        feeds: Arrays = {"image": images, "selected": regions.selected, "remaining": regions.remaining, **handed_on}
        return self._run("fine", feeds)["logits"]

    def _run(self, stage: Stage, feeds: Arrays) -> Arrays:
        with OrtRunner(graph_for(self._config, stage), self._files[stage], threads=1, kernel="function") as runner:
            return runner.infer(feeds)
