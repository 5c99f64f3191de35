"""What benchmarks/results/ablations.json holds. Accuracies are shares in [0, 1], costs million multiply-accumulates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mscope.core.errors import InputError


class _Values(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(_Values):
    """A figure and its 95 % interval over the pictures."""

    value: float
    low: float
    high: float


class Row(_Values):
    """One variant; differences are from `base`, picture by picture."""

    name: str
    table: str
    base: str | None = None
    seeds: tuple[int, ...] = Field(min_length=1)
    regions_refined: int
    coarse: Figure
    fine: Figure = Field(description="every picture refined")
    adaptive: Figure
    fine_by_seed: tuple[float, ...]
    exit_rate: float
    covered: float = Field(description="share of the digit's box in the refined regions")
    mmacs_coarse: float
    mmacs_fine: float = Field(description="without the coarse pass before it")
    mmacs_adaptive: float
    coarse_difference: Figure | None = None
    fine_difference: Figure | None = None
    adaptive_difference: Figure | None = None
    fine_difference_by_seed: tuple[float, ...] = ()
    same_regions: float | None = Field(None, description="share of the refined regions that the base refines too")


class EtaRow(_Values):
    """The cascade of the shipped weights at one threshold."""

    eta: float
    accuracy: Figure
    from_plain: Figure = Field(description="difference from plain ViM")
    exit_rate: float
    mmacs: float
    of_plain: float = Field(description="mean cost as a share of plain ViM's")


class Results(_Values):
    """The whole file."""

    schema_version: Literal[1] = 1
    command: str = "python benchmarks/ablations"
    date: str
    machine: str
    versions: dict[str, str]
    pictures: int
    pictures_sha256: str
    eta: float = Field(description="threshold of every `adaptive` figure")
    level: float
    resamples: int
    budget: dict[str, Any] = Field(description="of every trained variant: fields of training/recipe.py")
    plain: Figure = Field(description="the shipped plain ViM, from which every trained variant starts")
    mmacs_plain: float
    shipped: tuple[Row, ...] = Field(description="the shipped MambaScope, other options at inference")
    paper_loss: tuple[Row, ...] = Field(description="the trained variant ranking=0, other options at inference")
    trained: tuple[Row, ...]
    etas: tuple[EtaRow, ...]


def load(path: Path) -> Results:
    """Reads and checks the file. Raises InputError where it is missing or not one."""
    try:
        return Results.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}: run `python benchmarks/ablations inference`") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{path}: {where}: {first['msg']}: run `python benchmarks/ablations inference` again"
        ) from None
    except ValueError:
        raise InputError(f"{path} is not valid JSON: run `python benchmarks/ablations inference` again") from None
