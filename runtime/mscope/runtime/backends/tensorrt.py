"""TensorRT engines of either flavour: plain plans, run by address, replayed as CUDA graphs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mscope.core.contract import Graph
from mscope.core.engine import EngineRecord, Flavour, load_engine_record
from mscope.core.errors import BackendError, BundleError
from mscope.runtime.backends import plugin_library
from mscope.runtime.backends.base import Declared
from mscope.runtime.backends.bound_context import BoundContext, Complaints, refused
from mscope.runtime.backends.device_runner import DeviceRunner
from mscope.runtime.backends.engine_match import rebuild
from mscope.runtime.backends.tensorrt_library import FLAVOURS, error_log, load
from mscope.runtime.device.buckets import bucket_of
from mscope.runtime.device.cuda import Device, Memory
from mscope.runtime.device.stream import Stream

# Pairs of a batch and addresses that keep a context and a graph: every bucket twice (compacted or not), and some arrays
# of the caller's.
_MOST_BOUND = 32
_PROFILE = 0


class EngineRunner(DeviceRunner):
    """Runs one engine.

    Every pair of a batch and addresses has an execution context of its own, as TensorRT wants of a context whose work
    was captured; they share one block of scratch memory, for they run one after the other.

    Args:
        graph: its part of the contract.
        path: the engine; its record lies beside it. `engine_match` has found it fit for this machine.
        flavour: whose engine it is.
    """

    _captures = True

    def __init__(self, graph: Graph, path: Path, flavour: Flavour) -> None:
        super().__init__(graph, path)
        self._flavour = flavour
        self._title = FLAVOURS[flavour].title
        self._record: EngineRecord | None = None
        self._engine: Any = None
        self._runtime: Any = None
        self._cache: Any = None
        self._memory: Memory | None = None
        self._scratch = (0, 0)
        self._bound: OrderedDict[tuple[int, ...], BoundContext] = OrderedDict()
        self._recorded: list[BoundContext] = []

    @property
    def kernel(self) -> str:
        return "native" if self._record is not None and self._record.plugin_sha256 else "function"

    def bucket(self, rows: int) -> int:
        return bucket_of(rows, self.smallest, self.largest)

    def enqueue(self, batch: int, addresses: Mapping[str, int], stream: Stream) -> None:
        names = (*self.graph.input_names, *self.graph.output_names)
        key = (stream.handle, batch, *(addresses[name] for name in names))
        bound = self._bound.get(key)
        if bound is None:
            if len(self._bound) == _MOST_BOUND:
                self._bound.popitem(last=False)[1].close()
            shapes = self._graph_shapes(batch)
            bound = BoundContext(self._context(), shapes, addresses, self._log, capture=self._captures)
            self._bound[key] = bound
        self._bound.move_to_end(key)
        if reason := bound.run(stream):
            note = f"{self.path.name}: no CUDA graph at batch {batch} ({reason}): launched kernel by kernel"
            if note not in self.notes:
                self.notes.append(note)

    def recorder(self, batch: int, addresses: Mapping[str, int], stream: Stream) -> Callable[[Stream], None]:
        bound = BoundContext(self._context(), self._graph_shapes(batch), addresses, self._log, capture=False)
        self._recorded.append(bound)
        bound.run(stream)
        if reason := bound.why_not_captured(stream):
            raise BackendError(f"{self.path.name}: no CUDA graph ({reason}): leave --decide device out")
        return bound.enqueue

    def _open(self) -> None:
        self._record = load_engine_record(self.path)
        if self._record.stage != self.graph.stage:
            raise BundleError(
                f"{self.path}: its record says stage {self._record.stage}, the manifest {self.graph.stage}: "
                "build the bundle again"
            )
        module = load(self._flavour)
        self._opened_device = Device()
        # Engines and contexts are of the device that is current.
        with self._opened_device.current():
            self._deserialize(module)

    def _deserialize(self, module: Any) -> None:
        assert self._record is not None
        if self._record.plugin_sha256 is not None:
            plugin_library.load(self._flavour)
        log = error_log(module)
        self._log: Complaints = log.take
        log.take()  # earlier complaints are not of this engine
        what = f"{self._title} {module.__version__} cannot load {self.path.name}"
        try:
            self._runtime = module.Runtime(log.logger)
            self._engine = self._runtime.deserialize_cuda_engine(self.path.read_bytes())
        except (RuntimeError, TypeError) as error:
            raise BackendError(refused(what, f"{error}; {log.take()}")) from None
        if self._engine is None:
            raise BackendError(f"{refused(what, log.take())}: {rebuild(self._flavour, self.path)}")
        if self._engine.num_optimization_profiles < 1:
            raise BackendError(f"{self.path.name} has no optimisation profile: {rebuild(self._flavour, self.path)}")
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        # Else the check of what is declared says what is there instead.
        if "image" in names and self._engine.get_tensor_mode("image") == module.TensorIOMode.INPUT:
            smallest, _, largest = self._engine.get_tensor_profile_shape("image", _PROFILE)
            self.smallest, self.largest = int(smallest[0]), int(largest[0])
        self._memory = Memory(self.device)
        size = int(self._engine.device_memory_size_v2)
        self._scratch = (self._memory.on_device(size, f"{self.path.name}'s activations"), size)
        self._module = module
        self._config = self._runtime_config()

    def _declared(self) -> tuple[Sequence[Declared], Sequence[Declared]]:
        engine, modes = self._engine, self._module.TensorIOMode
        dtypes = {self._module.DataType.FLOAT: "float32", self._module.DataType.INT64: "int64"}
        found: dict[Any, list[Declared]] = {modes.INPUT: [], modes.OUTPUT: []}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            dtype = engine.get_tensor_dtype(name)
            axes = tuple(None if int(axis) < 0 else int(axis) for axis in engine.get_tensor_shape(name))
            found[engine.get_tensor_mode(name)].append(Declared(name, dtypes.get(dtype, str(dtype)), axes))
        return found[modes.INPUT], found[modes.OUTPUT]

    def _release(self) -> None:
        for bound in (*self._bound.values(), *self._recorded):
            bound.close()
        self._bound.clear()
        self._recorded.clear()
        # An engine must go before the runtime that made it, and a cache after all that uses it.
        self._config = None
        self._cache = self._engine = None
        self._runtime = None
        if self._memory is not None:
            self._memory.release()
            self._memory = None
        super()._release()

    def _graph_shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        return {tensor.name: (batch, *(int(axis) for axis in tensor.axes[1:])) for tensor in self.graph.inputs}

    def _runtime_config(self) -> Any:
        """TensorRT-RTX compiles kernels when a context is made: all of ours share what was compiled.

        None for TensorRT, which compiled when it built.
        """
        if self._flavour != "tensorrt-rtx":
            return None
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(self._module.ExecutionContextAllocationStrategy.USER_MANAGED)
        # Lazily specialised kernels would come after the graph was captured, which would keep the slow ones.
        kinds = self._module.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
        # The config refers to the cache and does not own it.
        self._cache = config.create_runtime_cache()
        config.set_runtime_cache(self._cache)
        return config

    def _context(self) -> Any:
        strategy = self._module.ExecutionContextAllocationStrategy.USER_MANAGED
        what = f"{self._title} cannot run {self.path.name}"
        try:
            context = self._engine.create_execution_context(strategy if self._config is None else self._config)
        except RuntimeError as error:
            raise BackendError(refused(what, f"{error}; {self._log()}")) from None
        if context is None:
            raise BackendError(refused(what, self._log()))
        context.set_device_memory(*self._scratch)
        return context
