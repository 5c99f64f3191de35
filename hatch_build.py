"""Builds the native libraries into the wheel, or the checkout for an editable install, where there is a C++ compiler.

Without one the install goes through all the same, with a warning, as a pure Python wheel: export, verification and the
engines with kernels of their own do not need the libraries. MSCOPE_NATIVE=require makes that an error (for release
builds), MSCOPE_NATIVE=skip builds nothing.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeBuildHook(BuildHookInterface):
    """Compiles, adds the C++ sources to the wheel and gives it the platform's tag."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Runs before hatchling collects the files. `version` is "standard" or "editable"."""
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        builder = _load(root / "plugins" / "mscope" / "plugins" / "build.py")
        mode = os.environ.get("MSCOPE_NATIVE", "auto")
        if mode not in {"auto", "require", "skip"}:
            raise ValueError(f"MSCOPE_NATIVE={mode}: expected auto, require or skip")
        built = [name for name in builder.LIBRARIES if self._build(builder, name, mode)]
        if built:
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            # No CPython interface: the libraries are loaded by ctypes and ONNX Runtime, so any Python 3 will do.
            build_data["tag"] = f"py3-none-{platform}"
        if version != "editable":
            # With the sources, 'python -m mscope.plugins.build' works on an installed wheel.
            build_data["force_include"][str(root / "plugins" / "csrc")] = "mscope/plugins/csrc"
            # 'mscope-export plugins source' writes it beside them.
            build_data["force_include"][str(root / "LICENSE")] = "mscope/plugins/csrc/LICENSE"

    def _build(self, builder: ModuleType, name: str, mode: str) -> bool:
        """Whether the library is there afterwards. One of other sources must not slip into the wheel: it is removed."""
        try:
            if mode == "skip":
                raise builder.BuildError("MSCOPE_NATIVE=skip")
            builder.build(name)
        except builder.BuildError as error:
            if mode == "require":
                raise
            try:
                if mode != "skip" and builder.is_current(name, builder.sources_dir()):
                    return True
            except builder.BuildError:
                pass  # no sources: said below
            builder.remove(name)
            self._warn(f"mambascope-deploy: the native library '{name}' was not built, its kernels are not available.")
            self._warn(str(error))
            return False
        return True

    def _warn(self, message: str) -> None:
        self.app.display_warning(message)


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("mscope_native_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module
