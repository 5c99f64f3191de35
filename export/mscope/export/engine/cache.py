"""Engines built before, below the user's data folder: the same graph, library, GPU and plugin need no second build.

It saves time and is never needed: what it cannot read or write is built, and no reason to lose what was built.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from mscope.core.bundle import data_folder, sha256_of
from mscope.core.files import replacing, write_text_atomically
from mscope.export.engine.request import BuildResult

log = logging.getLogger(__name__)

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
    with contextlib.suppress(OSError):  # another process dropped it meanwhile, or may write where this one may not
        os.utime(entry)
    return found.result


def keep(key: str, engine: Path, result: BuildResult) -> None:
    """Puts an engine into the cache, whole: two processes that build the same one do not disturb each other.

    Where that cannot be done a warning says so.
    """
    cached, entry = _paths(key)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with replacing(cached) as file, engine.open("rb") as source:
            shutil.copyfileobj(source, file)
        write_text_atomically(entry, _Entry(sha256=sha256_of(engine), result=result).model_dump_json())
        _drop_old()
    except OSError as error:
        with contextlib.suppress(OSError):  # nothing would ever drop an engine without its entry
            if not entry.is_file():
                cached.unlink(missing_ok=True)
        log.warning("warning: %s is not kept for the next build: %s", engine.name, error)


def _paths(key: str) -> tuple[Path, Path]:
    return cache_folder() / f"{key}.engine", cache_folder() / f"{key}.json"


def _drop_old() -> None:
    entries = sorted(cache_folder().glob("*.json"), key=_last_used, reverse=True)
    for entry in entries[_KEPT:]:
        entry.unlink(missing_ok=True)
        entry.with_suffix(".engine").unlink(missing_ok=True)


def _last_used(entry: Path) -> float:
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:  # another process dropped it meanwhile
        return 0.0
