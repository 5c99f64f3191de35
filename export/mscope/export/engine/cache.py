"""Engines built before, below the user's data folder: the same graph, library, GPU and plugin need no second build."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from mscope.core.bundle import data_folder, sha256_of
from mscope.core.files import replacing, write_text_atomically
from mscope.export.engine.request import BuildResult

# Beyond this many the oldest go.
_KEPT = 32


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    result: BuildResult


def cache_key(**what: object) -> str:
    """A name for everything that decides what an engine is; plain values."""
    text = json.dumps(what, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def cache_folder() -> Path:
    """Where cached engines and timing caches lie."""
    return data_folder() / "cache" / "engines"


def take(key: str, engine: Path) -> BuildResult | None:
    """Copies a cached engine to `engine`; None where there is none, or one that is not whole."""
    cached, entry = _paths(key)
    try:
        found = _Entry.model_validate_json(entry.read_bytes())
        shutil.copyfile(cached, engine)
    except (OSError, ValidationError):
        return None
    if sha256_of(engine) != found.sha256:
        engine.unlink()
        return None
    os.utime(entry)
    return found.result


def keep(key: str, engine: Path, result: BuildResult) -> None:
    """Puts an engine into the cache, whole: two processes that build the same one do not disturb each other."""
    cached, entry = _paths(key)
    cached.parent.mkdir(parents=True, exist_ok=True)
    with replacing(cached) as file, engine.open("rb") as source:
        shutil.copyfileobj(source, file)
    write_text_atomically(entry, _Entry(sha256=sha256_of(engine), result=result).model_dump_json())
    _drop_old()


def _paths(key: str) -> tuple[Path, Path]:
    return cache_folder() / f"{key}.engine", cache_folder() / f"{key}.json"


def _drop_old() -> None:
    entries = sorted(cache_folder().glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for entry in entries[_KEPT:]:
        entry.unlink(missing_ok=True)
        entry.with_suffix(".engine").unlink(missing_ok=True)
