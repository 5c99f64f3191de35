"""One line of NVIDIA's `tegrastats`, in all forms that JetPack 4 to 7 print.

The form is not versioned: fields come and go by module, release and rights. So each field is found by itself, and what
is missing is missing. NVIDIA's developer guide describes it under "tegrastats Utility"; docs/power.md lists the forms.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# A tegrastats line is a few hundred characters; more is not one.
MAX_CHARACTERS = 8192
# What a sensor of a powered-down part reads.
_NO_TEMPERATURE_C = -256.0
# Pads of the power monitor with nothing on them.
_NOT_CONNECTED = "NC"

# "VDD_IN 5336mW/4970mW", "VDD_IN 5336mW", and before JetPack 5 "POM_5V_IN 1750/1628". With neither unit nor average it
# is no rail ("APE 174"), and with another unit neither ("RAM 1923/3964MB"). Thor's rails go below zero when idle.
_RAIL = re.compile(r"(?<!\S)([A-Z][A-Z0-9_]*) (-?\d+(?:\.\d+)?)(?:(mW)(?:/-?\d+(?:\.\d+)?mW)?|/-?\d+(?:\.\d+)?)(?!\S)")
_TEMPERATURE = re.compile(r"(?<!\S)([A-Za-z][A-Za-z0-9_-]*)@(-?\d+(?:\.\d+)?)C(?!\S)")
# "GR3D_FREQ 61%", "GR3D_FREQ 14%@930", "GR3D_FREQ 0%@[407,407]", "GR3D_FREQ @[314,314,314]"; EMC_FREQ likewise.
_ENGINE = re.compile(r"(?<!\S)(GR3D2?|EMC)(?:_FREQ)? (?:(\d+)%)?(?:@(?:\[([\d,]*)\]|(\d+)))?(?!\S)")
_CPU = re.compile(r"(?<!\S)CPU \[([^\]]*)\]")
_CORE = re.compile(r"(\d+)%@(\d+)")


@dataclass(frozen=True)
class TegrastatsLine:
    """What a line says; what it does not say is absent.

    Attributes:
        rails_mw: milliwatts at this moment, by the rail's name (not the running average behind the slash).
        temperature_c: by the sensor's name; parts that are off are left out.
        load_percent: of "GR3D" (the GPU), "GR3D2", "EMC" (memory).
        clocks_mhz: of "GR3D" (mean of its clusters), "GR3D2", "EMC" and "CPU" (mean of the cores that are on).
        cores_on: processor cores that are on; None without the field.
    """

    rails_mw: dict[str, float]
    temperature_c: dict[str, float]
    load_percent: dict[str, float]
    clocks_mhz: dict[str, float]
    cores_on: int | None


def parse_tegrastats(line: str) -> TegrastatsLine | None:
    """A line's content; None when it is no tegrastats line at all (an error message, an empty line, noise)."""
    if len(line) > MAX_CHARACTERS:
        return None
    loads, clocks = _engines(line)
    cpu = _CPU.search(line)
    cores = [float(megahertz) for _, megahertz in _CORE.findall(cpu[1])] if cpu else []
    if cores:
        clocks["CPU"] = sum(cores) / len(cores)
    rails = _rails(line)
    if cpu is None and not rails and not loads:
        return None
    return TegrastatsLine(
        rails_mw=rails,
        temperature_c={
            name: float(value) for name, value in _TEMPERATURE.findall(line) if float(value) > _NO_TEMPERATURE_C
        },
        load_percent=loads,
        clocks_mhz=clocks,
        cores_on=len(cores) if cpu else None,
    )


def _rails(line: str) -> dict[str, float]:
    found: dict[str, float] = {}
    twice: set[str] = set()
    for name, now, _ in _RAIL.findall(line):
        if name in found:
            twice.add(name)
        found[name] = float(now)
    # Two rails of one name cannot be told apart: neither is reported.
    return {name: value for name, value in found.items() if name not in twice and name != _NOT_CONNECTED}


def _engines(line: str) -> tuple[dict[str, float], dict[str, float]]:
    loads: dict[str, float] = {}
    clocks: dict[str, float] = {}
    for name, load, clusters, single in _ENGINE.findall(line):
        if load:
            loads[name] = float(load)
        megahertz = [float(value) for value in (clusters or single).split(",") if value]
        if megahertz:
            clocks[name] = sum(megahertz) / len(megahertz)
    return loads, clocks


# Rails that carry everything the module, or the board, takes in.
_INPUTS = {
    "VDD_IN": "what the module takes in (TX2, Xavier NX, Orin NX, Orin Nano)",
    "POM_5V_IN": "what the module takes in (Nano, TX1)",
    "VIN": "what the module and its carrier board take in (Thor)",
}
# Modules without such a rail, and the rails that make up their total. On AGX Orin VDDQ_VDD2_1V8AO, memory, is a part
# of VIN_SYS_5V0 (NVIDIA's forum, thread 223111): it must not be counted twice.
_SUMS = (
    (("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), "AGX Orin"),
    (("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"), "AGX Xavier"),
    (("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"), "Thor without its input rail"),
)


def total_of(rails: Iterable[str]) -> tuple[tuple[str, ...], str]:
    """Which of the rails, added up, are the device's total, and that in words."""
    names = tuple(dict.fromkeys(rails))
    for name, words in _INPUTS.items():
        if name in names:
            return (name,), f"{name}: {words}"
    for parts, module in _SUMS:
        if all(part in names for part in parts):
            return (
                parts,
                f"{' + '.join(parts)}, the rails of {module}; the carrier board's own consumption is not in it",
            )
    return names, f"{' + '.join(names)}: every rail there is, of a module that this program does not know"
