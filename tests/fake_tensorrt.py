"""A strict stand-in for the Python API of TensorRT over tests/fake_cuda.py: engines that run tests/fakes.py's network.

Only what the runtime uses, with TensorRT's rules: addresses are aligned and hold enough for the batch, shapes lie in
the profile, scratch memory is given where the caller manages it and used on one stream at a time, a context is enqueued
once before it is captured and not touched any more afterwards. tests/runtime/test_device_api.py holds names and
parameters to tensorrt_rtx's.
"""

from __future__ import annotations

import enum
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from fake_cuda import FakeCuda, Misuse
from fakes import FakeNetwork
from mscope.core.bundle import load_manifest, record_of, write_manifest
from mscope.core.contract import graph_for
from mscope.core.engine import EngineRecord, sidecar_of
from mscope.core.manifest import Variant

VERSION = {"tensorrt": "10.13.3.9", "tensorrt-rtx": "1.7.1.116"}
_MAGIC = "fake engine"


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class DataType(enum.Enum):
    FLOAT = "float32"
    INT64 = "int64"
    HALF = "float16"


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    USER_MANAGED = 2


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1


class ILogger:
    """Counts as a logger only when its own __init__ was called, as pybind's classes do."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def __init__(self) -> None:
        self.ready = True

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class IProfiler:
    """Like ILogger, a base whose __init__ must be called."""

    def __init__(self) -> None:
        self.ready = True

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        raise NotImplementedError


# What a profiled engine reports of a run, in order; names as the exporter's nodes give them, one of a fused kernel.
LAYER_TIMES = (
    ("/patch_embed/MatMul", 0.02),
    ("layers.0/mixer/in_proj", 0.03),
    ("layers.0/mixer/BidirectionalSelectiveScan", 0.05),
    ("layers.1/mixer/in_proj", 0.03),
    ("__myl_MulAdd_myl0_7", 0.01),
)


class IRuntimeCache:
    pass


class IRuntimeConfig:
    """Knows its cache by reference and does not keep it, as the bindings of TensorRT-RTX 1.7 have it."""

    def __init__(self) -> None:
        self.strategy = ExecutionContextAllocationStrategy.STATIC
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
        self._cache: weakref.ref[IRuntimeCache] | None = None

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = weakref.ref(cache)
        return True

    def _check_cache(self) -> None:
        if self._cache is not None and self._cache() is None:
            raise Misuse("the runtime cache of a config is gone while a context uses it")


class FakeTensorRT:
    """The module, of either flavour.

    Attributes:
        capture_refused: engines, or those of one stage, do something that a capture forbids.
        shapes_refused: engines cannot infer the shapes of what is in them.
        contexts: all that were made, in order.
    """

    ILogger, IProfiler, DataType, TensorIOMode = ILogger, IProfiler, DataType, TensorIOMode
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy

    def __init__(self, cuda: FakeCuda, network: FakeNetwork, flavour: str = "tensorrt") -> None:
        self.cuda, self.network, self.flavour = cuda, network, flavour
        self.__version__ = VERSION[flavour]
        self.capture_refused: bool | str = False
        self.shapes_refused = False
        self.no_memory = False
        self.contexts: list[IExecutionContext] = []
        self.scratch_used: dict[int, tuple[int, int]] = {}  # by its address, the work that was queued on it last

    def Runtime(self, logger: ILogger) -> Runtime:
        if not isinstance(logger, ILogger) or not getattr(logger, "ready", False):
            raise TypeError("incompatible constructor arguments: a logger")
        return Runtime(self, logger)


class Runtime:
    def __init__(self, module: FakeTensorRT, logger: ILogger) -> None:
        self._module, self._logger = module, logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        self._module.cuda.check_current("deserialize_cuda_engine")
        self._logger.log(Severity.INFO, "Loaded engine size: 0 MiB")
        try:
            content = json.loads(serialized_engine)
            assert content["magic"] == _MAGIC
        except Exception:
            self._logger.log(Severity.ERROR, "Error Code 2: magic tag does not match\n in readHeader")
            return None
        return ICudaEngine(self._module, self._logger, content["stage"], tuple(content["batch"]))


class ICudaEngine:
    num_optimization_profiles = 1
    device_memory_size_v2 = 4096

    def __init__(self, module: FakeTensorRT, logger: ILogger, stage: Any, batch: tuple[int, int, int]) -> None:
        self.module, self.logger, self.stage, self.batch = module, logger, stage, batch
        self.graph = graph_for(module.network.config, stage)
        self.tensors = {tensor.name: tensor for tensor in (*self.graph.inputs, *self.graph.outputs)}

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.graph.input_names else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self.tensors[name].dtype)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape(name, -1)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        if self.get_tensor_mode(name) != TensorIOMode.INPUT:
            self.logger.log(Severity.ERROR, f"Error Code 3: {name} is no input of this engine")
            return [(), (), ()]
        return [self.shape(name, batch) for batch in self.batch]

    def create_runtime_config(self) -> IRuntimeConfig:
        if self.module.flavour != "tensorrt-rtx":
            raise Misuse("create_runtime_config is used for TensorRT-RTX only")
        return IRuntimeConfig()

    def create_execution_context(self, strategy: Any) -> IExecutionContext | None:
        self.module.cuda.check_current("create_execution_context")
        if self.module.no_memory:
            self.logger.log(Severity.ERROR, "Error Code 1: Cuda Runtime (out of memory)")
            return None
        config = strategy if isinstance(strategy, IRuntimeConfig) else None
        managed = strategy if config is None else config.strategy
        kind = RtxExecutionContext if self.module.flavour == "tensorrt-rtx" else IExecutionContext
        context = kind(self, managed is ExecutionContextAllocationStrategy.USER_MANAGED)
        context._config = config
        self.module.contexts.append(context)
        return context

    def shape(self, name: str, batch: int) -> tuple[int, ...]:
        return (batch, *(int(axis) for axis in self.tensors[name].axes[1:]))


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, managed: bool) -> None:
        self._engine, self._needs_scratch = engine, managed
        self._batch: int | None = None
        self._addresses: dict[str, int] = {}
        self._enqueued = self.captured = False
        self._scratch = 0
        self._profiler: IProfiler | None = None
        self._config: IRuntimeConfig | None = None

    @property
    def profiler(self) -> IProfiler | None:
        return self._profiler

    @profiler.setter
    def profiler(self, profiler: IProfiler) -> None:
        if not isinstance(profiler, IProfiler) or not getattr(profiler, "ready", False):
            raise TypeError("incompatible function arguments: a profiler")
        self._profiler = profiler

    def set_device_memory(self, memory: int, size: int) -> None:
        self._engine.module.cuda.memory(memory, size)
        if memory % 256 or size < self._engine.device_memory_size_v2:
            raise Misuse("scratch memory is too small, or not aligned")
        self._needs_scratch, self._scratch = False, memory

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._check_untouched()
        smallest, _, largest = self._engine.batch
        if shape != self._engine.shape(name, shape[0]) or not smallest <= shape[0] <= largest:
            self._engine.logger.log(Severity.ERROR, f"Error Code 3: {name} of {shape} does not satisfy any profile")
            return False
        self._batch, self._enqueued = shape[0], False
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._check_untouched()
        if memory % 256:
            raise Misuse(f"the address of {name} is not a multiple of 256")
        self._addresses[name] = memory
        return True

    def infer_shapes(self) -> list[str]:
        if self._engine.module.shapes_refused:
            self._engine.logger.log(Severity.ERROR, "Error Code 7: broadcast dimensions must be conformable")
            raise RuntimeError("infer_shapes error code: -1")
        return [] if self._batch is not None else list(self._engine.graph.input_names)

    def execute_async_v3(self, stream_handle: int) -> bool:
        module, cuda = self._engine.module, self._engine.module.cuda
        cuda.check_current("execute_async_v3")
        assert self._batch is not None
        if self._config is not None:
            self._config._check_cache()
        if self._needs_scratch or set(self._addresses) != set(self._engine.tensors):
            raise Misuse("enqueued without scratch memory, or with tensors that have no address")
        for name, address in self._addresses.items():
            self._array(name, address)
        if cuda.capturing(stream_handle):
            if self._profiler is not None:
                raise Misuse("a profiled context is captured")
            if not self._enqueued or module.capture_refused in (True, self._engine.stage):
                cuda.refuse_capture(stream_handle)
                self._engine.logger.log(
                    Severity.ERROR, "Error Code 1: operation not permitted when stream is capturing"
                )
                return False
            self.captured = True
        used = module.scratch_used.get(self._scratch, (stream_handle, 0))
        if used[0] != stream_handle and not cuda.is_over(used):
            raise Misuse("two contexts would work in one scratch memory at the same time, on two streams")
        self._enqueued = True
        cuda.enqueue(stream_handle, self._engine.stage, self._compute)
        module.scratch_used[self._scratch] = cuda.last_queued(stream_handle)
        if self._profiler is not None:
            for name, ms in LAYER_TIMES:
                self._profiler.report_layer_time(name, ms)
        return True

    def _check_untouched(self) -> None:
        if self.captured:
            raise Misuse("a context is changed after its work was captured")

    def _array(self, name: str, address: int) -> Any:
        assert self._batch is not None
        shape = self._engine.shape(name, self._batch)
        return self._engine.module.cuda.array(address, self._engine.tensors[name].dtype, shape)

    def _compute(self) -> None:
        engine = self._engine
        given = {name: self._array(name, self._addresses[name]) for name in engine.graph.input_names}
        for name, array in run_rows(engine.module.network, engine.stage, given).items():
            self._array(name, self._addresses[name])[...] = array


class RtxExecutionContext(IExecutionContext):
    """TensorRT-RTX's, which is asked before a capture is tried."""

    def is_stream_capturable(self, stream: int) -> bool:
        self._engine.module.cuda.capturing(stream)
        return self._engine.module.capture_refused not in (True, self._engine.stage)

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self._engine.module.cuda.capturing(stream_handle) and not self.is_stream_capturable(stream_handle):
            raise Misuse("a context is captured that says that it cannot be")
        return super().execute_async_v3(stream_handle)


def run_rows(network: FakeNetwork, stage: str, given: dict[str, Any]) -> dict[str, Any]:
    """The network's stage image by image, from the arrays given: the same bits whatever the batch."""
    with np.errstate(all="ignore"):  # padding may hold anything
        rows = [
            _run_row(network, stage, {n: array[i : i + 1] for n, array in given.items()})
            for i in range(len(given["image"]))
        ]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _run_row(network: FakeNetwork, stage: str, given: dict[str, Any]) -> dict[str, Any]:
    if stage != "fine":
        coarse = network.coarse(given["image"])
        return coarse if stage == "coarse" else {"logits": coarse["logits"]}
    weights, regions = network.weights, given["embeddings"].shape[1]
    for name in ("selected", "remaining"):
        if given[name].size and not (given[name].min() >= 0 and given[name].max() < regions):
            raise Misuse(f"{name} holds an index outside the regions")
    # As FakeNetwork.fine, but from the features and embeddings that were given.
    chosen = np.take_along_axis(given["features"], given["selected"][..., None], axis=1)
    others = np.take_along_axis(given["embeddings"], given["remaining"][..., None], axis=1)
    tokens = (chosen * weights["chosen_place"]).sum(axis=1) + (others * weights["other_place"]).sum(axis=1)
    pixels = given["image"].mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32)[:, None]
    return {"logits": tokens @ weights["fine_head"] + pixels @ weights["pixels_head"]}


def add_engines(folder: Path, *, flavour: str = "tensorrt", precision: str = "fp16", **record: Any) -> list[Path]:
    """Adds fake engines of every stage to a bundle, with their records; `record` overrides what is written there."""
    manifest = load_manifest(folder, check_files=False)
    files, stages, written = dict(manifest.files), dict(manifest.stages), []
    fields: dict[str, Any] = {
        "flavour": flavour, "version": VERSION[flavour], "compute_capabilities": ("sm_90",), "precision": precision,
        "graph_sha256": "0" * 64, "plugin_sha256": None, "batch": (1, 4, 8),
    } | record  # fmt: skip
    for stage, stage_record in manifest.stages.items():
        short = flavour.removeprefix("tensorrt").strip("-") or "trt"
        path = folder / f"{stage}.{precision}.{'-'.join(fields['compute_capabilities'])}.{short}.engine"
        path.write_text(json.dumps({"magic": _MAGIC, "stage": stage, "batch": fields["batch"]}))
        sidecar_of(path).write_text(EngineRecord(stage=stage, **fields).model_dump_json())
        for each in (path, sidecar_of(path)):
            files[each.name] = record_of(each)
        variant = Variant(file=path.name, backend=flavour, precision=precision)  # type: ignore[arg-type]
        stages[stage] = stage_record.model_copy(update={"variants": (*stage_record.variants, variant)})
        written.append(path)
    write_manifest(folder, manifest.model_copy(update={"files": files, "stages": stages}))
    return written
