"""Scope: a loaded bundle that looks at pictures as closely as each needs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from mscope.core.bundle import latest_bundle, load_manifest
from mscope.core.cascade import check_eta, confidence, exits_early, select_regions, softmax
from mscope.core.contract import Stage, graphs
from mscope.core.errors import InputError
from mscope.core.geometry import coarse_grid, regions_refined
from mscope.core.manifest import Manifest, Precision
from mscope.runtime.backends.base import KERNELS, Kernel, Runner
from mscope.runtime.backends.registry import AUTO, RunnerOptions, choose_backend, choose_variants
from mscope.runtime.preprocess import Prepared, Preprocessor, check_finite, check_tensor
from mscope.runtime.result import Floats, Guess, Outcome, Result, StageName

_MAX_THREADS = 1024


class Scope:
    """A bundle ready to run. Make one with `Scope.load`; a context manager.

    Calls keep no state between them; the arrays that they return are new and belong to the caller, those given are
    neither kept nor modified.

    Attributes:
        manifest: the bundle's manifest.
        config: the network's configuration.
        backend: the backend's name, such as "ort-cpu".
        kernel: what runs the custom ops: "native" or "function" (the file's own standard operators).
        precision: of the files that run: "fp32", "fp16", "bf16", "int8" or "fp8".
        preprocess: turns one picture into the tensor that `run` takes.
    """

    def __init__(self, manifest: Manifest, backend: str, runners: dict[Stage, Runner], precision: Precision) -> None:
        self.manifest = manifest
        self.config = manifest.config
        self.backend = backend
        self.precision = precision
        self.preprocess = Preprocessor(manifest.preprocessing, manifest.config)
        self._runners = runners
        kernels = {runner.kernel for runner in runners.values()}
        self.kernel = "native" if kernels == {"native"} else "function"

    @classmethod
    def load(
        cls,
        bundle: str | Path | None = None,
        backend: str = "auto",
        threads: int | None = None,
        kernel: Kernel = "auto",
        precision: str = AUTO,
    ) -> Self:
        """Opens a bundle: checks every file's hash, opens its graphs and checks their interface.

        Args:
            bundle: its folder; None takes the one built last.
            backend: "auto" or a name of the registry. What is asked for is what runs, or an error.
            threads: threads of an operator, 1 or more; None leaves it to the backend (one for each physical core).
            kernel: "native" insists on the native kernels of the custom ops, "function" leaves them out, "auto" takes
                them where they are.
            precision: of the files to run; "auto" takes the first of the backend's own order that the bundle has for
                every stage. What is asked for is what runs, or an error.

        Raises:
            BundleError: no bundle, damaged, changed, or of a newer schema.
            BackendError: the backend, kernel or precision is not to be had here, or cannot open the graphs.
            InputError: an unknown backend, kernel or precision, or fewer than one thread.
        """
        if threads is not None and not 1 <= threads <= _MAX_THREADS:
            raise InputError(f"threads are between 1 and {_MAX_THREADS}, got {threads}")
        if kernel not in KERNELS:
            raise InputError(f"unknown kernel '{kernel}': choose one of {', '.join(KERNELS)}")
        folder = latest_bundle() if bundle is None else Path(bundle)
        manifest = load_manifest(folder)
        entry = choose_backend(backend)
        chosen, variants = choose_variants(manifest, entry, precision)
        options = RunnerOptions(threads=threads, kernel=kernel)
        runners: dict[Stage, Runner] = {}
        try:
            for graph in graphs(manifest.config):
                runner = entry.runner(graph, folder / variants[graph.stage].file, options)
                runner.activate()
                runners[graph.stage] = runner
            return cls(manifest, entry.name, runners, chosen)
        except BaseException:
            for runner in runners.values():
                runner.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Releases the graphs; further calls do nothing."""
        for runner in self._runners.values():
            runner.close()

    def __call__(self, image: Any, eta: float | None = None, topk: int = 5, source: str | None = None) -> Result:
        """The answer for one image.

        Args:
            image: whatever `Preprocessor` takes: a path, a PIL image, a uint8 picture (H, W[, 3 or 4]) or a normalised
                float32 tensor (C, H, W).
            eta: confidence in [0, 1] from which the coarse answer is accepted. Raised, fewer images exit early: 0 takes
                the coarse answer of all, 1 refines all but the perfectly sure. None takes the bundle's default.
            topk: how many classes to list, at most all.
            source: the image's name in the result and in errors.

        Raises:
            InputError: an unusable image, eta outside [0, 1] or given for a plain ViM, topk below 1.
        """
        return self.batch([image], eta=eta, topk=topk, sources=None if source is None else [source])[0]

    def batch(
        self, images: Sequence[Any], eta: float | None = None, topk: int = 5, sources: Sequence[str] | None = None
    ) -> list[Result]:
        """The answers for several images, run as one batch; those that do not exit make a smaller fine batch.

        Arguments as in a call for one image; the results are in the order of `images`. One bad image raises InputError.
        """
        self._check_eta(eta)
        names = _names(images) if sources is None else list(sources)
        prepared, times = [], []
        for image, name in zip(images, names, strict=True):
            start = time.perf_counter()
            prepared.append(self.preprocess(image, name))
            times.append((time.perf_counter() - start) * 1e3)
        return self.results(self.run(self.stack(prepared), eta), names, times, eta=eta, topk=topk)

    def stack(self, prepared: Sequence[Prepared]) -> Floats:
        """The tensors of prepared pictures as one batch (B, C, H, W) float32; B may be 0."""
        if not prepared:
            return np.zeros((0, *self._shape), np.float32)
        return np.stack([picture.tensor for picture in prepared])

    def run(self, tensor: npt.NDArray[np.float32], eta: float | None = None) -> Outcome:
        """The cascade over a batch of prepared images.

        Args:
            tensor: (B, C, H, W) float32, normalised; B may be 0. Not modified.
            eta: as in a call for one image.

        Raises:
            InputError: wrong dtype or shape, NaN or infinity, eta outside [0, 1] or given for a plain ViM.
            BackendError: the backend failed or gave NaN.
        """
        eta = self._check_eta(eta)
        if tensor.ndim != 4:
            raise InputError(f"tensor: got shape {tensor.shape}, expected {('B', *self._shape)}")
        check_tensor(tensor, self._shape, "tensor", or_batch=True)
        for row, image in enumerate(tensor):
            check_finite(image, f"tensor, image {row}")
        image = np.ascontiguousarray(tensor)
        if eta is None:
            return self._run_full(image)
        return self._run_cascade(image, eta)

    def results(
        self,
        outcome: Outcome,
        sources: Sequence[str],
        preprocess_ms: Sequence[float],
        *,
        eta: float | None = None,
        topk: int = 5,
    ) -> list[Result]:
        """An `Outcome` of `run` as one Result an image, given each image's name and preprocessing time."""
        if topk < 1:
            raise InputError(f"topk is 1 or more, got {topk}")
        eta = self._check_eta(eta)
        final = softmax(outcome.logits)
        coarse = None if outcome.coarse_logits is None else softmax(outcome.coarse_logits)
        answers = []
        for row, stage in enumerate(outcome.stages):
            latency = {"preprocess": preprocess_ms[row]} | outcome.image_ms(row)
            selected = outcome.selected[row].tolist() if outcome.selected is not None and stage == "fine" else None
            sure = None if outcome.coarse_confidence is None else float(outcome.coarse_confidence[row])
            answers.append(
                Result(
                    source=sources[row],
                    stage=stage,
                    confidence=float(outcome.confidence[row]),
                    coarse_confidence=sure,
                    eta=eta,
                    topk=self._guesses(final[row], topk),
                    coarse_answer=None if coarse is None else self._guesses(coarse[row], 1)[0],
                    gmacs=self._sum_over_stages(stage, "gmacs"),
                    tokens=int(self._sum_over_stages(stage, "tokens")),
                    selected=None if selected is None else tuple(selected),
                    importance=None if outcome.importance is None else outcome.importance[row].copy(),
                    latency_ms=latency | {"total": sum(latency.values())},
                    backend=self.backend,
                    kernel=self.kernel,
                    precision=self.precision,
                    untrained=not self.manifest.weights.trained,
                )
            )
        return answers

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.config.channels, self.config.height, self.config.width

    def _check_eta(self, eta: float | None) -> float | None:
        """The threshold in use; None for a plain ViM, which has no early exit."""
        if self.config.arch == "vim":
            if eta is not None:
                raise InputError("eta has no meaning for a plain ViM bundle, which has no early exit: leave it out")
            return None
        return self.manifest.default_eta if eta is None else check_eta(eta)

    def _guesses(self, probabilities: Floats, count: int) -> tuple[Guess, ...]:
        labels = self.manifest.labels
        best = np.argsort(-probabilities, kind="stable")[:count]
        return tuple(Guess(int(i), labels[i] if labels else f"class {i}", float(probabilities[i])) for i in best)

    def _sum_over_stages(self, stage: StageName, field: str) -> float:
        passed: tuple[Stage, ...] = ("coarse", "fine") if stage == "fine" else (stage,)
        return float(sum(getattr(self.manifest.stages[name], field) for name in passed))

    def _infer(self, stage: Stage, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        runner = self._runners[stage]
        if len(feeds["image"]):
            return runner.infer(feeds)
        # Not every engine takes an empty batch.
        return {
            tensor.name: np.zeros((0, *(int(axis) for axis in tensor.axes[1:])), tensor.dtype)
            for tensor in runner.graph.outputs
        }

    def _run_full(self, image: Floats) -> Outcome:
        start = time.perf_counter()
        logits = self._infer("full", {"image": image})["logits"]
        elapsed = (time.perf_counter() - start) * 1e3
        stages: list[StageName] = ["full"] * len(image)
        return Outcome(logits, confidence(logits), tuple(stages), None, None, None, None, {"full": elapsed})

    def _run_cascade(self, image: Floats, eta: float) -> Outcome:
        started = time.perf_counter()
        coarse = self._infer("coarse", {"image": image})
        coarse_done = time.perf_counter()

        coarse_logits, importance = coarse["logits"], coarse["importance"]
        coarse_confidence = confidence(coarse_logits)
        refined = np.flatnonzero(~exits_early(coarse_confidence, eta))
        count = regions_refined(self.config.alpha, coarse_grid(self.config).count)
        selected = np.full((len(image), count), -1, np.int64)
        logits, final_confidence = coarse_logits.copy(), coarse_confidence.copy()
        feeds: dict[str, npt.NDArray[Any]] = {}
        if refined.size:
            chosen, remaining = select_regions(importance[refined], count)
            selected[refined] = chosen
            compact = {"image": image, "features": coarse["features"], "embeddings": coarse["embeddings"]}
            if refined.size < len(image):
                compact = {name: array[refined] for name, array in compact.items()}
            feeds = {**compact, "selected": chosen, "remaining": remaining}
        selection_done = time.perf_counter()

        if refined.size:
            fine_logits = self._infer("fine", feeds)["logits"]
            logits[refined] = fine_logits
            final_confidence[refined] = confidence(fine_logits)
        done = time.perf_counter()
        stages: list[StageName] = ["coarse"] * len(image)
        for row in refined:
            stages[row] = "fine"
        return Outcome(
            logits=logits,
            confidence=final_confidence,
            stages=tuple(stages),
            coarse_logits=coarse_logits,
            coarse_confidence=coarse_confidence,
            importance=importance,
            selected=selected,
            stage_ms={
                "coarse": (coarse_done - started) * 1e3,
                "select": (selection_done - coarse_done) * 1e3,
                "fine": (done - selection_done) * 1e3,
            },
        )


def _names(images: Sequence[Any]) -> list[str]:
    if len(images) == 1 and not isinstance(images[0], (str, Path)):
        return ["image"]
    return [str(image) if isinstance(image, (str, Path)) else f"image {n}" for n, image in enumerate(images)]
