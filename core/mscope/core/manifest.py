"""The manifest of a bundle: everything the runtime needs to know about the graphs beside it, validated."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mscope.core.config import ModelConfig
from mscope.core.contract import OP_VERSION, Stage
from mscope.core.text import readable

SCHEMA = 1
MANIFEST = "manifest.json"
#: The largest that PyTorch's generator takes.
MAX_SEED = (1 << 64) - 1

Backend = Literal["onnx", "tensorrt", "tensorrt-rtx"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}"
# A bare file name: no separators, no leading dot, so that no manifest can point outside its folder.
FileName = Annotated[str, Field(pattern=rf"^{_NAME}$")]
#: The one folder in a bundle: the TensorRT plugin's source, which nothing here compiles or runs.
SOURCE = "plugin"
BundlePath = Annotated[str, Field(pattern=rf"^({_NAME}|{SOURCE}(/{_NAME}){{1,4}})$")]
# Several times what it has: 50 files, 170 kB.
_MOST_SOURCE_FILES, _MOST_SOURCE_BYTES = 256, 4 << 20
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# The name of somebody's file, which may be no Unicode: pydantic takes nothing else.
GivenName = Annotated[str, BeforeValidator(lambda name: readable(name) if isinstance(name, str) else name)]


class _Strict(BaseModel):
    # JSON has no infinity and no NaN.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FileRecord(_Strict):
    """One file of the bundle, as it was when it was written."""

    sha256: Sha256
    bytes: int = Field(ge=0, le=64 << 30)


class Weights(_Strict):
    """Where the weights come from. `random` ones are untrained, and every output says so."""

    origin: Literal["file", "shipped", "random"]
    name: GivenName = Field("", max_length=4096, description="the file's name, without its folder")
    sha256: Sha256 | None = None
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    derived: tuple[str, ...] = Field(
        (), description="parameters that the file lacked and that were derived from others"
    )

    @property
    def trained(self) -> bool:
        return self.origin != "random"

    def describe(self) -> str:
        """One line for people."""
        if self.origin == "random":
            return f"random (seed {self.seed}): untrained, its answers mean nothing"
        return f"{self.name} (sha256 {(self.sha256 or '')[:12]})"


class Preprocessing(_Strict):
    """From a picture to the tensor `image`: resize the shorter side, crop the centre, scale to [0, 1], normalise."""

    mode: Literal["RGB", "L"] = "RGB"
    resize: int = Field(ge=1, le=16384, description="length of the shorter side after resizing, pixels")
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    # Numbers that float32 can work with: beyond them every picture would be infinite.
    mean: tuple[Annotated[float, Field(ge=-1e6, le=1e6)], ...]
    std: tuple[Annotated[float, Field(ge=1e-6, le=1e6)], ...]


class VariantParity(_Strict):
    """How far a variant's logits of one stage were from the reference when it was built, over `images` probes."""

    images: int = Field(ge=1)
    reference: Literal["pytorch", "fp32"] = Field(description="PyTorch in float32, or the bundle's own fp32 graphs")
    max_abs: float = Field(ge=0)
    tolerance: float | None = Field(None, ge=0, description="what the precision explains; None: not judged by probes")
    cosine: float = Field(ge=-1.001, le=1.001, description="the smallest of any image")
    top1_agreement: float = Field(ge=0, le=1)
    exit_agreement: float | None = Field(None, description="share of images with the same exit decision at every eta")
    selected_agreement: float | None = Field(None, description="share of refined regions that are the same")


class Variant(_Strict):
    """One file that computes a stage: which backend runs it, at which precision."""

    file: FileName
    backend: Backend = "onnx"
    precision: Precision = "fp32"
    parity: VariantParity | None = Field(None, description="None: canonical fp32, or not run where it was built")


class StageRecord(_Strict):
    """One stage: its files, and its analytic cost for one image."""

    variants: tuple[Variant, ...] = Field(min_length=1)
    gmacs: float = Field(ge=0)
    tokens: int = Field(ge=1)


class CurvePoint(_Strict):
    """Accuracy and cost at one eta, measured on labelled data."""

    eta: float = Field(ge=0, le=1)
    accuracy: float = Field(ge=0, le=1)
    exit_rate: float = Field(ge=0, le=1)
    gmacs: float = Field(ge=0)
    latency_ms: float | None = Field(None, ge=0, description="expected at batch 1, on the machine of the calibration")


class Temperature(_Strict):
    """What each stage's logits are divided by before the softmax, so that its confidence is calibrated; 1 is none."""

    coarse: float = Field(1.0, ge=1e-3, le=1000)
    fine: float = Field(1.0, ge=1e-3, le=1000)


class Calibration(_Strict):
    """How `default_eta` and `eta_curve` were chosen, on which labelled data, and how sure that is."""

    data: GivenName = Field(max_length=4096, description="the data set's name, without its folder")
    fingerprint: Sha256 = Field(description="of its pictures, labels and their order")
    images: int = Field(ge=1)
    skipped: int = Field(0, ge=0, description="pictures that could not be read")
    target: str = Field(max_length=256, description="such as accuracy>=0.79")
    eta: float = Field(ge=0, le=1)
    accuracy: float = Field(ge=0, le=1, description="at eta, on the data that it was chosen on")
    optimism: float = Field(description="by how much choosing and measuring on the same images flatters that")
    interval: tuple[float, float] = Field(description="of the accuracy, choice included")
    confidence_level: float = Field(gt=0, lt=1)
    gmacs: float = Field(ge=0)
    exit_rate: float = Field(ge=0, le=1)
    precision: Precision
    pillow: str = Field("", max_length=64, description="version that scaled the pictures; empty: not recorded")
    date: str = Field(max_length=64, description="UTC, ISO 8601")


class Parity(_Strict):
    """How far the written graphs are from the PyTorch model, over `images` test inputs."""

    images: int = Field(ge=1)
    logits_max_abs: float
    coarse_logits_max_abs: float | None = None
    importance_max_abs: float | None = None
    selected_agreement: float | None = Field(None, description="share of images with the same refined regions")
    exit_agreement: float | None = Field(None, description="share of images with the same exit decision")
    tolerance: float


class Baseline(_Strict):
    """Plain ViM of the same size, for the break-even exit rate."""

    gmacs: float = Field(gt=0)
    tokens: int = Field(ge=1)


class Manifest(_Strict):
    """The content of manifest.json."""

    schema_version: int = Field(SCHEMA, ge=1)
    op_version: int = Field(OP_VERSION, ge=1, description="of the op contract (docs/ops.md) that the graphs use")
    name: str = Field(max_length=256)
    created: str = Field(max_length=64, description="UTC, ISO 8601")
    config: ModelConfig
    params: int = Field(ge=1)
    weights: Weights
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None = None
    default_eta: float = Field(0.6, ge=0, le=1)
    eta_curve: tuple[CurvePoint, ...] | None = None
    temperature: Temperature = Temperature()
    calibration: Calibration | None = Field(None, description="None: eta was given, or came with the weights")
    stages: dict[Stage, StageRecord]
    baseline: Baseline
    parity: Parity | None = Field(None, description="None when the check was switched off")
    tools: dict[str, str] = Field(default_factory=dict, description="versions of what built the bundle")
    files: dict[BundlePath, FileRecord]

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        expected = {"full"} if self.config.arch == "vim" else {"coarse", "fine"}
        if set(self.stages) != expected:
            raise ValueError(f"stages of {self.config.arch} are {sorted(expected)}, got {sorted(self.stages)}")
        for stage, record in self.stages.items():
            for variant in record.variants:
                if variant.file not in self.files:
                    raise ValueError(f"stage '{stage}' names {variant.file}, which 'files' does not list")
        source = [record.bytes for name, record in self.files.items() if name.startswith(f"{SOURCE}/")]
        if len(source) > _MOST_SOURCE_FILES or sum(source) > _MOST_SOURCE_BYTES:
            raise ValueError(f"{len(source)} files, {sum(source)} bytes below {SOURCE}/: not the source of the plugin")
        if self.labels is not None and len(self.labels) != self.config.classes:
            raise ValueError(f"{len(self.labels)} labels for {self.config.classes} classes")
        for name in ("mean", "std"):
            if len(getattr(self.preprocessing, name)) != self.config.channels:
                raise ValueError(f"preprocessing.{name} does not have {self.config.channels} channels")
        return self
