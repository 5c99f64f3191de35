"""A stand-in for the tensorrt module with the signatures of one version, strict: what it does not know, it refuses.

TensorRT itself needs a GPU and NVIDIA's index. What the versions differ in is written down here from its headers, and
held to its Python bindings where they are (tests/runtime/test_tensorrt_api.py); everything that they share with
TensorRT-RTX is tested with the real TensorRT-RTX.
"""

from __future__ import annotations

import json
from enum import IntEnum
from types import ModuleType
from typing import Any

STRONGLY_TYPED_BIT = 1 << 1  # of TensorRT 10
TF32 = 6  # which is set to begin with


class _Config:
    # Neither attributes nor methods beside those of the version.
    __slots__ = ("_cache", "_flags", "profiles", "profiling_verbosity", "progress_monitor")

    def __init__(self) -> None:
        self._flags: set[int] = {TF32}
        self._cache: Any = None
        self.profiles: list[Any] = []
        self.progress_monitor: Any = None

    def clear_flag(self, flag: int) -> None:
        self._flags.discard(flag)

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, content: bytes) -> Any:
        return None if content == b"no cache" else bytearray(content)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert (cache is not None, ignore_mismatch) == (True, False)
        self._cache = cache
        # Content of another GPU or version is refused.
        return cache != b"foreign"

    def get_timing_cache(self) -> Any:
        class Cache:
            @staticmethod
            def serialize() -> bytes:
                return b"timed"

        return Cache


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Any, ...]] = {}

    def set_shape(self, name: str, smallest: Any, best: Any, largest: Any) -> None:
        self.shapes[name] = (smallest, best, largest)


class _Network:
    num_layers = 0

    def __init__(self, flags: int, heeded: int) -> None:
        self._flags = flags & heeded

    def get_flag(self, flag: int) -> bool:
        return bool(self._flags & (1 << int(flag)))


def make_module(version: str, plan: bytes | None = b"plan") -> Any:
    """A module `tensorrt` of `version`, "10..." or "11...", whose builder gives `plan`. Its records are in `.calls`.

    TensorRT 11 has the flag STRONGLY_TYPED, deprecated, at another place, and ignores it. 12 has none here.
    """
    major = int(version.split(".")[0])
    eleven = major >= 11
    members = {10: [("STRONGLY_TYPED", 1)], 11: [("STRONGLY_TYPED", 0)]}.get(major, [])
    module: Any = ModuleType("tensorrt")
    module.__version__ = version
    module.calls = []

    class Severity(IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    class ILogger:
        def log(self, severity: Severity, message: str) -> None:
            raise NotImplementedError

    class IProgressMonitor:
        pass

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            self.logger = logger

        def create_network(self, flags: int = 0) -> _Network:
            if flags not in (0, *(1 << bit for _, bit in members)):
                raise TypeError(f"no such flags: {flags}")
            module.calls.append(("create_network", flags))
            return _Network(flags, 0 if eleven else STRONGLY_TYPED_BIT)

        def create_builder_config(self) -> _Config:
            return _Config()

        def create_optimization_profile(self) -> _Profile:
            return _Profile()

        def build_serialized_network(self, network: _Network, config: _Config) -> bytes | None:
            module.calls.append(("flags", set(config._flags)))
            module.calls.append(("profile", config.profiles[0].shapes))
            config.progress_monitor.phase_start("Building", None, 2)
            if not config.progress_monitor.step_complete("Building", 0):
                return None
            config.progress_monitor.phase_finish("Building")
            if plan is None:
                self.logger.log(Severity.ERROR, "no tactic for layers.0/mixer/in_proj")
            return plan

    class OnnxParser:
        num_errors = 0

        def __init__(self, network: _Network, logger: ILogger) -> None:
            self._network = network

        def parse(self, content: bytes) -> bool:
            module.calls.append(("parse", len(content)))
            return True

    class Inspector:
        def get_engine_information(self, form: int) -> str:
            assert form == module.LayerInformationFormat.JSON
            return json.dumps({"Layers": [{"Name": "layers.0/mixer/in_proj_myl0_1", "LayerType": "gemm"}]})

    class Engine:
        def create_engine_inspector(self) -> Inspector:
            return Inspector()

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            pass

        def deserialize_cuda_engine(self, content: bytes) -> Engine:
            assert content == plan
            return Engine()

    module.Runtime, module.Engine = Runtime, Engine
    module.LayerInformationFormat = IntEnum("LayerInformationFormat", ["ONELINE", "JSON"], start=0)
    module.ILogger, module.IProgressMonitor, module.Builder, module.OnnxParser = (
        ILogger, IProgressMonitor, Builder, OnnxParser,
    )  # fmt: skip
    ILogger.Severity = Severity  # type: ignore[attr-defined]
    module.ProfilingVerbosity = IntEnum("ProfilingVerbosity", ["LAYER_NAMES_ONLY", "NONE", "DETAILED"], start=0)
    module.BuilderFlag = IntEnum("BuilderFlag", [("TF32", TF32)])
    module.NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", members)
    return module
