"""Values of options that several commands have."""

from __future__ import annotations

from enum import Enum


class KernelName(str, Enum):
    """Values of --kernel."""

    auto = "auto"
    native = "native"
    function = "function"


class Place(str, Enum):
    """Values of --preprocess and --decide."""

    host = "host"
    device = "device"
