"""From what was asked for to how engines are built: which library, which GPU, plugin or bodies; here or elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mscope.core.errors import BackendError
from mscope.export.engine.derive import EngineOptions, check_here, target_gpu
from mscope.export.engine.device import gpu_here
from mscope.export.engine.elsewhere import Elsewhere
from mscope.export.engine.flavour import AUTO, check_gpus, choose_for_gpus, choose_library, load, why_not_here
from mscope.export.engine.wish import EngineWish, Ops


@dataclass(frozen=True)
class EnginePlan:
    """How engines will be built.

    Attributes:
        options: None where none will be.
        note: a line for people.
        warning: another, of the engines; "" without one.
        elsewhere: named GPUs whose engines are built on the device; None where there are none.
    """

    options: EngineOptions | None
    note: str = ""
    warning: str = ""
    elsewhere: Elsewhere | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Everything that a user must not miss."""
        lines = (self.warning, "" if self.elsewhere is None else self.elsewhere.describe())
        return tuple(line for line in lines if line)


def plan_engines(wish: EngineWish) -> EnginePlan:
    """Decides before anything is built, so that what cannot be had is said at once.

    Raises:
        InputError: contradictions. BackendError: a library, GPU or plugin that was asked for is missing.
    """
    wish.check()
    here = gpu_here()
    elsewhere = None
    if wish.target == AUTO and wish.gpus:
        library, gpus, why = choose_for_gpus(wish.gpus, "" if here is None else here.sm)
        left = tuple(name for name in wish.gpus if name not in gpus)
        note = "" if library else f"no engines for {', '.join(left)}"
        elsewhere = Elsewhere(left, why, wish) if left else None
    else:
        if wish.target == "trt":
            check_here(wish.gpus, here)
        library, note = choose_library(wish.target, here="" if here is None else here.sm)
        gpus = wish.gpus
    if library is None:
        return EnginePlan(None, note, elsewhere=elsewhere)
    plugin, warning = _plugin(wish.ops)
    options = EngineOptions(library, gpus=gpus, batch=wish.batch, plugin=plugin)
    used = target_gpu(options)
    if used is None:
        check_gpus(load(library), gpus)
    elif reason := why_not_here(library, used.sm):
        raise BackendError(f"--target {library.target}: {reason}")
    return EnginePlan(options, f"engines by {library.module}" if wish.target == AUTO else "", warning, elsewhere)


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
