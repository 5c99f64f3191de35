"""What the probes ask a machine: files, programs, packages, libraries. Tests put another machine in its place."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_MAX_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Host:
    """This machine, or below another `root` a picture of one."""

    root: Path = Path("/")
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def read(self, path: str) -> str | None:
        """A file's text, without NULs at its end; None where it cannot be read."""
        try:
            with self._at(path).open(encoding="utf-8", errors="replace") as file:
                return file.read(_MAX_CHARACTERS).strip("\0\n ")
        except OSError:
            return None

    def exists(self, path: str) -> bool:
        return self._at(path).exists()

    def files(self, folder: str, pattern: str) -> list[Path]:
        """Files of a folder by pattern, sorted."""
        try:
            return sorted(self._at(folder).glob(pattern))
        except OSError:
            return []

    def which(self, program: str) -> str | None:
        """Where a program is."""
        return shutil.which(program, path=self.environment.get("PATH"))

    def version(self, *distributions: str) -> str | None:
        """Version of the first of these Python packages that is installed."""
        for name in distributions:
            try:
                return importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        return None

    def package_files(self, distribution: str, suffix: str) -> list[Path]:
        """Installed files of a package whose names hold `suffix`."""
        try:
            found = importlib.metadata.files(distribution) or []
        except importlib.metadata.PackageNotFoundError:
            return []
        return [Path(str(file.locate())) for file in found if suffix in file.name]

    def library(self, name: str) -> ctypes.CDLL | None:
        """A shared library; None where the loader does not find it or cannot load it."""
        try:
            return ctypes.CDLL(name)
        except OSError:
            return None

    def _at(self, path: str) -> Path:
        return self.root / path.lstrip("/")


def numbers_of(version: str) -> tuple[int, ...]:
    """The first three numbers of a version, to compare it by."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
