"""From what was asked for to how engines are built here: which library, which GPU, plugin or function bodies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mscope.core.errors import BackendError
from mscope.export.engine.derive import EngineOptions, target_gpu
from mscope.export.engine.device import gpu_here
from mscope.export.engine.flavour import AUTO, check_gpus, choose_library, load
from mscope.export.engine.wish import EngineWish, Ops


@dataclass(frozen=True)
class EnginePlan:
    """How engines will be built; `options` is None where none will be. `note` and `warning` are lines for people."""

    options: EngineOptions | None
    note: str = ""
    warning: str = ""


def plan_engines(wish: EngineWish) -> EnginePlan:
    """Decides before anything is built, so that what cannot be had is said at once.

    Raises:
        InputError: contradictions. BackendError: a library, GPU or plugin that was asked for is missing.
    """
    wish.check()
    library, note = choose_library(wish.target, gpu_here=gpu_here() is not None, gpus_named=bool(wish.gpus))
    if library is None:
        return EnginePlan(None, note)
    plugin, warning = _plugin(wish.ops)
    options = EngineOptions(library, gpus=wish.gpus, batch=wish.batch, plugin=plugin)
    if target_gpu(options) is None:
        check_gpus(load(library), wish.gpus)
    return EnginePlan(options, f"engines by {library.module}" if wish.target == AUTO else "", warning)


def _plugin(ops: Ops) -> tuple[Path | None, str]:
    from mscope.plugins import trt

    slower = "the ops in the engines are compiled function bodies, far slower than the plugin"
    if ops == "function":
        return None, f"{slower}, as asked"
    missing = trt.why_missing()
    if not missing:
        return trt.library_path(), ""
    if ops == "plugin":
        raise BackendError(f"--ops plugin: {missing}")
    return None, f"{slower}: {missing}"
