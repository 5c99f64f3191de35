"""What a module of bindings has, read from its classes and the signatures in its docstrings."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any


def documented_parameters(function: Any, *, required: bool = False) -> list[list[str]]:
    """Parameter names of each signature in a binding's docstring; `required` leaves out those with a default."""
    found = []
    for line in (function.__doc__ or "").splitlines():
        match = re.match(rf"(?:\d+\. )?{function.__name__}\((.*?)\)(?: ->|$)", line.strip())
        if match and "*args" not in line:
            plain = re.sub(r"<[^>]*>|\[[^\]]*\]", "", match[1])
            parts = [part for part in plain.split(",") if part.strip() and not (required and "=" in part)]
            # "unsigned int flags", "kind: cudaMemcpyKind", "strategy: X = ": the name is what is left.
            names = [part.split("=")[0].split(":")[0].split()[-1] for part in parts]
            found.append([name for name in names if name != "self"])
    return found


def describe(module: ModuleType) -> dict[str, dict[str, Any]]:
    """Of each class its members: of a function, for each signature, its parameters and how many have no default; of an
    enumeration's member its number; None of anything else."""
    return {name: _members(cls) for name, cls in vars(module).items() if isinstance(cls, type)}


def _members(cls: type) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name in dir(cls):
        value = getattr(cls, name)
        if isinstance(value, type):
            members[name] = _members(value) if name == "Severity" else None
        elif callable(value):
            needed = documented_parameters(value, required=True)
            members[name] = [[names, len(few)] for names, few in zip(documented_parameters(value), needed, strict=True)]
        else:
            members[name] = int(value) if hasattr(value, "__int__") else None
    return members
