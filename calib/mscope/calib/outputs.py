"""Both stages' outputs for every picture of a data set: computed once, kept in chunks, continued after a stop."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mscope.calib.dataset import Dataset, prepared_batches
from mscope.core.errors import InputError
from mscope.core.files import replacing, write_text_atomically
from mscope.runtime.outputs import writable_folder
from mscope.runtime.preprocess import pillow_version
from mscope.runtime.result import Outcome
from mscope.runtime.scope import Scope

# Pictures in a file. Independent of the batch, so that a run can be continued with another one.
CHUNK = 256
_KEY = "key.json"
_MAX_KEY_BYTES = 1 << 20
_FORMAT = 1

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Skipped:
    """A picture that could not be read, and why."""

    index: int
    reason: str


@dataclass(frozen=True)
class Outputs:
    """What the network gave for every readable picture, in the data set's order.

    Attributes:
        labels: (n,) int64.
        indices: (n,) int64, places in the data set.
        coarse_logits, fine_logits: (n, classes) float32; every picture went through both stages. None for a plain ViM.
        full_logits: (n, classes) float32 of a plain ViM, else None.
        importance: (n, Nc) float32, selected: (n, K) int64; None for a plain ViM.
        skipped: the others.
    """

    labels: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int64]
    coarse_logits: npt.NDArray[np.float32] | None
    fine_logits: npt.NDArray[np.float32] | None
    full_logits: npt.NDArray[np.float32] | None
    importance: npt.NDArray[np.float32] | None
    selected: npt.NDArray[np.int64] | None
    skipped: tuple[Skipped, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, indices: npt.NDArray[np.int64]) -> Outputs:
        """Those of the given places in the data set, which must be among `indices`."""
        keep = np.searchsorted(self.indices, indices)
        arrays: dict[str, Any] = {
            name: None if (array := getattr(self, name)) is None else array[keep] for name in _COLUMNS
        }
        return Outputs(skipped=self.skipped, **arrays)


_COLUMNS = ("labels", "indices", "coarse_logits", "fine_logits", "full_logits", "importance", "selected")


def outputs_key(scope: Scope, dataset: Dataset) -> dict[str, Any]:
    """What the outputs depend on: graphs, preprocessing, what ran them, and the data. Not eta, not the batch.

    Pillow's version is part of the preprocessing: 12.2 and 13 changed the pixels of tall pictures.
    """
    manifest = scope.manifest
    files = {
        stage: {
            variant.file: manifest.files[variant.file].sha256
            for variant in record.variants
            if variant.precision == scope.precision
        }
        for stage, record in manifest.stages.items()
    }
    network = {
        "config": manifest.config.model_dump(mode="json"),
        "preprocessing": manifest.preprocessing.model_dump(mode="json"),
        "files": files,
    }
    return {
        "format": _FORMAT,
        "bundle": hashlib.sha256(json.dumps(network, sort_keys=True).encode()).hexdigest(),
        "data": dataset.fingerprint,
        "images": len(dataset),
        "precision": scope.precision,
        "backend": scope.backend,
        "kernel": scope.kernel,
        "pillow": pillow_version(),
    }


def key_digest(key: Mapping[str, Any]) -> str:
    """A short name for a key, for a folder of its own."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def collect_outputs(
    scope: Scope,
    dataset: Dataset,
    folder: Path,
    *,
    batch: int = 16,
    on_problem: Callable[[InputError], None],
    on_done: Callable[[int], None] = lambda count: None,
) -> Outputs:
    """Runs every picture through every stage, or reads what an earlier call stored; goes on where one was stopped.

    Args:
        scope: the bundle; at eta 1 and beyond: every picture is refined.
        dataset: the pictures.
        folder: where the outputs are kept. Files are complete or not there.
        batch: pictures run together.
        on_problem: gets the reason for each picture that cannot be read; those are left out and counted.
        on_done: called with the number of pictures that are done since the last call.

    Raises:
        InputError: the folder holds outputs of another bundle or data, or other things; no picture can be read.
    """
    key = outputs_key(scope, dataset)
    _claim(folder, key)
    chunks: list[Arrays] = []
    skipped: list[Skipped] = []
    for start in range(0, len(dataset), CHUNK):
        stop = min(start + CHUNK, len(dataset))
        path = folder / f"{start // CHUNK:06d}.npz"
        if path.is_file():
            chunk = _read(path, start, stop)
            on_done(stop - start)
        else:
            chunk = _compute(scope, dataset, start, stop, batch, on_done)
            with replacing(path) as file:
                np.savez(file, allow_pickle=False, **chunk)
        for index, reason in zip(chunk.pop("skipped").tolist(), chunk.pop("reasons").tolist(), strict=True):
            skipped.append(Skipped(index, reason))
            on_problem(InputError(reason))
        chunks.append(chunk)
    names = {name for chunk in chunks if len(chunk["labels"]) for name in chunk}
    if not names:
        raise InputError(f"{dataset.name}: none of the {len(dataset)} pictures can be read; {skipped[0].reason}")
    arrays: dict[str, Any] = {
        name: np.concatenate([chunk[name] for chunk in chunks if len(chunk["labels"])]) if name in names else None
        for name in _COLUMNS
    }
    return Outputs(skipped=tuple(skipped), **arrays)


def _claim(folder: Path, key: dict[str, Any]) -> None:
    """Makes the folder the place of the outputs of `key`, or raises InputError if it is another's."""
    writable_folder(folder)
    path = folder / _KEY
    if not path.exists():
        # What a killed run leaves has a hidden name.
        if any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise InputError(f"{folder}: not empty, and no outputs of this program: choose another --out")
        write_text_atomically(path, json.dumps(key, indent=1) + "\n")
        return
    try:
        if path.stat().st_size > _MAX_KEY_BYTES:
            raise ValueError
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise InputError(f"{path}: damaged: remove {folder} and run again") from None
    changed = [name for name in key if stored.get(name) != key[name]]
    if changed:
        what = {"data": "set of pictures", "images": "set of pictures", "format": "version"}.get(changed[0], changed[0])
        if what == "pillow":
            what = f"Pillow ({stored.get(what, 'not recorded')}, here {key[what]})"
        raise InputError(f"{folder}: holds outputs of another {what}: choose another --out, or remove this folder")


def _compute(
    scope: Scope, dataset: Dataset, start: int, stop: int, batch: int, on_done: Callable[[int], None]
) -> Arrays:
    rows: list[Arrays] = []
    skipped: list[int] = []
    reasons: list[str] = []

    def on_problem(index: int, problem: InputError) -> None:
        skipped.append(index)
        reasons.append(str(problem))
        on_done(1)

    for pictures in prepared_batches(dataset, scope.preprocess, batch, start=start, stop=stop, on_problem=on_problem):
        outcome = scope.run(pictures.tensor, refine_all=True)
        rows.append({"labels": pictures.labels, "indices": pictures.indices, **_columns(outcome)})
        on_done(len(pictures.labels))
    chunk: Arrays = {"labels": np.zeros(0, np.int64), "indices": np.zeros(0, np.int64)}
    if rows:
        chunk = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    return chunk | {"skipped": np.array(skipped, np.int64), "reasons": np.array(reasons, np.str_)}


def _columns(outcome: Outcome) -> Arrays:
    if outcome.coarse_logits is None:
        return {"full_logits": outcome.logits}
    assert outcome.importance is not None
    assert outcome.selected is not None
    return {
        "coarse_logits": outcome.coarse_logits,
        "fine_logits": outcome.logits,
        "importance": outcome.importance,
        "selected": outcome.selected,
    }


def _read(path: Path, start: int, stop: int) -> Arrays:
    """One stored chunk, checked to be that of pictures start to stop - 1."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            chunk = {name: archive[name] for name in archive.files}
        places = np.concatenate([chunk["indices"], chunk["skipped"]])
        if sorted(places.tolist()) != list(range(start, stop)):
            raise ValueError
        if any(len(chunk[name]) != len(chunk["labels"]) for name in chunk if name in _COLUMNS):
            raise ValueError
        if len(chunk["reasons"]) != len(chunk["skipped"]):
            raise ValueError
    except (ValueError, KeyError, EOFError, OSError, TypeError, zipfile.BadZipFile):
        raise InputError(f"{path}: damaged: remove it and run again") from None
    return chunk
