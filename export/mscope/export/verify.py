"""Parity: what the written graphs compute against what the PyTorch model computes, at the precision of float32.

The truth is the network in float64. How far PyTorch's own float32 run strays from it says how far a correct float32
graph may stray: an order of operations is as good as another, so the tolerance is a multiple of that distance.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mscope.core.cascade import select_regions
from mscope.core.contract import Stage, graph_for
from mscope.core.errors import ParityError
from mscope.core.geometry import coarse_grid, regions_refined
from mscope.core.manifest import Parity
from mscope.export.agreement import compare_exits, compare_selected
from mscope.export.probes import probe_images
from mscope.model import scan
from mscope.model.backbone import Backbone
from mscope.model.mambascope import MambaScope
from mscope.plugins import find
from mscope.runtime.backends.base import Kernel
from mscope.runtime.backends.ort import OrtRunner

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

IMAGES = 6
# Batches that the images are given to the graphs in; the sum is IMAGES.
_BATCHES = (1, 2, 3)
# Times PyTorch's own float32 distance from float64; docs/export.md has the ratios met.
_FACTOR = 10.0
# Relative to the largest value: a few roundings, for networks so small that PyTorch makes hardly any error.
_FLOOR = 2e-6
# Likewise: beyond it float32 itself is unusable, and no agreement would say anything.
_CEILING = 1e-3


@dataclass(frozen=True)
class _Cascade:
    """What the two graphs computed for the probe images, every image refined, and which regions they refined."""

    logits: Array
    coarse_logits: Array
    importance: Array
    selected: Ints
    remaining: Ints


class _Reference:
    """Both stages by PyTorch, in the dtype of the network; the fine one for regions that the caller chose."""

    def __init__(self, model: MambaScope, images: Floats) -> None:
        self._model = model
        self._image = torch.from_numpy(images).to(model.cls_token.dtype)
        with reference_scan():
            self._coarse = model.coarse(self._image)
        self.coarse_logits: Array = self._coarse.logits.double().numpy()
        self.importance: Array = self._coarse.importance.double().numpy()
        self._fine: dict[bytes, Array] = {}

    def logits(self, selected: Ints, remaining: Ints) -> Array:
        """The fine stage's."""
        key = selected.tobytes()
        if key not in self._fine:
            regions = torch.from_numpy(selected), torch.from_numpy(remaining)
            with reference_scan():
                logits = self._model.fine(self._image, self._coarse.features, self._coarse.embeddings, *regions)
            self._fine[key] = logits.double().numpy()
        return self._fine[key]


def kernels_here() -> tuple[Kernel, ...]:
    """What the graphs are run on: the function bodies in the file, and the native kernels where they are built."""
    return ("function",) if find.library("ort") is None else ("function", "native")


def check_parity(
    model: Backbone, files: Mapping[Stage, Path], etas: tuple[float, ...] = (), temperature: float = 1.0
) -> Parity:
    """Runs the graphs in `files` and the model on the probe images and compares; the worst of all kernels counts.

    Args:
        model: the network that the graphs were exported from, float32.
        files: one ONNX file for each stage of its architecture.
        etas: thresholds at which exit decisions are compared, besides one between any two confidences.
        temperature: what the coarse logits are divided by for the confidence.

    Raises:
        ParityError: a graph is further from the model than float32 explains, or refines or accepts other images.
    """
    images = probe_images(model.config, IMAGES)
    if isinstance(model, MambaScope):
        return _check_cascade(model, files, images, etas, temperature)
    return _check_full(model, files, images)


def _check_full(model: Backbone, files: Mapping[Stage, Path], images: Floats) -> Parity:
    with reference_scan():
        single = model.forward_full(torch.from_numpy(images)).double().numpy()
        exact = copy.deepcopy(model).double().forward_full(torch.from_numpy(images).double()).numpy()
    tolerance = tolerance_of(single, exact)
    errors = []
    for kernel in kernels_here():
        with OrtRunner(graph_for(model.config, "full"), files["full"], threads=1, kernel=kernel) as runner:
            actual = np.concatenate([runner.infer({"image": part})["logits"] for part in _parts(images)])
        try:
            errors.append(_compare("logits", kernel, actual, exact, tolerance))
        except ParityError as error:
            if not model.config.reductions:
                raise
            raise ParityError(
                f"{error}; or float32 ranks two tokens otherwise that nearly tie: another --seed or --keep tells"
            ) from None
    return Parity(images=IMAGES, logits_max_abs=max(errors), tolerance=tolerance)


def _check_cascade(
    model: MambaScope, files: Mapping[Stage, Path], images: Floats, etas: tuple[float, ...], temperature: float
) -> Parity:
    single, exact = _Reference(model, images), _Reference(copy.deepcopy(model).double(), images)
    coarse_tolerance = tolerance_of(single.coarse_logits, exact.coarse_logits)
    importance_tolerance = tolerance_of(single.importance, exact.importance)
    rows = []
    for kernel in kernels_here():
        got = _run_graphs(model, files, images, kernel)
        coarse = _compare("coarse logits", kernel, got.coarse_logits, exact.coarse_logits, coarse_tolerance)
        importance = _compare("importance", kernel, got.importance, exact.importance, importance_tolerance)
        same_regions = compare_selected(got.selected, exact.importance, importance_tolerance)
        same_exits = compare_exits(
            got.coarse_logits / temperature, exact.coarse_logits / temperature, etas, coarse_tolerance / temperature
        )
        expected = exact.logits(got.selected, got.remaining)
        tolerance = tolerance_of(single.logits(got.selected, got.remaining), expected)
        fine = _compare("logits", kernel, got.logits, expected, tolerance)
        rows.append((fine, coarse, importance, -same_regions, -same_exits, tolerance))
    worst = [max(column) for column in zip(*rows, strict=True)]
    return Parity(
        images=IMAGES,
        logits_max_abs=worst[0],
        coarse_logits_max_abs=worst[1],
        importance_max_abs=worst[2],
        selected_agreement=-worst[3],
        exit_agreement=-worst[4],
        tolerance=worst[5],
    )


@contextlib.contextmanager
def reference_scan() -> Iterator[None]:
    """PyTorch on its reference scan, on one thread: split in two, the loop's small steps took four times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with scan.implementation("reference"), torch.no_grad():
            yield
    finally:
        torch.set_num_threads(threads)


def _parts(images: Floats) -> list[Floats]:
    assert sum(_BATCHES) == len(images)
    return np.split(images, np.cumsum(_BATCHES)[:-1])


def _run_graphs(model: MambaScope, files: Mapping[Stage, Path], images: Floats, kernel: Kernel) -> _Cascade:
    """Both graphs chained as the runtime chains them."""
    count = regions_refined(model.config.alpha, coarse_grid(model.config).count)
    coarse_graph, fine_graph = (graph_for(model.config, stage) for stage in ("coarse", "fine"))
    rows = []
    with (
        # The function bodies are thousands of small steps, which a second thread does not speed up.
        OrtRunner(coarse_graph, files["coarse"], threads=1, kernel=kernel) as coarse,
        OrtRunner(fine_graph, files["fine"], threads=1, kernel=kernel) as fine,
    ):
        for part in _parts(images):
            first = coarse.infer({"image": part})
            selected, remaining = select_regions(first["importance"], count)
            handed_on = {name: first[name] for name in ("features", "embeddings")}
            second = fine.infer({"image": part, "selected": selected, "remaining": remaining, **handed_on})
            rows.append((second["logits"], first["logits"], first["importance"], selected, remaining))
    return _Cascade(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def tolerance_of(single: Array, exact: Array) -> float:
    """How far a float32 graph may be from `exact`, the float64 result, given PyTorch's own float32 one."""
    scale = float(np.abs(exact).max())
    own = float(np.abs(single - exact).max())
    return min(max(_FACTOR * own, _FLOOR * scale), _CEILING * scale)


def _compare(name: str, kernel: Kernel, actual: npt.NDArray[Any], exact: Array, tolerance: float) -> float:
    error = float(np.abs(actual - exact).max())
    if not error <= tolerance:  # also when it is NaN
        raise ParityError(
            f"the exported graph is not the model: {name} differ by {error:.2g} on the {kernel} kernels, "
            f"float32 explains {tolerance:.2g}"
        )
    return error
