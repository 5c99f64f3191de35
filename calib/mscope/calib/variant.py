"""An 8-bit variant of every stage of a bundle: calibrated, held to the accuracy gate, or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from mscope.calib.calibrate import Progress, calibrate, smoothed_models
from mscope.calib.gate import compare, decide
from mscope.calib.quantize import EightBit, quantized
from mscope.calib.ranges import check_method
from mscope.calib.record import Blame, Calibration, Comparison, Quantisation, load_quantisation, record_name
from mscope.calib.sensitivity import sensitivity
from mscope.calib.split import Pictures, open_calibration_data, split_data
from mscope.core.contract import Stage
from mscope.core.errors import BundleError, InputError, MscopeError
from mscope.core.manifest import Manifest, Variant
from mscope.export.extend import new_file
from mscope.export.passes.mixers import load_split
from mscope.runtime.preprocess import Preprocessor, pillow_version

# Pictures that the sensitivity of each layer is measured on.
_PROBED = 64
# Past this share of the layers in fp32 the variant is no longer worth its name.
_MOST_LEFT_OUT = 0.5
_BLAMED = 5


class AccuracyError(MscopeError):
    """A variant that loses more accuracy than was allowed; the message names the layers to blame."""


@dataclass(frozen=True)
class QuantizeOptions:
    """One quantisation.

    Attributes:
        precision: `int8` or `fp8`.
        data: a folder of class folders, a list file or `digits`: pictures to calibrate on and to compare on.
        images: how many to calibrate on.
        compared: how many more to compare with fp32 on.
        method: `minmax`, `percentile` or `entropy`; fp8 takes the maximum whatever the method.
        smoothing: SmoothQuant's alpha; None: off.
        max_drop: points of accuracy that may be lost; raised, less is left in fp32 and more is lost.
        ranges: a record of an earlier quantisation, whose ranges are taken instead of calibrating.
    """

    precision: EightBit
    data: str | None
    images: int = 256
    compared: int = 1000
    method: str = "percentile"
    smoothing: float | None = 0.5
    max_drop: float = 1.0
    ranges: Path | None = None

    def check(self) -> None:
        """Raises InputError where the options cannot be carried out."""
        if self.data is None:
            raise InputError(
                f"--{self.precision} needs pictures: give --calib-data a folder with a folder of pictures for each "
                "class, or 'digits'; ranges are never guessed"
            )
        if not self.data.startswith("digits") and not Path(self.data).exists():
            # Before the minute that an export takes.
            raise InputError(f"--calib-data {self.data}: no such folder or list")
        check_method(self.method)
        if self.images < 1 or self.compared < 1:
            raise InputError("--calib-images is 1 or more")
        if self.smoothing is not None and not 0.0 <= self.smoothing <= 1.0:
            raise InputError(f"--smoothing is between 0 and 1, got {self.smoothing}")
        if not 0.0 <= self.max_drop <= 100.0:
            raise InputError(f"--max-drop is in points of accuracy, 0 to 100, got {self.max_drop}")


class Quantizer:
    """Adds an 8-bit variant to a bundle under construction: a `Derive` of mscope.export.extend.

    Attributes:
        result: what was made, once it has been.
        notes: lines for people.
    """

    def __init__(self, options: QuantizeOptions) -> None:
        options.check()
        self._options = options
        self.result: Quantisation | None = None
        self.notes: tuple[str, ...] = ()

    def __call__(self, folder: Path, manifest: Manifest, progress: Progress | None) -> Mapping[Stage, Variant]:
        """Writes `<stage>.<precision>.onnx` and the record of how they were made.

        Raises:
            InputError: the data, or the ranges, do not do. AccuracyError: more than `max_drop` points are lost.
        """
        tell = progress or (lambda text: None)
        work = _Work(self._options, folder, manifest, tell)
        models, result = work.quantise()
        precision = self._options.precision
        variants: dict[Stage, Variant] = {}
        for stage, model in models.items():
            onnx.checker.check_model(model)
            name = f"{stage}.{precision}.onnx"
            new_file(folder, name).write_bytes(model.SerializeToString())
            variants[stage] = Variant(file=name, backend="onnx", precision=precision)
        record = result.model_dump_json(indent=1) + "\n"
        new_file(folder, record_name(precision)).write_text(record, encoding="utf-8")
        self.result, self.notes = result, work.notes()
        return variants


class _Work:
    """One quantisation on its way."""

    def __init__(self, options: QuantizeOptions, folder: Path, manifest: Manifest, tell: Callable[[str], None]) -> None:
        assert options.data is not None
        self._options = options
        self._manifest = manifest
        self._config = manifest.config
        self._tell = tell
        self._data = open_calibration_data(options.data, manifest, options.images, options.compared)
        preprocess = Preprocessor(manifest.preprocessing, manifest.config)
        seen, compared, self._held_out = split_data(self._data, options.images)
        self._seen, self._compared = Pictures(seen, preprocess), Pictures(compared, preprocess)
        self._models = {stage: load_split(folder / _fp32_file(manifest, stage)) for stage in manifest.stages}

    def quantise(self) -> tuple[dict[Stage, onnx.ModelProto], Quantisation]:
        calibration = self._reused() if self._options.ranges is not None else self._calibrated()
        base = smoothed_models(self._models, calibration.stages)
        limits = {
            stage: ranges.maxima if self._options.precision == "fp8" else ranges.limits
            for stage, ranges in calibration.stages.items()
        }
        self._tell("running fp32 on the pictures to compare on")
        reference = decide(self._config, self._models, self._labelled)

        def attempt(left_out: dict[Stage, tuple[str, ...]]) -> tuple[dict[Stage, onnx.ModelProto], Comparison]:
            self._tell(f"comparing {self._options.precision} with fp32")
            models = {
                stage: quantized(model, self._options.precision, limits[stage], left_out[stage])
                for stage, model in base.items()
            }
            eta = None if self._config.arch == "vim" else self._manifest.default_eta
            comparison = compare(
                decide(self._config, models, self._labelled),
                reference,
                eta=eta,
                temperature=self._manifest.temperature.coarse,
                held_out=self._held_out,
                by_accuracy=self._manifest.weights.trained,
            )
            return models, comparison

        left_out: dict[Stage, tuple[str, ...]] = dict.fromkeys(base, ())
        models, comparison = attempt(left_out)
        blames: tuple[Blame, ...] = ()
        if self._refused(comparison):
            blames = sensitivity(self._config, base, self._options.precision, limits, self._few_images, self._tell)
            most = int(_MOST_LEFT_OUT * len(blames))
            for count in _doubling(most):
                left_out = _worst(blames[:count], left_out)
                models, comparison = attempt(left_out)
                if not self._refused(comparison):
                    break
            else:
                raise AccuracyError(_refusal(self._options, comparison, blames, most))
        return models, Quantisation(
            precision=self._options.precision,
            max_drop=self._options.max_drop,
            calibration=calibration,
            left_out=left_out,
            gate=comparison,
            sensitivity=blames,
        )

    def _refused(self, comparison: Comparison) -> bool:
        # Untrained weights have no accuracy to lose, and their near-ties change answers at any precision.
        return comparison.counted == "accuracy" and comparison.drop > self._options.max_drop

    def notes(self) -> tuple[str, ...]:
        """What a user should know of the data."""
        lines = list(self._data.notes)
        problems = self._seen.problems | self._compared.problems
        if problems:
            lines.append(f"{_pictures(len(problems))} could not be read, the first: {next(iter(problems.values()))}")
        if not self._held_out:
            lines.append("too few pictures to keep some apart: the variant was compared on those it was calibrated on")
        count = len(self._compared.data) - len(self._compared.problems)
        if 100 / max(count, 1) > self._options.max_drop > 0:
            lines.append(f"{_pictures(count)} cannot tell a drop of {self._options.max_drop:g} points: give more")
        if not self._manifest.weights.trained:
            lines.append("the weights are untrained: there is no accuracy to lose, so the gate refuses nothing")
        return tuple(lines)

    def _calibrated(self) -> Calibration:
        method = check_method(self._options.method)
        seen = calibrate(
            self._config,
            self._models,
            lambda: (batch.tensor for batch in self._seen()),
            method,
            self._options.smoothing,
            self._tell,
        )
        return Calibration(
            method=method,
            smoothing=self._options.smoothing,
            weights=identity_of(self._manifest),
            data=self._data.name,
            fingerprint=self._data.fingerprint,
            images=seen.images,
            batches=seen.batches,
            skipped=len(self._seen.problems),
            pillow=pillow_version(),
            stages=seen.stages,
        )

    def _reused(self) -> Calibration:
        assert self._options.ranges is not None
        calibration = load_quantisation(self._options.ranges).calibration
        if calibration.weights != identity_of(self._manifest) or set(calibration.stages) != set(self._models):
            raise InputError(
                f"{self._options.ranges} has the ranges of other weights ({calibration.weights}): calibrate anew, "
                "without --calib-ranges"
            )
        return calibration

    def _labelled(self) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
        for batch in self._compared():
            yield batch.tensor, batch.labels

    def _few_images(self) -> Iterator[npt.NDArray[np.float32]]:
        left = _PROBED
        for batch in self._seen():
            yield batch.tensor[:left]
            left -= len(batch.tensor)
            if left <= 0:
                return


def identity_of(manifest: Manifest) -> str:
    """Which weights a bundle holds, so that ranges are not taken for those of others."""
    weights = manifest.weights
    source = f"sha256 {weights.sha256}" if weights.sha256 is not None else f"seed {weights.seed}"
    return f"{manifest.config.size} {manifest.config.arch} {source}"


def _fp32_file(manifest: Manifest, stage: Stage) -> str:
    for variant in manifest.stages[stage].variants:
        if (variant.backend, variant.precision) == ("onnx", "fp32"):
            return variant.file
    raise BundleError(f"stage '{stage}' has no fp32 ONNX file to quantise: build the bundle again")


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"


def _doubling(most: int) -> Iterator[int]:
    """1, 2, 4, ... and `most`."""
    count = 1
    while count < most:
        yield count
        count *= 2
    if most:
        yield most


def _worst(blames: tuple[Blame, ...], stages: Mapping[Stage, tuple[str, ...]]) -> dict[Stage, tuple[str, ...]]:
    return {stage: tuple(blame.group for blame in blames if blame.stage == stage) for stage in stages}


def _refusal(options: QuantizeOptions, comparison: Comparison, blames: tuple[Blame, ...], most: int) -> str:
    worst = ", ".join(f"{blame.stage} {blame.group} ({blame.error:.2g})" for blame in blames[:_BLAMED])
    return (
        f"{options.precision} refused: {comparison.drop:.2f} points of accuracy lost on {comparison.images} pictures, "
        f"--max-drop allows {options.max_drop:g}, even with {most} of {len(blames)} layers left in fp32. To blame "
        f"(relative error of the logits): {worst}. Try another --calib-method or more --calib-images; nothing was "
        "written"
    )
