"""NVIDIA's own Python bindings of TensorRT over tests/fake_tensorrt.py, for a process that has no TensorRT loaded.

The bindings are pybind11 classes over C++ ones. Here they are imported over libraries of a few functions
(trt_stub.cpp), whose objects tell every virtual call; what is called then is done by the fake. So the types, shapes,
addresses, enumerations and buffers that the runtime hands over, and what it gets, pass through NVIDIA's conversions.

    python tests/trt_bindings.py FOLDER               # prints what the bindings in FOLDER have, as JSON
    python tests/trt_bindings.py FOLDER TEST ...      # runs tests of pytest's, with these bindings for the runtime

FOLDER holds the package `tensorrt_bindings` or `tensorrt_rtx_bindings`, as a wheel of that name unpacked has it.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import json
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import cuda_host
import fake_gpu
import fake_tensorrt
import signatures
from fake_tensorrt import FakeTensorRT
from trt_callbacks import BoundLogger, BoundProfiler, silent_logger

SOURCE = Path(__file__).with_name("trt_stub.cpp")
PACKAGES = ("tensorrt_bindings", "tensorrt_rtx_bindings")
_WORD = 1 << 64
_HANDLER = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int, *[ctypes.c_int64] * 5)


class Dims(ctypes.Structure):
    """nvinfer1::Dims64"""

    _fields_ = (("count", ctypes.c_int32), ("sizes", ctypes.c_int64 * 8))


def package_in(folder: Path) -> str:
    """The package of bindings in a folder; "" where there is none."""
    return next((name for name in PACKAGES if (folder / name / "__init__.py").is_file()), "")


@functools.cache
def load(folder: Path) -> tuple[ModuleType, Any]:
    """The bindings and the library of stubs below them; each library that they ask for is made as they ask."""
    compiler = cuda_host.compiler()
    assert compiler is not None
    name = package_in(folder)
    # The package of the real libraries, which the bindings would load otherwise.
    sys.modules[name.replace("_bindings", "_libs")] = ModuleType(name)
    sys.path.insert(0, str(folder))
    with tempfile.TemporaryDirectory() as build:
        stubs = Path(build) / "stubs.so"
        subprocess.run([compiler, "-std=c++17", "-shared", "-fPIC", "-O1", "-o", stubs, SOURCE], check=True)
        library = ctypes.CDLL(str(stubs), mode=ctypes.RTLD_GLOBAL)
        for _ in range(8):
            try:
                module = importlib.import_module(name)
            except ImportError as error:
                wanted = str(error).split(":")[0]
                if not wanted.startswith("lib"):
                    raise
                path = Path(build) / wanted
                empty = ["-x", "c++", "/dev/null"]
                subprocess.run([compiler, "-shared", f"-Wl,-soname,{wanted}", "-o", path, *empty], check=True)
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            else:
                return module, library
    raise AssertionError(f"{name} does not load")


class Bound:
    """The module `tensorrt` over one FakeTensorRT: NVIDIA's bindings, with the version that the fake says.

    `errors` are the exceptions of the fake, which cannot pass through C++.
    """

    errors: list[BaseException] = []  # noqa: RUF012 (of the process: one library is below all modules)

    def __init__(self, folder: Path, fake: FakeTensorRT) -> None:
        self._module, library = load(folder)
        self.__version__ = fake.__version__
        self.__name__ = "tensorrt_rtx" if fake.flavour == "tensorrt-rtx" else "tensorrt"
        self._below = _below(self._module, library)
        self._fake = fake

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def Runtime(self, logger: Any) -> Any:
        self._below.fake = self._fake
        return self._module.Runtime(logger)


class Below:
    """What is below the bindings of one process: objects by address, and what each number of a class's functions is.

    Subclasses find the numbers out by `_told`, and have a method `_kind_function` for each.
    """

    def __init__(self, module: ModuleType, library: Any) -> None:
        self.module, self.library = module, library
        library.stub_report.restype = None
        library.stub_object.restype = ctypes.c_void_p
        library.stub_call.argtypes = [ctypes.c_void_p, ctypes.c_int, *[ctypes.c_int64] * 3]
        library.stub_call.restype = ctypes.c_int64
        library.stub_report.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_float]
        # From TensorRT 11 on, to whose headers TensorRT-RTX is made, language, version and destructors come before.
        self.own_function = 0 if module.__version__.startswith("10.") else 4
        self._callback = _HANDLER(self._called)
        library.stub_handler(self._callback)
        self._objects: dict[int, tuple[str, Any]] = {}
        self._kept: list[Any] = []
        # Of each class, the function that each number stands for.
        self._functions: dict[tuple[str, int], str] = {}
        self._seen: list[int] | None = None
        self._answers: list[Any] = []
        self._learn()

    def _learn(self) -> None:
        """Calls every function that is served, by `_told`."""
        raise NotImplementedError

    def _made(self, slot: int, first: int, second: int) -> int:
        """The object that a function of the library's makes: -1 a runtime, -2 a builder, -3 a parser."""
        raise NotImplementedError

    def _told(self, kind: str, name: str, call: Callable[[], Any], *answers: Any) -> Any:
        self._seen, self._answers = [], list(answers)
        result = call()
        if kind:
            assert self._seen, f"{name} calls nothing"
            number = (kind, self._seen[-1])
            assert self._functions.setdefault(number, name) == name, f"{name} and {self._functions[number]} are one"
        seen, self._seen = self._seen, None
        return result if kind else (result, seen)

    def _called(self, slot: int, *words: int) -> int:
        try:
            if self._seen is not None:
                return self._learned(slot, *words)
            answer = self._serve(slot, *words)
        except BaseException as error:
            traceback.print_exc()
            Bound.errors.append(error)
            return 0
        return int(answer) if answer is not None else 0

    def _learned(self, slot: int, *words: int) -> int:
        assert self._seen is not None
        self._seen.append(slot)
        answer = self._answers.pop(0) if self._answers else 0
        if answer == "returned":
            ctypes.memset(words[0], 0, ctypes.sizeof(Dims))
            return words[0]
        return int(answer)

    def _serve(self, slot: int, *words: int) -> Any:
        if slot < 0:
            return self._made(slot, *words[:2])
        # A function that returns a structure is told where to write it first.
        place = 0 if words[0] in self._objects else 1
        kind, thing = self._objects[words[place]]
        name = self._functions.get((kind, slot))
        if name is None:
            assert self._destroys(kind, slot), f"function {slot} of {kind} is called, which is not known here"
            self._objects[words[place]] = (kind, None)
            return 0
        arguments = words[place + 1 :]
        return getattr(self, f"_{kind}_{name}")(thing, *((words[0],) if place else ()), *arguments)

    def _destroys(self, kind: str, slot: int) -> bool:
        """Whether a number is that of a destructor, which is called when Python lets an object go."""
        return slot in (0, 1)

    def _new(self, kind: str, thing: Any) -> int:
        address: int = self.library.stub_object()
        self._objects[address] = (kind, thing)
        return address

    def _text(self, text: str) -> int:
        self._kept.append(ctypes.create_string_buffer(text.encode()))
        return ctypes.addressof(self._kept[-1])


class _RuntimeBelow(Below):
    """Runtimes, engines and contexts of a FakeTensorRT."""

    fake: FakeTensorRT

    def _made(self, slot: int, first: int, second: int) -> int:
        return self._new("runtime", self.fake.Runtime(BoundLogger(self.library, first, self.own_function)))

    def _learn(self) -> None:
        module = self.module

        self._kept.append(silent_logger(module))
        text = ctypes.create_string_buffer(b"x")
        strategy = module.ExecutionContextAllocationStrategy.USER_MANAGED
        runtime, _ = self._told("", "", lambda: module.Runtime(self._kept[0]), self._new("runtime", None))
        engine = self._told(
            "runtime", "deserialize", lambda: runtime.deserialize_cuda_engine(b"x"), self._new("engine", None)
        )
        shape = "returned"
        for name, call, answer in (
            ("num_io_tensors", lambda: engine.num_io_tensors, 0),
            ("num_optimization_profiles", lambda: engine.num_optimization_profiles, 0),
            ("device_memory_size_v2", lambda: engine.device_memory_size_v2, 0),
            ("get_tensor_name", lambda: engine.get_tensor_name(0), ctypes.addressof(text)),
            ("get_tensor_mode", lambda: engine.get_tensor_mode("x"), 0),
            ("get_tensor_dtype", lambda: engine.get_tensor_dtype("x"), 0),
            ("get_tensor_shape", lambda: engine.get_tensor_shape("x"), shape),
            ("get_tensor_profile_shape", lambda: engine.get_tensor_profile_shape("x", 0), shape),
        ):
            self._told("engine", name, call, *[answer] * 3)
        context = self._told(
            "engine", "create_execution_context", lambda: engine.create_execution_context(strategy),
            self._new("context", None),
        )  # fmt: skip
        profiler = module.IProfiler()
        for name, call in (
            ("set_device_memory", lambda: context.set_device_memory(256, 1)),
            ("set_input_shape", lambda: context.set_input_shape("x", (1,))),
            ("set_tensor_address", lambda: context.set_tensor_address("x", 256)),
            ("execute_async_v3", lambda: context.execute_async_v3(1)),
            ("profiler", lambda: setattr(context, "profiler", profiler)),
        ):
            self._told("context", name, call)
        # It asks for the engine, and that for the number of its tensors, before.
        engine_address = self._new("engine", None)
        self._told("context", "infer_shapes", context.infer_shapes, engine_address, 0, 0)
        _, seen = self._told("", "", context.infer_shapes, engine_address, 0, 0)
        self._functions["context", seen[0]] = "engine"
        if hasattr(module, "DynamicShapesKernelSpecializationStrategy"):
            self._learn_config(engine)

    def _learn_config(self, engine: Any) -> None:
        """TensorRT-RTX alone."""
        module = self.module
        config = self._told("engine", "create_runtime_config", engine.create_runtime_config, self._new("config", None))
        kinds = module.DynamicShapesKernelSpecializationStrategy
        context = self._told(
            "engine", "create_context_with", lambda: engine.create_execution_context(config), self._new("context", None)
        )
        self._told("context", "is_stream_capturable", lambda: context.is_stream_capturable(1))
        cache = self._told("config", "create_runtime_cache", config.create_runtime_cache, self._new("cache", None))
        strategy = module.ExecutionContextAllocationStrategy.USER_MANAGED
        for name, call in (
            ("strategy", lambda: config.set_execution_context_allocation_strategy(strategy)),
            ("set_runtime_cache", lambda: config.set_runtime_cache(cache)),
            ("kind", lambda: setattr(config, "dynamic_shapes_kernel_specialization_strategy", kinds.EAGER)),
        ):
            self._told("config", name, call)

    # Runtime and engine

    def _runtime_deserialize(self, runtime: Any, blob: int, size: int, *_: int) -> int:
        engine = runtime.deserialize_cuda_engine(ctypes.string_at(blob, size))
        return 0 if engine is None else self._new("engine", engine)

    def _engine_num_io_tensors(self, engine: Any, *_: int) -> int:
        return int(engine.num_io_tensors)

    def _engine_num_optimization_profiles(self, engine: Any, *_: int) -> int:
        return int(engine.num_optimization_profiles)

    def _engine_device_memory_size_v2(self, engine: Any, *_: int) -> int:
        return int(engine.device_memory_size_v2)

    def _engine_get_tensor_name(self, engine: Any, index: int, *_: int) -> int:
        return self._text(engine.get_tensor_name(int32(index)))

    def _engine_get_tensor_mode(self, engine: Any, name: int, *_: int) -> int:
        return int(getattr(self.module.TensorIOMode, engine.get_tensor_mode(read(name)).name))

    def _engine_get_tensor_dtype(self, engine: Any, name: int, *_: int) -> int:
        return int(getattr(self.module.DataType, engine.get_tensor_dtype(read(name)).name))

    def _engine_get_tensor_shape(self, engine: Any, place: int, name: int, *_: int) -> int:
        return _write(place, engine.get_tensor_shape(read(name)))

    def _engine_get_tensor_profile_shape(self, engine: Any, place: int, name: int, profile: int, which: int) -> int:
        return _write(place, engine.get_tensor_profile_shape(read(name), int32(profile))[int32(which)])

    def _engine_create_execution_context(self, engine: Any, strategy: int, *_: int) -> int:
        return self._context(engine, fake_tensorrt.ExecutionContextAllocationStrategy(int32(strategy)))

    def _engine_create_context_with(self, engine: Any, config: int, *_: int) -> int:
        return self._context(engine, self._objects[config][1])

    def _engine_create_runtime_config(self, engine: Any, *_: int) -> int:
        return self._new("config", engine.create_runtime_config())

    def _context(self, engine: Any, strategy: Any) -> int:
        context = engine.create_execution_context(strategy)
        return 0 if context is None else self._new("context", context)

    def _config_strategy(self, config: Any, strategy: int, *_: int) -> None:
        strategies = fake_tensorrt.ExecutionContextAllocationStrategy
        config.set_execution_context_allocation_strategy(strategies(int32(strategy)))

    def _config_create_runtime_cache(self, config: Any, *_: int) -> int:
        return self._new("cache", config.create_runtime_cache())

    def _config_set_runtime_cache(self, config: Any, cache: int, *_: int) -> bool:
        return bool(config.set_runtime_cache(self._objects[cache][1]))

    def _config_kind(self, config: Any, kind: int, *_: int) -> bool:
        kinds = fake_tensorrt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = kinds(int32(kind))
        return True

    # Contexts

    def _context_engine(self, context: Any, *_: int) -> int:
        return self._new("engine", context._engine)

    def _context_set_device_memory(self, context: Any, memory: int, size: int, *_: int) -> None:
        context.set_device_memory(memory % _WORD, size)

    def _context_set_input_shape(self, context: Any, name: int, shape: int, *_: int) -> bool:
        dims = Dims.from_address(shape)
        return bool(context.set_input_shape(read(name), tuple(dims.sizes[: dims.count])))

    def _context_set_tensor_address(self, context: Any, name: int, memory: int, *_: int) -> bool:
        return bool(context.set_tensor_address(read(name), memory % _WORD))

    def _context_infer_shapes(self, context: Any, most: int, names: int, *_: int) -> int:
        try:
            unset = context.infer_shapes()
        except RuntimeError:
            return -1  # of which the bindings make the error that the stand-in has
        assert len(unset) <= int32(most)
        for place, name in enumerate(unset):
            (ctypes.c_void_p * len(unset)).from_address(names)[place] = self._text(name)
        return len(unset)

    def _context_execute_async_v3(self, context: Any, stream: int, *_: int) -> bool:
        return bool(context.execute_async_v3(stream))

    def _context_is_stream_capturable(self, context: Any, stream: int, *_: int) -> bool:
        # Where the stand-in plays TensorRT over TensorRT-RTX's bindings it is not asked.
        asked = getattr(context, "is_stream_capturable", None)
        return asked is None or bool(asked(stream))

    def _context_profiler(self, context: Any, profiler: int, *_: int) -> None:
        context.profiler = BoundProfiler(self.library, profiler, self.own_function)


_below = functools.cache(_RuntimeBelow)


def int32(word: int) -> int:
    return ctypes.c_int32(word).value


def read(address: int) -> str:
    return ctypes.string_at(address).decode()


def _write(place: int, shape: tuple[int, ...]) -> int:
    dims = Dims.from_address(place)
    dims.count = len(shape)
    dims.sizes[: len(shape)] = shape
    return place


class _Plugin:
    @pytest.fixture(autouse=True)
    def no_errors_below(self) -> Iterator[None]:
        Bound.errors.clear()
        yield
        assert not Bound.errors


def main() -> int:
    """Prints version and members, or runs tests."""
    folder = Path(sys.argv[1]).resolve()
    module, _ = load(folder)
    if len(sys.argv) > 2:
        flavours = ("tensorrt",) if package_in(folder) == "tensorrt_bindings" else ("tensorrt", "tensorrt-rtx")
        fake_gpu.as_tensorrt = lambda fake: Bound(folder, fake) if fake.flavour in flavours else fake
        return int(pytest.main(sys.argv[2:], plugins=[_Plugin()]))
    functions = [name for name, value in vars(module).items() if callable(value) and not isinstance(value, type)]
    print(json.dumps({"version": module.__version__, "functions": functions, "classes": signatures.describe(module)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
