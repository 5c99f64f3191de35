"""GPUs that nothing here builds for: the bundle gets the plugin's source, and its engines are built on the device."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mscope.core.errors import BackendError
from mscope.core.manifest import SOURCE, Manifest
from mscope.export.engine.wish import EngineWish
from mscope.export.extend import hashed_files
from mscope.plugins.build import BuildError
from mscope.plugins.build_cuda import ARCHITECTURES
from mscope.plugins.trt_source import write_source


@dataclass(frozen=True)
class Elsewhere:
    """Engines that are left to their device.

    Attributes:
        gpus: the compute capabilities.
        why: nothing here builds for them.
        wish: all that was asked for.
    """

    gpus: tuple[str, ...]
    why: str
    wish: EngineWish

    @property
    def source(self) -> bool:
        """Whether the engines will need the plugin."""
        return self.wish.ops != "function"

    @property
    def commands(self) -> tuple[str, ...]:
        """What to run on the device, with BUNDLE for its place there."""
        build = f"mscope-export build --from BUNDLE --target trt --ops {'plugin' if self.source else 'function'}"
        if self.wish.batch != EngineWish.batch:
            build += f" --batch {','.join(map(str, self.wish.batch))}"
        if not self.source:
            return (build,)
        numbers = [name.removeprefix("sm_") for name in self.gpus]
        # Another one is between those, and runs what all of them hold.
        arch = f" --arch {','.join(numbers)}" if set(numbers) <= set(ARCHITECTURES) else ""
        return f"mscope-export plugins build{arch}", build

    def describe(self) -> str:
        """One line for people."""
        commands = ", then ".join(f"'{command}'" for command in self.commands)
        without = f"; {SOURCE}/README.md is for a device without Python" if self.source else ""
        return f"no engines for {', '.join(self.gpus)}: {self.why}; on the device run {commands}{without}"

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        source = SOURCE if self.source else None
        return {"gpus": list(self.gpus), "why": self.why, "commands": list(self.commands), "source": source}


def add_source(folder: Path, manifest: Manifest) -> Manifest:
    """Writes the plugin's source into an unfinished bundle, in the place of an older one; its manifest with the files.

    Raises:
        BackendError: the package's own sources are not whole.
    """
    shutil.rmtree(folder / SOURCE, ignore_errors=True)
    try:
        write_source(folder / SOURCE)
    except BuildError as error:
        raise BackendError(str(error)) from None
    return Manifest.model_validate(manifest.model_copy(update={"files": hashed_files(folder)}).model_dump())
