"""What TensorRT calls back: loggers and profilers of NVIDIA's bindings, by the numbers of their virtual functions."""

from __future__ import annotations

import ctypes
from typing import Any

import fake_tensorrt


class BoundLogger(fake_tensorrt.ILogger):
    """The bindings' logger, as the fake calls it."""

    def __init__(self, library: Any, address: int, number: int) -> None:
        super().__init__()
        self._library, self._address, self._number = library, address, number

    def log(self, severity: Any, msg: str) -> None:
        text = ctypes.create_string_buffer(msg.encode())
        self._library.stub_call(self._address, self._number, int(severity), ctypes.addressof(text), 0)


class BoundProfiler(fake_tensorrt.IProfiler):
    """The bindings' profiler, as the fake calls it."""

    def __init__(self, library: Any, address: int, number: int) -> None:
        super().__init__()
        self._library, self._address, self._number = library, address, number

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        self._library.stub_report(self._address, self._number, layer_name.encode(), ms)


def silent_logger(module: Any) -> Any:
    """A logger of the bindings' own kind, to which nothing may be said."""

    class Logger(module.ILogger):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            raise AssertionError(msg)

    return Logger()
