"""Loads the plugin library into every TensorRT that is installed: what `mscope-export plugins check` reports.

Each flavour gets a process of its own (`python -m mscope.plugins.trt_check FLAVOUR`): a library that ends the process
that loads it is a finding, not the end of the check.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mscope.core.errors import BackendError
from mscope.core.python import module_command
from mscope.plugins import build_cuda, trt
from mscope.plugins.build import BuildError

if TYPE_CHECKING:
    from mscope.core.engine import Flavour

_TIMEOUT_S = 300
_INSTALL: dict[Flavour, str] = {
    "tensorrt": "tensorrt is not installed: JetPack brings it on a Jetson, elsewhere 'pip install tensorrt'",
    "tensorrt-rtx": "tensorrt_rtx is not installed: 'pip install tensorrt-rtx' on x86_64",
}


@dataclass(frozen=True)
class Loaded:
    """One flavour: its version, "" where it is not installed, and what of ours its registry has, or the problem."""

    flavour: Flavour
    version: str = ""
    creators: tuple[dict[str, str], ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Report:
    """What was found; `description` is None where there is no library."""

    library: str
    description: trt.Description | None
    flavours: tuple[Loaded, ...]
    missing: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Whether some TensorRT is here and each that is took all plugins."""
        tried = [loaded for loaded in self.flavours if loaded.version]
        return bool(tried) and not any(loaded.problem for loaded in tried)

    def to_json(self) -> dict[str, Any]:
        """As --json prints it."""
        empty: dict[str, Any] = dict.fromkeys(("version", "headers"), "")
        empty |= {name: [] for name in ("namespaces", "targets", "types", "ops")}
        described = empty if self.description is None else asdict(self.description)
        flavours = [asdict(loaded) for loaded in self.flavours]
        return {
            "library": self.library, **described, "flavours": flavours, "missing": list(self.missing),
            "passed": self.passed,
        }  # fmt: skip


def check() -> Report:
    """Finds the library and tries it; never raises for what is missing."""
    missing = []
    why = trt.why_missing()
    library = "" if why else str(trt.library_path())
    if why:
        missing.append(why)
        try:
            build_cuda.find_nvcc()
        except BuildError as error:
            missing.append(str(error))
    flavours = []
    for flavour, module in trt.MODULES.items():
        if importlib.util.find_spec(module) is None:
            flavours.append(Loaded(flavour))
            missing.append(_INSTALL[flavour])
        else:
            flavours.append(_try(flavour))
    return Report(library, trt.describe() if library else None, tuple(flavours), tuple(missing))


def probe(flavour: Flavour) -> Loaded:
    """Loads into the flavour, in this process."""
    try:
        version = str(trt.import_flavour(flavour).__version__)
    except BackendError as error:
        return Loaded(flavour, "?", problem=str(error))
    try:
        trt.load(flavour)
    except BackendError as error:
        return Loaded(flavour, version, problem=str(error))
    found = (dict(zip(("name", "namespace", "version"), entry, strict=True)) for entry in trt.registered(flavour))
    return Loaded(flavour, version, tuple(found))


def _try(flavour: Flavour) -> Loaded:
    command = module_command("mscope.plugins.trt_check", flavour)
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Loaded(flavour, "?", problem=f"loading did not end within {_TIMEOUT_S} s")
    if result.returncode != 0:
        said = " ".join(result.stderr.split())[-300:]
        return Loaded(flavour, "?", problem=f"loading ended the process with status {result.returncode}: {said}")
    content = json.loads(result.stdout.splitlines()[-1])
    return Loaded(flavour, content["version"], tuple(content["creators"]), content["problem"])


def main() -> int:
    """Prints one flavour's findings as one JSON line."""
    (flavour,) = (name for name in trt.MODULES if name in sys.argv[1:])
    print(json.dumps(asdict(probe(flavour))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
