"""A profile as data: what `mscope-profile --json` writes, and what reports, comparisons and CI read back.

Times are milliseconds of a whole batch, by the host's clock where no other is named. Sections that were not measured
are None, never zero.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mscope.core.errors import InputError
from mscope.core.files import read_within

SCHEMA = 1
MAX_BYTES = 256 << 20
MAX_SAMPLES = 20_000

# exit: answered after the coarse stage. refine: coarse and fine. plain: the one stage of a plain ViM.
PathName = Literal["exit", "refine", "plain"]
Clock = Literal["host", "device"]
LayerKind = Literal["projection", "conv", "scan", "mixer", "norm", "other"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Machine(_Strict):
    """Where it was measured. What could not be found out is None."""

    system: str
    architecture: str
    cpu: str
    cores: int = Field(ge=1, description="logical cores that this process may use")
    memory_bytes: int | None = None
    device: str | None = Field(None, description="an accelerator that was used, by name; None: the CPU alone")
    power_mode: str | None = Field(None, description="nvpmodel's on a Jetson, the frequency governor elsewhere")
    load_before: float | None = Field(None, description="the system's one-minute load when the run began")
    load_after: float | None = None
    throttled: tuple[str, ...] | None = Field(
        None, description="what held the clocks back during the run; empty: nothing did; None: nothing here would tell"
    )


class BundleIdentity(_Strict):
    """Which bundle, by content: `manifest_sha256` stands for every file of it."""

    name: str
    folder: str
    manifest_sha256: str
    arch: str
    reduced: str | None = Field(None, description='a ViM whose tokens are reduced, by name: "ViM, merged to 0.7"')
    size: str
    resolution: tuple[int, int] = Field(description="height, width, pixels")
    alpha: float | None
    weights: str
    trained: bool
    default_eta: float | None
    gmacs: dict[str, float] = Field(description="of each stage, for one image")


class RuntimeIdentity(_Strict):
    """What ran it."""

    backend: str
    kernel: str
    precision: str
    threads: int | None = Field(description="asked for; None: the backend's own choice")
    preprocess: Literal["host", "device"] = Field("host", description="where decoded pictures are scaled")
    decide: Literal["host", "device"] = Field("host", description="where the exit of a single image is decided")


class Settings(_Strict):
    """What was asked of the run."""

    duration_s: float
    batches: tuple[int, ...]
    etas: tuple[float, ...]
    input: Literal["data", "synthetic"] = Field(description="pictures of --data, or one made up")
    images: int | None = Field(None, description="pictures of --data; None: synthetic")


class Summary(_Strict):
    """Statistics of a series, milliseconds; quantiles as numpy's default (linear interpolation).

    `p50_low_ms` and `p50_high_ms` hold the median of the distribution with 95 % confidence (order statistics, no
    assumption on its shape); None below 6 samples, which cannot give that confidence. `cv` is std / mean.
    """

    count: int = Field(ge=1)
    min_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    mean_ms: float
    std_ms: float
    cv: float
    p50_low_ms: float | None
    p50_high_ms: float | None


class Series(_Strict):
    """Samples in the order in which they were taken, and their statistics."""

    clock: Clock = "host"
    samples_ms: tuple[float, ...] = Field(max_length=MAX_SAMPLES)
    summary: Summary


class PathProfile(_Strict):
    """One path through the network at one batch size, every image of the batch on it.

    Attributes:
        total: from the pictures to the results.
        parts: what the total is made of, in order, each as long as `total`: "preprocess" (decoding, resizing), "check"
            (stacking the batch, validating it), then the stages as the backend names them ("coarse", "select", "fine",
            or "full"; "upload" and "download" where it has them; "cascade" alone where the device decides), and
            "postprocess" (softmax, classes, results).
        device_parts: what a device's own clock says, in order, where the backend has one; None on the CPU. "upload" (or
            "preprocess", where it scales pictures), "coarse", "download", "decision" (the device waits for the host, or
            moves rows), "fine", or "full"; "cascade" where the device decides. In all `device_total`, which is less
            than `total`: the host's own work before and after is not in it.
        split_gap, device_gap: |sum of the parts - total| / total, of the means.
        images_per_second: batch / mean total, one batch at a time.
    """

    total: Series
    parts: dict[str, Series]
    device_parts: dict[str, Series] | None = None
    device_total: Series | None = None
    split_gap: float
    device_gap: float | None = None
    images_per_second: float


class WarmUp(_Strict):
    """Rounds that were run before measuring. `steady`: the medians of successive windows had come within tolerance."""

    rounds: int
    seconds: float
    steady: bool


class Expected(_Strict):
    """Latency of one batch when images exit with `exit_rate`, mixed from the measured paths.

    Attributes:
        eta: the threshold that gives this exit rate; None where the exit rate itself was asked for.
        saving: 1 - mean / plain ViM's mean; negative where adaptivity loses; None without --compare.
        accuracy: from the bundle's curve; None where it has none.
    """

    eta: float | None
    exit_rate: float = Field(ge=0, le=1)
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    images_per_second: float
    saving: float | None = None
    accuracy: float | None = None


class BatchProfile(_Strict):
    """Everything measured at one batch size.

    Attributes:
        warmup: what ran before.
        rounds: measured; in each, every path ran once, in random order, so that drifts of the machine cancel.
        paths: "exit" and "refine" of a cascade, "plain" of a plain ViM (this bundle, or the one of --compare).
        decided_on_host: with --decide device, "exit" and "refine" again, measured in turn with the exit decided on the
            host; else None.
        fine_one: the fine stage of one single image, for batches above 1: between it and the whole batch the time of a
            part of the batch is interpolated.
        expected: over eta (rising), where exit rates are known.
        expected_by_exit_rate: at exit rates 0, 0.1 ... 1.
        break_even_exit_rate: the share of early exits above which the cascade is on average faster than plain ViM; at
            or below 0 always, above 1 never. None without --compare.
        break_even_eta: above it the cascade loses; None where unknown, or where all the etas looked at save, or none.
    """

    batch: int = Field(ge=1)
    warmup: WarmUp
    rounds: int
    paths: dict[PathName, PathProfile]
    decided_on_host: dict[PathName, PathProfile] | None = None
    fine_one: Series | None = None
    expected: tuple[Expected, ...] = ()
    expected_by_exit_rate: tuple[Expected, ...] = ()
    break_even_exit_rate: float | None = None
    break_even_eta: float | None = None


class ExitRates(_Strict):
    """How many images leave early at which eta, and how that is known.

    Attributes:
        source: "data" (confidences of --data), "curve" (the bundle's), "given" (--exit-rate), "unknown".
        images: behind the rates; None where not known.
        points: (eta, exit rate), eta rising; empty when "given" or "unknown".
        given: --exit-rate.
    """

    source: Literal["data", "curve", "given", "unknown"]
    images: int | None = None
    points: tuple[tuple[float, float], ...] = ()
    given: float | None = None


class ColdRun(_Strict):
    """One fresh process, milliseconds. `total` is seen from outside: from starting it to its first answer."""

    import_ms: float
    load_ms: float
    first_ms: float
    total_ms: float


class ColdStart(_Strict):
    """Fresh processes that import the package, load the bundle (files' hashes included) and refine one image."""

    runs: tuple[ColdRun, ...] = Field(min_length=1)
    total_p50_ms: float


class Memory(_Strict):
    """Resident memory of a fresh process, bytes: after the bundle is loaded, and its peak after one refined batch.

    The whole process counts: Python, ONNX Runtime, weights, activations. Memory of a GPU does not.
    """

    batch: int
    loaded_bytes: int | None
    peak_bytes: int | None


class IdleGap(_Strict):
    """The first image after a pause, one image on its longest path; gap_s 0 is back to back."""

    gap_s: float
    total: Series


class LayerRow(_Strict):
    """One node of a graph: milliseconds of one run of the stage; `share` of all nodes' medians, 0 to 1."""

    name: str
    op: str
    block: str = Field(description='"layers.3", or the module\'s name outside the blocks')
    kind: LayerKind
    mean_ms: float
    median_ms: float
    share: float


class LayerTable(_Strict):
    """The nodes of one stage at one batch size, in the order in which they first ran.

    Attributes:
        source: what measured it. Profiling itself costs time: shares are comparable, sums exceed the stage's latency.
        stage_ms: median wall time of the stage under the profiler.
        truncated: whether the profiler stopped recording before the runs were over.
    """

    source: Literal["onnxruntime", "tensorrt"]
    stage: str
    batch: int
    runs: int
    stage_ms: float
    rows: tuple[LayerRow, ...]
    truncated: bool = False


class PathEnergy(_Strict):
    """Energy of one path at one batch size, per image. What could not be measured is None, and `reason` says why.

    Attributes:
        readings: of the sensor while the path ran.
        net_joules_per_image: with the idle power subtracted.
        uncertainty_joules_per_image: plus or minus, 95 %, of both: from sampling alone, not the sensor's own error.
    """

    path: PathName
    batch: int
    images: int
    seconds: float
    readings: int | None = None
    watts: float | None = None
    joules_per_image: float | None = None
    net_joules_per_image: float | None = None
    uncertainty_joules_per_image: float | None = None
    reason: str | None = None


class Power(_Strict):
    """Power and the state of the machine while one path after the other ran.

    Attributes:
        sensor: "tegrastats", "nvml", "rapl"; "nvml+rapl" where their energies are added up.
        total: what `watts` is the sum of, in words (rails by name).
        rails: mean watts of each rail while measuring, by the sensor's own name.
        temperature_c: the highest seen. clocks_mhz: means under load.
        throttled: None where nothing would tell.
        mode: nvpmodel's on a Jetson, the frequency governor elsewhere.
        clocks_pinned: whether jetson_clocks holds the clocks; None elsewhere, and where it does not tell.
    """

    sensor: str
    total: str
    idle_watts: float | None
    rails: dict[str, float]
    paths: tuple[PathEnergy, ...]
    temperature_c: dict[str, float] = Field(default_factory=dict)
    clocks_mhz: dict[str, float] = Field(default_factory=dict)
    throttled: bool | None = None
    mode: str | None = None
    clocks_pinned: bool | None = None
    notes: tuple[str, ...] = ()


class Profile(_Strict):
    """One run of `mscope-profile`.

    Attributes:
        created: UTC, ISO 8601.
        runtime, compare_runtime: what ran the bundle, and the one of --compare.
        layers: by stage, with --layers; "plain" of the compared bundle is not taken apart.
        verdict: lines of plain words.
        warnings: what makes the figures doubtful.
    """

    schema_version: Literal[1] = 1
    created: str
    versions: dict[str, str]
    machine: Machine
    bundle: BundleIdentity
    runtime: RuntimeIdentity
    settings: Settings
    exit_rates: ExitRates
    batches: tuple[BatchProfile, ...] = Field(min_length=1)
    compare: BundleIdentity | None = None
    compare_runtime: RuntimeIdentity | None = None
    cold_start: ColdStart | None = None
    memory: Memory | None = None
    idle_gaps: tuple[IdleGap, ...] | None = None
    layers: tuple[LayerTable, ...] | None = None
    power: Power | None = None
    verdict: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> str:
        """One line of strict JSON."""
        return self.model_dump_json()


def load_profile(path: Path) -> Profile:
    """A profile that `mscope-profile --json FILE` wrote. Raises InputError: unreadable, too large, foreign or newer."""
    try:
        content = read_within(path, MAX_BYTES)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    if content is None:
        raise InputError(f"{path}: more than {MAX_BYTES >> 20} MiB: not a profile")
    return parse_profile(content, str(path))


def parse_profile(content: bytes | str, source: str) -> Profile:
    """A profile from its JSON; `source` is named in errors. Raises InputError."""
    from pydantic_core import from_json

    try:
        fields: Any = from_json(content)
    except (ValueError, RecursionError):
        raise InputError(f"{source}: not JSON: give a file that 'mscope-profile --json FILE' wrote") from None
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise InputError(f"{source}: no schema_version: give a file that 'mscope-profile --json FILE' wrote")
    if version > SCHEMA:
        raise InputError(
            f"{source} has schema version {version}, this program reads up to {SCHEMA}: upgrade mambascope-deploy"
        )
    try:
        # As JSON, so that a list becomes a tuple.
        return Profile.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "profile"
        raise InputError(f"{source}: {where}: {first['msg']}: measure again") from None
