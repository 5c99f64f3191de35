"""Bundles on labelled data: opened, run over every picture once, timed; what eval and calibrate-eta start from."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mscope.calib.dataset import Dataset, open_dataset
from mscope.calib.latency import StageLatency, measure_latency
from mscope.calib.outputs import Outputs, collect_outputs, key_digest, outputs_key
from mscope.core.bundle import data_folder
from mscope.core.errors import InputError
from mscope.core.manifest import Manifest, Precision
from mscope.runtime.backends.base import Kernel
from mscope.runtime.scope import Scope


@dataclass(frozen=True)
class StudyOptions:
    """What to run on what.

    Attributes:
        data: as `open_dataset` takes it, with `limit` and `seed`.
        batch: pictures run together; no figure depends on it.
        backend, kernel, precision, threads: as `Scope.load` takes them.
        latency_images: pictures that latency is measured on; 0 measures none.
        out: folder of the results, the outputs in it; None keeps the outputs below the user's data folder.
    """

    data: str
    limit: int | None = None
    seed: int = 0
    batch: int = 16
    backend: str = "auto"
    kernel: Kernel = "auto"
    precision: str = "auto"
    threads: int | None = None
    latency_images: int = 50
    out: Path | None = None


@dataclass(frozen=True)
class Observed:
    """One bundle's outputs.

    Attributes:
        folder, manifest: the bundle.
        outputs: on the pictures that were read.
        latency: of its stages; None for a plain ViM or where it was not measured.
        plain_ms: of a plain ViM's pass.
        store: where the outputs are.
        notes: what a choice of "auto" passed over, lines for people.
    """

    folder: Path
    manifest: Manifest
    outputs: Outputs
    latency: StageLatency | None
    plain_ms: float | None
    store: Path
    backend: str
    kernel: str
    precision: Precision
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """All bundles on the same pictures."""

    dataset: Dataset
    bundles: tuple[Observed, ...]

    @property
    def images(self) -> int:
        return len(self.bundles[0].outputs)

    @property
    def skipped(self) -> int:
        return len(self.bundles[0].outputs.skipped)


def observe(
    folders: Sequence[Path],
    options: StudyOptions,
    *,
    on_problem: Callable[[InputError], None],
    on_start: Callable[[int], contextlib.AbstractContextManager[Callable[[int], None]]],
) -> Study:
    """Runs the bundles over the data, or reads what an earlier call stored.

    Args:
        folders: bundles; the first one's labels name the classes.
        options: what on what.
        on_problem: gets the reason for each picture that cannot be read, once.
        on_start: makes the progress bar, given the number of pictures to go; called with how many are done.

    Raises:
        InputError, BackendError: bad data, a bundle or an option that does not fit; what `collect_outputs` raises.
    """
    with contextlib.ExitStack() as stack:
        scopes = []
        for folder in folders:
            scopes.append(
                stack.enter_context(
                    Scope.load(
                        folder,
                        backend=options.backend,
                        threads=options.threads,
                        kernel=options.kernel,
                        precision=options.precision,
                    )
                )
            )
            _check_alike(folders[0], scopes[0].manifest, folder, scopes[-1].manifest)
        dataset = open_dataset(options.data, scopes[0].manifest, limit=options.limit, seed=options.seed)
        stores = [_store(options, dataset, scope, place) for place, scope in enumerate(scopes)]
        outputs = []
        with on_start(len(dataset) * len(scopes)) as on_done:
            for place, (scope, store) in enumerate(zip(scopes, stores, strict=True)):
                # The pictures are the same for all bundles, and so are the bad ones.
                tell = on_problem if place == 0 else _silent
                outputs.append(
                    collect_outputs(scope, dataset, store, batch=options.batch, on_problem=tell, on_done=on_done)
                )
        common = functools.reduce(np.intersect1d, [out.indices for out in outputs])
        if not common.size:
            raise InputError(f"{options.data}: no picture can be read for all of the bundles")
        latencies, plain = measure_latency(scopes, dataset, options.latency_images)
        bundles = [
            Observed(
                folder=folder,
                manifest=scope.manifest,
                outputs=out.rows(common),
                latency=latency,
                plain_ms=ms,
                store=store,
                backend=scope.backend,
                kernel=scope.kernel,
                precision=scope.precision,
                notes=tuple(scope.notes),
            )
            for folder, scope, out, latency, ms, store in zip(
                folders, scopes, outputs, latencies, plain, stores, strict=True
            )
        ]
        return Study(dataset, tuple(bundles))


def _silent(problem: InputError) -> None:
    """A bad picture that was told of already."""


def _store(options: StudyOptions, dataset: Dataset, scope: Scope, place: int) -> Path:
    if options.out is not None:
        return options.out / ("outputs" if place == 0 else f"outputs-{place + 1}")
    return data_folder() / "outputs" / f"{scope.manifest.name}-{key_digest(outputs_key(scope, dataset))}"


def _check_alike(first: Path, manifest: Manifest, other: Path, others: Manifest) -> None:
    if others.config.classes != manifest.config.classes:
        raise InputError(
            f"{other} has {others.config.classes} classes, {first} has {manifest.config.classes}: "
            "bundles that are compared answer the same question"
        )
    if manifest.labels and others.labels and others.labels != manifest.labels:
        raise InputError(
            f"{other} and {first} have different labels: bundles that are compared answer the same question"
        )
