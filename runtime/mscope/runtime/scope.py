"""Scope: a loaded bundle that looks at pictures as closely as each needs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from mscope.core.bundle import latest_bundle, load_manifest
from mscope.core.cascade import check_eta, softmax
from mscope.core.contract import Stage, graphs
from mscope.core.errors import InputError
from mscope.core.manifest import Manifest
from mscope.runtime.backends.base import KERNELS, Kernel, Runner
from mscope.runtime.backends.cascade import Cascade, MayRefine
from mscope.runtime.backends.registry import AUTO, PLACES, Choice, Place, RunnerOptions, choose
from mscope.runtime.device.arrays import is_device_array
from mscope.runtime.device.pictures import Pictures
from mscope.runtime.preprocess import Prepared, Preprocessor, Unscaled, check_finite, check_tensor
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
        preprocess: turns one picture into the tensor that `run` takes, on the host.
        notes: lines for people on what was passed over with "auto", such as engines for another GPU, or kernels that
            are not there.
    """

    def __init__(
        self,
        manifest: Manifest,
        choice: Choice,
        runners: dict[Stage, Runner],
        cascade: Cascade,
        preprocess: Place = "host",
    ) -> None:
        self.manifest = manifest
        self.config = manifest.config
        self.backend = choice.entry.name
        self.precision = choice.precision
        self.notes = tuple(dict.fromkeys(choice.notes + cascade.notes))
        self._scales = preprocess == "device"
        self.preprocess = Preprocessor(manifest.preprocessing, manifest.config)
        self._runners = runners
        self._cascade = cascade
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
        preprocess: Place = "host",
        decide: Place = "host",
    ) -> Self:
        """Opens a bundle: checks every file's hash, opens its graphs and checks their interface.

        Args:
            bundle: its folder; None takes the one built last.
            backend: "auto" or a name of the registry. What is asked for is what runs, or an error. "auto" takes the
                first that is available here and that the bundle has files for.
            threads: threads of an operator on the CPU, 1 or more; None leaves it to the backend (one for each physical
                core).
            kernel: "native" insists on the native kernels of the custom ops, "function" leaves them out, "auto" takes
                them where they are.
            precision: of the files to run; "auto" takes the first of the backend's own order that the bundle has for
                every stage. What is asked for is what runs, or an error.
            preprocess: where decoded pictures are scaled and normalised: "device" uploads bytes and gives the same
                bits. Needs a backend on a GPU and the CUDA kernels of the plugins part.
            decide: where the exit of a single image is decided: "device" makes both stages one CUDA graph, with the
                same answers. Needs engines, the CUDA kernels, and a driver for CUDA 12.4 or newer. Batches of several
                images and calls with `may_refine` are decided on the host.

        Raises:
            BundleError: no bundle, damaged, changed, or of a newer schema.
            BackendError: the backend, kernel or precision is not to be had here, or cannot open the graphs.
            InputError: an unknown backend, kernel, precision or place, fewer than one thread, threads on a GPU, or a
                device's work on the CPU.
        """
        if threads is not None and not 1 <= threads <= _MAX_THREADS:
            raise InputError(f"threads are between 1 and {_MAX_THREADS}, got {threads}")
        if kernel not in KERNELS:
            raise InputError(f"unknown kernel '{kernel}': choose one of {', '.join(KERNELS)}")
        for name, place in (("preprocess", preprocess), ("decide", decide)):
            if place not in PLACES:
                raise InputError(f"--{name} is one of {', '.join(PLACES)}, got '{place}'")
        folder = latest_bundle() if bundle is None else Path(bundle)
        manifest = load_manifest(folder)
        if decide == "device" and manifest.config.arch == "vim":
            raise InputError("--decide has no meaning for a plain ViM bundle, which has no early exit: leave it out")
        options = RunnerOptions(threads=threads, kernel=kernel, preprocess=preprocess, decide=decide)
        choice = choose(manifest, folder, backend, precision, options)
        runners: dict[Stage, Runner] = {}
        try:
            for graph in graphs(manifest.config):
                runner = choice.entry.runner(graph, folder / choice.variants[graph.stage].file, options)
                runner.activate()
                runners[graph.stage] = runner
            return cls(manifest, choice, runners, choice.entry.cascade(manifest, runners, options), preprocess)
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
        self._cascade.close()
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
        if len(names) != len(images):
            raise InputError(f"sources: got {len(names)} names for {len(images)} images")
        prepared, times = [], []
        for image, name in zip(images, names, strict=True):
            start = time.perf_counter()
            prepared.append(self.prepare(image, name))
            times.append((time.perf_counter() - start) * 1e3)
        return self.results(self.run(self.stack(prepared), eta), names, times, eta=eta, topk=topk)

    def prepare(self, image: Any, source: str | None = None, *, keep_view: bool = False) -> Prepared | Unscaled:
        """A picture as `stack` takes it, whoever scales it; arguments as of `preprocess`."""
        make = self.preprocess.unscaled if self._scales else self.preprocess
        return make(image, source, keep_view=keep_view)

    @overload
    def stack(self, prepared: Sequence[Prepared]) -> Floats: ...

    @overload
    def stack(self, prepared: Sequence[Prepared | Unscaled]) -> Floats | Pictures: ...

    def stack(self, prepared: Sequence[Prepared | Unscaled]) -> Floats | Pictures:
        """Prepared pictures as a batch for `run`: (B, C, H, W) float32, B may be 0; or what a device is to scale."""
        if not prepared:
            return np.zeros((0, *self._shape), np.float32)
        tensors = [picture.tensor for picture in prepared if isinstance(picture, Prepared)]
        if len(tensors) == len(prepared):
            return np.stack(tensors)
        return Pictures([picture.crop if isinstance(picture, Unscaled) else picture.tensor for picture in prepared])

    def time_on_device(self, on: bool = True) -> bool:
        """Whether outcomes have times of the device's own clock from now on (`Outcome.device`): False on the CPU.

        Events on the stream cost some microseconds a batch: for profiling.
        """
        return self._cascade.time_on_device(on)

    def run(
        self,
        tensor: npt.NDArray[np.float32] | Pictures | Any,
        eta: float | None = None,
        *,
        refine_all: bool = False,
        may_refine: MayRefine | None = None,
    ) -> Outcome:
        """The cascade over a batch of prepared images.

        Args:
            tensor: (B, C, H, W) float32, normalised; B may be 0. Not modified. With a backend on a GPU it may lie
                there: anything with `__dlpack__` or `__cuda_array_interface__` (torch, CuPy, PyCUDA), dense, is read
                in place, and its numbers are not checked for NaN beforehand. Or what `stack` gave.
            eta: as in a call for one image.
            refine_all: every image goes through both stages, however sure the coarse one is (eta 1 lets the perfectly
                sure exit): what calibration measures. Without meaning for a plain ViM.
            may_refine: given the coarse confidences (B,) and which images are to be refined (B,), says which of these
                are; the others keep the coarse answer. For a deadline, for example.

        Raises:
            InputError: wrong dtype or shape, NaN or infinity, eta outside [0, 1] or given for a plain ViM.
            BackendError: the backend failed or gave NaN.
        """
        eta = self._check_eta(eta)
        if isinstance(tensor, Pictures):
            if not self._scales:
                raise InputError("tensor: pictures still to be scaled need a scope loaded with preprocess='device'")
            return self._cascade.run(tensor, eta, refine_all=refine_all, may_refine=may_refine)
        if is_device_array(tensor):
            image = self._cascade.take(tensor)
            return self._cascade.run(image, eta, refine_all=refine_all, may_refine=may_refine)
        if not isinstance(tensor, np.ndarray):
            raise InputError(f"tensor: got {type(tensor).__name__}, expected a numpy array, or one on a CUDA device")
        if tensor.ndim != 4:
            raise InputError(f"tensor: got shape {tensor.shape}, expected {('B', *self._shape)}")
        check_tensor(tensor, self._shape, "tensor", or_batch=True)
        for row, image in enumerate(tensor):
            check_finite(image, f"tensor, image {row}")
        image = np.ascontiguousarray(tensor)
        return self._cascade.run(image, eta, refine_all=refine_all, may_refine=may_refine)

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
        temperatures = {"full": 1.0} | self.manifest.temperature.model_dump()
        of_stage = np.array([temperatures[stage] for stage in outcome.stages], np.float32)
        final = softmax(outcome.logits, of_stage[:, None])
        coarse = None
        if outcome.coarse_logits is not None:
            coarse = softmax(outcome.coarse_logits, self.manifest.temperature.coarse)
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
                    notes=tuple(dict.fromkeys(self.notes + outcome.notes)),
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


def _names(images: Sequence[Any]) -> list[str]:
    if len(images) == 1 and not isinstance(images[0], (str, Path)):
        return ["image"]
    return [str(image) if isinstance(image, (str, Path)) else f"image {n}" for n, image in enumerate(images)]
