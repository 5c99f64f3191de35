"""What a build of the plugin library is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mscope.core.errors import InputError
from mscope.plugins import build_cuda


@dataclass(frozen=True)
class PluginBuild:
    """Options of build_trt.

    Attributes:
        only: architectures, as ("87",), instead of all; their CUDA library goes into a folder of its own.
        include: folder of TensorRT's headers; None takes $TensorRT_INCLUDE_DIR, else the project's own header.
        output: folder of the library, its stamp and the CUDA library; None is the package's own.
        force: build even when nothing changed.
    """

    only: tuple[str, ...] = ()
    include: Path | None = None
    output: Path | None = None
    force: bool = False

    @classmethod
    def from_options(
        cls, arch: str | None, include: Path | None = None, output: Path | None = None, force: bool = False
    ) -> PluginBuild:
        """Options as they are typed: `arch` as "87,90" or "sm_87". Raises InputError."""
        names = [] if arch is None else [name.strip().removeprefix("sm_") for name in arch.split(",")]
        for name in names:
            if name not in build_cuda.ARCHITECTURES:
                known = ", ".join(build_cuda.ARCHITECTURES)
                raise InputError(f"--arch names '{name}': choose from {known}, separated by commas")
        if include is not None and not (include / "NvInferRuntime.h").is_file():
            raise InputError(
                f"--tensorrt-include {include} has no NvInferRuntime.h: name TensorRT's include folder, or leave it out"
            )
        if output is not None and output.exists() and not output.is_dir():
            raise InputError(f"--out {output} is a file: name a folder")
        only = tuple(name for name in build_cuda.ARCHITECTURES if name in names)
        return cls(only, include, output, force)
