"""What an engine file was built with and for: the sidecar beside it, read before a byte of the engine is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mscope.core.contract import Stage
from mscope.core.errors import BundleError
from mscope.core.manifest import Precision, Sha256
from mscope.core.text import control_character_in, readable

Flavour = Literal["tensorrt", "tensorrt-rtx"]
SmVersion = Annotated[str, Field(pattern=r"^sm_[0-9]{2,3}$")]
_MAX_BYTES = 1 << 20


class EngineRecord(BaseModel):
    """The content of `<engine file>.json`. The engine itself is a plain plan, which trtexec and Triton take as it is.

    Attributes:
        flavour: whose engine it is; one does not load the other's.
        version: of the library that built it, such as "10.13.3.9". TensorRT loads only its own version's engines.
        compute_capabilities: the GPUs it was built for, such as ("sm_87",).
        gpu_name: the GPU it was built on, or "" where none was there.
        stage, precision: which graph, at which precision.
        graph_sha256: of the .onnx file it was made from.
        plugin_sha256: of the plugin library it was made with; None where the graph's own function bodies were compiled.
        batch: smallest, best and largest batch of its optimisation profile.
        layers: layers of the engine, where the library listed them.
        launches: those that launch a kernel. launches_per_block: of a block of the network, the median.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: Literal[1] = 1
    flavour: Flavour
    version: str = Field(max_length=64)
    compute_capabilities: tuple[SmVersion, ...] = Field(min_length=1)
    gpu_name: str = Field("", max_length=256)
    stage: Stage
    precision: Precision
    graph_sha256: Sha256
    plugin_sha256: Sha256 | None
    plugin_version: str | None = Field(None, max_length=64)
    batch: tuple[int, int, int] = Field((1, 1, 8), description="min, opt, max")
    layers: int | None = Field(None, ge=0)
    launches: int | None = Field(None, ge=0)
    launches_per_block: float | None = Field(None, ge=0)
    created: str = Field("", max_length=64, description="UTC, ISO 8601")

    @model_validator(mode="after")
    def _ordered(self) -> EngineRecord:
        smallest, best, largest = self.batch
        if not 1 <= smallest <= best <= largest:
            raise ValueError(f"batch is min <= opt <= max, from 1, got {self.batch}")
        return self


def sidecar_of(engine: Path) -> Path:
    """Where the record of an engine file lies: its name with .json appended."""
    return engine.with_name(engine.name + ".json")


def load_engine_record(engine: Path) -> EngineRecord:
    """The record beside an engine file. Raises BundleError where it is missing, too large or not one."""
    path = sidecar_of(engine)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise BundleError(f"{path} is not an engine's record: larger than {_MAX_BYTES} bytes")
        record = EngineRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BundleError(
            f"{path}: {error.strerror or error}; an engine is not loaded without its record: build the bundle again"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = readable(".".join(str(part) for part in first["loc"])[:200]) or "content"
        raise BundleError(f"{path}: {where}: {first['msg']}; build the bundle again") from None
    if found := control_character_in(record.model_dump(mode="json")):
        raise BundleError(f"{path}: {found}: a text with a control character in it; build the bundle again")
    return record
