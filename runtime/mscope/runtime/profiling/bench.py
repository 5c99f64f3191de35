"""The loaded bundles of a profile: the one that is measured, and the plain ViM beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mscope.core.bundle import latest_bundle, sha256_of
from mscope.core.errors import InputError
from mscope.core.geometry import vim_name
from mscope.core.manifest import MANIFEST, Manifest
from mscope.runtime.backends.registry import Place
from mscope.runtime.profiling.measure import Case, Clock
from mscope.runtime.profiling.options import ProfileOptions
from mscope.runtime.profiling.pictures import Pictures, look_at_pictures
from mscope.runtime.profiling.schema import BundleIdentity, PathName, RuntimeIdentity
from mscope.runtime.profiling.workload import Workload, made_up_picture
from mscope.runtime.scope import Scope

Progress = Callable[[str, float], None]

# The case that times the fine stage of one image.
FINE_ONE = "fine of one"
# The cases that are paths with the exit decided on the host, beside those where the device decides.
ON_HOST: dict[str, PathName] = {"exit on the host": "exit", "refine on the host": "refine"}


@dataclass(frozen=True)
class Bench:
    """The loaded bundles, and a workload on each."""

    folder: Path
    scope: Scope
    work: Workload
    compare_folder: Path | None
    compare: Scope | None
    compare_work: Workload | None
    decide: Place = "host"

    @property
    def adaptive(self) -> bool:
        return self.scope.config.arch != "vim"

    def paths(self) -> dict[PathName, Workload]:
        """Who runs which path."""
        if not self.adaptive:
            return {"plain": self.work}
        paths: dict[PathName, Workload] = {"exit": self.work, "refine": self.work}
        return paths if self.compare_work is None else {**paths, "plain": self.compare_work}

    def cases(self, batch: int) -> dict[str, Case]:
        """What is measured in turn at a batch size.

        The paths; for batches the fine stage of one image; where the device decides, the paths decided on the host.
        """
        cases: dict[str, Case] = {name: work.path(name, batch) for name, work in self.paths().items()}
        if self.decide == "device":
            cases |= {case: self.work.path(name, batch, on_host=True) for case, name in ON_HOST.items()}
        return {**cases, FINE_ONE: self.work.fine_alone()} if self.adaptive and batch > 1 else cases


@contextlib.contextmanager
def open_bench(options: ProfileOptions, clock: Clock, on_progress: Progress) -> Iterator[tuple[Bench, Pictures | None]]:
    """Loads the bundles and looks at the pictures; closes the bundles when the block ends.

    Raises:
        InputError: options that do not go with the bundle, bundles that cannot be compared, unusable pictures.
        BundleError, BackendError: as `Scope.load`.
    """

    def load_scope(folder: Path, decide: Place) -> Scope:
        scope = Scope.load(
            folder,
            backend=options.backend,
            threads=options.threads,
            kernel=options.kernel,
            precision=options.precision,
            preprocess=options.preprocess,
            decide=decide,
        )
        scope.time_on_device()
        return scope

    on_progress("loading", 0.0)
    folder = latest_bundle() if options.bundle is None else options.bundle
    with contextlib.ExitStack() as stack:
        scope = stack.enter_context(load_scope(folder, options.decide))
        if scope.config.arch == "vim":
            _refuse_for_plain(options)
        compare = None
        if options.compare is not None:
            compare = stack.enter_context(load_scope(options.compare, "host"))
            _check_comparable(scope.manifest, compare.manifest, options.compare)
        pictures = None
        images: Sequence[Any] = [made_up_picture(scope.manifest.preprocessing)]
        if options.data is not None:
            pictures = look_at_pictures(
                scope, options.data, options.limit, lambda share: on_progress("looking at the pictures", share)
            )
            images = pictures.pool
        compare_work = None if compare is None else Workload(compare, images, clock)
        bench = Bench(
            folder, scope, Workload(scope, images, clock), options.compare, compare, compare_work, options.decide
        )
        yield bench, pictures


def _refuse_for_plain(options: ProfileOptions) -> None:
    for given, option in ((options.compare, "--compare"), (options.etas, "--eta"), (options.exit_rate, "--exit-rate")):
        if given not in (None, ()):
            raise InputError(
                f"{option} has no meaning here: the bundle is a plain ViM, which has no early exit; "
                "leave it out, or give a mambascope bundle as --bundle"
            )


def _check_comparable(ours: Manifest, other: Manifest, folder: Path) -> None:
    if other.config.arch != "vim":
        raise InputError(
            f"--compare {folder}: is a {other.config.arch} bundle, expected plain ViM: build one with "
            f"'mscope-export build --size {ours.config.size} --arch vim'"
        )
    if not other.config.plain:
        raise InputError(
            f"--compare {folder}: is a ViM reduced by {other.config.reduce}, expected a plain one: build that without "
            "--reduce, and profile this bundle by itself"
        )
    if other.config.channels != ours.config.channels:
        raise InputError(
            f"--compare {folder}: takes pictures of {other.config.channels} channels, the bundle of "
            f"{ours.config.channels}: these networks do not solve one task"
        )


def identity_of(folder: Path, manifest: Manifest) -> BundleIdentity:
    """What a profile records of a bundle."""
    config = manifest.config
    adaptive = config.arch != "vim"
    return BundleIdentity(
        name=manifest.name,
        folder=str(folder.absolute()),
        manifest_sha256=sha256_of(folder / MANIFEST),
        arch=config.arch,
        reduced=vim_name(config) if config.reductions else None,
        size=config.size,
        resolution=(config.height, config.width),
        alpha=config.alpha if adaptive else None,
        weights=manifest.weights.describe(),
        trained=manifest.weights.trained,
        default_eta=manifest.default_eta if adaptive else None,
        gmacs={stage: record.gmacs for stage, record in manifest.stages.items()},
    )


def runtime_of(scope: Scope, options: ProfileOptions) -> RuntimeIdentity:
    """What a profile records of how a bundle was run."""
    return RuntimeIdentity(
        backend=scope.backend,
        kernel=scope.kernel,
        precision=scope.precision,
        threads=options.threads,
        preprocess=options.preprocess,
        decide="host" if scope.config.arch == "vim" else options.decide,
    )
