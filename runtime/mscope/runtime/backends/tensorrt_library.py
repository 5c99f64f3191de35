"""TensorRT's Python packages, both flavours: whether they are here, and their log as error lines."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import re
from collections import deque
from dataclasses import dataclass
from typing import Any

from mscope.core.engine import Flavour
from mscope.core.errors import BackendError
from mscope.runtime.backends import plugin_library
from mscope.runtime.backends.availability import Availability, gpu_here

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Flavoured:
    """One flavour: its name for people, module and distributions, how to get it, and `--target` that builds for it."""

    title: str
    module: str
    distributions: tuple[str, ...]
    install: str
    target: str


FLAVOURS: dict[Flavour, Flavoured] = {
    "tensorrt": Flavoured(
        "TensorRT",
        "tensorrt",
        ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
        "pip install tensorrt, or on a Jetson take JetPack's own (apt install python3-libnvinfer, and a virtual "
        "environment made with --system-site-packages)",
        "trt",
    ),
    "tensorrt-rtx": Flavoured(
        "TensorRT-RTX",
        "tensorrt_rtx",
        ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
        "pip install tensorrt-rtx (x86_64, desktop GPUs)",
        "trt-rtx",
    ),
}


def probe(flavour: Flavour) -> Availability:
    """Package, driver, device and plugin library of a flavour; imports none of them."""
    flavoured = FLAVOURS[flavour]
    version = None
    for distribution in flavoured.distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(distribution)
            break
    lacking = []
    if importlib.util.find_spec(flavoured.module) is None:
        lacking.append(f"the package {flavoured.module} is not installed: {flavoured.install}")
    device, without = gpu_here()
    return Availability(
        flavour, flavoured.module, plugin_library.describe(), device, version, "; ".join([*lacking, *without])
    )


def load(flavour: Flavour) -> Any:
    """The flavour's module. Raises BackendError where it cannot be imported."""
    flavoured = FLAVOURS[flavour]
    try:
        return importlib.import_module(flavoured.module)
    except (ImportError, OSError) as error:
        raise BackendError(
            f"the package {flavoured.module} cannot be imported ({_one_line(str(error))}): {flavoured.install}"
        ) from None


def plain_version(version: object) -> str:
    """The four numbers of a version, without what a packager added to them: engines go with these."""
    match = re.match(r"\d+(?:\.\d+){0,3}", str(version))
    return match[0] if match else str(version)


class ErrorLog:
    """What TensorRT last complained of. `logger` is what its API takes; it must outlive all that was made with it."""

    def __init__(self, module: Any) -> None:
        self._errors: deque[str] = deque(maxlen=16)
        serious = {int(module.ILogger.ERROR), int(module.ILogger.INTERNAL_ERROR)}
        errors = self._errors

        class Logger(module.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                module.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                if int(severity) in serious:
                    errors.append(msg)
                else:
                    log.debug("%s", msg)

        self.logger = Logger()

    def take(self) -> str:
        """The first two different complaints since the last call, as part of a line; the first names the cause."""
        lines = list(dict.fromkeys(_one_line(text) for text in self._errors))
        self._errors.clear()
        return "; ".join(lines[:2]) or "it gave no reason"


@functools.cache
def error_log(module: Any) -> ErrorLog:
    """The process's log of a flavour: TensorRT has one logger, the first that it is given."""
    return ErrorLog(module)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
