"""Whether a backend can be had here, and what is missing."""

from __future__ import annotations

from dataclasses import dataclass

from mscope.runtime.device.cuda import why_no_bindings
from mscope.runtime.device.driver import find_gpu


@dataclass(frozen=True)
class Availability:
    """Whether a backend can be had here. `missing` says what is lacking and how to get it; empty when available."""

    name: str
    package: str
    library: str
    device: str
    version: str | None
    missing: str = ""

    @property
    def available(self) -> bool:
        return not self.missing


def gpu_here() -> tuple[str, list[str]]:
    """The GPU of this machine with its driver, in words, and what lacks to use it from Python."""
    gpu, reason = find_gpu()
    lacking = [why_no_bindings(), "" if gpu is not None else reason]
    device = "no GPU" if gpu is None else f"{gpu}, driver for CUDA {gpu.driver}"
    return device, [line for line in lacking if line]
