"""What a quantisation was made with, as JSON beside the graphs: ranges, data, layers left out, what the gate found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mscope.calib.ranges import Method
from mscope.core.contract import Stage
from mscope.core.errors import InputError
from mscope.core.files import read_within
from mscope.core.manifest import Sha256

# Enough for the ranges of a few thousand layers.
_MAX_BYTES = 32 << 20

Magnitude = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Name = Annotated[str, Field(max_length=512)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StageRanges(_Strict):
    """The activations of one stage.

    Attributes:
        maxima: largest magnitude of each activation, after smoothing.
        limits: the magnitude at which it is clipped.
        exponents: log2 of what each channel is divided by, for the smoothed activations.
    """

    maxima: dict[Name, Magnitude]
    limits: dict[Name, Magnitude]
    exponents: dict[Name, tuple[Annotated[int, Field(ge=-64, le=64)], ...]] = Field(default_factory=dict)


class Calibration(_Strict):
    """Ranges, and the data that they were seen on.

    Attributes:
        weights: sha256 or seed of the weights, as the bundle's manifest names them: ranges fit these weights only.
        data: the data set's name.
        fingerprint: sha256 of its pictures and labels.
        images: pictures seen, each once in every pass.
        batches: batches in a pass.
        skipped: pictures that could not be read.
        pillow: its version, which scaled the pictures; empty: not recorded.
    """

    method: Method
    smoothing: Share | None
    weights: str = Field(max_length=256)
    data: str = Field(max_length=4096)
    fingerprint: Sha256
    images: int = Field(ge=1)
    batches: int = Field(ge=1)
    skipped: int = Field(0, ge=0)
    pillow: str = Field("", max_length=64)
    stages: dict[Stage, StageRanges]


class Comparison(_Strict):
    """A variant beside fp32 on the same pictures. Accuracies are shares; points are hundredths of them.

    Attributes:
        images: pictures compared.
        held_out: whether calibration had not seen them.
        accuracy, reference: top-1 of the variant and of fp32, by path: coarse, fine (every picture refined),
            adaptive (at `eta`), or full for plain ViM.
        changed: share of pictures whose answer differs, by path.
        exit_flips: share of pictures with another exit decision at `eta`; None for plain ViM.
        selected_agreement: mean share of the refined regions that both refine; None for plain ViM.
        drop: points lost (`counted` says of what; the gate holds accuracy to its limit, not answers).
    """

    images: int = Field(ge=1)
    held_out: bool
    eta: Share | None
    accuracy: dict[str, Share]
    reference: dict[str, Share]
    changed: dict[str, Share]
    exit_flips: Share | None
    selected_agreement: Share | None
    drop: float
    counted: Literal["accuracy", "answers"]


class Blame(_Strict):
    """What one group alone does to its stage: error of the logits relative to their spread, changed answers."""

    stage: Stage
    group: Name
    error: Magnitude
    changed: Share
    selected_agreement: Share | None = None


class Quantisation(_Strict):
    """The content of `<precision>.quantisation.json`."""

    schema_version: Literal[1] = 1
    precision: Literal["int8", "fp8"]
    max_drop: float
    calibration: Calibration
    left_out: dict[Stage, tuple[Name, ...]]
    gate: Comparison
    sensitivity: tuple[Blame, ...] = Field((), description="worst first; empty when the gate held at once")


def record_name(precision: str) -> str:
    """The file's name in a bundle."""
    return f"{precision}.quantisation.json"


def load_quantisation(path: Path) -> Quantisation:
    """Reads a record, to reuse its ranges. Raises InputError where it is missing, too large or not one."""
    try:
        content = read_within(path, _MAX_BYTES)
        if content is None:
            raise InputError(f"{path} is larger than {_MAX_BYTES >> 20} MiB: no record of a quantisation")
        return Quantisation.model_validate(json.loads(content.decode("utf-8")))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "content"
        raise InputError(
            f"{path}: {where}: {first['msg']}; give the file that a bundle has beside its graphs"
        ) from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not valid JSON: give a bundle's .quantisation.json") from None
