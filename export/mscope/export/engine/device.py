"""The GPU of this machine, by the driver alone, and the GPUs that were named instead."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass

from mscope.core.errors import InputError

# CUdevice_attribute
_MAJOR, _MINOR = 75, 76


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name and its compute capability as "sm_87"."""

    name: str
    sm: str


def gpu_here() -> Gpu | None:
    """The first GPU that the driver shows (CUDA_VISIBLE_DEVICES counts), or None without driver or GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, number = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    name = ctypes.create_string_buffer(256)
    if driver.cuDeviceGetName(name, len(name), device):
        return None
    digits = []
    for attribute in (_MAJOR, _MINOR):
        if driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device):
            return None
        digits.append(number.value)
    return Gpu(name.value.decode(errors="replace"), f"sm_{digits[0]}{digits[1]}")


def parse_gpus(text: str | None) -> tuple[str, ...]:
    """("sm_89", "sm_120") of "sm_89,sm_120"; () of None. Raises InputError."""
    if text is None:
        return ()
    names = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",")))
    for name in names:
        if re.fullmatch(r"sm_[0-9]{2,3}", name) is None:
            raise InputError(f"--gpu takes compute capabilities such as sm_87 or sm_89,sm_120, got '{text}'")
    return names


def parse_batch(text: str) -> tuple[int, int, int]:
    """(min, opt, max) of "1,1,8", or of one number for all three. Raises InputError."""
    match = re.fullmatch(r"(\d{1,5})(?:,(\d{1,5}),(\d{1,5}))?", text.replace(" ", ""))
    if match is not None:
        smallest = int(match[1])
        sizes = smallest, int(match[2] or smallest), int(match[3] or smallest)
        if 1 <= sizes[0] <= sizes[1] <= sizes[2]:
            return sizes
    raise InputError(f"--batch is MIN,OPT,MAX with 1 <= MIN <= OPT <= MAX, or one number, got '{text}'")
