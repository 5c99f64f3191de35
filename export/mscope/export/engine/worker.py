"""The child process that builds one engine: `python -m mscope.export.engine.worker REQUEST RESULT PARENT`.

TensorRT aborts its process on some failures, holds gigabytes, and cannot be interrupted; in a child of its own all
three are the parent's to handle. Events go to stdout, the library's errors to stderr, the result into a file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from mscope.core.errors import InputError, MscopeError
from mscope.core.files import replacing, write_text_atomically
from mscope.export.engine.device import gpu_here
from mscope.export.engine.flavour import LIBRARIES, check_gpus, load
from mscope.export.engine.layers import layers_of_inspector, layers_of_log
from mscope.export.engine.network import (
    ParseError,
    add_profile,
    layers_of_network,
    network_from_onnx,
    strongly_typed,
)
from mscope.export.engine.request import BuildResult, EngineLayer, EngineRequest, Event, LayerSource


def main(arguments: list[str]) -> int:
    """Builds what REQUEST says; the exit status is 0 whenever RESULT was written."""
    # Ctrl-C is the parent's, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request = EngineRequest.model_validate_json(Path(arguments[0]).read_bytes())
    try:
        result = build(request, int(arguments[2]))
    except MscopeError as error:
        result = BuildResult(error=str(error), usage=isinstance(error, InputError))
    except (OSError, MemoryError) as error:
        result = BuildResult(error=f"{type(error).__name__}: {error}")
    write_text_atomically(Path(arguments[1]), result.model_dump_json())
    return 0


def build(request: EngineRequest, parent: int) -> BuildResult:
    """Parses, builds and writes one engine, in this process; stops when the process `parent` is no longer its parent.

    Raises:
        MscopeError: the library or the plugin cannot be loaded, or does not build for a GPU that was named.
    """
    start = time.perf_counter()
    library = next(library for library in LIBRARIES.values() if library.flavour == request.flavour)
    module = load(library)
    log = _log_of(module)
    if request.plugin is not None:
        from mscope.plugins import trt

        trt.load(request.flavour)
    builder = module.Builder(log)
    try:
        # The parser owns the weights of the network until it is built.
        network, parser = network_from_onnx(module, builder, log, request)
    except ParseError as error:
        return BuildResult(
            error=f"the ONNX parser of {module.__name__} {module.__version__} refuses the graph: {error}"
        )
    config = builder.create_builder_config()
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    # fp32 means fp32: TF32 has the ten bits of fp16.
    config.clear_flag(module.BuilderFlag.TF32)
    take_memory_from_user(module, config, loops=request.plugin is None)
    add_profile(builder, config, request)
    set_gpus(module, config, request.gpus)
    cache = _timing_cache(config, request)
    # Both are called by the builder, and must live until it is done.
    monitor = _monitor(module, parent)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return BuildResult(error=f"{module.__name__} {module.__version__}: {log.last_error or 'no reason given'}")
    Path(request.engine).write_bytes(plan)
    if cache is not None and request.timing_cache is not None:
        # It saves the next build's time: no reason to lose this one.
        with contextlib.suppress(OSError):
            Path(request.timing_cache).parent.mkdir(parents=True, exist_ok=True)
            with replacing(Path(request.timing_cache)) as file:
                file.write(bytes(config.get_timing_cache().serialize()))
    layers, source = _layers(module, log, plan)
    del parser
    return BuildResult(
        version=str(module.__version__),
        strongly_typed=strongly_typed(module, network),
        network=layers_of_network(network),
        layers=layers,
        layers_from=source,
        seconds=time.perf_counter() - start,
    )


def set_gpus(module: ModuleType, config: Any, gpus: tuple[str, ...]) -> None:
    """Names the GPUs to build for, () the one here. Raises InputError where the library cannot build for one of them.

    TensorRT-RTX would otherwise build for every GPU it knows; TensorRT knows only the one it runs on.
    """
    if not gpus:
        if hasattr(module, "ComputeCapability"):
            config.num_compute_capabilities = 1
            config.set_compute_capability(module.ComputeCapability.CURRENT, 0)
        return
    members = check_gpus(module, gpus)
    config.num_compute_capabilities = len(gpus)
    for index, name in enumerate(gpus):
        if not config.set_compute_capability(members[name], index):
            raise InputError(
                f"--gpu {name}: {module.__name__} {module.__version__} refuses it beside {', '.join(gpus)}"
            )


def take_memory_from_user(module: ModuleType, config: Any, *, loops: bool) -> None:
    """Keeps an engine from allocating while it runs, which no CUDA graph may hold, where the library would let it.

    TensorRT-RTX does from 1.2 on, and builds nothing with a loop in it (the function bodies' Scan) under this flag.
    """
    flag = getattr(module.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
    if flag is not None and not loops:
        config.set_flag(flag)


def _log_of(module: ModuleType) -> Any:
    class Log(module.ILogger):  # type: ignore[name-defined,misc]
        """Keeps the last error and the builder's list of layers; warnings and errors go to stderr."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.last_error = ""
            self.layers: tuple[EngineLayer, ...] = ()

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.Severity.ERROR, module.ILogger.Severity.INTERNAL_ERROR):
                self.last_error = message
                print(message, file=sys.stderr, flush=True)
            elif severity == module.ILogger.Severity.VERBOSE and message.startswith("Layers:"):
                self.layers = layers_of_log(message)

    return Log()


def _monitor(module: ModuleType, parent: int) -> Any:
    """Reports phases and steps, and stops the build when the parent is gone."""

    class Monitor(module.IProgressMonitor):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.sizes: dict[str, int] = {}

        def phase_start(self, name: str, parent_name: str | None, steps: int) -> None:
            self.sizes[name] = steps
            self._tell(Event(kind="phase", text=name, of=steps))

        def step_complete(self, name: str, step: int) -> bool:
            self._tell(Event(kind="step", text=name, step=step + 1, of=self.sizes.get(name, 0)))
            return os.getppid() == parent

        def phase_finish(self, name: str) -> None:
            self.sizes.pop(name, None)

        def _tell(self, event: Event) -> None:
            print(event.model_dump_json(), flush=True)

    return Monitor()


def _timing_cache(config: Any, request: EngineRequest) -> Any:
    """TensorRT's own cache of what it timed, attached; TensorRT-RTX times nothing when it builds."""
    if request.timing_cache is None:
        return None
    known = b""
    with contextlib.suppress(OSError):  # none yet, or one that cannot be read
        known = Path(request.timing_cache).read_bytes()
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _layers(module: ModuleType, log: Any, plan: Any) -> tuple[tuple[EngineLayer, ...], LayerSource]:
    if log.layers:
        return log.layers, "builder"
    if gpu_here() is None:
        return (), ""
    engine = module.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        return (), ""
    text = engine.create_engine_inspector().get_engine_information(module.LayerInformationFormat.JSON)
    try:
        return layers_of_inspector(text), "inspector"
    except (ValueError, TypeError):  # a list that cannot be read is neither proof nor failure
        return (), ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
