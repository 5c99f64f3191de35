"""The exporter's worker over NVIDIA's own Python bindings of TensorRT, whose objects below note what they are told.

    python tests/trt_builder.py FOLDER REQUEST RESULT     # FOLDER as tests/trt_bindings.py takes it; files of JSON

Builds what REQUEST (an EngineRequest) says with the worker's `build`, where every C++ class lies below the bindings and
says yes. RESULT gets what the worker returned, and each call in order with its arguments as C++ gets them.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

import trt_bindings
from mscope.export.engine import worker
from mscope.export.engine.request import EngineRequest
from trt_bindings import Below, Bound, Dims, int32, read
from trt_callbacks import silent_logger

PLAN, TIMED = b"a plan", b"timed"
LAYERS = "Layers:\nName: x_myl0_1, LayerType: gemm, Inputs: [], Outputs: []\nBindings:\n"
VERBOSE = 4


class BuilderBelow(Below):
    """Builder, network, parser and configuration; `calls` are what they were told."""

    def __init__(self, module: Any, library: Any) -> None:
        self.calls: list[tuple[Any, ...]] = []
        super().__init__(module, library)
        self.monitor = self.logger = 0

    def _made(self, slot: int, first: int, second: int) -> int:
        assert slot in (-2, -3)
        if slot == -2:
            self.logger = first
            return self._new("builder", None)
        assert (self._objects[first][0], second) == ("network", self.logger)
        return self._new("parser", None)

    def _learn(self) -> None:
        module = self.module

        class Monitor(module.IProgressMonitor):  # type: ignore[name-defined,misc]
            def __init__(self) -> None:
                module.IProgressMonitor.__init__(self)

        logger, monitor = silent_logger(module), Monitor()
        self._kept += [logger, monitor]
        text = ctypes.create_string_buffer(b"x")
        builder, _ = self._told("", "", lambda: module.Builder(logger), self._new("builder", None))
        made = {}
        for kind, call in (
            ("network", lambda: builder.create_network(0)),
            ("config", builder.create_builder_config),
            ("profile", builder.create_optimization_profile),
        ):
            made[kind] = self._told("builder", f"create_{kind}", call, self._new(kind, None))
        network, config, profile = made.values()
        memory = self._told(
            "builder", "build", lambda: builder.build_serialized_network(network, config), self._new("memory", None)
        )
        self._told("memory", "size", lambda: memory.nbytes)
        self._told("memory", "type", lambda: memory.dtype)
        _, seen = self._told("", "", lambda: memoryview(memory), *[ctypes.addressof(text)] * 3)
        (data,) = (slot for slot in set(seen) if ("memory", slot) not in self._functions)
        self._functions["memory", data] = "data"
        self._told("network", "num_layers", lambda: network.num_layers)
        flag = module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        self._told("network", "get_flag", lambda: network.get_flag(flag))
        layer = self._told("network", "get_layer", lambda: network.get_layer(0), self._new("layer", None))
        tensor = self._told("layer", "get_input", lambda: layer.get_input(0), self._new("tensor", None))
        for name, call, answer in (
            ("get_output", lambda: layer.get_output(0), 0),
            ("num_inputs", lambda: layer.num_inputs, 0),
            ("num_outputs", lambda: layer.num_outputs, 0),
            ("name", lambda: layer.name, ctypes.addressof(text)),
            ("type", lambda: layer.type, 0),
        ):
            self._told("layer", name, call, answer)
        self._told("tensor", "dtype", lambda: tensor.dtype)
        parser, _ = self._told("", "", lambda: module.OnnxParser(network, logger), self._new("parser", None))
        self._told("parser", "parse", lambda: parser.parse(b"x"))
        self._told("parser", "num_errors", lambda: parser.num_errors)
        shape = (1,)
        self._told("profile", "set_shape", lambda: profile.set_shape("x", shape, shape, shape), 1, 1, 1)
        cache = self._told(
            "config", "create_timing_cache", lambda: config.create_timing_cache(b""), self._new("cache", 0)
        )
        self._told("cache", "serialize", cache.serialize, self._new("memory", None))
        for name, call in (
            ("clear_flag", lambda: config.clear_flag(module.BuilderFlag.TF32)),
            ("verbosity", lambda: setattr(config, "profiling_verbosity", module.ProfilingVerbosity.DETAILED)),
            ("add_profile", lambda: config.add_optimization_profile(profile)),
            ("set_timing_cache", lambda: config.set_timing_cache(cache, False)),
            ("progress_monitor", lambda: setattr(config, "progress_monitor", monitor)),
        ):
            self._told("config", name, call)
        self._told("config", "get_timing_cache", config.get_timing_cache, self._new("cache", None))
        if hasattr(module, "ComputeCapability"):  # TensorRT-RTX
            current = module.ComputeCapability.CURRENT
            self._told("config", "gpus", lambda: setattr(config, "num_compute_capabilities", 1), 1)
            self._told("config", "gpu", lambda: config.set_compute_capability(current, 0), 1)

    def _destroys(self, kind: str, slot: int) -> bool:
        # A parser has no implementation behind it, and its destructors are not the first.
        return kind == "parser" or super()._destroys(kind, slot)

    def _note(self, *what: Any) -> None:
        self.calls.append(what)

    def _builder_create_network(self, _: Any, flags: int, *__: int) -> int:
        self._note("create_network", int32(flags))
        return self._new("network", None)

    def _builder_create_config(self, *_: Any) -> int:
        return self._new("config", None)

    def _builder_create_profile(self, *_: Any) -> int:
        return self._new("profile", None)

    def _builder_build(self, _: Any, network: int, config: int, *__: int) -> int:
        self._note("build", self._objects[network][0], self._objects[config][0])
        # A monitor has its language, its version and two destructors before; a phase of the first has no parent.
        name = self._text("Building")
        call = self.library.stub_call
        call(self.monitor, 4, name, 0, 2)
        self._note("goes on", bool(call(self.monitor, 5, name, 0, 0) & 0xFF))
        call(self.monitor, 6, name, 0, 0)
        call(self.logger, self.own_function, VERBOSE, self._text(LAYERS), 0)
        return self._new("memory", PLAN)

    def _memory_size(self, content: bytes, *_: int) -> int:
        return len(content)

    def _memory_data(self, content: bytes, *_: int) -> int:
        self._kept.append(ctypes.create_string_buffer(content))
        return ctypes.addressof(self._kept[-1])

    def _memory_type(self, *_: Any) -> int:
        return int(self.module.DataType.INT8)

    def _network_num_layers(self, *_: Any) -> int:
        return 1

    def _network_get_flag(self, _: Any, flag: int, *__: int) -> bool:
        # TensorRT 11 ignores the flag, by its headers: it may well say no.
        self._note("get_flag", int32(flag))
        return not self.module.__version__.startswith("11.")

    def _network_get_layer(self, _: Any, index: int, *__: int) -> int:
        return self._new("layer", int32(index))

    def _layer_name(self, *_: Any) -> int:
        return self._text("layers.0/mixer/in_proj")

    def _layer_type(self, *_: Any) -> int:
        return int(self.module.LayerType.MATRIX_MULTIPLY)

    def _layer_num_inputs(self, *_: Any) -> int:
        return 2

    def _layer_num_outputs(self, *_: Any) -> int:
        return 1

    def _layer_get_input(self, _: Any, index: int, *__: int) -> int:
        # An input that is not given is none at all.
        return 0 if int32(index) else self._new("tensor", self.module.DataType.HALF)

    def _layer_get_output(self, *_: Any) -> int:
        return self._new("tensor", self.module.DataType.FLOAT)

    def _tensor_dtype(self, dtype: Any, *_: int) -> int:
        return int(dtype)

    def _parser_parse(self, _: Any, blob: int, size: int, *__: int) -> bool:
        import onnx

        model = onnx.load_model_from_string(ctypes.string_at(blob, size))
        self._note("parse", [given.name for given in model.graph.input])
        return True

    def _parser_num_errors(self, *_: Any) -> int:
        return 0

    def _profile_set_shape(self, _: Any, name: int, which: int, shape: int, *__: int) -> bool:
        dims = Dims.from_address(shape)
        self._note("set_shape", read(name), int32(which), dims.sizes[: dims.count])
        return True

    def _config_clear_flag(self, _: Any, flag: int, *__: int) -> None:
        self._note("clear_flag", int32(flag))

    def _config_verbosity(self, _: Any, verbosity: int, *__: int) -> None:
        self._note("profiling_verbosity", int32(verbosity))

    def _config_add_profile(self, _: Any, profile: int, *__: int) -> int:
        self._note("add_optimization_profile", self._objects[profile][0])
        return 0

    def _config_create_timing_cache(self, _: Any, blob: int, size: int, *__: int) -> int:
        content = ctypes.string_at(blob, size) if size else b""
        self._note("create_timing_cache", content.decode())
        return self._new("cache", content)

    def _config_set_timing_cache(self, _: Any, cache: int, ignore_mismatch: int, *__: int) -> bool:
        content = self._objects[cache][1]
        self._note("set_timing_cache", content.decode(), bool(ignore_mismatch & 0xFF))
        return bool(content != b"foreign")

    def _config_get_timing_cache(self, *_: Any) -> int:
        return self._new("cache", TIMED)

    def _cache_serialize(self, content: bytes, *_: int) -> int:
        return self._new("memory", content)

    def _config_gpus(self, _: Any, count: int, *__: int) -> bool:
        self._note("num_compute_capabilities", int32(count))
        return True

    def _config_gpu(self, _: Any, capability: int, index: int, *__: int) -> bool:
        self._note("set_compute_capability", int32(capability), int32(index))
        return True

    def _config_progress_monitor(self, _: Any, monitor: int, *__: int) -> None:
        self.monitor = monitor


def main() -> int:
    """Builds, and writes what came of it."""
    folder, request, result = (Path(name) for name in sys.argv[1:])
    module, library = trt_bindings.load(folder.resolve())
    below = BuilderBelow(module, library)
    # The package `tensorrt` takes all of the bindings over, under its own name.
    module.__name__ = module.__name__.removesuffix("_bindings")
    worker.load = lambda library: module
    built = worker.build(EngineRequest.model_validate_json(request.read_bytes()), os.getppid())
    assert not Bound.errors, Bound.errors
    result.write_text(json.dumps({"built": built.model_dump(mode="json"), "calls": below.calls}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
