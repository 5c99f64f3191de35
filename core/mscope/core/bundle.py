"""A bundle on disk: written atomically, loaded only if whole, found again as the latest one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import ValidationError

from mscope.core.contract import OP_VERSION
from mscope.core.errors import BundleError, InputError, MscopeError
from mscope.core.files import folder_beside, hidden_prefix, write_text_atomically
from mscope.core.manifest import MANIFEST, SCHEMA, FileRecord, Manifest
from mscope.core.text import control_character_in, readable

_MAX_MANIFEST_BYTES = 16 << 20


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def record_of(path: Path) -> FileRecord:
    """Hash and size of a file as the manifest stores them."""
    return FileRecord(sha256=sha256_of(path), bytes=path.stat().st_size)


@contextlib.contextmanager
def writing_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its place when the block ends well, and vanishes when it does not.

    An existing bundle at `target` is replaced whole; anything else that is there is left alone. Errors that name files
    of the new folder name them in `target` instead, for the folder is gone by then.

    Raises:
        InputError: `target` exists and is no bundle, or its parent cannot be written.
    """
    given, target = target, target.absolute()
    _check_name(target)
    if target.exists() and not (target / MANIFEST).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists and is not a bundle: choose another --out, or remove it")
    with folder_beside(target) as work:
        try:
            yield work
        except (MscopeError, OSError) as error:
            error.args = tuple(a.replace(str(work), str(given)) if isinstance(a, str) else a for a in error.args)
            if isinstance(error, OSError) and error.filename is not None:
                error.filename = os.fsdecode(error.filename).replace(str(work), str(given))
            raise
        _swap(work, target)


@contextlib.contextmanager
def revising_bundle(folder: Path) -> Iterator[tuple[Path, Manifest]]:
    """A copy of a whole bundle to add files to, which takes the bundle's place when the block ends well.

    Yields the copy's folder and the bundle's manifest. Whoever adds a file or changes a field writes the new manifest
    into that folder with `write_manifest`. Files are linked, not copied, where the file system can: replace them, never
    write into them.

    Raises:
        BundleError: `folder` is no bundle or damaged, or another program changed it meanwhile. InputError: its parent
            cannot be written.
    """
    before = _manifest_bytes(folder)
    manifest = load_manifest(folder)
    with writing_folder(folder) as work:
        for name in (MANIFEST, *manifest.files):
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(folder / name, work / name)
            except OSError:
                shutil.copy2(folder / name, work / name)
        yield work, manifest
        if _manifest_bytes(folder) != before:
            # What that program added is not in the copy, which would take its place.
            raise BundleError(f"{folder} was changed by another program meanwhile and is left as it is: run this again")


def _manifest_bytes(folder: Path) -> bytes | None:
    try:
        return (folder / MANIFEST).read_bytes()
    except OSError:
        return None


def _swap(work: Path, target: Path) -> None:
    if not target.exists():
        work.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=hidden_prefix(target), suffix=".old", dir=target.parent))
    try:
        target.rename(old / "bundle")
        try:
            work.rename(target)
        except BaseException:
            (old / "bundle").rename(target)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes manifest.json into `folder`, complete or not at all."""
    write_text_atomically(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")


def load_manifest(folder: Path, *, check_files: bool = True) -> Manifest:
    """The manifest of the bundle in `folder`, with every file checked against its recorded size and hash.

    Args:
        folder: the bundle.
        check_files: False skips the files (to describe a bundle, not to run it).

    Raises:
        BundleError: no bundle there, damaged or of a newer schema, or a file that is missing or has changed.
    """
    _check_name(folder)
    path = folder / MANIFEST
    try:
        if not folder.is_dir():
            raise BundleError(f"no bundle at {folder}: build one with 'mscope-export build --out {folder}'")
        if not path.is_file():
            raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}; give the folder that 'build' wrote")
    except OSError as error:  # a folder that may not be entered, a name that is too long
        raise BundleError(f"cannot read {folder}: {error.strerror or error}") from None
    manifest = parse_manifest(_read_json(path), path)
    if check_files:
        for name, record in manifest.files.items():
            _check_file(folder / name, record)
    return manifest


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise BundleError(f"{path} is larger than {_MAX_MANIFEST_BYTES >> 20} MiB: not a manifest")
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise BundleError(f"{path} is not valid JSON: the bundle is damaged, build it again") from None
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror or error}") from None


def parse_manifest(content: Any, path: Path) -> Manifest:
    """A Manifest from parsed JSON; `path` is named in errors. Raises BundleError."""
    version = content.get("schema_version") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise BundleError(f"{path}: no schema_version: not a manifest of this program")
    if version > SCHEMA:
        raise BundleError(
            f"{path} has schema version {version}, this program reads up to {SCHEMA}: "
            "upgrade mambascope-deploy or build the bundle again"
        )
    # Manifests of version 1 did not say so.
    ops = content.get("op_version", 1)
    if not isinstance(ops, int):
        raise BundleError(f"{path}: its op_version is no number: not a manifest of this program")
    if ops != OP_VERSION:
        raise BundleError(
            f"{path}: its graphs use version {ops} of the ops, this program has version {OP_VERSION}: "
            "build the bundle again with 'mscope-export build'"
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = readable(".".join(str(part) for part in first["loc"])[:200]) or "manifest"
        raise BundleError(f"{path}: {where}: {first['msg']}; build the bundle again") from None
    if found := control_character_in(content):
        raise BundleError(f"{path}: {found}: a text with a control character in it; build the bundle again")
    return manifest


def _check_name(folder: Path) -> None:
    # Such a byte is a lone surrogate in Python, and not text for ONNX Runtime, which opens files by name.
    if any("\ud800" <= character <= "\udfff" for character in str(folder)):
        raise BundleError(f"{folder}: this path is not UTF-8, and a bundle's has to be: rename the folder")


def _check_file(path: Path, record: FileRecord) -> None:
    if not path.is_file():
        raise BundleError(f"{path} is missing: the bundle is incomplete, copy or build it again")
    try:
        size = path.stat().st_size
        sha256 = sha256_of(path) if size == record.bytes else ""
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror or error}") from None
    if size != record.bytes:
        raise BundleError(f"{path} has {size} bytes, the manifest says {record.bytes}: copy or build the bundle again")
    if sha256 != record.sha256:
        raise BundleError(f"{path} has changed since it was built (sha256 differs): copy or build the bundle again")


def data_folder() -> Path:
    """Where bundles go by default: $MSCOPE_HOME, else the user's data directory."""
    home = os.environ.get("MSCOPE_HOME")
    return Path(home) if home else Path(platformdirs.user_data_dir("mambascope"))


def mark_latest(folder: Path) -> None:
    """Remembers `folder` as the bundle that commands take when none is named."""
    data_folder().mkdir(parents=True, exist_ok=True)
    write_text_atomically(data_folder() / "latest", f"{folder.absolute()}\n")


def latest_bundle() -> Path:
    """The bundle built last without --out. Raises BundleError when there is none yet."""
    marker = data_folder() / "latest"
    if not marker.is_file():
        raise BundleError(
            "no bundle yet: build one with 'mscope-export build --size ti', or name one with --bundle DIR"
        )
    folder = Path(marker.read_text(encoding="utf-8", errors="replace").strip())
    if not folder.is_dir():
        raise BundleError(f"the latest bundle, {folder}, is gone: build one again, or name one with --bundle DIR")
    return folder
