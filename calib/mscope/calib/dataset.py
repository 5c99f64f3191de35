"""Labelled data: pictures in class folders, a list file, or the built-in digits, in one fixed order."""

from __future__ import annotations

import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mscope.calib.classes import ClassMap, map_classes, map_indices
from mscope.calib.listing import Listing, is_list, list_file, list_folder
from mscope.core.config import ModelConfig
from mscope.core.errors import InputError
from mscope.core.manifest import Manifest
from mscope.runtime.preprocess import Preprocessor

DIGITS_PICTURES = 4000
_MAX_DIGITS = 10_000_000
_DIGITS = re.compile(r"digits(?::([a-z]+)(?::(\d{1,9}))?)?")


@dataclass(frozen=True)
class Example:
    """One labelled picture: its name in messages, what `Preprocessor` takes, and the index of its class."""

    source: str
    image: Path | npt.NDArray[np.uint8]
    label: int


class Dataset(ABC):
    """Labelled pictures by index, 0 to len - 1; the same index is always the same picture.

    Attributes:
        name: what it is, as given: a path or "digits:test".
        classes: outputs of the network that the labels count.
        notes: what was left out and how class names were read, lines for people.
    """

    name: str
    classes: int
    notes: tuple[str, ...]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def example(self, index: int) -> Example:
        """One picture, not yet decoded where it is a file."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 of pictures, labels and their order. Reads every file once."""


class Files(Dataset):
    """Pictures on disk."""

    def __init__(
        self, name: str, listing: Listing, classes: int, mapping: ClassMap, chosen: Sequence[int] | None = None
    ) -> None:
        pictures = listing.pictures if chosen is None else [listing.pictures[i] for i in chosen]
        self.name = name
        self.classes = classes
        self.notes = (*listing.notes, f"classes {mapping.rule}")
        if len(mapping.indices) < classes:
            self.notes += (f"{len(mapping.indices)} of the network's {classes} classes have pictures here",)
        self._root = listing.root
        self._examples = [Example(str(path), path, mapping.indices[name]) for path, name in pictures]

    def __len__(self) -> int:
        return len(self._examples)

    def example(self, index: int) -> Example:
        return self._examples[index]

    @cached_property
    def fingerprint(self) -> str:
        total = hashlib.sha256(f"{self.classes}\n".encode())
        for example in self._examples:
            relative = os.path.relpath(example.source, self._root)
            total.update(os.fsencode(f"{relative}\0{example.label}\0{_sha256_or_reason(Path(example.source))}\n"))
        return total.hexdigest()


class DigitsPictures(Dataset):
    """The first pictures of a split of the built-in cluttered digits."""

    def __init__(self, split: str, seed: int, count: int) -> None:
        from mscope.model.training.digits import CLASSES, Digits

        if split not in ("test", "validation"):
            raise InputError(f"digits:{split}: choose digits:test or digits:validation (the others were trained on)")
        self._data = Digits("test" if split == "test" else "validation", seed)
        self._count = count
        self.name = f"digits:{split}" + (f":{seed}" if seed else "")
        self.classes = CLASSES
        self.notes = ()
        # Now and not in the middle of a run: scikit-learn has to be there.
        self.example(0)

    def __len__(self) -> int:
        return self._count

    def example(self, index: int) -> Example:
        batch = self._data.batch(index, 1)
        return Example(f"{self.name}[{index}]", batch.images[0], int(batch.labels[0]))

    @cached_property
    def fingerprint(self) -> str:
        # A picture is a function of (seed, split, index). The first ones tell when the drawing itself has changed.
        total = hashlib.sha256(f"{self.name}\0{self._data.seed}\0{self._count}\n".encode())
        for index in range(min(self._count, 8)):
            example = self.example(index)
            total.update(np.asarray(example.image).tobytes() + bytes([example.label]))
        return total.hexdigest()


def open_dataset(spec: str, manifest: Manifest, *, limit: int | None = None, seed: int = 0) -> Dataset:
    """The labelled data that a command names.

    Args:
        spec: a folder with one folder for each class; a .csv or .txt list of paths and classes (indices or names); or
            `digits`, `digits:validation`, `digits:test:SEED`, the built-in set (a folder of that name is `./digits`).
        manifest: of the bundle, whose labels name the classes.
        limit: take this many pictures only: the first ones of `digits` (4,000 without a limit), else drawn from every
            class in turn, so that a small number still shows all classes.
        seed: of that draw.

    Raises:
        InputError: nothing there, no or misfitting classes, a class without pictures; one line that says what to do.
    """
    if limit is not None and not 1 <= limit <= _MAX_DIGITS:
        raise InputError(f"--limit is a number of pictures from 1 to {_MAX_DIGITS}, got {limit}")
    config = manifest.config
    if built_in := _DIGITS.fullmatch(spec):
        _check_digits_bundle(config, manifest.labels)
        return DigitsPictures(built_in[1] or "test", int(built_in[2] or 0), limit or DIGITS_PICTURES)
    path = Path(spec)
    if "\0" in spec or not path.exists():
        raise InputError(f"{spec}: no such folder or list; DATA is a folder of class folders, a .csv list, or 'digits'")
    if path.is_dir():
        listing = list_folder(path)
        mapping = map_classes(sorted({name for _, name in listing.pictures}), config.classes, manifest.labels, spec)
    elif is_list(path):
        listing = list_file(path)
        mapping = map_indices([name for _, name in listing.pictures], config.classes, manifest.labels, spec)
    else:
        raise InputError(f"{spec}: DATA is a folder of class folders, a .csv or .txt list, or 'digits'")
    chosen = None
    if limit is not None and limit < len(listing.pictures):
        chosen = _spread([mapping.indices[name] for _, name in listing.pictures], limit, seed)
    return Files(spec, listing, config.classes, mapping, chosen)


@dataclass(frozen=True)
class LabelledBatch:
    """Prepared pictures.

    Attributes:
        tensor: (b, C, H, W) float32, normalised, new.
        labels: (b,) int64.
        indices: (b,) int64, their places in the data set.
        sources: their names.
    """

    tensor: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int64]
    sources: tuple[str, ...]


def prepared_batches(
    dataset: Dataset,
    preprocess: Preprocessor,
    size: int,
    *,
    start: int = 0,
    stop: int | None = None,
    on_problem: Callable[[int, InputError], None],
) -> Iterator[LabelledBatch]:
    """Pictures start to stop - 1, prepared exactly as mscope-run does it, in order, `size` at a time.

    Args:
        dataset: where they come from.
        preprocess: the bundle's: `Scope.preprocess`, or `Preprocessor(manifest.preprocessing, manifest.config)`.
        size: largest batch, 1 or more.
        start: first index.
        stop: past the last index; None: the end.
        on_problem: called with the index of each picture that cannot be read, and why; it is in no batch.
    """
    if size < 1:
        raise InputError(f"a batch has 1 or more pictures, got {size}")
    waiting: list[tuple[int, Example, npt.NDArray[np.float32]]] = []
    for index in range(start, len(dataset) if stop is None else stop):
        example = dataset.example(index)
        try:
            waiting.append((index, example, preprocess(example.image, example.source).tensor))
        except InputError as problem:
            on_problem(index, problem)
            continue
        if len(waiting) == size:
            yield _batch(waiting)
            waiting = []
    if waiting:
        yield _batch(waiting)


def _batch(rows: list[tuple[int, Example, npt.NDArray[np.float32]]]) -> LabelledBatch:
    return LabelledBatch(
        tensor=np.stack([tensor for _, _, tensor in rows]),
        labels=np.array([example.label for _, example, _ in rows], np.int64),
        indices=np.array([index for index, _, _ in rows], np.int64),
        sources=tuple(example.source for _, example, _ in rows),
    )


def _spread(labels: Sequence[int], limit: int, seed: int) -> list[int]:
    """`limit` indices in ascending order: shuffled within each class, then taken from the classes in turn."""
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(labels))
    turns: list[tuple[int, int]] = []
    seen: dict[int, int] = {}
    for index in order.tolist():
        turns.append((seen.setdefault(labels[index], 0), index))
        seen[labels[index]] += 1
    # Stable: within a turn the shuffled order decides, not the class number.
    return sorted(index for _, index in sorted(turns, key=lambda turn: turn[0])[:limit])


def _check_digits_bundle(config: ModelConfig, labels: Sequence[str] | None) -> None:
    from mscope.model.training.digits import CLASSES, LABELS

    if config.classes != CLASSES or (labels is not None and tuple(labels) != LABELS):
        raise InputError(
            f"digits has the classes 0 to 9, the bundle has {config.classes} classes of its own: "
            "give a folder with one folder for each of them"
        )


def _sha256_or_reason(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        # A picture that cannot be read is skipped later, with its reason; here it must only stay the same.
        return f"unreadable: {type(error).__name__}"
    return digest.hexdigest()
